"""From the configuration to tokenised pairs with targets: the shared stages with this paper's rules between them."""

from __future__ import annotations

from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.data import HeldOutConfig
from reproalign.common.config.text import PairTextConfig, RewardTextConfig
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.records import Run
from reproalign.common.reward.dialogues import render_dialogues, tokenize_dialogues
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import RewardRules
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.render import render_pairs
from reproalign.common.training.stages import read_pairs
from reproalign.mmpo.config import PairRulesConfig, PreferenceConfig, RewardConfig, TargetConfig
from reproalign.mmpo.data import apply_pair_rules, build_targets
from reproalign.mmpo.target import read_soft_labels


@dataclass(frozen=True)
class TokenizedPairs:
    """Tokenised pairs with ``p_chosen``."""

    train: Dataset
    evaluation: Dataset | None


@dataclass(frozen=True)
class PairOptions:
    """What decides which pairs are trained on, with which targets, and how they are tokenised.

    Attributes:
        data: processes and cache.
        text: lengths, boundary, special tokens.
        target: margin to target.
        rules: which pairs.
        seed: of sampling.
        additive_margin: whether the margin itself goes along, for the loss of a reward model.
    """

    data: HeldOutConfig
    text: RewardTextConfig
    target: TargetConfig
    rules: PairRulesConfig
    seed: int
    additive_margin: bool = False


def reading_rules(text: RewardTextConfig, pool: str = "last") -> RewardRules:
    """Return how a reward model reads dialogues under this paper's options; its variants differ in the loss alone.

    Args:
        text: length, system turn, special tokens.
        pool: ``last`` or ``first_pad``.
    """
    special = {"dedupe": "own_once", "released": "own"}
    return RewardRules(
        pooling={"last": "last_not_pad", "first_pad": "first_pad"}[pool],
        layout="chat",
        max_length=text.max_length,
        truncation_side="right",
        system_message=text.system_message,
        special_tokens=special[text.special_tokens],
    )


def load_pairs(
    config: PreferenceConfig | RewardConfig, tokenizer: PreTrainedTokenizerBase, run: Run, reader: Reader | None = None
) -> TokenizedPairs:
    """Read, render, select and tokenise both splits, and record what they are.

    Args:
        config: of the run.
        tokenizer: of the model.
        run: gets the facts.
        reader: of a reward model, which reads whole dialogues.

    Raises:
        UserError: for anything wrong in the rows or the rules.
    """
    margin = isinstance(config, RewardConfig) and config.additive_margin
    options = PairOptions(config.data, config.text, config.target, config.pairs, config.seed, margin)

    def prepare(records: Dataset, split: str) -> Dataset:
        return prepare_split(records, tokenizer, options, split, reader)

    used_soft_labels(run, config.target)
    train, evaluation = read_pairs(config, run, tokenizer, prepare)
    if not len(train):
        raise UserError("no training pair is left after the rules of data.*, target.* and pairs.*; loosen them")
    return TokenizedPairs(train, evaluation)


def used_soft_labels(run: Run, target: TargetConfig) -> None:
    """Record the file of soft labels, if targets come from one."""
    if target.soft_labels and run.is_main:
        labels = read_soft_labels(target.soft_labels)
        run.add_fingerprint("data", "soft labels", sha256_json(labels), path=target.soft_labels, rows=len(labels))


def prepare_split(
    records: Dataset, tokenizer: PreTrainedTokenizerBase, options: PairOptions, split: str, reader: Reader | None
) -> Dataset:
    """Turn records into tokenised pairs: render, add targets, apply the rules, tokenise.

    Args:
        records: preference records.
        tokenizer: with a chat template.
        options: of the run.
        split: ``train`` or ``evaluation``.
        reader: of a reward model, which reads whole dialogues; None: prompt and response, for a policy.
    """
    data, text = options.data, options.text
    if reader is None:
        assert isinstance(text, PairTextConfig)  # of a policy
        rendered = render_pairs(records, tokenizer, text, data)
    else:
        rendered = render_dialogues(records, reader, data)
    aimed = build_targets(rendered, options.target, additive_margin=options.additive_margin)
    selected = apply_pair_rules(aimed, options.rules, split=split, seed=options.seed)
    if reader is None:
        assert isinstance(text, PairTextConfig)
        return tokenize_pairs(selected, tokenizer, text, data)
    return tokenize_dialogues(selected, reader, text.overlong, data)
