"""One run's folder and its ``run.json``."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.files import follow_umask, write_json, write_text
from reproalign.common.integrity import seal
from reproalign.common.invocation import Invocation
from reproalign.common.journal import sweep_sums
from reproalign.common.records.card import write_cards
from reproalign.common.records.environment import peak_memory
from reproalign.common.records.fingerprints import fingerprint_folder, identity_entry, identity_of
from reproalign.common.records.folder import check_folder
from reproalign.common.records.lineage import RECORD
from reproalign.common.records.record import new_record, now, plain
from reproalign.common.signing import signed


class Run:
    """An open run: a context manager that keeps ``run.json`` true from the start to whatever end.

    Only the main process writes. A user's mistake found inside the block leaves nothing behind unless the run is a
    resumed one. ``run.json`` is strict JSON: NaN and infinities are the strings "NaN", "Infinity", "-Infinity".
    """

    def __init__(self, folder: Path, record: dict[str, Any], *, is_main: bool, fresh: bool) -> None:
        self.dir = folder
        self.record = record
        self.is_main = is_main
        # The folders this run makes, innermost first; removed again if the configuration is rejected.
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._fresh = fresh
        self._started = time.perf_counter()
        self._seconds_before = float(record.get("wall_seconds") or 0.0)

    @classmethod
    def open(cls, invocation: Invocation, *, is_main: bool = True) -> Run:
        """Open the run that ``invocation`` asks for in its ``output_dir``.

        Raises:
            UserError: if the folder holds another run, a finished one, or anything else (see :func:`check_folder`).
        """
        if invocation.preview is not None:
            return cls(Path(tempfile.mkdtemp(prefix="reproalign-")), new_record(invocation), is_main=True, fresh=True)
        folder = Path(invocation.config["output_dir"])
        earlier = check_folder(folder, invocation) if is_main else None
        record = new_record(invocation)
        if earlier is not None:
            for key in ("started", "wall_seconds", "fingerprints", "children"):
                record[key] = earlier.get(key, record.get(key))
            record["resumptions"] = int(earlier.get("resumptions", 0)) + 1
        return cls(folder, record, is_main=is_main, fresh=earlier is None)

    def __enter__(self) -> Run:
        if self.is_main:
            import yaml

            try:
                self.dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = (error.strerror or "not possible").lower()
                raise UserError(f"output_dir={self.dir}: cannot be made ({reason}); choose another") from error
            text = yaml.safe_dump(self.record["config"], sort_keys=False, allow_unicode=True)
            try:
                write_text(self.dir / "config.yaml", text)
                self._write()
            except OSError:  # a full disk
                if self._fresh:
                    self._undo()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_main:
            return
        if self.record["preview"] is not None:
            shutil.rmtree(self.dir)
            return
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
        self._write()
        if status == "finished":
            write_cards(self.dir, self.record)
        follow_umask(self.dir)

    def _undo(self) -> None:
        """Remove what this run wrote: its files, and the folders it made unless another run uses them by now."""
        for path in self.dir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
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

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Append a row to ``metrics.jsonl``."""
        if self.is_main:
            with (self.dir / "metrics.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(plain({"step": step, **metrics}), allow_nan=False) + "\n")

    def _write(self) -> None:
        if self.is_main:
            write_json(self.dir / RECORD, signed(plain(self.record)))
