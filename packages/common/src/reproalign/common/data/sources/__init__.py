"""Public data sets, a file each: one function from an original row to a prompt with its responses.

To add one, put a file into this folder with a function whose docstring names the columns, and register it::

    @source("mydata", "question", "better", "worse", hub="me/mydata", splits=("train", "test"))
    def mydata(row):
        '''Columns: question, better, worse.'''
        sides = [[assistant(text_of(row, name))] for name in ("better", "worse")]
        return Prompt([user(text_of(row, "question"))], sides, pairs=[(0, 1)])

Every paper reads it then: as pairs, ranked items, single responses, instructions or dialogues, which are views of the
record (:mod:`reproalign.common.data.views` and the papers' own rules). The columns behind the name are what its rows
are recognised by where ``data.sets.NAME.source`` is not given. A :class:`~reproalign.common.data.records.RowError` is
reported with file and line.
"""

import importlib
import pkgutil

from reproalign.common.data.sources.registry import SOURCES, Source, recognise, source

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["SOURCES", "Source", "recognise", "source"]
