"""Models: loading, tiny ones, adapters, changed forwards, the value head, and what identifies weights."""
