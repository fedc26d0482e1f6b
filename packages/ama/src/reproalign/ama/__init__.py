"""Mitigating the Alignment Tax of RLHF (arXiv 2309.06256): average the weights before and after, in learned ratios."""
