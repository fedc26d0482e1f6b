"""Merging: equations on tensors (``methods``), a streaming engine, blocks, adapters; the verb is ``verbs/merge.py``."""
