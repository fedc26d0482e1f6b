"""One run's folder and its ``run.json``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from reproalign.common.console import note
from reproalign.common.errors import UserError
from reproalign.common.files import follow_umask, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.journal import sweep_sums
from reproalign.common.manifests import RECORD, seal
from reproalign.common.records.card import write_cards
from reproalign.common.records.environment import peak_memory
from reproalign.common.records.fingerprints import fingerprint_folder, identity_entry, identity_of
from reproalign.common.records.folder import CONFIG, LOST, check_folder, sweep, unfinished_run
from reproalign.common.records.lock import LOCK, FolderLock, take
from reproalign.common.records.metrics import METRICS, distinct
from reproalign.common.records.record import new_record, now, plain
from reproalign.common.signing import signed


class Run:
    """An open run: a context manager that keeps ``run.json`` true from the start to whatever end.

    Only the main process writes. A user's mistake found inside the block leaves nothing behind unless the run is a
    resumed one. ``run.json`` is strict JSON: NaN and infinities are the strings "NaN", "Infinity", "-Infinity".
    """

    def __init__(self, folder: Path, invocation: Invocation, *, is_main: bool) -> None:
        self.dir = folder
        self.record = new_record(invocation)
        self.is_main = is_main
        # The folders this run makes, innermost first; removed again if the configuration is rejected.
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._invocation = invocation
        self._lock: FolderLock | None = None
        self._fresh = True
        self._rows: list[dict[str, Any]] = []
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    @classmethod
    def open(cls, invocation: Invocation, *, is_main: bool = True) -> Run:
        """Open the run that ``invocation`` asks for in its ``output_dir``; entered, it holds that folder.

        Raises:
            UserError: if the folder holds a run that is under way, another run, a finished one, or anything else (see
                :func:`check_folder`), here or when it is entered.
        """
        if invocation.preview is not None:
            return cls(Path(tempfile.mkdtemp(prefix="reproalign-")), invocation, is_main=True)
        folder = Path(invocation.config["output_dir"])
        if is_main:
            check_folder(folder, invocation)
        return cls(folder, invocation, is_main=is_main)

    def __enter__(self) -> Run:
        if self.is_main:
            try:
                self._begin()
            except BaseException as error:
                error.add_note(f"output_dir={self.dir}")
                self._leave()
                raise
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()  # no other process writes before the first one holds the folder
        return self

    def _begin(self) -> None:
        """Take the folder, and write what the run is; a run that is there already goes on."""
        import yaml

        if self._invocation.preview is None:
            self._lock = take(self.dir)
            # Again, under the lock: another start may have begun or ended since the folder was looked at.
            earlier = unfinished_run(self.dir, self._invocation)
            self._fresh = earlier is None
            sweep(self.dir)
            if earlier is not None:
                if earlier["status"] == LOST:
                    note(
                        f"output_dir={self.dir}: {RECORD} is lost, and {CONFIG} is this command's: the run goes on "
                        "from what is there; whether data and weights are what they were cannot be checked"
                    )
                for key in ("started", "wall_seconds", "fingerprints", "children"):
                    self.record[key] = earlier.get(key, self.record.get(key))
                self.record["resumptions"] = int(earlier.get("resumptions", 0)) + 1
                self._seconds_before = float(earlier.get("wall_seconds") or 0.0)
        try:
            self._write()
            text = yaml.safe_dump(self.record["config"], sort_keys=False, allow_unicode=True)
            write_text(self.dir / CONFIG, text)
        except OSError:  # a full disk
            if self._fresh:
                self._undo()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_main:
            return
        if self.record["preview"] is not None:
            shutil.rmtree(self.dir)
            return
        if error is not None:
            error.add_note(f"output_dir={self.dir}")  # libraries do not always say which file could not be written
        try:
            self._end(error)
        finally:
            self._leave()

    def _end(self, error: BaseException | None) -> None:
        children = (self.dir / name for name in self.record["children"])
        worth_keeping = any(path.exists() for path in (*self.dir.glob("checkpoint-*"), *children))
        if isinstance(error, UserError) and self._fresh and not worth_keeping:
            self._undo()
            return
        status = "finished" if error is None else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.record["status"] = status
        if error is not None and status == "failed":
            self.record["error"] = f"{type(error).__name__}: {error}"
        self.record["ended"] = now()
        self.record["wall_seconds"] = self._seconds_before + time.perf_counter() - self._started
        self.record["peak_memory"] = peak_memory()
        if status == "finished":
            sweep_sums(self.dir)
            seal(self.dir)
        try:
            self._write()
        except OSError:
            if error is None:
                raise
            note(f"output_dir={self.dir}: {RECORD} cannot be written; it says what the run was before")
        if status == "finished":
            write_cards(self.dir, self.record)
        follow_umask(self.dir)

    def _undo(self) -> None:
        """Remove what this run wrote."""
        for path in self.dir.iterdir():
            if path.name != LOCK:  # as long as files are removed, nobody may begin here
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _leave(self) -> None:
        """Give the folder free; it and those above that this run made go unless something is in them."""
        if self._lock is not None:
            self._lock.release()
        with suppress(OSError):  # not empty
            for path in self._made:
                path.rmdir()

    def keep(self) -> None:
        """Leave what was written so far even if a user's mistake ends the run: it took long to make."""
        self._fresh = False

    def set(self, key: str, value: Any) -> None:
        """Put a fact into the record."""
        self.record[key] = value
        self._write()

    def set_metrics(self, metrics: dict[str, Any]) -> None:
        """Add final metrics."""
        self.record["metrics"] |= metrics
        self._write()

    def add_fingerprint(self, kind: str, name: str, identity: str, /, *, made: bool = False, **facts: Any) -> None:
        """Record what ``data`` or ``weights`` went in, or came out (``made``).

        Args:
            kind: ``data`` or ``weights``.
            name: the part it plays: ``train``, ``policy``.
            identity: SHA-256 of the content, or ``org/name@commit`` of a Hub repository.
            made: it came out.
            facts: where it was, how many rows it has.

        Raises:
            UserError: if the run is resumed and what goes in is not what it was: old results would be mixed with new.
        """
        known = self.record["fingerprints"].setdefault(kind, {})
        if not made and name in known and identity_of(known[name]) != identity:
            raise UserError(
                f"output_dir={self.dir}: {kind} '{name}' is not what it was when this run began; choose another "
                "output_dir, or put back what was changed"
            )
        known[name] = {**identity_entry(identity), **facts}
        self._write()

    def used_data(self, provenance: Mapping[str, Mapping[str, Any]]) -> None:
        """Record data that went in: of each split its ``sha256``, and what else is known of it."""
        for split, known in provenance.items():
            facts = dict(known)
            self.add_fingerprint("data", split, facts.pop("sha256", ""), **facts)

    def made_weights(self, name: str, folder: Path, identity: str | None = None, **facts: Any) -> None:
        """Seal and record weights that came out, in a folder of this run; a finished run puts a model card there.

        Args:
            name: the part they play, mostly ``model``.
            folder: inside the run's folder.
            identity: None: the fingerprint of the folder.
            facts: further ones.
        """
        place = {"folder": str(folder.relative_to(self.dir))}
        seal(folder, facts.get("files"))
        self.add_fingerprint("weights", name, identity or fingerprint_folder(folder), made=True, **place, **facts)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was logged, see :func:`~reproalign.common.records.metrics.distinct`; on the main process."""
        return distinct(self._rows)

    @property
    def rejects(self) -> Path | None:
        """Folder where rows that are skipped are listed: the main process's, and no dry run's, whose folder goes."""
        return self.dir if self.is_main and self.record["preview"] is None else None

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Append a row to ``metrics.jsonl``."""
        if self.is_main:
            self._rows.append({"step": step, **metrics})
            with (self.dir / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(_line(self._rows[-1]))

    def log_again(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        """Let ``metrics.jsonl`` hold what a resumed run knows of earlier rows; those that follow are logged again."""
        if self.is_main:
            self._rows = list(rows)
            write_text(self.dir / METRICS, "".join(map(_line, self._rows)))

    def _write(self) -> None:
        if self.is_main:
            write_json(self.dir / RECORD, signed(plain(self.record)))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"
