"""The resolution of what a command draws."""

DPI = 200  # of every figure; figures/style.py sets it
