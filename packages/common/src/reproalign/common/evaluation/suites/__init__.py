"""Suites of lm-eval's tasks: which tasks, with how many shots, on which data, and what a number stands for."""
