"""The experiment: arms, presets, sweep, statistics, preregistered verdicts, report (`python -m experiments --help`)."""
