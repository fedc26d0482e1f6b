"""Which rows are read, of which data sets: ``data.*``."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.options import option


@dataclass
class RowsConfig:
    """Where the rows of one data set are, and which of them are used; ``data.sets.NAME.*``."""

    source: str | None = option(
        None,
        help="how its rows are read",
        choices="reproalign.common.data.sources:SOURCES",
        null="recognised by the columns of the first row",
    )
    path: str | None = option(
        None,
        help="local rows: .json, .jsonl, .jsonl.gz, .parquet, .csv, a save_to_disk folder, a folder with a file per "
        "split; or demo:pairs-train",
        null="from the Hub",
    )
    name: str | None = option(None, help="data set on the Hub", null="the source's home")
    config_name: str | None = option(None, help="configuration of the data set on the Hub", null="its default one")
    revision: str | None = option(None, help="branch, tag or commit on the Hub", null="the default branch")
    split: str | None = option(None, help="split to train on, or what its file's name begins with", null="the source's")
    first: int | None = option(None, help="only the first so many", at_least=1, null="all")


@dataclass
class SetConfig(RowsConfig):
    """One data set with its held-out rows; ``data.sets.NAME.*``."""

    fraction: float = option(1.0, help="only the first share of its training rows", above=0, at_most=1)
    eval_path: str | None = option(None, help="local held-out rows, as path", null="none")
    eval_split: str | None = option(
        None, help="held-out split on the Hub", null="the source's, where the rows are from its home"
    )
    eval_first: int | None = option(None, help="only the first so many held-out ones", at_least=1, null="all")


@dataclass
class ReadingConfig:
    """What is said of all data sets together; ``data.*``."""

    sets: dict[str, SetConfig] = option({}, help="the data sets, each under a name of your choice")
    eval_fraction: float = option(
        0.0, help="hold out this share of the prompts of each set that has no held-out rows", at_least=0, below=1
    )
    on_error: str = option(
        "raise",
        help="what becomes of a row that does not fit",
        choices={"raise": "the run stops", "skip": "listed in rejects-*.jsonl"},
    )


@dataclass
class PreparingConfig(ReadingConfig):
    """Likewise, of rows that are prepared once and kept."""

    num_proc: int | None = option(None, help="processes that prepare rows", at_least=1, null="one")
    cache_dir: str | None = option(None, help="folder of prepared rows", null="the user's cache folder")


@dataclass
class HeldOutConfig(PreparingConfig):
    """The data sets of an evaluation; several are mixed."""

    max_eval_rows: int | None = option(None, help="held-out rows in all", at_least=1, null="all")


@dataclass
class DataConfig(HeldOutConfig):
    """The data sets of a run; several are mixed."""

    max_rows: int | None = option(None, help="training rows in all", at_least=1, null="all")
