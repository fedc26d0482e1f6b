"""A run that was killed and resumed gives the same weights, bit for bit, as one that never was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy.cli import main

from reproalign.common.cli import main as reproalign
from reproalign.common.errors import UserError
from reproalign.common.integrity import damage
from reproalign.common.launch.signals import ENDING
from reproalign.common.manifests import seal
from reproalign.common.records import fingerprint_folder
from reproalign.common.training.checkpoints import list_checkpoints, resume_from
from reproalign.common.training.pairs import PairTrainer

STEPS = 10
WORDS = ["train", "experiment=smoke", f"trainer.max_steps={STEPS}"]


def command(folder: Path) -> list[str]:
    code = "import sys; from toy.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *WORDS, f"output_dir={folder}"]


def logged_steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert main([*WORDS, f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def signals():
    """No signal is ignored, as all are that a test run in the background does; what pytest does is put back."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_random_steps_and_resumed(tmp_path, uninterrupted, seed):
    folder = tmp_path / "killed"
    rng = random.Random(seed)
    kills = 0
    for limit in sorted(rng.sample(range(1, STEPS), k=2)):
        process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and max(logged_steps(folder), default=0) < limit:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert record(folder)["status"] == "running"
    subprocess.run(command(folder), check=False, capture_output=True)
    assert kills >= 1, "the runs were too quick to be killed"
    assert record(folder)["status"] == "finished"
    assert record(folder)["resumptions"] >= 1
    assert fingerprint_folder(folder / "model") == fingerprint_folder(uninterrupted / "model")


def stop_at(step: int, words: list[str], monkeypatch) -> None:
    """Start a run that dies in a step, in this process."""
    original = PairTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PairTrainer, "training_step", dying)
        assert main(words) == 130


def test_stopped_in_the_middle_and_resumed(tmp_path, uninterrupted, monkeypatch, capsys):
    """The same in one process: the first attempt dies at step 7, after the checkpoint of step 6."""
    folder = tmp_path / "stopped"
    stop_at(7, [*WORDS, f"output_dir={folder}"], monkeypatch)
    assert record(folder)["status"] == "interrupted"
    assert main([*WORDS, f"output_dir={folder}", "--dry-run"]) == 0
    assert f"from {folder / 'checkpoint-6'}, because it is the newest" in capsys.readouterr().out
    assert main([*WORDS, f"output_dir={folder}"]) == 0
    assert record(folder)["resumed_from"] == "checkpoint-6"
    assert fingerprint_folder(folder / "model") == fingerprint_folder(uninterrupted / "model")
    assert reproalign(["verify", str(folder), str(uninterrupted)]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_training_with_a_checkpoint_after_its_step(
    tmp_path, uninterrupted, monkeypatch, capfd, signals, number
):
    folder = tmp_path / "signalled"
    original = PairTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 6:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PairTrainer, "training_step", signalled)
        assert main([*WORDS, f"output_dir={folder}"]) == 128 + number
    assert record(folder)["status"] == "interrupted"
    assert damage(folder / "checkpoint-7") is None  # of no step at which save_steps would have made one
    errors = capfd.readouterr().err
    assert f"{number.name}: this step is finished and a checkpoint written; once more ends at once" in errors
    assert f"interrupted by {number.name} after step 7: checkpoint-7 is whole; the same command goes on" in errors
    if number == signal.SIGTERM:
        assert main([*WORDS, f"output_dir={folder}"]) == 0
        assert record(folder)["resumed_from"] == "checkpoint-7"
        assert fingerprint_folder(folder / "model") == fingerprint_folder(uninterrupted / "model")


def test_a_second_signal_ends_training_at_once(tmp_path, monkeypatch, capfd, signals):
    folder = tmp_path / "signalled"
    monkeypatch.setattr("reproalign.common.launch.signals.SAME", 0.0)

    def signalled(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PairTrainer, "training_step", signalled)
    assert main([*WORDS, f"output_dir={folder}"]) == 128 + signal.SIGTERM
    assert record(folder)["status"] == "interrupted"
    assert "interrupted by SIGTERM in step 1: no checkpoint; the same command goes on" in capfd.readouterr().err


