"""PairRM with a few thousand random parameters, in both published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import DebertaV2Config, PreTrainedTokenizerFast

from reproalign.common.judging.pairrm import DebertaV2PairRM, PairFormat
from reproalign.common.judging.pairrm_files import DEBERTA_V3

_MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
RANKER = {
    "ranker_type": "pairranker",
    "model_type": "deberta",
    "model_name": "microsoft/deberta-v3-large",
    "source_maxlength": 1224,
    "candidate_maxlength": 412,
    "n_tasks": 1,
    "drop_out": 0.05,
}


def tiny_pairrm_tokenizer() -> PreTrainedTokenizerFast:
    """Make a character-level tokenizer that frames a text as ``[CLS] … [SEP]`` and puts lower case for upper case.

    The normaliser is there to be kept: transformers' own class for DeBERTa drops the one in ``tokenizer.json``.
    """
    characters = [chr(code) for code in range(32, 127)]
    backend = Tokenizer(
        models.WordLevel({token: place for place, token in enumerate([*_SPECIAL, *characters])}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in _MARKS])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save_tiny_pairrm(folder: Path, *, layout: str = "hf", seed: int = 0, tasks: int = 1) -> Path:
    """Save random weights into ``folder`` as llm-blender/PairRM-hf (``hf``) or -/PairRM (``ranker``) has them."""
    tokenizer = tiny_pairrm_tokenizer()
    form, vocabulary = PairFormat(), tokenizer.get_vocab()
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "position_buckets": 16,
    }
    extra = {
        "n_tasks": tasks,
        "drop_out": 0.05,
        "source_prefix_id": vocabulary[form.source],
        "cand1_prefix_id": vocabulary[form.first],
        "cand2_prefix_id": vocabulary[form.second],
        "cand_prefix_id": vocabulary["<|candidate|>"],
    }
    config = DebertaV2Config.from_dict({**DEBERTA_V3, **shape, **extra})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DebertaV2PairRM(config)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # larger than usual, so that logits differ visibly
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # As published; transformers' own class for it is not what is to read tokenizer.json.
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "tokenizer_class": "DebertaV2Tokenizer"}), encoding="utf-8")
    if layout == "ranker":
        (folder / "config.json").write_text(json.dumps({**RANKER, "n_tasks": tasks}), encoding="utf-8")
    return folder
