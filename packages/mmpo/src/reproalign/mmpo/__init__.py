"""Margin Matching Preference Optimization (arXiv 2410.03145): DPO and reward models on soft Bradley-Terry targets."""
