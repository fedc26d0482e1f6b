"""Tokenizers of the three common kinds, trained on a few sentences so that merges cross any boundary in a text."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
SPECIAL = [PAD, BOS, EOS, UNK, "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the dog sleeps in the sun",
    "name three colours: red, green and blue; then count them: one, two, three",
    "how do I bake bread? mix flour, water, salt and yeast, wait, then bake it",
    "user asks a question and the assistant answers the question kindly",
    "two plus two is four, four plus four is eight, and eight minus one is seven",
    "hello hello world world aaa aaaa bbb abab abba   spaces   and\nnew\n\nlines",
]

TINY_TOKENIZERS = ("bytelevel", "metaspace", "unigram")


def tiny_tokenizer(kind: str = "bytelevel") -> PreTrainedTokenizerFast:
    """Make a small tokenizer with distinct pad, bos, eos and unk tokens and a ChatML template that knows ``system``.

    Args:
        kind: ``bytelevel`` (GPT-2, Llama 3: any text round-trips), ``metaspace`` (Llama 2: BPE over ``▁`` with a
            dummy prefix space and byte fallback) or ``unigram`` (T5, ALBERT: unigram over ``▁``).

    Raises:
        ValueError: for another kind.
    """
    if kind not in TINY_TOKENIZERS:
        raise ValueError(f"no tiny tokenizer '{kind}'; there are {', '.join(TINY_TOKENIZERS)}")
    backend = Tokenizer.from_str(_trained(kind))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=SPECIAL[4:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained(kind: str) -> str:
    if kind == "bytelevel":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        trainer: trainers.Trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    elif kind == "metaspace":
        # Training with byte_fallback needs the byte tokens in the vocabulary.
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNK))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
        )
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
        backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)
        trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=SPECIAL, unk_token=UNK, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()  # type: ignore[no-any-return]
