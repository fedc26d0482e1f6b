"""Judging: which of two responses is better, asked of a language model behind an API or read off PairRM's logits."""
