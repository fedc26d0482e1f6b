"""One reward model, whichever paper trained it: its head, its pooling, how it reads a text, and its scores."""
