"""A logit ensemble: the weighted mean of several models' logits, as one causal language model in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from reproalign.common.cli import main
from reproalign.common.config.model import ModelConfig
from reproalign.common.errors import UserError
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.ensemble_file import read_ensemble, write_ensemble
from reproalign.common.models.identify import identify_settings, identify_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.models.load import load_causal_lm, load_tokenizer
from reproalign.common.testing import refusal
from reproalign.common.testing.checkpoints import save_random, save_random_adapter

IDS = torch.tensor([[5, 9, 77, 31, 200], [8, 8, 13, 99, 4]])


def load(name: object):
    return load_causal_lm(ModelConfig(name=str(name)), trainable=False)


def members_of(folder: Path, kind: str) -> list[Path]:
    """Two adapters of one base, or two models."""
    if kind == "adapters":
        base = save_random(folder / "base", seed=0, dtype=torch.float32)
        return [save_random_adapter(folder / f"member{seed}", base, seed) for seed in (1, 2)]
    return [save_random(folder / f"member{seed}", kind, seed=seed, dtype=torch.float32) for seed in (1, 2)]


def ensemble_of(folder: Path, members: list[Path], weights: list[float], base: str | None = None) -> Path:
    folder.mkdir()
    write_ensemble(folder, list(map(str, members)), weights, base)
    return folder


@pytest.mark.parametrize("kind", ["adapters", "llama", "gemma2", "gpt_neox"])
def test_logits_and_greedy_generation_are_those_of_the_mean_computed_by_hand(tmp_path, kind):
    members = members_of(tmp_path, kind)
    model = load(ensemble_of(tmp_path / "ensemble", members, [0.3, 0.7]))
    parts = [load(member) for member in members]

    def mean(ids):
        return 0.3 * parts[0](input_ids=ids).logits + 0.7 * parts[1](input_ids=ids).logits

    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, mean(IDS), atol=1e-4)
        grown = IDS
        for _ in range(10):
            grown = torch.cat([grown, mean(grown)[:, -1:].argmax(-1)], dim=1)
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(input_ids=IDS, **options), grown)
    assert torch.equal(model.generate(input_ids=IDS, use_cache=False, **options), grown)


def test_beams_keep_every_members_cache_in_step(tmp_path):
    model = load(ensemble_of(tmp_path / "ensemble", members_of(tmp_path, "adapters"), [0.5, 0.5]))
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    cached, plain = (model.generate(input_ids=IDS, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)


def test_copies_of_a_model_are_that_model(tmp_path):
    (member, _) = members_of(tmp_path, "adapters")
    copies = [shutil.copytree(member, tmp_path / f"copy{number}") for number in range(4)]
    model, one = load(ensemble_of(tmp_path / "ensemble", copies, [0.25] * 4)), load(member)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, one(input_ids=IDS).logits, atol=1e-4)
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(input_ids=IDS, **options), one.generate(input_ids=IDS, **options))


def test_the_base_of_adapters_is_held_once(tmp_path):
    members = members_of(tmp_path, "adapters")
    model = load(ensemble_of(tmp_path / "ensemble", members, [0.5, 0.5]))
    base = sum(parameter.numel() for parameter in load(tmp_path / "base").parameters())
    adapters = sum(tensor.numel() for name, tensor in model.named_parameters() if "lora_" in name)
    assert sum(parameter.numel() for parameter in model.parameters()) == base + adapters


def test_it_answers_with_log_probs_of_completions(tmp_path):
    model = load(ensemble_of(tmp_path / "ensemble", members_of(tmp_path, "adapters"), [0.5, 0.5]))
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    with torch.no_grad():
        logps = model(input_ids=IDS).logits[:, :-1].log_softmax(-1).gather(2, IDS[:, 1:, None]).squeeze(2)
        assert install_completion_logps(model) == "plain"
        found = model(input_ids=IDS, completion_mask=mask)
    assert torch.allclose(found.sums, (logps * mask[:, 1:]).sum(1), atol=1e-4)


def test_merge_writes_one_with_shares_and_the_tokenizer(tmp_path):
    members = members_of(tmp_path, "adapters")
    run = tmp_path / "run"
    words = [f"models=[{members[0]},{members[1]}]", "weights=[1,3]", "method=ensemble", f"output_dir={run}"]
    assert main(["merge", *words]) == 0
    spec = read_ensemble(run / "model")
    assert (spec.members, spec.weights) == (tuple(str(member.resolve()) for member in members), (0.25, 0.75))
    assert json.loads((run / "model" / "ensemble.json").read_text())["members"] == ["../../member1", "../../member2"]
    assert len(load_tokenizer(ModelConfig(name=str(run / "model")))) > 100
    assert json.loads((run / "run.json").read_text())["verified"] == "loaded"
    check_language_model(ModelConfig(name=str(run / "model")))


def test_members_and_weights_identify_it(tmp_path):
    members = members_of(tmp_path, "adapters")
    names = [("a", members, [0.5, 0.5]), ("b", members, [0.4, 0.6]), ("c", members[::-1], [0.5, 0.5])]
    folders = [str(ensemble_of(tmp_path / name, *rest)) for name, *rest in names]
    assert len({identify_weights(folder, None) for folder in folders}) == 3
    assert identify_settings(folders[0]) is not None


def test_what_cannot_be_done_with_one_is_refused(tmp_path, capsys):
    members = members_of(tmp_path, "adapters")
    folder = ensemble_of(tmp_path / "ensemble", members, [0.5, 0.5])
    with pytest.raises(UserError, match="no model to train"):
        load_causal_lm(ModelConfig(name=str(folder)))

    def refused(*words: str) -> str:
        line = ["merge", *words, f"output_dir={tmp_path / 'run'}"]
        return refusal("reproalign", main, line, capsys, untouched=tmp_path)

    assert "has no weights to merge" in refused(f"models=[{folder},{members[0]}]")
    assert "has no weights to merge" in refused(f"models=[{folder},{members[0]}]", "method=ensemble")
    assert "space has no meaning" in refused(f"models=[{members[0]},{members[1]}]", "method=ensemble", "space=delta")
    wide = save_random(tmp_path / "wide", seed=3, vocab_size=600)
    assert "a vocabulary of 512" in refused(f"models=[{members[0]},{wide}]", "method=ensemble")
    other = save_random(tmp_path / "other", "gpt2", seed=3)
    assert "one architecture" in refused(f"models=[{members[0]},{other}]", "method=ensemble")
    with pytest.raises(UserError, match="logits of different vocabularies"):
        load(ensemble_of(tmp_path / "mixed", [tmp_path / "base", wide], [0.5, 0.5]))
    (folder / "ensemble.json").write_text("{}")
    with pytest.raises(UserError, match="not an ensemble's file"):
        load(folder)
