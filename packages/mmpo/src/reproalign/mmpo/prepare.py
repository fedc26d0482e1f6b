"""From the configuration to tokenised pairs with targets: the shared stages with this paper's rules between them."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from reproalign.common.config import DataConfig
from reproalign.common.data.prepare import (
    load_preferences,
    render_dialogues,
    render_pairs,
    tokenize_dialogues,
    tokenize_pairs,
)
from reproalign.common.errors import UserError
from reproalign.common.records import Run
from reproalign.mmpo.config import PairRulesConfig, PreferenceConfig, RewardConfig, TargetConfig
from reproalign.mmpo.data import apply_pair_rules, build_targets


@dataclass(frozen=True)
class Pairs:
    """Tokenised pairs with ``p_chosen``."""

    train: Dataset
    evaluation: Dataset | None


def load_pairs(config: PreferenceConfig | RewardConfig, tokenizer: PreTrainedTokenizerBase, run: Run) -> Pairs:
    """Read, render, select and tokenise both splits, and record what they are.

    Raises:
        UserError: for anything wrong in the rows or the rules.
    """
    data = load_preferences(config.data, rejects_dir=run.dir if run.is_main else None)
    for split, facts in data.provenance.items():
        run.add_fingerprint("data", split, facts.get("sha256", ""), **{k: v for k, v in facts.items() if k != "sha256"})
    dialogues = isinstance(config, RewardConfig)
    train = prepare_split(
        data.train, tokenizer, config.data, config.target, config.pairs, "train", config.seed, dialogues
    )
    evaluation = data.evaluation and prepare_split(
        data.evaluation, tokenizer, config.data, config.target, config.pairs, "evaluation", config.seed, dialogues
    )
    if not len(train):
        raise UserError("no training pair is left after the rules of data.*, target.* and pairs.*; loosen them")
    run.set("pairs", {"train": len(train), "evaluation": len(evaluation) if evaluation else 0})
    return Pairs(train, evaluation)


def prepare_split(
    records: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    target: TargetConfig,
    rules: PairRulesConfig,
    split: str,
    seed: int,
    dialogues: bool,
) -> Dataset:
    """Turn records into tokenised pairs: render, apply the rules, add targets, tokenise.

    Args:
        records: preference records.
        tokenizer: with a chat template.
        data: lengths, boundary, special tokens.
        target: margin to target.
        rules: which pairs.
        split: ``train`` or ``evaluation``.
        seed: of sampling.
        dialogues: whole dialogues for a reward model, instead of prompt and response.
    """
    rendered = (render_dialogues if dialogues else render_pairs)(records, tokenizer, data)
    selected = apply_pair_rules(rendered, rules, split=split, seed=seed)
    return (tokenize_dialogues if dialogues else tokenize_pairs)(build_targets(selected, target), tokenizer, data)
