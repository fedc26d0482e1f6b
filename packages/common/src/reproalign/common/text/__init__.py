"""From messages to token ids: chat templates, rendering, tokenising, boundaries, prompts, batches."""
