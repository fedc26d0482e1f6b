"""Measures on held-out preferences, calibration, RewardBench, MT-Bench; sampling, best-of-n, judging; plots."""
