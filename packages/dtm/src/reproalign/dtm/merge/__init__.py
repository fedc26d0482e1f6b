"""Sub-models into one: averages of factors and deltas, the paper's comparison, the logit ensemble."""
