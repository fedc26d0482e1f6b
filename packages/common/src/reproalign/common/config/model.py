"""Which weights a run starts from and compares itself with, and how log-probs are computed of them.

``model.*``, ``reward.*``, ``reference.*`` and ``logprobs.*``; lengths are in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from reproalign.common.options import like, option, section

DTYPES = {"auto": "as saved; beside autocast: float32", "float32": "", "bfloat16": "", "float16": ""}


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021); defaults are the alignment-handbook's."""

    enabled: bool = option(False, help="train low-rank adapters in place of the weights")
    r: int = option(16, help="rank of the adapters", at_least=1, read_with=("enabled",))
    alpha: int = option(32, help="the adapters' product is scaled by alpha / r", at_least=1, read_with=("enabled",))
    dropout: float = option(
        0.05, help="of the adapters' inputs while they are trained", at_least=0, below=1, read_with=("enabled",)
    )
    target_modules: list[str] | None = option(
        None,
        help="modules that get adapters; [all-linear]: every linear one",
        null="PEFT's default for the architecture",
        read_with=("enabled",),
    )
    modules_to_save: list[str] | None = option(
        None, help="modules trained whole and saved beside the adapters", null="none", read_with=("enabled",)
    )
    merge: bool = option(False, help="write merged weights instead of an adapter at the end", read_with=("enabled",))


@dataclass
class LoadedModelConfig:
    """Which weights are loaded, by a run that trains none, and how they are held."""

    name: str = option(help="Hub id, local folder, demo:smollm2-135m-instruct, or tiny:llama")
    revision: str | None = option(None, help="branch, tag or commit of the Hub repository", null="its default branch")
    tokenizer: str | None = option(None, help="Hub id or folder of the tokenizer", null="the model's own")
    chat_template: str | None = option(
        None,
        help="how a dialogue is written",
        also="a name in reproalign.common.text.templates, or a file",
        null="the tokenizer's own",
    )
    dtype: str = option("auto", help="of the weights", choices={**DTYPES, "auto": "as saved"})
    attn_implementation: str | None = option(
        None, help="attention of transformers, e.g. eager, sdpa or flash_attention_2", null="transformers chooses"
    )
    trust_remote_code: bool = option(False, help="run code that lies beside the weights on the Hub")
    quantization: str | None = option(
        None,
        help="hold the weights in fewer bits (needs bitsandbytes)",
        choices=("4bit", "8bit"),
        null="not quantized",
    )
    gemma_numerics: str | None = option(
        None,
        help="of Gemma 1's activations",
        choices={"current": "as transformers has it now", "transformers-4.38": "exact GELU"},
        null="as the variant says",
    )


@dataclass
class ModelConfig(LoadedModelConfig):
    """Which weights a training starts from, and how they are held and trained."""

    dtype: str = like(LoadedModelConfig, "dtype", "auto", help="of weights and optimiser states", choices=DTYPES)
    quantization: str | None = like(
        LoadedModelConfig,
        "quantization",
        None,
        help="hold the frozen weights in fewer bits (QLoRA; needs bitsandbytes)",
    )
    dropout: bool | None = option(
        None, help="dropout of a model in training, adapters' lora.dropout included", null="as the verb has it"
    )
    lora: LoraConfig = section(LoraConfig)

    def loaded(self) -> LoadedModelConfig:
        """Return these weights as a run loads them that does not train them."""
        return LoadedModelConfig(**{field.name: getattr(self, field.name) for field in fields(LoadedModelConfig)})


@dataclass
class LoadedRewardModelConfig(LoadedModelConfig):
    """A reward model that is loaded: a linear head on a language model's final hidden states, r = w · pool(h)."""

    dtype: str = like(LoadedModelConfig, "dtype", "float32")
    pooling: str | None = option(
        None,
        help="which final hidden state is read",
        choices={
            "eos": "of the first EOS",
            "last": "of the token before the last",
            "average": "",
            "max": "",
            "last_not_pad": "",
            "first_pad": "",
        },
        null="as trained; new: last",
    )


@dataclass
class RewardModelConfig(LoadedRewardModelConfig, ModelConfig):
    """A language model that becomes a reward model: its head has no bias and is trained with it."""

    dtype: str = like(
        ModelConfig,
        "dtype",
        "float32",
        help="of weights and optimiser states: 16 bits lose small updates; trainer.bf16 computes in 16",
    )


@dataclass
class ReferenceWeightsConfig:
    """Which frozen model a policy is compared with."""

    model: str | None = option(
        None, help="Hub id or folder of the reference policy", null="the policy's starting weights"
    )
    revision: str | None = option(None, help="branch, tag or commit of the Hub repository", null="its default branch")


@dataclass
class ReferenceConfig(ReferenceWeightsConfig):
    """How the frozen reference policy is held."""

    mode: str = option(
        "auto",
        help="how the frozen reference policy is held",
        choices={
            "auto": "the cheapest that fits the run",
            "copy": "a second model",
            "adapter-disabled": "the policy without its adapters",
            "cached": "log-probs computed once, before training",
        },
    )
    batch_size: int = option(8, help="rows per forward while log-probs are cached", at_least=1)


@dataclass
class LogprobsConfig:
    """How per-token log-probabilities are computed."""

    implementation: str = option(
        "chunked",
        help="how per-token log-probs are computed",
        choices={"chunked": "a few positions' logits at a time", "plain": "all logits at once"},
    )
    chunk_size: int | None = option(
        None, help="token positions whose logits exist at once", at_least=1, null="chosen from the vocabulary's size"
    )
