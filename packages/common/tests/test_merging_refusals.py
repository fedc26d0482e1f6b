"""What cannot be merged is refused in one sentence that names it, before anything is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reproalign.common.cli import main
from reproalign.common.merging.checkpoint import Checkpoint
from reproalign.common.testing import refusal
from reproalign.common.testing.checkpoints import random_config, save_random, tensors_of


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return save_random(root / "a", seed=1), save_random(root / "b", seed=2)


@pytest.fixture
def refused(tmp_path, capsys):
    def refused(*words: object, models: tuple[Path, ...] = ()) -> str:
        given = [f"models=[{','.join(map(str, models))}]"] if models else []
        line = ["merge", *given, *map(str, words), f"output_dir={tmp_path / 'run'}"]
        return refusal("reproalign", main, line, capsys, untouched=tmp_path)

    return refused


def changed(source: Path, folder: Path, **config: object) -> Path:
    """A copy of a model with other values in its config.json."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def rewritten(source: Path, folder: Path, change) -> Path:
    """A copy of a model whose tensors were changed."""
    shutil.copytree(source, folder)
    tensors = tensors_of(source)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights=[1,2,3]"], "must be a list of 2 numbers"),
        (["weights=[-1,2]"], "holds a negative one"),
        (["weights=[0,0]"], "sum to 0"),
        (["method=tie"], "did you mean 'ties'"),
        (["method=ties"], "base is not set"),
        (["method=task_arithmetic"], "scale is not set"),
        (["method=slerp"], "t is not set"),
        (["method=slerp", "t=1.5"], "t=1.5 must be from 0 to 1"),
        (["t=0.5"], "t has no meaning for method=linear"),
        (["density=0.5"], "density has no meaning for method=linear"),
        (["rank=4"], "rank is for space=delta"),
        (["method=fisher"], "needs a file for each of the 2 models"),
        (["parts.nrom=[1,0]"], "'nrom' is no block"),
        (["parts={layers.0-9:[1,0]}"], "goes beyond the 4 layers"),
        (["parts={*.nothing:[1,0]}"], "matches no tensor"),
        (["parts.layers.0-3=[0.1,0.9]"], "write it in braces: 'parts={layers.0-3: [0.1,0.9]}'"),
        (["parts.norm.density=0.5"], "density has no meaning for method=linear"),
        (["shard_size=big"], "shard_size=big is no size"),
        (["dtype=int8"], "unknown dtype 'int8'"),
        (["method=slerp", "t=0.5", "accumulate=output"], "accumulate=output rounds every step of method=linear"),
        (["allow=[tokenisers]"], "did you mean 'tokenizer'"),
        (["threads=0"], "threads=0 must be at least 1"),
        (["space=factor"], "space says how adapters become an adapter"),
        (["plan=/nowhere.yaml"], "no such file"),
    ],
)
def test_wrong_settings(pair, refused, words, message):
    assert message in refused(*words, models=pair)


def test_no_models_and_no_such_model(pair, refused):
    assert "models is not set" in refused()
    assert "no such folder" in refused(models=(pair[0], Path("/nowhere")))


def test_other_architectures(pair, refused, tmp_path):
    other = save_random(tmp_path / "neox", "gpt_neox", seed=0)
    assert "is a LlamaForCausalLM and" in refused(models=(pair[0], other))


