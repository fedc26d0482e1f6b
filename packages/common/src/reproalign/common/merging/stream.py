"""The engine: makes every tensor of the output slice by slice, in threads, shard after shard, resumably."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file
from reproalign.common.merging.operands import Kernel, Operands, Rule, ranges
from reproalign.common.merging.writer import OutputTensor, Shard, ShardWriter, plan_shards, write_index
from reproalign.common.signing import read_signed, write_signed

T = TypeVar("T")
JOURNAL = "progress.json"


@dataclass(frozen=True)
class Job:
    """One tensor of the output.

    Attributes:
        output: what is written.
        operands: what it is made from.
        rule: how.
        rest: where entries beyond those that all models have are copied from (an index of the operands), if any.
    """

    output: OutputTensor
    operands: Operands
    rule: Rule
    rest: int | None = None

    @property
    def work(self) -> int:
        """Bytes read over all passes, and written."""
        read = sum(self.operands.info(index).nbytes for index in range(len(self.operands.sources)))
        return self.rule.passes * read + self.output.nbytes


class Threads:
    """Worker threads with one torch thread each: parallel over slices, and the same bits on any number of cores."""

    def __init__(self, count: int) -> None:
        """Start ``count`` threads."""
        self.count = count
        self._pool = ThreadPoolExecutor(count, "merge", initializer=torch.set_num_threads, initargs=(1,))

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call ``function`` in some thread."""
        return self._pool.submit(function, *arguments)

    def over(self, function: Callable[[int, int], Any], pieces: Iterable[tuple[int, int]]) -> Iterator[Any]:
        """Apply ``function`` to every range; results in order, few of them waiting at a time."""
        waiting: list[Future[Any]] = []
        for start, stop in pieces:
            waiting.append(self.submit(function, start, stop))
            if len(waiting) > 2 * self.count:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()

    def close(self) -> None:
        """Stop the threads; what has not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def threads(count: int | None) -> Iterator[Threads]:
    """Open :class:`Threads`, as many as this process may use cores (at most 16) if ``count`` is None."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = Threads(count or min(cores, 16))
    try:
        yield made
    finally:
        made.close()


def write_model(
    folder: Path,
    jobs: Mapping[str, Job],
    *,
    identity: str,
    shard_bytes: int,
    workers: Threads,
    advance: Callable[[int], None],
) -> dict[str, str]:
    """Write the tensors of ``jobs`` into safetensors files of ``folder``.

    Finished files are noted with their SHA-256 in ``progress.json``; called again with the same ``identity``, the
    function keeps those that are noted and unharmed. Peak memory is some slices per thread, or for rules that need
    whole tensors the largest one times the number of models.

    Args:
        folder: existing; not yet where readers look.
        jobs: by tensor name, in the order of writing.
        identity: of inputs and settings; files of another one are written again.
        shard_bytes: largest file, see :func:`~.writer.plan_shards`.
        workers: threads.
        advance: called with bytes of work done, see :attr:`Job.work`.

    Returns:
        SHA-256 of every file by name.
    """
    outputs = {name: job.output for name, job in jobs.items()}
    shards = plan_shards(outputs, shard_bytes)
    done = _finished(folder, identity)
    hashing: dict[str, Future[str]] = {}
    for shard in shards:
        if shard.file in done:
            advance(sum(jobs[name].work for name in shard.offsets))
            continue
        _write_shard(folder, shard, jobs, workers, advance)
        # Hashed from the page cache while the next file is made.
        hashing[shard.file] = workers.submit(sha256_file, folder / shard.file)
        for file in [file for file, future in hashing.items() if future.done()]:
            done[file] = hashing.pop(file).result()
            write_signed(folder / JOURNAL, {"identity": identity, "files": done})
    done |= {file: future.result() for file, future in hashing.items()}
    write_signed(folder / JOURNAL, {"identity": identity, "files": done})
    write_index(folder, shards, outputs)
    return {shard.file: done[shard.file] for shard in shards}


def _write_shard(
    folder: Path, shard: Shard, jobs: Mapping[str, Job], workers: Threads, advance: Callable[[int], None]
) -> None:
    writer = ShardWriter(folder, shard)
    pending: set[Future[None]] = set()
    try:
        for name in shard.offsets:
            job = jobs[name]
            kernel = job.rule.prepare(job.operands, workers.over)
            advance(job.work * (job.rule.passes - 1) // job.rule.passes)
            whole = [(0, job.output.size)] if job.rule.whole else None
            for start, stop in whole or _pieces(job):
                slice_ = _Slice(writer, name, job, kernel, start, stop, advance)
                if whole:
                    # One at a time, with all of torch's threads: a matrix of every model is in memory.
                    slice_()
                else:
                    pending.add(workers.submit(slice_))
        finished, _ = wait(pending, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
    except BaseException:
        for future in pending:
            future.cancel()
        wait(pending)
        raise
    finally:
        writer.close()


def _pieces(job: Job) -> Iterator[tuple[int, int]]:
    """Cut a tensor into slices, none of which lies on both sides of what all models have."""
    common = min(job.operands.size, job.output.size)
    yield from ranges(common)
    yield from ((common + start, common + stop) for start, stop in ranges(job.output.size - common))


@dataclass(frozen=True)
class _Slice:
    """The work of computing and writing some entries."""

    writer: ShardWriter
    name: str
    job: Job
    kernel: Kernel
    start: int
    stop: int
    advance: Callable[[int], None]

    def __call__(self) -> None:
        job = self.job
        if job.rest is not None and self.start >= job.operands.size:
            values = job.operands.stored(job.rest, self.start, self.stop)
        else:
            values = self.kernel(self.start, self.stop)
        rounded = values.to(job.output.dtype)
        if job.output.dtype == torch.float16 and not torch.equal(rounded.isinf(), values.isinf()):
            raise UserError(f"tensor '{self.name}': a merged value is too large for float16; set dtype=bfloat16")
        self.writer.write(self.name, self.start, rounded)
        self.advance(job.work // job.rule.passes * (self.stop - self.start) // max(job.output.size, 1))


def _finished(folder: Path, identity: str) -> dict[str, str]:
    """Return the files of an earlier, interrupted call whose content is what was noted; remove those of another."""
    path = folder / JOURNAL
    journal = read_signed(path)
    if journal.get("identity") != identity:
        for stale in folder.glob("*.safetensors"):
            stale.unlink()
        return {}
    return {
        file: digest
        for file, digest in journal["files"].items()
        if (folder / file).is_file() and sha256_file(folder / file) == digest
    }