def without_times(row: dict) -> dict:
    return {name: value for name, value in row.items() if not name.endswith(("_runtime", "_per_second"))}


def test_what_is_logged_is_the_uninterrupted_runs(tmp_path, monkeypatch):
    """Checkpoints lie within the windows of logs, and ``metrics.jsonl`` is not read again, whatever is left of it."""
    words = [*WORDS, "trainer.logging_steps=4", "trainer.save_steps=3", "trainer.eval_strategy=steps"]
    words += ["trainer.eval_steps=5"]

    def said(folder: Path) -> list[dict]:
        return [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*words, f"output_dir={whole}"]) == 0
    stop_at(8, [*words, f"output_dir={stopped}"], monkeypatch)
    with (stopped / "metrics.jsonl").open("ab") as stream:
        stream.write(b'\xff\xfe\n{"step": 9, "lo')
    assert main([*words, f"output_dir={stopped}"]) == 0
    assert record(stopped)["resumed_from"] == "checkpoint-6"
    assert said(stopped) == said(whole)
    assert without_times(record(stopped)["training"]) == without_times(record(whole)["training"])


def test_a_replayed_run_has_the_same_bits_and_agrees_with_its_record(tmp_path, uninterrupted):
    folder = tmp_path / "again"
    assert reproalign(["replay", str(uninterrupted), "--output-dir", str(folder)]) == 0
    assert fingerprint_folder(folder / "model") == fingerprint_folder(uninterrupted / "model")


def test_adapters_begin_at_random_by_the_seed(tmp_path):
    prints = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ["trainer.max_steps=1", "trainer.save_strategy=no", "model.lora.enabled=true", f"seed={seed}"]
        assert main(["train", "experiment=smoke", *words, f"output_dir={tmp_path / name}"]) == 0
        prints.append(fingerprint_folder(tmp_path / name / "model"))
    assert prints[0] == prints[1] != prints[2]


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    for step in (2, 10, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(range(100)) * step)
        (folder / "optimizer.pt").write_bytes(b"state")
        seal(folder)
    return tmp_path


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def alter(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[50] ^= 1
    file.write_bytes(bytes(data))


def remove(folder: Path) -> None:
    (folder / "optimizer.pt").unlink()


def unseal(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def test_the_newest_checkpoint_is_taken(checkpoints):
    assert [path.name for path in list_checkpoints(checkpoints)] == ["checkpoint-10", "checkpoint-4", "checkpoint-2"]
    assert resume_from(checkpoints, "auto", "fallback") == checkpoints / "checkpoint-10"
    assert resume_from(checkpoints, "never", "fallback") is None
    assert resume_from(checkpoints, str(checkpoints / "checkpoint-2"), "stop") == checkpoints / "checkpoint-2"


@pytest.mark.parametrize(
    ("harm", "words"),
    [(truncate, "truncated"), (alter, "altered"), (remove, "is missing"), (unseal, "is incomplete")],
    ids=["truncated", "altered", "file-missing", "unsealed"],
)
def test_a_damaged_checkpoint_is_named_and_skipped_or_stops_the_run(checkpoints, capsys, harm, words):
    newest = checkpoints / "checkpoint-10"
    harm(newest)
    assert words in str(damage(newest))
    assert resume_from(checkpoints, "auto", "fallback") == checkpoints / "checkpoint-4"
    message = " ".join(capsys.readouterr().err.split())
    assert "damaged checkpoint skipped" in message
    with pytest.raises(UserError, match=words):
        resume_from(checkpoints, "auto", "stop")
    with pytest.raises(UserError, match=words):
        resume_from(checkpoints, str(newest), "fallback")


def test_a_named_checkpoint_must_exist(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint folder"):
        resume_from(tmp_path, str(tmp_path / "checkpoint-9"), "stop")


def test_a_named_checkpoint_must_be_the_runs_own(checkpoints, tmp_path):
    with pytest.raises(UserError, match=r"is not of this run, .*give model\.name="):
        resume_from(tmp_path / "another", str(checkpoints / "checkpoint-2"), "stop")
