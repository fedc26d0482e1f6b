"""Learning the ratios: data, objective, gradient, solvers."""
