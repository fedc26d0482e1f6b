"""What is made of several runs: the paper's tables, figures and claims."""
