"""Trainers for preference pairs and reward models on ``transformers.Trainer``, to which a paper adds its loss."""
