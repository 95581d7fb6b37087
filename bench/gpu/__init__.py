"""The GPU path, measured: training step, push, one-card loop. `python -m bench.gpu --help`."""
