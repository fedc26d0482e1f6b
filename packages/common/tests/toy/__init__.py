"""A toy of a paper: one objective, one data set, one recipe; CONTRIBUTING.md shows its files."""
