"""``mmpo sft``: supervised fine-tuning on dialogues, the starting point of every run of the paper."""

from __future__ import annotations

from dataclasses import replace

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, pack_dataset

from reproalign.common.config.data import DataConfig
from reproalign.common.config.text import DialogueTextConfig
from reproalign.common.console import say
from reproalign.common.data.load import load_messages
from reproalign.common.invocation import Invocation
from reproalign.common.models.kind import check_language_model, with_gemma_numerics
from reproalign.common.models.load import load_tokenizer
from reproalign.common.text.render import render_messages
from reproalign.common.text.templates import check_tokenizer
from reproalign.common.text.tokenize import Encoder
from reproalign.common.training.sft import fine_tune
from reproalign.common.training.stages import open_training
from reproalign.mmpo.config import RowRulesConfig, SFTRunConfig
from reproalign.mmpo.data import shuffle_rows, without_contamination
from reproalign.mmpo.released import lay_out_epochs
from reproalign.mmpo.report import draw
from reproalign.mmpo.rules import rules_of


def sft(config: SFTRunConfig, invocation: Invocation) -> None:
    """Fine-tune with ``trl.SFTTrainer`` on the ``messages`` of the data; every token of a dialogue is trained on."""
    check_language_model(config.model)
    variant = rules_of(config.variant)
    config = replace(config, model=with_gemma_numerics(config.model, variant.gemma_numerics))
    with open_training(config, invocation, SFTConfig, max_length=config.text.max_length) as (run, arguments):
        assert isinstance(arguments, SFTConfig)
        tokenizer = load_tokenizer(config.model)
        check_tokenizer(tokenizer, chat_template=config.model.chat_template)
        data = load_messages(config.data, seed=config.seed, rejects_dir=run.rejects)
        run.used_data(data.provenance)
        train, *held_out = [
            prepare_rows(records, tokenizer, config.text, config.data, config.rows, arguments)
            for records in (data.train, data.evaluation)
            if records is not None
        ]
        if arguments.packing and arguments.packing_strategy == "wrapped":
            arguments.packing = arguments.eval_packing = False  # done, before the epochs are laid out
        if variant.release_epochs:
            train, steps = lay_out_epochs(train, arguments)
            run.set("steps", {"per_epoch": steps.per_epoch, "total": steps.total})
        fine_tune(config, run, arguments, tokenizer, train, held_out[0] if held_out else None)
        if run.is_main:
            draw(run, {})
            say(f"model, record and plots: {run.dir}")


def prepare_rows(
    records: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text: DialogueTextConfig,
    data: DataConfig,
    rules: RowRulesConfig,
    arguments: SFTConfig,
) -> Dataset:
    """Turn dialogues into rows of ``input_ids``: render, shuffle, decontaminate, tokenise, pack.

    The template's text is tokenised as it is; no special token is added to those that it holds. Packing ``wrapped``
    concatenates all dialogues and cuts them into rows of ``max_length``; other strategies are the trainer's.

    Args:
        records: rows of ``messages``.
        tokenizer: with a chat template.
        text: system turn and length.
        data: processes and cache.
        rules: shuffle and decontamination.
        arguments: ``packing`` and ``max_length`` are read.
    """
    texts = shuffle_rows(render_messages(records, tokenizer, text, data), rules)
    texts = without_contamination(texts, rules, "text", "rows.decontaminate")
    encoder = Encoder(tokenizer)
    rows = texts.map(
        lambda batch: {"input_ids": encoder.batch(batch["text"])},
        batched=True,
        remove_columns=texts.column_names,
        desc="tokenize dialogues",
        load_from_cache_file=False,  # what datasets itself has kept is not sealed
    )
    if not (arguments.packing and arguments.packing_strategy == "wrapped"):
        return rows
    return pack_dataset(rows, text.max_length, "wrapped", {"desc": "pack"})
