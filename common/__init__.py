"""What every service agrees on: messages, the wire, Redis keys, the queue, settings, metrics. No torch, no vLLM."""
