"""What is read again is what was written: damage is named, healed where it can be made again, and never used."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from reproalign.common.cli import main
from reproalign.common.data.cache import cached, make_whole
from reproalign.common.data.reading import read_local
from reproalign.common.errors import UserError
from reproalign.common.generation.samples import write_rows
from reproalign.common.integrity import damage
from reproalign.common.invocation import Invocation
from reproalign.common.journal import growing, recover_lines, sums_of
from reproalign.common.manifests import seal
from reproalign.common.models.load import model_path
from reproalign.common.records import Run
from reproalign.common.records.folder import read_record
from reproalign.common.signing import read_signed, write_signed

Harm = Callable[[Path], object]


def flip(path: Path, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


HARMS: dict[str, Harm] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "lost": lambda path: path.unlink(),
}
harmed = pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)


def make_run(folder: Path, make: Callable[[Run], object]) -> Path:
    values = {"output_dir": str(folder), "seed": 1, "resume": "auto"}
    with Run.open(Invocation(["mmpo", "train"], "reproalign.common", "train", "m:C", "m:f", values)) as run:
        make(run)
    return folder


@pytest.fixture
def trained(tmp_path) -> Path:
    """A finished run that made a model and a file of rows."""

    def make(run: Run) -> None:
        model = run.dir / "model"
        model.mkdir()
        for name in ("config.json", "reward.json", "chat_template.jinja", "model.safetensors"):
            (model / name).write_text("{}")
        run.made_weights("model", model)
        run.set_metrics({"loss": 0.5})
        write_rows(run.dir / "rows.jsonl", [{"id": number} for number in range(4)])

    return make_run(tmp_path / "run", make)


@pytest.mark.parametrize("name", ["a.bin", "below/b.jsonl", "manifest.json"])
@harmed
def test_every_damage_of_a_sealed_folder_is_named(tmp_path, name, harm):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.bin").write_bytes(b"12345")
    (tmp_path / "below" / "b.jsonl").write_text("1\n2\n")
    (tmp_path / "README.md").write_text("for readers, who may write on it")
    seal(tmp_path)
    (tmp_path / "README.md").write_text("changed")
    (tmp_path / "new").write_text("more than was written does no harm")
    assert damage(tmp_path) is None
    harm(tmp_path / name)
    assert Path(name).name in str(damage(tmp_path))


def test_no_bit_of_a_manifest_can_flip_unnoticed(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    seal(tmp_path / "a")
    manifest = tmp_path / "a.manifest.json"
    whole = manifest.read_bytes()
    unnoticed = set()
    for bit in random.Random(0).sample(range(8 * len(whole)), 300):
        manifest.write_bytes(whole)
        flip(manifest, bit)
        if damage(tmp_path / "a") is None:
            unnoticed.add(whole[bit // 8 : bit // 8 + 1])
    assert unnoticed <= {b" ", b"\n", b"s", b"h", b"a", b"2", b"5", b"6"}, "white space, and the name of the signature"


def test_a_file_cut_at_the_end_of_a_line_is_known_by_the_count(trained):
    rows = trained / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match="3 lines of 4"):
        list(read_local(rows))


@harmed
def test_a_damaged_cache_is_made_again_with_one_line(tmp_path, capsys, harm):
    rows, built = Dataset.from_dict({"n": [1, 2]}), []

    def build() -> Dataset:
        built.append(1)
        return rows

    reader = cached(tmp_path, ["x"], build)
    file = next(tmp_path.glob("prepared/*/*.arrow"))
    harm(file)
    assert cached(tmp_path, ["x"], build)["n"][:] == [1, 2]
    assert cached(tmp_path, ["x"], build)["n"][:] == [1, 2]
    assert len(built) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "made again" in line]
    assert len(said) == 1
    assert str(file) in said[0]
    assert len(reader) == 2, "who has the old one open keeps it"
    assert len(list((tmp_path / "prepared").iterdir())) == 1


def test_of_two_processes_that_heal_at_once_the_first_one_is_kept(tmp_path):
    folder = make_whole(tmp_path / "cache", lambda target: (target / "a").write_text("whole"))
    flip(folder / "a")

    def overtaken(target: Path) -> None:
        make_whole(folder, lambda other: (other / "a").write_text("first"))
        (target / "a").write_text("second")

    make_whole(folder, overtaken)
    assert (folder / "a").read_text() == "first"


def test_lines_that_were_altered_while_work_was_interrupted_are_done_again(tmp_path, capsys):
    path, draw = tmp_path / "rows.jsonl", random.Random(0)
    with growing(path) as write:
        for number in range(8):
            write(f'{{"n": {number}, "text": "ä\u2028"}}\n')
    lines, sums = path.read_bytes(), sums_of(path).read_bytes()
    expected = lines.decode().split("\n")[:-1]
    for _ in range(40):
        path.write_bytes(lines)
        sums_of(path).write_bytes(sums)
        draw.choice(list(HARMS.values()))(draw.choice([path, sums_of(path)])) if draw.random() < 0.5 else flip(
            draw.choice([path, sums_of(path)]), draw.randrange(8 * len(sums))
        )
        found = recover_lines(path)
        assert found == expected[: len(found)]
        assert recover_lines(path) == found
    assert "was altered since it was written" in capsys.readouterr().err


def test_the_state_of_interrupted_work_counts_only_as_it_was_written(tmp_path, capsys):
    file = tmp_path / "state.json"
    assert read_signed(file) == {}
    write_signed(file, {"step": 3})
    assert read_signed(file)["step"] == 3
    file.write_text(file.read_text().replace("3", "2", 1))
    assert read_signed(file) == {}
    assert "state.json was altered" in capsys.readouterr().err


@harmed
def test_rows_that_another_run_made_are_refused_when_damaged_and_taken_when_accepted(trained, capsys, harm):
    rows = trained / "rows.jsonl"
    harm(rows)
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        list(read_local(rows))
    assert main(["check", str(trained)]) == 1
    assert "damaged  " in capsys.readouterr().out
    write_rows(rows, [{"id": 7}])
    assert main(["check", str(trained), "--accept"]) == 0
    (trained / "run.json").rename(trained / "lost.json")
    assert main(["check", str(trained)]) == 1
    assert "run.json is missing" in capsys.readouterr().out
    (trained / "lost.json").rename(trained / "run.json")
    assert [row.values for row in read_local(rows)] == [{"id": 7}]


def test_rows_of_a_run_that_failed_are_refused(trained):
    write_signed(trained / "run.json", read_record(trained) | {"status": "failed"})
    with pytest.raises(UserError, match=r"rows\.jsonl: the run that made it is failed"):
        list(read_local(trained / "rows.jsonl"))


@pytest.mark.parametrize("name", ["reward.json", "chat_template.jinja", "model.safetensors", "manifest.json"])
@harmed
def test_a_models_folder_is_refused_when_a_file_of_it_is_damaged(trained, name, harm):
    model = trained / "model"
    assert model_path(str(model)) == str(model)
    harm(model / name)
    if name == "manifest.json" and harm is HARMS["lost"]:
        assert model_path(str(model)) == str(model), "a folder that nothing vouches for is taken as it is"
        return
    with pytest.raises(UserError, match=name):
        model_path(str(model))


def test_a_manifest_of_another_tool_says_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "manifest.json").write_text('{"schemaVersion": 2}')
    assert model_path(str(tmp_path)) == str(tmp_path)


def test_no_bit_of_a_record_can_flip_unnoticed(trained):
    file = trained / "run.json"
    whole, known = file.read_bytes(), read_record(trained)
    noticed = 0
    for bit in random.Random(0).sample(range(8 * len(whole)), 150):
        file.write_bytes(whole)
        flip(file, bit)
        try:
            assert read_record(trained) == known, "white space, at the most"
        except UserError:
            noticed += 1
    assert noticed > 100


def test_a_record_of_an_earlier_version_is_read_without_a_signature(trained):
    record = {key: value for key, value in read_record(trained).items() if key != "sha256"}
    (trained / "run.json").write_text(json.dumps(record | {"format": 1}))
    assert read_record(trained)["metrics"] == {"loss": 0.5}


@harmed
def test_verify_says_which_model_file_is_missing_or_altered(trained, capsys, harm):
    assert main(["verify", str(trained), str(trained)]) == 0
    harm(trained / "model" / "model.safetensors")
    assert main(["verify", str(trained), str(trained)]) == 1
    assert "model.safetensors" in capsys.readouterr().out
    assert main(["verify", str(trained / "run.json"), str(trained / "run.json")]) == 0


def test_verify_knows_the_weights_of_a_run_of_an_earlier_version_by_its_record(trained, capsys):
    for file in trained.rglob("manifest.json"):
        file.unlink()
    assert main(["verify", str(trained), str(trained)]) == 1
    assert "manifest.json is missing" in capsys.readouterr().out
    record = {key: value for key, value in read_record(trained).items() if key != "sha256"}
    (trained / "run.json").write_text(json.dumps(record | {"format": 1}))
    assert main(["verify", str(trained), str(trained)]) == 0
    (trained / "model" / "model.safetensors").write_text("{ }")
    assert main(["verify", str(trained), str(trained)]) == 1
    assert "not those that the record names" in capsys.readouterr().out


def test_a_text_that_is_not_utf_8_is_refused_with_file_and_byte(tmp_path):
    for name, content in (("a.jsonl", b'{"n": 1}\n{"n": "\xff"}\n'), ("b.json", b'[{"n": 1,\n  "t": "\xff"}]')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not UTF-8 at byte {content.index(0xFF) + 1}"):
            list(read_local(tmp_path / name))
