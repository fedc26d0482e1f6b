"""``toy train``: from pairs to a trained policy."""

from __future__ import annotations

from datasets import Dataset

from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.invocation import Invocation
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.render import render_pairs
from reproalign.common.training.fit import fit
from reproalign.common.training.stages import open_training, pair_trainer, read_pairs
from toy.config import TrainConfig


def train(config: TrainConfig, invocation: Invocation) -> None:
    """Read, fit, measure held-out pairs, record."""
    with open_training(config, invocation) as (run, arguments):
        tokenizer = asking_tokenizer(config.model, "chat")

        def prepare(records: Dataset, split: str) -> Dataset:
            texts = render_pairs(records, tokenizer, config.text, config.data)
            return tokenize_pairs(texts, tokenizer, config.text, config.data)

        rows, held_out = read_pairs(config, run, tokenizer, prepare)
        trainer = pair_trainer(config.loss, config, config.reference, run, arguments, tokenizer, rows, held_out)
        fit(trainer, run, config, tokenizer)
        run.set_metrics(trainer.evaluate() if held_out else {})
