"""The GRPO loop on delta_S. Read train.py first."""
