"""Public instruction data, a file each: one function from an original row to an instruction row.

To add one, put a file into this folder with a function whose docstring names the columns, and register it::

    @source("mydata", ["question", "reply"], hub="me/mydata")
    def mydata(values, rules):
        '''Columns: question, reply.'''
        return alpaca_row(column(values, "question"), column(values, "reply"))

A :class:`~reproalign.common.data.records.RowError` raised by it is reported with file and line. The columns are what
its rows are recognised by when ``data.sets`` does not name the source.
"""

import importlib
import pkgutil

from reproalign.dtm.disperse.sources.registry import SOURCES, InstructionRow, Rules, Source, recognise, source

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["SOURCES", "InstructionRow", "Rules", "Source", "recognise", "source"]
