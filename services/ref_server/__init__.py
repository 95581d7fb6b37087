"""Rollout generation (vLLM) and reference log-probs, behind Redis streams and a small FastAPI."""
