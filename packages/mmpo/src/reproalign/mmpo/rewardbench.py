"""RewardBench-format files: rows as RewardBench reads them, for a policy or a reward model; accuracies by section."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

from datasets import Dataset
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from reproalign.common.config.data import HeldOutConfig
from reproalign.common.config.text import PairTextConfig
from reproalign.common.console import result_console
from reproalign.common.data.records import Message
from reproalign.common.evaluation.rewardbench import (
    MAX_LENGTH,
    MAX_PROMPT_LENGTH,
    response_texts,
    section_scores,
    subset_accuracies,
)
from reproalign.common.files import sha256_json, write_json
from reproalign.common.records import Run
from reproalign.common.reward.dialogues import tokenize_dialogues
from reproalign.common.reward.reading import Reader
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.templates import render
from reproalign.common.training.pairs import ScoredPairsTrainer
from reproalign.mmpo.config import EvaluateConfig
from reproalign.mmpo.report import HeldOutRewards


def rewardbench(
    rows: list[dict[str, Any]],
    config: EvaluateConfig,
    tokenizer: PreTrainedTokenizerBase,
    reader: Reader | None,
    trainer: ScoredPairsTrainer,
    run: Run,
) -> dict[str, Any]:
    """Measure a model on RewardBench-format rows, print the sections, and write ``rewardbench.json``.

    Args:
        rows: of the file.
        config: ``rewardbench`` and ``data`` are read.
        tokenizer: of the model.
        reader: of a reward model; None: a policy.
        trainer: measures the pairs.
        run: the open record.

    Returns:
        Accuracies of subsets and sections, in shares; NaN for what the file does not have, which is null in the file.
    """
    run.add_fingerprint("data", "rewardbench", sha256_json(rows), path=config.rewardbench, rows=len(rows))
    pairs = (
        rewardbench_dialogues(rows, reader, config.data) if reader else rewardbench_pairs(rows, tokenizer, config.data)
    )
    rewards = HeldOutRewards(*trainer.rewards(pairs.add_column("p_chosen", [1.0] * len(pairs))))
    subsets = subset_accuracies([row["subset"] for row in rows], rewards.margins.tolist())
    scores = section_scores(subsets)
    result = {"subsets": subsets, **asdict(scores), "average_of": scores.average_label}
    table = Table("RewardBench", "accuracy", header_style="bold")
    for name, value in {
        **scores.sections,
        "prior sets": scores.prior_sets,
        scores.average_label: scores.average,
    }.items():
        table.add_row(name, "-" if math.isnan(value) else f"{100 * value:.2f}")
    table.add_section()
    for name, value in subsets.items():
        table.add_row(name, f"{100 * value:.2f}")
    result_console().print(table)
    write_json(run.dir / "rewardbench.json", json.loads(json.dumps(result), parse_constant=lambda name: None))
    return result


def rewardbench_pairs(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, data: HeldOutConfig) -> Dataset:
    """Tokenise RewardBench rows for a policy as RewardBench does: no system turn, 2,048 tokens, prompts cut to 128 if
    need be; the rendered prompt is deleted from both full texts; BOS and EOS are always added, so that a template which
    holds them gives doubled ones. A tokenizer without BOS, for which RewardBench fails, gets EOS alone.

    Args:
        rows: of a RewardBench-format file.
        tokenizer: with a chat template.
        data: where prepared data is kept.
    """
    texts = []
    for row in rows:
        prompt, *wholes = _dialogues(row)
        head = render(tokenizer, prompt)
        sides = response_texts(head, *(render(tokenizer, whole) for whole in wholes))
        texts.append({"prompt": head, "chosen": sides[0], "rejected": sides[1]})
    special = "dedupe" if tokenizer.bos_token_id is None else "released"
    text = PairTextConfig(
        max_length=MAX_LENGTH,
        max_prompt_length=MAX_PROMPT_LENGTH,
        boundary="released",
        special_tokens=special,
    )
    return tokenize_pairs(Dataset.from_list(texts), tokenizer, text, data)


def rewardbench_dialogues(rows: list[dict[str, Any]], reader: Reader, data: HeldOutConfig) -> Dataset:
    """Tokenise RewardBench rows as a reward model was trained to read, but as RewardBench does without a system turn,
    and up to 2,048 tokens.
    """
    reader = Reader(reader.tokenizer, replace(reader.rules, system_message=None, max_length=MAX_LENGTH))
    texts = [
        dict(zip(("prompt", "chosen", "rejected"), map(reader.render, _dialogues(row)), strict=True)) for row in rows
    ]
    return tokenize_dialogues(Dataset.from_list(texts), reader, "truncate", data)


def _dialogues(row: dict[str, Any]) -> list[list[Message]]:
    prompt = [{"role": "user", "content": row["prompt"]}]
    return [prompt, *([*prompt, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected"))]
