"""Grading of code written by a model that is paid to cheat: an executor, a protected oracle, the published detector."""
