"""How processes end: by a signal, with those that they started, and in one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from toy.cli import main as toy

from reproalign.common.command.guarded import guarded
from reproalign.common.errors import Interruption, shorten_errors_of_threads, trouble_of_the_system
from reproalign.common.integrity import damage
from reproalign.common.testing import file_limit
from reproalign.common.training.checkpoints import list_checkpoints

FORKED = """
import os, signal
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
from reproalign.common.launch.signals import heed_signals
heed_signals()
child = os.fork()
if not child:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("interrupted")
"""
# Started in the background, as test runs may be, a process would ignore SIGINT.
TOY = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); from toy.cli import main; sys.exit(main())"


def test_a_forked_process_dies_of_sigterm_in_its_first_moment_too():
    """A pool ends its workers as soon as the last result is there, and waits for those that it forked just before."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-signal.SIGTERM), "interrupted"], done.stderr


def test_a_signal_in_a_callback_whose_exceptions_python_drops_comes_again():
    code = (
        "import os, signal, time, weakref; from reproalign.common.launch.signals import heed_signals; heed_signals()\n"
    )
    code += "class Thing: pass\nthing = Thing(); ref = weakref.ref(thing, lambda ref: os.kill(os.getpid(), 15))\n"
    code += "try:\n    del thing\n    time.sleep(60)\nexcept KeyboardInterrupt as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("interrupted by SIGTERM\n", "")


def test_a_signal_that_is_ignored_stays_so():
    """As SIGINT is for what a script starts with `&`."""
    code = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    code += "from reproalign.common.launch.signals import heed_signals; heed_signals(); os.kill(os.getpid(), 2)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_error_that_a_library_makes_of_a_signal_is_the_signal(capsys):
    """As OmegaConf does while it composes."""

    def composed() -> int:
        try:
            raise Interruption(signal.SIGUSR1)
        finally:
            raise AttributeError

    assert guarded("toy", composed) == 128 + signal.SIGUSR1
    assert capsys.readouterr().err == "toy: interrupted by SIGUSR1; the same command goes on from there\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(errno.ENOSPC, ""), "tracker: no space left on device; free"), (ValueError("x"), "Traceback")],
)
def test_a_thread_on_a_full_disk_says_so_on_one_line(error, said, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def work() -> None:
        raise error

    shorten_errors_of_threads()
    thread = threading.Thread(target=work, name="tracker")
    thread.start()
    thread.join()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "", "/a/b"), "/a/b: no space left on device; free some space, and give the same"),
        (OSError(errno.EROFS, ""), "read-only file system; choose a place that this user may use"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "free some space"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "free some space"),
        (FileNotFoundError(errno.ENOENT, "", "rows.jsonl"), "rows.jsonl: no such file or directory; put back"),
        (FileNotFoundError(errno.ENOENT, "", "two\nlines"), "two\\nlines: no such file"),
        (ValueError("a mistake of ours"), None),
    ],
)
def test_disk_rights_and_vanished_files_are_one_sentence(error, said):
    found = trouble_of_the_system(error)
    assert (said is None and found is None) or said in found


def test_what_led_to_an_error_is_looked_through():
    """torch.save ends with an error of its own while the file's is handled."""
    error = RuntimeError("cannot save")
    error.__context__ = OSError(errno.EDQUOT, "", "/a/optimizer.pt")
    found = trouble_of_the_system(error)
    assert found is not None
    assert "/a/optimizer.pt: disk quota exceeded; free" in found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_launcher_that_has_started_nobody_yet_leaves_at_once(tmp_path, monkeypatch, number):
    """The signal comes while it imports."""
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "__init__.py").write_text(f"import os; os.kill(os.getpid(), {int(number)})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [sys.executable, "-m", "reproalign.common.launch.launcher"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, "")


def test_a_launcher_that_has_ended_its_work_is_not_signalled_any_more(tmp_path, monkeypatch):
    commands = tmp_path / "accelerate" / "commands"
    commands.mkdir(parents=True)
    for package in (commands, commands.parent):
        (package / "__init__.py").touch()
    late = "import argparse, atexit, os; atexit.register(os.kill, os.getpid(), 10)"
    (commands / "launch.py").write_text(
        f"{late}; launch_command, launch_command_parser = print, argparse.ArgumentParser"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [sys.executable, "-m", "reproalign.common.launch.launcher"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Namespace()\n", "")


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    """Processes that do not outlive the test."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def ranks_of(launcher: psutil.Process) -> list[psutil.Process]:
    return [child for child in launcher.children() if "reproalign.common.launch.worker" in child.cmdline()]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("number", "target", "code", "status", "said"),
    [
        (signal.SIGTERM, "command", 143, "interrupted", "toy: interrupted by SIGTERM; the same command goes on"),
        (signal.SIGINT, "command", 130, "interrupted", "toy: interrupted by SIGINT; the same command goes on"),
        (signal.SIGUSR1, "launcher", 138, "interrupted", "toy: interrupted by SIGUSR1; the same command goes on"),
        (signal.SIGTERM, "rank 1", 143, "interrupted", "toy: interrupted by SIGTERM; the same command goes on"),
        (signal.SIGKILL, "command", -9, "interrupted", ""),
        (signal.SIGKILL, "launcher", 1, "interrupted", "was killed by SIGKILL; the same command goes on"),
        (signal.SIGKILL, "rank 0", 1, "failed", "error: rank 0 (process"),
        (signal.SIGKILL, "rank 1", 1, "failed", "error: rank 1 (process"),
    ],
)
def test_two_processes_end_together(tmp_path, started, number, target, code, status, said):
    folder, words = tmp_path / "run", ["launch=ddp", "launch.processes=2", "launch.main_port=0"]
    words += ["trainer.max_steps=2000", "trainer.save_steps=1000", "trainer.logging_steps=1"]
    command = [sys.executable, "-c", TOY, "train", "experiment=smoke", *words, f"output_dir={folder}"]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    started.append(psutil.Process(process.pid))
    deadline = time.time() + 300
    log = folder / "metrics.jsonl"
    while time.time() < deadline and not (log.is_file() and '"loss"' in log.read_text()):
        time.sleep(0.1)
    (launcher,) = started[0].children()
    ranks = ranks_of(launcher)
    started += [launcher, *ranks]
    assert len(ranks) == 2
    targets = {"command": process.pid, "launcher": launcher.pid}
    targets |= {f"rank {rank.environ()['RANK']}": rank.pid for rank in ranks}
    psutil.Process(targets[target]).send_signal(number)
    assert process.wait(100) == code
    assert psutil.wait_procs(ranks, timeout=100)[1] == []
    assert json.loads((folder / "run.json").read_text())["status"] == status
    assert said in (tmp_path / "errors").read_text()
    if status == "interrupted":
        assert damage(list_checkpoints(folder)[0]) is None


def test_a_full_disk_is_one_sentence(tmp_path, capfd):
    """A limit on the size of files stands for it: the weights do not fit."""
    words = ["train", "experiment=smoke", "trainer.max_steps=2", "trainer.save_steps=2"]
    with file_limit(40_000):
        assert toy([*words, f"output_dir={tmp_path / 'run'}"]) == 2
    assert "file too large; free some space, and give the same command again" in capfd.readouterr().err
    assert json.loads(Path(tmp_path / "run/run.json").read_text())["status"] == "failed"
