"""Disperse-Then-Merge (arXiv 2405.13432): instruction data in clusters, a LoRA sub-model on each, merged."""
