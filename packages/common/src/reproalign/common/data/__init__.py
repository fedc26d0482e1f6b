"""From original rows to token ids: reading, sources, chat templates, tokenising, collating, caching."""
