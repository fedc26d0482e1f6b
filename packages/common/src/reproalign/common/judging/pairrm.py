"""PairRM: a DeBERTa that reads a prompt with two responses and tells which of them is better.

Jiang et al., 2023, "LLM-Blender" (arXiv 2306.02561). :mod:`reproalign.common.judging.pairrm_files` loads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class PairFormat:
    """How a prompt and two responses become one sequence.

    Attributes:
        source: token before the prompt.
        first: before the response that is shown first.
        second: before the other one.
        source_length: tokens of the prompt with its special ones; more are cut off its end.
        candidate_length: of either response; what the prompt leaves free is theirs too.
    """

    source: str = "<|source|>"
    first: str = "<|candidate1|>"
    second: str = "<|candidate2|>"
    source_length: int = 1224
    candidate_length: int = 412

    def encode(self, tokenizer: Any, prompt: str, first: str, second: str) -> list[int]:
        """Return ``[CLS] source prompt [SEP] [CLS] first … [SEP] [CLS] second … [SEP]`` as token ids.

        With S = ``source_length``, C = ``candidate_length`` and s the length of the prompt's part, each response's part
        has at most ⌊(S + 2 C - s) / 2⌋ tokens. llm-blender takes s from the longest prompt of a batch, so that what it
        cuts depends on the batch; the model card's code, and this, take it from the prompt itself.
        """
        ids: list[int] = tokenizer.encode(self.source + prompt, max_length=self.source_length, truncation=True)
        left = (self.source_length + 2 * self.candidate_length - len(ids)) // 2
        for text in (self.first + first, self.second + second):
            ids = ids + tokenizer.encode(text, max_length=left, truncation=True)
        return ids

    def clean(self, text: str, separator: str) -> str:
        """Replace what marks the parts of a sequence by a space: in a text it would be taken for such a mark.

        llm-blender does so for the separator alone, and fails on the others.
        """
        for mark in (self.source, self.first, self.second, "<|candidate|>", separator):
            text = text.replace(mark, " ")
        return text


class DebertaV2PairRM(DebertaV2PreTrainedModel):
    """The network: a comparison's logit, above 0 where the response that is shown first is better.

    With h the last hidden states at the tokens before the prompt (s) and before either response (1, 2):

        logit = mean over tasks of (f([h_s; h_1]) - f([h_s; h_2])),    f(x) = W₂ tanh(W₁ x + b₁) + b₂

    Named as in the published configuration, which ``save_pretrained`` writes.
    """

    base_model_prefix = "pretrained_model"

    def __init__(self, config: DebertaV2Config) -> None:
        """Make the network of ``config`` with its extra fields ``n_tasks``, ``drop_out`` and ``*_prefix_id``."""
        super().__init__(config)
        size = config.hidden_size
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * size, size),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(size, config.n_tasks),
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self, input_ids: Int[Tensor, "pairs seq"], attention_mask: Int[Tensor, "pairs seq"]
    ) -> Float[Tensor, " pairs"]:
        """Return the logits in float32."""
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        config: Any = self.config
        prompt = _at(states, input_ids, config.source_prefix_id)
        scores = [
            self.head_layer(torch.cat([prompt, _at(states, input_ids, token)], dim=-1))
            for token in (config.cand1_prefix_id, config.cand2_prefix_id)
        ]
        logits: Tensor = (scores[0].float() - scores[1].float()).mean(-1)
        return logits


@dataclass(frozen=True)
class PairRM:
    """Network, tokenizer and format, ready to compare."""

    network: DebertaV2PairRM
    tokenizer: PreTrainedTokenizerFast
    form: PairFormat

    def encode(self, prompt: str, first: str, second: str) -> list[int]:
        """Return the token ids of a prompt with its responses in this order."""
        separator = str(self.tokenizer.sep_token)
        texts = [self.form.clean(text, separator) for text in (prompt, first, second)]
        return self.form.encode(self.tokenizer, *texts)

    @torch.inference_mode()
    def logits(self, sequences: list[list[int]]) -> Float[Tensor, " pairs"]:
        """Return the logits of encoded comparisons, padded to the longest of them, on the CPU."""
        ids, mask = padded(sequences, int(self.tokenizer.pad_token_id))  # type: ignore[arg-type]
        found: Tensor = self.network(ids.to(self.network.device), mask.to(self.network.device))
        return found.cpu()


def padded(
    sequences: list[list[int]], pad: int, length: int | None = None
) -> tuple[Int[Tensor, "pairs seq"], Int[Tensor, "pairs seq"]]:
    """Return token ids padded on the right, and the attention mask.

    Args:
        sequences: of token ids.
        pad: id of the padding.
        length: to which they are padded, at least that of the longest; None: that.
    """
    length = length or max(len(ids) for ids in sequences)
    ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in sequences])
    return ids, mask


def _at(
    states: Float[Tensor, "pairs seq hidden"], input_ids: Int[Tensor, "pairs seq"], token: int
) -> Float[Tensor, "pairs hidden"]:
    """Return the states at the one place of ``token`` in each sequence."""
    places = (input_ids == token).int().argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), places]
