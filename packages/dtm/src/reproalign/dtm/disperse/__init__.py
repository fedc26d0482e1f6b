"""Instruction rows into clusters: extraction, embeddings, labels, report."""
