"""Ready-made verbs that the papers' commands list."""
