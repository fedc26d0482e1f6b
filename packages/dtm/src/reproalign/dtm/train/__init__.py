"""One LoRA sub-model on the rows of one cluster, or of all; the baselines of the paper's main table."""
