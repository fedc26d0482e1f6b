"""Risk-aware Direct Preference Optimization (arXiv 2505.20359) and the losses that it is compared with."""
