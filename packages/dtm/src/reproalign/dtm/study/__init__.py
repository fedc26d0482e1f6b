"""What late fine-tuning does: curves, loss gaps, tokens, error sets, and the paper's claims as checks."""
