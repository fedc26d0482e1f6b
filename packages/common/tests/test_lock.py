"""One run, one folder: a second start is refused, a dead holder is not waited for, and nothing is touched meanwhile."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run, lock
from reproalign.common.records.folder import check_folder
from reproalign.common.records.lock import LOCK, Holder, check_free, take

HOLD = "from pathlib import Path; import sys; from reproalign.common.records.lock import take; "
HOLD += "held = take(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"


def invocation(folder: Path, **config) -> Invocation:
    values = {"output_dir": str(folder), "seed": 1, "resume": "auto", **config}
    return Invocation(["toy", "train"], "reproalign.common", "train", "m:C", "m:f", values)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def other(tmp_path) -> Iterator[subprocess.Popen]:
    """Another process, which holds ``tmp_path / "run"``."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_holds_is_refused_and_not_touched_until_that_is_dead(tmp_path, other):
    folder = tmp_path / "run"
    before = contents(folder)
    said = rf"run: a run is under way there \(process {other.pid} on .+, since 2.+\); wait for its end, or choose"
    with pytest.raises(UserError, match=said):
        Run.open(invocation(folder))
    with pytest.raises(UserError, match=said):
        take(folder)
    check_folder(folder, invocation(folder, launch={"machine_rank": 1}))  # another machine of that very run
    assert contents(folder) == before
    other.send_signal(signal.SIGKILL)
    other.wait()
    with Run.open(invocation(folder)):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "run.json"]


def test_of_many_starts_at_once_one_gets_the_folder(tmp_path):
    barrier = threading.Barrier(8)

    def start(_: int) -> object:
        barrier.wait()
        try:
            return take(tmp_path / "new" / "run")
        except UserError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(start, range(8)))
    locks = [entry for entry in found if isinstance(entry, lock.FolderLock)]
    assert len(locks) == 1
    locks[0].release()
    assert not any((tmp_path / "new" / "run").iterdir())


def test_a_run_that_began_while_another_was_opened_is_refused_and_kept(tmp_path):
    second = Run.open(invocation(tmp_path / "run"))
    with Run.open(invocation(tmp_path / "run")) as first:
        first.log(1, {"loss": 0.5})
        before = contents(tmp_path)
        with pytest.raises(UserError, match="a run is under way there"):
            second.__enter__()
        assert contents(tmp_path) == before
    with pytest.raises(UserError, match="holds this very run, finished"):
        second.__enter__()
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_forked_process_does_not_keep_the_folder(tmp_path):
    held = take(tmp_path)
    ready, done = os.pipe(), os.pipe()
    if not (child := os.fork()):
        os.write(ready[1], b".")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    held.release()
    take(tmp_path).release()
    os.write(done[1], b".")
    os.waitpid(child, 0)


@pytest.fixture
def without_locks(monkeypatch) -> None:
    """A file system that has none, and signs of life in tenths of seconds."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for name, seconds in (("BEAT", 0.1), ("STALE", 0.6), ("SETTLE", 0.2)):
        monkeypatch.setattr(lock, name, seconds)


@pytest.mark.usefixtures("without_locks")
def test_without_the_systems_locks_a_process_of_this_machine_is_known_by_its_number(tmp_path, other):
    with pytest.raises(UserError, match=f"process {other.pid} on"):
        check_free(tmp_path / "run")
    with pytest.raises(UserError, match=f"process {other.pid} on"):
        take(tmp_path / "run")
    other.kill()
    other.wait()
    check_free(tmp_path / "run")
    take(tmp_path / "run").release()


@pytest.mark.usefixtures("without_locks")
def test_without_the_systems_locks_one_of_another_machine_is_known_by_its_signs_of_life(tmp_path, capsys):
    path = tmp_path / LOCK
    far = replace(Holder.me(), host="far", process=7, place="far")
    path.write_text(json.dumps(asdict(far)))
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(UserError, match="process 7 on far"):
        take(tmp_path)
    ended.set()
    thread.join()
    take(tmp_path).release()
    assert "watching for" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.usefixtures("without_locks")
def test_without_the_systems_locks_one_of_two_starts_at_once_gets_the_folder(tmp_path):
    test_of_many_starts_at_once_one_gets_the_folder(tmp_path)
