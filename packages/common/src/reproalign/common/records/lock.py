"""One run, one folder: a lock that one process holds on a run's folder for the life of the run.

The lock is the system's own (``flock``), which dies with its process, whatever ends that, and which processes forked
from it do not keep. Where a file system has none, or has it for each machine alone, a file decides: it says which
process holds the folder since when, and a thread touches it every :data:`BEAT` seconds. A holder on this machine that
is gone is recognised at once; one on another machine once the file has not been touched for :data:`STALE` seconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from reproalign.common.console import note
from reproalign.common.errors import UserError
from reproalign.common.files import write_text
from reproalign.common.leftovers import place
from reproalign.common.records.holder import Holder, read_holder

LOCK = ".run.lock"
BEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, after which a holder on another machine counts as dead; above a network's caching
LONG_AGO = 3600.0  # seconds by the clock, after which nobody waits for a sign: clocks of machines differ by less
SETTLE = 2.0  # seconds after which the last of several that wrote the file is known, without the system's locks
ATTEMPTS, PAUSE = 10, 0.05  # another start that looks whether the folder is free holds the lock for an instant
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_descriptors: set[int] = set()


class FolderLock:
    """A folder that this process holds until :meth:`release`, or until it ends."""

    def __init__(self, path: Path, descriptor: int, holder: Holder) -> None:
        self.path, self.holder = path, holder
        self._descriptor = descriptor
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def release(self) -> None:
        """Give the folder free; a folder that another process holds by now is left alone."""
        self._released.set()
        with suppress(OSError):
            if read_holder(self.path) == self.holder:
                self.path.unlink()
        _close(self._descriptor)

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):
                if (other := read_holder(self.path)) not in (self.holder, None):
                    # The folder was removed, or this machine slept or was cut off: two must not write there.
                    print(f"error: {_held(self.path.parent, other)}; this run ends here", file=sys.stderr, flush=True)
                    os._exit(1)
                os.utime(self.path)


def take(folder: Path) -> FolderLock:
    """Make ``folder`` if need be, and hold it.

    Raises:
        UserError: if another process holds it, naming that, or the folder cannot be made or written.
    """
    what = "made"
    try:
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            folder.mkdir(parents=True, exist_ok=True)
            what = "written"
            with suppress(FileNotFoundError):  # a run that was undone meanwhile took the folder along
                if (lock := _try(folder / LOCK)) is not None:
                    return lock
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = (error.strerror or "not possible").lower()
        raise UserError(f"output_dir={folder}: cannot be {what} ({reason}); choose another") from error
    raise UserError(_held(folder, read_holder(folder / LOCK)))


def check_free(folder: Path) -> None:
    """Refuse a folder that another process holds, without touching it.

    Raises:
        UserError: naming the holder.
    """
    path = folder / LOCK
    holder = read_holder(path)
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE if attempt else 0)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:  # there is no such file, or the folder may not be read, which whoever takes it says
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others may look at the same time
        except BlockingIOError:
            continue
        except OSError:  # without the system's locks
            if holder is None or holder.place != place() or holder.is_gone():
                return  # what is not known here is found out when the folder is taken
        else:
            return
        finally:
            os.close(descriptor)
    raise UserError(_held(folder, read_holder(path)))


def _try(path: Path) -> FolderLock | None:
    """Take the lock; None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _descriptors.add(descriptor)
    try:
        if (lock := _taken(path, descriptor)) is None:
            _close(descriptor)
        return lock
    except BaseException:
        with suppress(OSError):  # a full disk
            if not path.stat().st_size:
                path.unlink()
        _close(descriptor)
        raise


def _taken(path: Path, descriptor: int) -> FolderLock | None:
    native = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        native = False
    if native and not os.path.samestat(os.fstat(descriptor), path.stat()):
        return None  # its holder removed it when it ended: the next attempt makes another
    before = read_holder(path)
    if before is not None and _lives(before, path, native=native):
        raise UserError(_held(path.parent, before))
    holder = Holder.me()
    text = json.dumps(asdict(holder)) + "\n"
    if native:  # the file stays the one that is locked
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    else:
        write_text(path, text)
        time.sleep(SETTLE)
        if (other := read_holder(path)) != holder:
            raise UserError(_held(path.parent, other))
    return FolderLock(path, descriptor, holder)


def _lives(holder: Holder, path: Path, *, native: bool) -> bool:
    """Say whether a process that wrote the file still runs, where the system's lock does not say so."""
    if holder.place == place():
        return not native and not holder.is_gone()
    last = _touched(path)
    if time.time() - last > LONG_AGO:
        return False
    note(
        f"output_dir={path.parent} was held by process {holder.process} on {holder.host}, which did not say that it "
        f"ended: watching for {STALE:.0f} s whether it still runs"
    )
    end = time.monotonic() + STALE
    while time.monotonic() < end:
        time.sleep(min(1.0, STALE))
        if _touched(path) != last:
            return True
    return False


def _touched(path: Path) -> float:
    """Return when a file was last touched; it is opened first, since network file systems ask the server then."""
    with suppress(OSError), path.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime
    return 0.0


def _held(folder: Path, holder: Holder | None) -> str:
    who = f"process {holder.process} on {holder.host}, since {holder.since}" if holder else "another process"
    return f"output_dir={folder}: a run is under way there ({who}); wait for its end, or choose another output_dir"


def _close(descriptor: int) -> None:
    if descriptor in _descriptors:
        _descriptors.remove(descriptor)
        os.close(descriptor)


def _forget() -> None:
    """Close the descriptors in a forked process, which would keep the locks when this one is gone."""
    for descriptor in list(_descriptors):
        _close(descriptor)


os.register_at_fork(after_in_child=_forget)
