"""The command of a package: verbs, recipes, help, and errors that fit on one line."""
