"""Measures on held-out preferences, calibration, RewardBench, MT-Bench, best-of-n, and their plots."""
