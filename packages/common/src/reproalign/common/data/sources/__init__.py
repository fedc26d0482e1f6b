"""Public data sets, a file each: one function from an original row to a preference record.

To add one, put a file into this folder with a function whose docstring names the columns, and register it::

    @source("mydata", hub="me/mydata", splits=("train", "test"))
    def mydata(row):
        '''Columns: question, better, worse.'''
        ...
        return make_record(prompt, chosen, rejected)

A :class:`~reproalign.common.data.records.RowError` raised by it is reported with file and line.
"""

import importlib
import pkgutil

from reproalign.common.data.sources.registry import SOURCES, Home, Source, source

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["SOURCES", "Home", "Source", "source"]
