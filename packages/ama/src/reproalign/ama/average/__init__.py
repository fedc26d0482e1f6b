"""Averaging the weights before and after RLHF: uniformly, by parts, or with learned ratios."""
