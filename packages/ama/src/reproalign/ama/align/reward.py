"""``ama reward``: a Bradley-Terry reward model on preference pairs."""

from __future__ import annotations

from datasets import Dataset

from reproalign.ama.align.config import RewardConfig
from reproalign.ama.align.objective import BradleyTerry
from reproalign.ama.align.pairs import report
from reproalign.common.data.load import load_preferences
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.reward.dialogues import render_dialogues, tokenize_dialogues
from reproalign.common.reward.model import load_reward, load_reward_tokenizer
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import NOTE, RewardRules, told_rules
from reproalign.common.text.collate import PairCollator
from reproalign.common.text.shown import used_rows
from reproalign.common.training.arguments import check_held_out
from reproalign.common.training.fit import fit
from reproalign.common.training.preview import preview
from reproalign.common.training.reward import PairedRewardTrainer
from reproalign.common.training.stages import HELD_OUT, open_training


def reward(config: RewardConfig, invocation: Invocation) -> None:
    """Read, tokenise, fit, measure held-out pairs, record; ``<output_dir>/model`` has the rules of reading beside it.

    Raises:
        UserError: for a mistake in the options or the rows.
    """
    rules = check_options(config)
    with open_training(config, invocation) as (run, arguments):
        tokenizer = load_reward_tokenizer(config.model)
        reader = Reader(tokenizer, rules)
        data = load_preferences(config.data, seed=config.seed, rejects_dir=run.rejects)
        run.used_data(data.provenance)
        train, held_out = (
            None if split is None else tokenize_split(split, reader, config) for split in (data.train, data.evaluation)
        )
        assert train is not None  # there are rows to train on, or load_preferences has refused the file
        counts = {"train": len(train), "train_dropped": len(data.train) - len(train)}
        if held_out is not None and data.evaluation is not None:
            counts |= {"evaluation": len(held_out), "evaluation_dropped": len(data.evaluation) - len(held_out)}
        run.set("pairs", counts)
        used_rows(run, tokenizer, train)
        check_held_out(arguments, held_out, HELD_OUT, rows="pairs")
        assert isinstance(tokenizer.pad_token_id, int)  # load_reward_tokenizer has set it
        preview(run, config, arguments, train, held_out)
        model = load_reward(config.model, tokenizer, rules, tokenizer.pad_token_id)
        used_weights(run, "start", config.model.name, config.model.revision)
        trainer = PairedRewardTrainer(
            objective=BradleyTerry(),
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=held_out,
            data_collator=PairCollator(tokenizer.pad_token_id, padding_side=rules.padding_side),
            processing_class=tokenizer,
        )
        fit(trainer, run, config, tokenizer, notes={NOTE: rules.note()})
        report(run, trainer, held_out)


def check_options(config: RewardConfig) -> RewardRules:
    """Check what can be checked without rows and model.

    Returns:
        How the reward model will read: LMFlow's layout and the special tokens that the tokenizer adds by itself, the
        head on the last token, as transformers' text-classification pipeline reads what the release trained.

    Raises:
        UserError: naming the key.
    """
    told = {
        "pooling": "last_not_pad",
        "layout": "lmflow",
        "truncation_side": "right",
        "special_tokens": "own_once",
        **told_rules(config.model, config.text, None),
    }
    return RewardRules(**told)


def tokenize_split(records: Dataset, reader: Reader, config: RewardConfig) -> Dataset:
    """Return pairs as the reward model reads them; what is over-long goes as ``text.overlong`` says."""
    rendered = render_dialogues(records, reader, config.data)
    return tokenize_dialogues(rendered, reader, config.text.overlong, config.data)