def test_configurations_that_compute_otherwise_unless_allowed(pair, refused, tmp_path):
    other = changed(pair[1], tmp_path / "other", rms_norm_eps=1e-3)
    assert "differ in rms_norm_eps: 1e-06 and 0.001" in refused(models=(pair[0], other))
    assert main(["merge", f"models=[{pair[0]},{other}]", "allow=[config]", f"output_dir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["rms_norm_eps"] == 1e-6


def test_shapes_are_named_tensor_by_tensor(pair, refused, tmp_path):
    name = "model.layers.2.mlp.up_proj.weight"
    other = rewritten(pair[1], tmp_path / "o", lambda tensors: tensors.update({name: torch.ones(3, 16).bfloat16()}))
    message = refused(models=(pair[0], other))
    assert f"tensor '{name}' has different shapes: [24, 16] in '{pair[0]}', [3, 16] in '{other}'" in message


def test_missing_and_extra_tensors(pair, refused, tmp_path):
    name = "model.layers.2.mlp.up_proj.weight"
    less = rewritten(pair[1], tmp_path / "less", lambda tensors: tensors.pop(name))
    assert f"tensor '{name}' of '{pair[0]}' is not in '{less}'" in refused(models=(pair[0], less))
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    more = rewritten(pair[1], tmp_path / "more", lambda tensors: tensors.update({old: torch.ones(4)}))
    assert "add allow=[extra_tensors]" in refused(models=(pair[0], more))
    words = [f"models=[{pair[0]},{more}]", "allow=[extra_tensors]", f"output_dir={tmp_path / 'run'}"]
    assert main(["merge", *words]) == 0
    assert old not in tensors_of(tmp_path / "run" / "model")


def test_a_tensor_that_all_models_lack(pair, capsys, tmp_path):
    lacking = [rewritten(model, tmp_path / model.name, lambda t: t.pop("model.norm.weight")) for model in pair]
    line = ["merge", f"models=[{lacking[0]},{lacking[1]}]", f"output_dir={tmp_path / 'run'}"]
    message = refusal("reproalign", main, line, capsys, untouched=tmp_path)
    assert "hold no tensor 'model.norm.weight'" in message


def test_resized_embeddings_are_cropped_or_padded_by_name(pair, refused, tmp_path, capsys):
    larger = save_random(tmp_path / "larger", seed=3, vocab_size=520)
    message = refused(models=(pair[0], larger))
    assert "tensor 'lm_head.weight' has different numbers of rows: [512, 16]" in message
    assert "embeddings=crop" in message
    first, second = tensors_of(pair[0]), tensors_of(larger)
    for how, rows in (("crop", 512), ("pad", 520)):
        folder = tmp_path / how
        assert main(["merge", f"models=[{pair[0]},{larger}]", f"embeddings={how}", f"output_dir={folder}"]) == 0
        assert json.loads((folder / "model" / "config.json").read_text())["vocab_size"] == rows
        merged = tensors_of(folder / "model")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            mean = (first[name].float() + second[name][:512].float()) / 2
            assert torch.equal(merged[name][:512], mean.bfloat16())
            assert torch.equal(merged[name][512:], second[name][512:rows])
    assert "rows 512 to 519 copied" in capsys.readouterr().err


def test_tied_and_untied_heads(refused, tmp_path):
    tied = save_random(tmp_path / "tied", seed=1, tie_word_embeddings=True)
    own = save_random(tmp_path / "own", seed=2, tie_word_embeddings=False)
    assert "lm_head.weight" not in tensors_of(tied)
    assert "set tied=untie" in refused(models=(tied, own))
    assert main(["merge", f"models=[{tied},{own}]", "tied=untie", f"output_dir={tmp_path / 'run'}"]) == 0
    merged, first, second = tensors_of(tmp_path / "run" / "model"), tensors_of(tied), tensors_of(own)
    mean = (first["model.embed_tokens.weight"].float() + second["lm_head.weight"].float()) / 2
    assert torch.equal(merged["lm_head.weight"], mean.bfloat16())
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["tie_word_embeddings"] is False

    def add_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    torn = rewritten(tied, tmp_path / "torn", add_head)
    assert "tie_word_embeddings is true, but 'lm_head.weight'" in refused(models=(tied, torn))


def test_tokenizers_and_templates_are_compared_by_content(pair, refused, tmp_path):
    special = shutil.copytree(pair[1], tmp_path / "special")
    tokenizer = AutoTokenizer.from_pretrained(special)
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(special)
    assert "pad_token is '<pad>' and '</s>'" in refused(models=(pair[0], special))

    added = shutil.copytree(pair[1], tmp_path / "added")
    tokenizer = AutoTokenizer.from_pretrained(added)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(added)
    assert "the first difference being '<tool>'" in refused(models=(pair[0], added))

    template = shutil.copytree(pair[1], tmp_path / "template")
    (template / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat templates" in refused(models=(pair[0], template))
    words = ["allow=[chat_template]", f"files_from={template}", f"output_dir={tmp_path / 'run'}"]
    assert main(["merge", f"models=[{pair[0]},{template}]", *words]) == 0
    assert (tmp_path / "run" / "model" / "chat_template.jinja").read_text() == "{{ messages }}"

    # Another layout of the same files is no difference.
    same = shutil.copytree(pair[1], tmp_path / "same")
    content = json.loads((same / "tokenizer.json").read_text())
    (same / "tokenizer.json").write_text(json.dumps(dict(reversed(content.items())), indent=4))
    assert main(["merge", f"models=[{pair[0]},{same}]", f"output_dir={tmp_path / 'fine'}"]) == 0


def test_heads_that_classify_otherwise(refused, tmp_path):
    folders = []
    for index, labels in enumerate((["good", "bad"], ["bad", "good"])):
        config = random_config("llama", id2label=dict(enumerate(labels)))
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / str(index))
        folders.append(tmp_path / str(index))
    assert "classify differently" in refused(models=tuple(folders))
    assert main(["merge", f"models=[{folders[0]},{folders[0]}]", f"output_dir={tmp_path / 'run'}"]) == 0


def test_pickled_weights_only_when_asked(pair, refused, tmp_path):
    folder = shutil.copytree(pair[1], tmp_path / "bin", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(tensors_of(pair[1]), folder / "pytorch_model.bin")
    assert "add allow=[bin]" in refused(models=(pair[0], folder))
    for name, second in (("bin", folder), ("safe", pair[1])):
        words = [f"models=[{pair[0]},{second}]", "allow=[bin]", f"output_dir={tmp_path / f'run-{name}'}"]
        assert main(["merge", *words]) == 0
    first, second = (tmp_path / f"run-{name}" / "model" / "model.safetensors" for name in ("bin", "safe"))
    assert first.read_bytes() == second.read_bytes()
    torch.save({"w": print}, folder / "pytorch_model.bin")
    assert "weights_only=True" in refused("allow=[bin]", models=(pair[0], folder))


def test_quantised_and_torn_files(pair, refused, tmp_path):
    quantised = changed(pair[1], tmp_path / "q", quantization_config={"quant_method": "gptq"})
    assert "is quantised" in refused(models=(pair[0], quantised))
    torn = shutil.copytree(pair[1], tmp_path / "torn")
    os.truncate(torn / "model.safetensors", (torn / "model.safetensors").stat().st_size - 1)
    assert "cut short" in refused(models=(pair[0], torn))


def test_values_too_large_for_the_output_dtype_leave_nothing(pair, capsys, tmp_path):
    big = rewritten(pair[0], tmp_path / "big", lambda tensors: tensors["model.norm.weight"].fill_(1e6))
    words = ["merge", f"models=[{pair[0]},{big}]", "dtype=float16", f"output_dir={tmp_path / 'run'}"]
    assert "too large for float16" in refusal("reproalign", main, words, capsys)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up(pair, capsys, tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ["merge", f"models=[{pair[0]},{pair[1]}]", f"output_dir={tmp_path / 'run'}"]
    for call in ("posix_fallocate", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            assert "free some" in refusal("reproalign", main, words, capsys)
        assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        assert "GB are free" in refusal("reproalign", main, words, capsys, untouched=tmp_path)


def test_a_whole_file_goes_before_an_old_index_as_it_does_for_transformers(pair, tmp_path):
    both = shutil.copytree(pair[0], tmp_path / "both")
    sharded = save_random(tmp_path / "sharded", seed=2, shard="10KB")
    for path in sharded.glob("model*"):
        shutil.copy(path, both)
    read = Checkpoint("both", both).tensors
    assert {info.file.name for info in read.values()} == {"model.safetensors"}
    assert len({info.file.name for info in Checkpoint("sharded", sharded).tensors.values()}) > 1


def test_statistics_that_would_be_ignored_or_leave_nothing_to_divide_by(pair, refused, tmp_path):
    information = {name: torch.ones(tensor.shape) for name, tensor in tensors_of(pair[0]).items()}
    save_file(information, tmp_path / "fisher")
    save_file({"layers.0.self_attn.q_proj.weight": torch.eye(16)}, tmp_path / "gram")
    given = "statistics=[{0},{0}]"
    assert "sum to 0 and cannot be normalised" in refused(
        "method=fisher", given.format(tmp_path / "fisher"), "weights=[0,0]", models=pair
    )
    message = refused("method=regmean", given.format(tmp_path / "gram"), models=pair)
    assert "'layers.0.self_attn.q_proj.weight' is no tensor of the models" in message


def test_slices_that_would_cut_the_model(pair, refused, tmp_path):
    sources = [{"model": str(model), "layer_range": [0, 2]} for model in pair]
    plan = {"merge_method": "linear", "slices": [{"sources": sources}]}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    assert "they hold 2 of the 4 layers" in refused(f"plan={tmp_path / 'plan.yaml'}")


def test_files_of_a_model_that_the_merged_one_is_not(pair, refused, tmp_path):
    for name, message, kind, config in (
        ("neox", "a GPTNeoXForCausalLM, and the models are LlamaForCausalLM", "gpt_neox", {}),
        ("tied", "its tie_word_embeddings is not that of the models", "llama", {"tie_word_embeddings": True}),
        ("theta", "differ in rms_norm_eps", "llama", {"rms_norm_eps": 1e-3}),
    ):
        other = save_random(tmp_path / name, kind, seed=0, **config)
        assert message in refused(f"files_from={other}", models=pair)


def test_a_folder_that_cannot_be_made(pair, capsys):
    line = ["merge", f"models=[{pair[0]},{pair[1]}]", f"output_dir={pair[0] / 'config.json' / 'run'}"]
    assert "cannot be made (not a directory)" in refusal("reproalign", main, line, capsys, untouched=pair[0])
