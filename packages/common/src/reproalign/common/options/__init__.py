"""Options declared once: a key's default, meaning, unit, range, choices and source stand in its class, and only there.

A configuration is a dataclass whose fields are made by :func:`option` (a key) and :func:`section` (keys under a common
name). :func:`~reproalign.common.options.check.check` holds a composed configuration against that declaration, and
``VERB --help`` prints it.
"""

from reproalign.common.options.choices import one_of
from reproalign.common.options.declare import Option, like, option, section
from reproalign.common.options.shared import output_dir, seed, variant

__all__ = ["Option", "like", "one_of", "option", "output_dir", "section", "seed", "variant"]
