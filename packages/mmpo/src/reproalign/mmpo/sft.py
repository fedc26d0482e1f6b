"""``mmpo sft``: supervised fine-tuning on dialogues, the starting point of every run of the paper."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from transformers import set_seed
from trl import SFTConfig

from reproalign.common.data.prepare import check_tokenizer, load_messages
from reproalign.common.invocation import Invocation
from reproalign.common.models.load import load_tokenizer
from reproalign.common.records import Run
from reproalign.common.training.arguments import training_arguments
from reproalign.common.training.sft import fine_tune
from reproalign.mmpo.config import SFTRunConfig
from reproalign.mmpo.report import draw


def sft(config: SFTRunConfig, invocation: Invocation) -> None:
    """Fine-tune with ``trl.SFTTrainer`` on the ``messages`` of the data; every token of a dialogue is trained on."""
    arguments = training_arguments(config, Path(config.output_dir), SFTConfig, max_length=config.data.max_length)
    set_seed(config.seed)  # before the model: adapters begin at random
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = load_tokenizer(config.model)
        check_tokenizer(tokenizer, chat_template=config.model.chat_template)
        data = load_messages(config.data, rejects_dir=run.dir if run.is_main else None)
        for split, facts in data.provenance.items():
            run.add_fingerprint(
                "data", split, facts.get("sha256", ""), **{k: v for k, v in facts.items() if k != "sha256"}
            )
        evaluation = None if data.evaluation is None else data.evaluation.select_columns("messages")
        fine_tune(config, run, arguments, tokenizer, data.train.select_columns("messages"), evaluation)
        if run.is_main:
            draw(run.dir, {})
            Console().print(f"model, record and plots: {run.dir}", highlight=False)
