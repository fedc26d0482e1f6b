"""The shared core: data, log-probabilities, trainers, launch, evaluation and run records."""
