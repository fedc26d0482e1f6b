"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.data.records import user
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.questions import StatisticsRequest
from reproalign.common.models.value_head import DetachedValueHead
from reproalign.common.testing.oracle import run_logps
from reproalign.common.text.collate import IGNORED
from reproalign.common.text.templates import TEMPLATES
from reproalign.common.training.examples import kl_estimate, tokenwise_kl_estimate
from reproalign.common.training.objective import Examples, Objective, Pairs, PairScores, Responses
from reproalign.radpo.batches import lay_out
from reproalign.radpo.config import ReleasedConfig, TrainConfig
from reproalign.radpo.data import held_out_batches
from reproalign.radpo.examples import Example
from reproalign.radpo.objectives import OBJECTIVES
from reproalign.radpo.released import Conversations, loss_scale
from reproalign.radpo.risk import ReleasedTail
from reproalign.radpo.rows import RowRules, build_rows, released_length
from reproalign.radpo.rules import RELEASED
from reproalign.radpo.training_rows import row_rules, schedule

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
    ADAPTERS[function.__name__.rstrip("_")] = function  # an underscore where the name is taken by an import
    return function


def vector(values: Any, *, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def matrix(values: Any) -> Tensor:
    """Log-probs per token; an empty list stands for no rows."""
    return vector(values, grad=True) if values else torch.zeros(0, 1, dtype=torch.float64, requires_grad=True)


def gradients(losses: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    """Of the sum of the losses; None for an input that has no rows or no part in it."""
    return [
        gradient if len(value) else None
        for value, gradient in zip(inputs, torch.autograd.grad(losses.sum(), inputs, allow_unused=True), strict=True)
    ]


@adapter
def token_logps_(inputs: Case, params: Case) -> Any:
    logits = vector(inputs["logits"], grad=True)
    found, scored = run_logps(logits, torch.tensor(inputs["labels"]))
    logps = torch.zeros(scored.shape, dtype=found.dtype).masked_scatter(scored, found)
    (gradient,) = torch.autograd.grad(logps, logits, grad_outputs=vector(inputs["upstream"]))
    return {"logps": logps, "grad_logits": gradient}


class Given(PreTrainedModel):
    """A language model whose logits are given."""

    config_class = PretrainedConfig

    def __init__(self, logits: Tensor) -> None:
        super().__init__(PretrainedConfig())
        self.given = logits

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.given)


Sums = Callable[[Tensor, dict[str, Tensor], HeadStates], dict[str, Tensor]]


def statistics(inputs: Case, sums_of: Sums, names: dict[str, str], upstream: str) -> Any:
    """Sums over the responses of a batch, and the gradient of the weighted sum of them.

    Args:
        inputs: of the case.
        sums_of: from logits, batch and reference to sums by name.
        names: of the case -> of the sums: log-prob under the policy and the reference, and the token-level term.
        upstream: what the term's weight is called.
    """
    logits, ref_logits, labels = vector(inputs["logits"], grad=True), vector(inputs["ref_logits"]), inputs["labels"]
    mask = torch.tensor(labels) != IGNORED
    batch = {"input_ids": torch.tensor(labels).clamp(min=0), "completion_mask": mask}
    found = sums_of(logits, batch, HeadStates(logits=ref_logits[:, :-1][mask[:, 1:]]))
    term = names["term"]
    result = {
        "logps_margin": found[names["logps"]] - found[names["ref_logps"]],
        term: found["forward_kl" if term == "position_kl" else "risk"],
        "logps": found[names["logps"]],
    }
    weights = [vector(inputs[f"upstream_{name}"]) for name in ("margin", upstream, "logp")]
    total = sum((weight * value).sum() for weight, value in zip(weights, result.values(), strict=True))
    (gradient,) = torch.autograd.grad(total, logits)
    return {"position_kl": found["forward_kl"], **result, "grad_logits": gradient}


def asked(objective: Objective) -> Sums:
    """What a trainer asks its model for."""

    def sums_of(logits: Tensor, batch: dict[str, Tensor], reference: HeadStates) -> dict[str, Tensor]:
        model, needs = Given(logits), objective.needs
        if needs.of_logits:
            return needs.of_logits(logits, batch, reference, None)
        install_completion_logps(model, LogprobsConfig(implementation="plain"))
        wanted = ("logps", "ref_logps", *needs.statistics)
        return model(**batch, statistics=StatisticsRequest(reference, wanted, needs.measure))["sums"]

    return sums_of


PLAIN = {"logps": "logps", "ref_logps": "ref_logps"}
REPLACED = {"logps": "replaced_logps", "ref_logps": "replaced_ref_logps"}


@adapter
def tdpo_statistics(inputs: Case, params: Case) -> Any:
    return statistics(inputs, asked(OBJECTIVES["tdpo"]()), PLAIN | {"term": "position_kl"}, "kl")


@adapter
def ra_dpo_statistics(inputs: Case, params: Case) -> Any:
    options = ("confidence_level", "is_split_risk_ratio", "is_cal_risk_distribution_logps")
    risk = ReleasedTail(*(params[name] for name in options))
    names = REPLACED if risk.replace_logps else PLAIN
    return statistics(inputs, asked(OBJECTIVES["ra-dpo"](risk=risk)), names | {"term": "risk_ratio"}, "risk")


def token_level(name: str, term: str) -> Callable[[Case, Case], Any]:
    def call(inputs: Case, params: Case) -> Any:
        names = ("chosen_margin", "rejected_margin", "chosen_term", "rejected_term")
        chosen, rejected, *terms = values = [vector(inputs[name], grad=True) for name in names]
        alpha = params["alpha"] if params["second_form"] else None
        sides = (Responses(u, statistics={term: t}) for u, t in zip((chosen, rejected), terms, strict=True))
        result = OBJECTIVES[name](beta=params["beta"], alpha=alpha)(Pairs(*sides))
        return {**vars(result), "grads": gradients(result.losses, *values)}

    return call


ADAPTERS["tdpo_loss"] = token_level("tdpo", "forward_kl")
ADAPTERS["ra_dpo_loss"] = token_level("ra-dpo", "risk")


def pair_inputs(inputs: Case) -> list[Tensor]:
    names = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    return [matrix(inputs[name]) for name in names]


def of_params(name: str, params: Case) -> Objective:
    """The objective with those of the golden parameters that are its own."""
    renamed = {"tokenwise_KL": "tokenwise_kl"}
    own = {renamed.get(key, key): value for key, value in params.items()}
    known = {field.name for field in fields(OBJECTIVES[name])}
    objective = OBJECTIVES[name]()
    for key in known & own.keys():  # not by its options, which refuse what no run should have: ε = 1/2, a margin of 0
        object.__setattr__(objective, key, own[key])
    return objective


def paired(result: PairScores, chosen: Tensor, rejected: Tensor) -> Any:
    grad_chosen, grad_rejected = gradients(result.losses, chosen, rejected)
    return {**vars(result), "grad_chosen": grad_chosen, "grad_rejected": grad_rejected}


def against_reference(name: str) -> Callable[[Case, Case], Any]:
    def call(inputs: Case, params: Case) -> Any:
        chosen, rejected, ref_chosen, ref_rejected = pair_inputs(inputs)
        margins = (Responses((policy - ref).sum(1)) for policy, ref in ((chosen, ref_chosen), (rejected, ref_rejected)))
        return paired(of_params(name, params)(Pairs(*margins)), chosen, rejected)

    return call


ADAPTERS["dpo_loss"] = against_reference("dpo")
ADAPTERS["cdpo_loss"] = against_reference("cdpo")


@adapter
def slic_loss(inputs: Case, params: Case) -> Any:
    chosen, rejected = pair_inputs(inputs)[:2]
    return paired(of_params("slic", params)(Pairs(Responses(chosen), Responses(rejected))), chosen, rejected)


def unpaired(inputs: Case, objective: Objective, **kl: Tensor) -> Any:
    chosen, rejected, ref_chosen, ref_rejected = pair_inputs(inputs)
    log_ratios = torch.cat([(chosen - ref_chosen).sum(1), (rejected - ref_rejected).sum(1)])
    desirable = torch.arange(len(log_ratios)) < len(chosen)
    result = objective(Examples(log_ratios, torch.zeros_like(log_ratios), desirable, **kl))
    grad_chosen, grad_rejected = gradients(result.losses, chosen, rejected)
    return {
        "losses": result.losses,
        "chosen_rewards": result.rewards[desirable],
        "rejected_rewards": result.rewards[~desirable],
        "grad_chosen": grad_chosen,
        "grad_rejected": grad_rejected,
    }


@adapter
def kto_loss(inputs: Case, params: Case) -> Any:
    differences = torch.cat(
        [
            matrix(inputs[f"policy_{side}_KL_logps"]) - matrix(inputs[f"ref_{side}_KL_logps"])
            for side in ("chosen", "rejected")
        ]
    )
    name = "tokenwise_kl" if params["tokenwise_KL"] else "kl"
    kl = tokenwise_kl_estimate(differences) if params["tokenwise_KL"] else kl_estimate(differences.sum(1))
    return {**unpaired(inputs, of_params("kto", params), **{name: kl}), "KL": kl}


@adapter
def kto_zero_loss(inputs: Case, params: Case) -> Any:
    return unpaired(inputs, of_params("kto-zero", params))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A UTF-8 byte b is the token b + 3; pad 0, bos 1, eos 2; no special text, no clean-up of spaces."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that GPT-2's alphabet shows as such
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    backend = Tokenizer(models.BPE({**special, **{char: byte + 3 for byte, char in alphabet.items()}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@adapter
def released_prompt_pair(inputs: Case, params: Case) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES[{"halos": "halos", "released": "halos_released"}[params["template"]]]
    conversations = Conversations(tokenizer, params["max_length"], params["max_prompt_length"], clean_up_spaces=False)
    visits = []
    for visit in inputs["visits"]:
        sides = {}
        for side, index in zip(("chosen", "rejected"), inputs["pairs"][visit], strict=True):
            found = conversations.element("p", inputs["conversation"], inputs["generations"][index])
            sides[side] = {
                "turns": found.turns,
                "response": found.response,
                "text": found.text,
                "tokens": len(found.ids),
                "unscored_tokens": found.prompt_length,
            }
        visits.append(sides)
    return {"visits": visits, "conversation_afterwards": conversations.turns["p"]}


def prompts(counts: list[list[Any]]) -> dict[str, Example]:
    """Prompts with as many pairs, whose generations are their own names."""
    return {
        name: Example(
            name,
            [user(name)],
            [f"{name}/{pair}/{side}" for pair in range(pairs) for side in ("chosen", "rejected")],
            "golden",
            [(2 * pair, 2 * pair + 1) for pair in range(pairs)],
        )
        for name, pairs in counts
    }


def names(batches: list[list[Case]], loader: str) -> list[str]:
    side, cut = {"paired": ("chosen", "/chosen"), "unpaired": ("completion", ""), "sft": ("completion", "/0/chosen")}[
        loader
    ]
    return [row[side].removesuffix(cut) for batch in batches for row in batch]


@adapter
def heldout_selection(inputs: Case, params: Case) -> Any:
    kind = {"sft": "completions"}.get(params["loader"], params["loader"])
    rules = RowRules(kind=kind, variant=RELEASED, seed=params["seed"], batch_size=params["batch_size"])
    evaluated = held_out_batches(
        prompts(inputs["evaluation_prompts"]),
        replace(rules, batch_size=params["eval_batch_size"]),
        params["n_eval_examples"],
    )
    rows = build_rows(prompts(inputs["training_prompts"]), rules)
    first, _ = lay_out(rows, rules)
    both, _ = lay_out(rows, replace(rules, epochs=2))
    return {
        "evaluation": names(evaluated, params["loader"]),
        "training_epochs": [names(batches, params["loader"]) for batches in (first, both[len(first) :])],
        "evaluation_examples_per_pass": sum(map(len, evaluated)),
    }


def launch(params: Case, name: str, **trainer: Any) -> TrainConfig:
    return TrainConfig(
        variant="released",
        loss=of_params(name, params),
        released=ReleasedConfig(params["processes"], params["gradient_accumulation_steps"]),
        warmup_steps=params["warmup_steps"],
        trainer=trainer,
    )


@adapter
def learning_rate_schedule(inputs: Case, params: Case) -> Any:
    counts = inputs.get("pairs_per_prompt") or [1] * inputs["examples"]
    examples = prompts([[str(number), pairs] for number, pairs in enumerate(counts)])
    config = launch(params, "dpo", num_train_epochs=params["n_epochs"])
    accumulation = params["gradient_accumulation_steps"]
    rules = row_rules(config, RELEASED, batch_size=params["batch_size"], accumulation=accumulation, processes=1)
    batches, _ = lay_out(build_rows(examples, rules), rules, params["n_examples"])
    length = released_length(examples, rules)
    rate = schedule(config, RELEASED, length)(0)
    return {
        "num_training_steps": length,
        "optimizer_steps": len(batches) // accumulation,
        "learning_rate": [params["lr"] * rate(step) for step in params["steps"]],
    }


@adapter
def ppo_learning_rate(inputs: Case, params: Case) -> Any:
    config = launch(params, "ppo")
    rules = row_rules(config, RELEASED, batch_size=params["batch_size"], accumulation=1, processes=1)
    batches, _ = lay_out([{} for _ in range(inputs["micro_batches"] * params["batch_size"])], rules)
    rate = schedule(config, RELEASED, float(len(batches)))(0)
    return {
        "optimizer_steps": len(batches),
        "learning_rate": [params["lr"] * rate(step) for step in params["steps"]],
        "gradient_scale": loss_scale(config.loss, params["batch_size"], 1, config.released.accumulation),
    }


@adapter
def ppo_value_head(inputs: Case, params: Case) -> Any:
    states = torch.tensor(inputs["hidden_states"], dtype=getattr(torch, params["states_dtype"]), requires_grad=True)
    head = DetachedValueHead(states.shape[-1]).eval()
    layers = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    for layer, given in zip(layers, inputs["layers"], strict=True):
        layer.load_state_dict({name: torch.tensor(value) for name, value in given.items()})
    values = head(states)
    (values * torch.tensor(inputs["upstream"])).sum().backward()
    gradients = [{name: value.grad for name, value in layer.named_parameters()} for layer in layers]
    return {"values": values, "grad_layers": gradients, "grad_hidden_states": states.grad}
