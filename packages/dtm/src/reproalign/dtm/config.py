"""Options of ``dtm run``; those of the single verbs are in their own folders."""
