"""Evaluation of a model, and of a whole front of them: reward against tasks."""
