"""From instruction rows to token ids, and labels that say which of them are trained on.

``paper``: the tokenizer's own BOS, the prompt, the response, EOS. The boundary is exact: whatever the tokenizer would
merge across it, ids of the prompt hold prompt text alone and none of them is supervised, and every id of the response
is. ``released``: prompt and prompt + response are tokenised each on its own, as many ids of the second as the first has
are masked, no EOS is added, so that a merge across the boundary shifts the mask (ERRATA Q4, Q5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reproalign.common.config.data import DataConfig
from reproalign.common.errors import UserError
from reproalign.common.options import like, option
from reproalign.dtm.prompt import alpaca

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from reproalign.common.text.collate import RowCollator

IGNORED = -100
SHAPING = ("max_length", "append_eos", "boundary", "separator")  # the fields that ids and labels depend on
PADDING = ("right", "left")


@dataclass
class TokensConfig:
    """How rows become token ids, and ids batches; null: as the variant has it."""

    max_length: int | None = option(
        1024,
        help="of prompt and response (released: block_size)",
        unit="tokens",
        at_least=1,
        null="the tokenizer's longest",
    )
    append_eos: bool | None = option(
        None, help="end the response with EOS, so that the model learns to stop", null="under paper"
    )
    boundary: str | None = option(
        None,
        help="between prompt and response",
        choices={"exact": "no token holds text of both", "released": "prompt and whole are tokenised apart"},
        null="by the variant",
    )
    separator: str = option(
        "", help="put between '### Response:' and the response, part of the prompt; the release has none"
    )
    drop_unsupervised: bool | None = option(None, help="leave out rows without a token to train on", null="under paper")
    padding_side: str = option("right", help="where batches are padded (released: left for Mistral)", choices=PADDING)
    num_proc: int | None = like(DataConfig, "num_proc", None)
    cache_dir: str | None = like(DataConfig, "cache_dir", None)


def resolved(config: TokensConfig, defaults: Mapping[str, Any]) -> TokensConfig:
    """Return ``config`` with ``defaults``, those of :class:`reproalign.dtm.rules.DtmRules`, where it has null."""
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})


def tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase, config: TokensConfig) -> Dataset:
    """Tokenise rows, in their order: columns ``input_ids``, ``labels``, ``supervised`` and ``source``.

    ``labels`` are -100 where nothing is trained on; ``supervised`` counts those that a causal model predicts, which is
    all others but one at the very first place. No row is left out (see :func:`supervised_only`). The result is kept in
    the cache.

    Args:
        rows: of :func:`reproalign.dtm.rows.read_rows`, without placeholders.
        tokenizer: of the model.
        config: :func:`resolved`.

    Raises:
        UserError: if EOS is to be appended and the tokenizer has none.
    """
    from reproalign.common.data.cache import fingerprint_dataset, fingerprint_tokenizer, map_cached

    options = {name: value for name, value in asdict(config).items() if name in SHAPING}
    return map_cached(
        rows,
        encoder(tokenizer, config),
        [
            "dtm tokens",
            fingerprint_dataset(rows),
            fingerprint_tokenizer(tokenizer),
            tokenizer.model_max_length,
            options,
        ],
        cache_dir=config.cache_dir,
        num_proc=config.num_proc,
        desc="tokenising",
        batched=True,
        remove_columns=[name for name in rows.column_names if name != "source"],
    )


def supervised_only(rows: Dataset) -> Dataset:
    """Leave out the rows without a supervised token."""
    kept = np.flatnonzero(np.array(rows["supervised"]))
    return rows if len(kept) == len(rows) else rows.select(kept)


def encoder(
    tokenizer: PreTrainedTokenizerBase, config: TokensConfig
) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]:
    """Return what tokenises a batch of rows, given and returned by columns."""
    if config.append_eos and tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no EOS token to append; set tokens.append_eos=false"
        )
    return partial(_encode, _exact if config.boundary == "exact" else _released, tokenizer, config)


def collator(tokenizer: PreTrainedTokenizerBase, padding_side: str = "right") -> RowCollator:
    """Return the collator for rows of ``tokenizer``."""
    from reproalign.common.text.collate import RowCollator, pad_id

    return RowCollator(pad_id(tokenizer), padding_side)


def _encode(
    rule: Callable[..., list[tuple[list[int], int]]],
    tokenizer: PreTrainedTokenizerBase,
    config: TokensConfig,
    batch: Mapping[str, Sequence[Any]],
) -> dict[str, list[Any]]:
    names = [name for name in ("instruction", "input", "output") if name in batch]
    texts = [
        alpaca(dict(zip(names, values, strict=True))) for values in zip(*(batch[name] for name in names), strict=True)
    ]
    prompts, responses = [f"{prompt}{config.separator}" for prompt, _ in texts], [response for _, response in texts]
    made = rule(tokenizer, config, prompts, responses)
    labels = [[IGNORED] * min(masked, len(ids)) + ids[masked:] for ids, masked in made]
    supervised = [sum(label != IGNORED for label in row[1:]) for row in labels]
    return {"input_ids": [ids for ids, _ in made], "labels": labels, "supervised": supervised}


def _exact(
    tokenizer: PreTrainedTokenizerBase, config: TokensConfig, prompts: list[str], responses: list[str]
) -> list[tuple[list[int], int]]:
    """Return the ids of each row, and how many of them are the prompt's."""
    from reproalign.common.text.tokenize import Encoder, TokenRules, add_special_tokens, begins_with_bos, split

    encode = Encoder(tokenizer)
    longest = _longest(tokenizer, config)
    rules = TokenRules(
        tokenizer.bos_token_id, tokenizer.eos_token_id, longest, longest, add_bos=begins_with_bos(tokenizer)
    )
    wholes = encode.batch([prompt + response for prompt, response in zip(prompts, responses, strict=True)])
    made = []
    for prompt, whole, response in zip(encode.batch(prompts), wholes, responses, strict=True):
        parts = split(rules, prompt, whole, partial(encode.continuation, response))
        head, tail = add_special_tokens(rules, *parts, encode.is_blank)
        response_ids = tail if config.append_eos else parts[1]
        ids = [int(token) for token in [*head, *response_ids] if token is not None]
        made.append((ids[:longest], len(head)))
    return made


def _released(
    tokenizer: PreTrainedTokenizerBase, config: TokensConfig, prompts: list[str], responses: list[str]
) -> list[tuple[list[int], int]]:
    """Return the ids of each row, and how many of them are masked: as many as the prompt has by itself."""
    longest = _longest(tokenizer, config)
    eos = [tokenizer.eos_token_id] if config.append_eos else []

    def encode(texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in tokenizer(texts, truncation=True, max_length=longest)["input_ids"]]

    wholes = encode([prompt + response for prompt, response in zip(prompts, responses, strict=True)])
    return [([*whole, *eos][:longest], len(prompt)) for prompt, whole in zip(encode(prompts), wholes, strict=True)]


def _longest(tokenizer: PreTrainedTokenizerBase, config: TokensConfig) -> int:
    return config.max_length or min(tokenizer.model_max_length, 2**31 - 1)  # some tokenizers claim 10^30
