"""A real pretrained model and graded pairs that come from package indexes alone, for a first run without the Hub."""
