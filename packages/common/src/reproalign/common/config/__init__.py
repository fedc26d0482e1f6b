"""Structured configuration shared by every paper: what a run reads, trains, launches and writes.

Each paper's own ``config.py`` subclasses :class:`~reproalign.common.config.run.RunConfig` and adds its method. Hydra
composes these with the YAML groups in ``reproalign.common.configs`` (``data``, ``model``, ``launch``) and in the
paper's own ``configs`` folder. ``null`` always means "not set". Lengths are in tokens.
"""
