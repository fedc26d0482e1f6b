"""Judging: which of two answers is better, asked of a language model behind an API."""
