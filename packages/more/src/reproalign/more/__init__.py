"""MORE: one reward model for diverse preferences (arXiv 2312.07401)."""
