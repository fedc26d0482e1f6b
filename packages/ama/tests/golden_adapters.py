"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(name: str) -> Callable[[Callable[[Case, Case], Any]], Callable[[Case, Case], Any]]:
    """Register an adapter under the golden file's ``function``."""

    def register(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
        ADAPTERS[name] = function
        return function

    return register


def tensor(values: Any) -> Tensor:
    """Return nested lists as float64."""
    return torch.tensor(values, dtype=torch.float64)


# Averaging: names, interpolation, learned merges, grouping.


class KeyRatios(dict[str, float]):
    """The ratio of whatever key is asked for: the recorded files name the keys in their outputs alone."""

    def __init__(self, ratio: Callable[[str], float]) -> None:
        super().__init__()
        self.ratio = ratio

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> float:
        return self.ratio(key)


def untied_blocks(architecture: str, layers: int) -> Any:
    """The blocks of a tiny model whose state dict, as the release's loops see it, holds the head under its own name."""
    from reproalign.common.merging.blocks import Blocks

    classes = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "mistral": "MistralForCausalLM"}
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = {"model_type": architecture, "architectures": [classes[architecture]], "tie_word_embeddings": False}
    layout = {"num_key_value_heads": 2, "num_hidden_layers": layers}
    return Blocks({**config, **sizes, **layout}, architecture)


@adapter("weight_interpolation.py: save-path parsing, merge_split, merge_direct")
def pma_name_and_key_ratio(inputs: Case, params: Case) -> Any:
    from reproalign.ama.average.names import read_released_name

    name = read_released_name(inputs["save_path"])
    return {
        "method": name.method,
        "mode": "partwise" if name.part_wise else "plain",
        "pivots": list(name.pivots),
        "ratios": list(name.ratios),
        "lm_head_ratio": name.ratio("lm_head.weight", inputs["alpha"]),
        "key_ratio": KeyRatios(lambda key: name.ratio(key, inputs["alpha"])),
    }


@adapter("weight_interpolation.py main loop (merge_direct / merge_split over every state-dict key)")
def interpolate_state_dict(inputs: Case, params: Case) -> Any:
    from reproalign.ama.average.names import read_released_name
    from reproalign.common.merging.methods import linear_rounded

    name = read_released_name(inputs["save_path"])
    dtype = getattr(torch, params["dtype"])
    merged = {}
    for key, before in inputs["pre"].items():
        tensors = [torch.tensor(values, dtype=dtype) for values in (before, inputs["post"][key])]
        ratio = name.ratio(key, inputs["alpha"])
        merged[key] = linear_rounded(tensors, (ratio, 1 - ratio)).double()
    return {"merged": merged}


@adapter("weight_mask_merge.py main loop + update_by_wise_norm_sigmoid_linear")
def merge_learned(inputs: Case, params: Case) -> Any:
    from reproalign.ama.average.weights import scalar_weights
    from reproalign.ama.mask_alphas import ReleasedAlphas
    from reproalign.ama.parts import make_parts
    from reproalign.ama.tensors import BASE, PRE, tensor_rule
    from reproalign.common.merging.methods import linear_rounded

    dtype = getattr(torch, params["dtype"])
    scalars = torch.float32 if params["dtype"] != "float64" else torch.float64
    raws = {group: torch.tensor(raw, dtype=scalars) for group, raw in inputs["group_raw"].items()}
    own = {name: torch.tensor(raw, dtype=scalars) for name, raw in (inputs["mask_alphas"] or {}).items()}
    content = {"mask_alphas": own, "mask_bkp_alphas": raws, "init_val": params["init_val"]}
    if params["omit"] == "nobkp":
        del content["mask_bkp_alphas"]
    alphas = ReleasedAlphas.of({**content, "epsilon": params["epsilon"]}, "mask_alphas.bin")

    blocks = untied_blocks(params["architecture"], params["num_layers"])
    head = "post" if "final0" in inputs["alphas_path"] else "base"
    parts = make_parts(params["mask_level"], blocks, released=True)
    rule = tensor_rule("linear_head_pre", head, parts, blocks)
    merged, kept = {}, []
    for key, before in inputs["pre"].items():
        tensors = [torch.tensor(values, dtype=dtype) for values in (before, inputs["post"][key])]
        place = rule.place(key)
        if place == PRE:
            kept.append(key)
            merged[key] = tensors[0].double()
            continue
        if isinstance(place, str) and place != BASE:
            ratio = alphas.ratio(raws[place] if place in raws else own[place])
        else:
            ratio = torch.tensor(params["init_val"] if place == BASE else place, dtype=torch.float32)
        merged[key] = linear_rounded(tensors, scalar_weights(ratio, dtype)).double()
    return {"merged": merged, "kept_from_pre": kept}


@adapter("get_mask_alpha(model0, method, mask_level, init_val)")
def block_assignment(inputs: Case, params: Case) -> Any:
    from reproalign.ama.adapt.parametrisation import Stale
    from reproalign.ama.levels import HEAD
    from reproalign.ama.parts import linear_modules, make_parts

    blocks = untied_blocks(inputs["architecture"], inputs["num_layers"])
    parts = make_parts(params["mask_level"], blocks, released=True)
    grouped = parts.layer_groups or parts.modules
    modules = linear_modules(blocks) if grouped else []
    groups = {name: parts.group(blocks.block(f"{name}.weight").layer, name) for name in modules}
    members = [group for group in groups.values() if group in parts.names] + [HEAD] * parts.has_head
    start = Stale(params["init_val"], 0.0, max(len(parts.names), 1), None, with_base=False).start.tolist()
    none = "None" if parts.modules else None
    return {
        "normaliser_groups": list(parts.names),
        "n_mask_keys": len(modules) + parts.has_head,
        "key_to_group": {name: group if group in parts.names else None for name, group in groups.items()},
        "n_linear_per_group": {name: members.count(name) for name in parts.names},
        "lm_head_in_mask_keys": parts.has_head,
        "layer_to_group": list(parts.layer_groups) or [none] * inputs["num_layers"],
        "raw_init": dict(zip(parts.names or ["any"][: len(parts.modules)], start, strict=False)),
    }


# Adapting: ratios, regulariser, merged linear layers, the released optimiser.


def _vector(values: Any) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.float64)


@adapter("normalize_alpha(alpha, alphas) inside MaskTrainer.compute_loss")
def _normalized_alpha(inputs: Case, params: Case) -> Any:
    import torch

    from reproalign.ama.ratios import normalized

    raw = _vector(inputs["raw"]).requires_grad_()
    ratios = normalized(raw, params["init_val"], params["epsilon"])
    (gradient,) = torch.autograd.grad((ratios * _vector(inputs["cotangent"])).sum(), raw)
    return {"alpha": ratios.tolist(), "mean": float(ratios.detach().mean()), "grad_raw": gradient.tolist()}


@adapter("MaskTrainer.compute_loss (language-model loss replaced by the constant inputs.task_loss)")
def _regularizer(inputs: Case, params: Case) -> Any:
    import torch

    from reproalign.ama.adapt.parametrisation import Normalised, Pull
    from reproalign.ama.levels import HEAD
    from reproalign.ama.parts import parts_of_layers
    from reproalign.ama.ratios import regularizer_from_code

    depth, names = inputs["num_layers"], list(inputs["raw_by_group"])
    regularizer = regularizer_from_code(params["sum_reg_type"])
    groups = parts_of_layers(params["mask_level"], depth, released=True).layer_groups
    linear = {name: [layer for layer in range(depth) if groups[layer] == name for _ in range(7)] for name in names}
    layers = [[None] if name == HEAD else linear[name] for name in names]
    pull = Pull(regularizer, params["reg_alpha"], regularizer.coefficients(layers, depth))
    base, epsilon, count = params["init_val"], params["epsilon"], len(names)
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    raw = _vector(list(inputs["raw_by_group"].values()))
    parametrisation = Normalised(base, epsilon, weights, "mean", pull)
    gradient = parametrisation.pull_back(raw, torch.zeros_like(raw))
    return {
        "loss": inputs["task_loss"] + parametrisation.penalty(raw),
        "grad_raw": dict(zip(names, gradient.tolist(), strict=True)),
        "alpha": dict(zip(names, parametrisation.saved(raw).tolist(), strict=True)),
    }


@adapter("MaskNormalizedSigmoidLinear.set_wise_model/forward (float64, CPU: numerator is live)")
def _masked_linear(inputs: Case, params: Case) -> Any:

    from reproalign.ama.adapt.gradient import MergedLinear
    from reproalign.ama.adapt.pair import merge
    from reproalign.ama.ratios import normalized

    raw, x = _vector(inputs["raw"]).requires_grad_(), _vector(inputs["x"]).requires_grad_()
    own = None if inputs.get("own_raw", params["own_raw"]) is None else _vector(params["own_raw"]).requires_grad_()
    ratios = normalized(raw, params["init_val"], params["epsilon"], of=own)
    ratio = ratios if own is not None else ratios[params["group_index"]]
    share = float(ratio.detach())
    parents = {key: [None if inputs[f"{key}_{m}"] is None else _vector(inputs[f"{key}_{m}"]) for m in ("pre", "post")]
               for key in ("weight", "bias")}  # fmt: skip
    held = {key: None if pre is None else (merge(pre, post, share), pre - post) for key, (pre, post) in parents.items()}
    bias, bias_difference = held["bias"] or (None, None)
    y = MergedLinear.apply(x, ratio, *held["weight"], bias, bias_difference)
    y.backward(_vector(inputs["cotangent_y"]))
    return {
        "y": y.tolist(),
        "grad_raw": raw.grad.tolist(),
        "grad_own_raw": None if own is None else float(own.grad),
        "grad_x": x.grad.tolist(),
    }


@adapter("MaskTrainer.create_optimizer + Trainer loop: torch AdamW over a list in which each shared raw alpha occurs once per masked linear; gradients never zeroed (zero_grad_each_step=false)")  # fmt: skip  # noqa: E501
def _released_alpha_optimizer(inputs: Case, params: Case) -> Any:
    from reproalign.ama.adapt.optimizer import RawOptimizer

    optimizer = RawOptimizer(
        _vector(inputs["raw_init"]),
        weight_decay=params["weight_decay"],
        multiplicity=params["multiplicity"],
        clear=params["zero_grad_each_step"],
        betas=tuple(params["betas"]),
        eps=params["eps"],
    )
    steps = []
    for gradient in inputs["gradients_per_step"]:
        optimizer.step(_vector(gradient), params["lr"])
        steps.append(optimizer.raw.tolist())
    return {"raw_per_step": steps}


# Aligning: packing, penalties.


@adapter("group_texts nested in (Mask|Continual|)Finetuner.group_text")
def _group_texts(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.packing import group_texts

    return group_texts(inputs, params["block_size"])


@adapter("group_text(): block-size resolution (re-derived from the branches of the original)")
def _effective_block_size(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.packing import effective_block_size

    truncate = params["truncate_to_model_max_length"]
    return {"block_size": effective_block_size(params["block_size"], inputs["model_max_length"], truncate=truncate)}


@adapter("ContinualTrainer.compute_loss_{kd,l1,l2} (task loss replaced by inputs.task_loss)")
def _forgetting_penalties(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.config import PenaltyConfig
    from reproalign.ama.align.distillation import distance
    from reproalign.ama.align.sft_options import check_penalty
    from reproalign.ama.align.weight_penalty import penalise
    from reproalign.ama.rules import RELEASED
    from reproalign.common.logprobs.head_states import HeadStates
    from reproalign.common.logprobs.statistics import chunked_token_statistics

    options = PenaltyConfig(name=params["approach"], weight=params["alpha"])
    weights, distances = check_penalty(options, RELEASED.penalty, strategy="single")
    if weights is not None:
        pairs = [
            (Parameter(tensor(inputs["params"][name])), tensor(inputs["teacher"][name])) for name in inputs["trainable"]
        ]
        value = penalise(weights, pairs)
        grads = [theta.grad.tolist() for theta, _ in pairs if theta.grad is not None]
        return {"loss": inputs["task_loss"] + value.item(), "grads": grads}
    student, teacher = (tensor(inputs[f"{name}_logits"]) for name in ("student", "teacher"))
    student.requires_grad_()
    rows, _, vocabulary = student.shape
    head = torch.eye(vocabulary, dtype=torch.float64)
    states = [HeadStates(logits.reshape(-1, vocabulary), head) for logits in (student, teacher)]
    targets = torch.zeros(len(states[0].hidden), dtype=torch.long)
    statistic, reduction = distances
    found = chunked_token_statistics(*states, targets, statistics=(statistic,))
    value = distance(found[statistic], rows, reduction, params["alpha"])
    value.backward()
    return {"loss": inputs["task_loss"] + value.item(), "grads": [student.grad.tolist()]}


# Rejection sampling: batches of prompts, filters, selection.


@adapter(
    "align(): sharding, shuffle, slice for one sampling call "
    "(datasets 2.16 shuffle = numpy default_rng(seed).permutation)"
)
def _prompt_batch(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.prompt_batches import released_batch

    count, ranks, size = inputs["num_prompts"], params["world_size"], params["raft_batch_size"]
    indices = released_batch(
        count, size, params["iter_id"], params["raft_random_seed"], rank=inputs["rank"], ranks=ranks
    )
    return {"indices": indices, "shard_size": count // ranks, "per_rank_batch": size // ranks}


@adapter("RaftAligner._clean_text and _discard_sample")
def _text_filters(inputs: Case, params: Case) -> Any:
    from reproalign.common.generation.filters import clean_lmflow, is_discarded

    cleaned = clean_lmflow(inputs["text"])
    clean = {"clean_error": "IndexError"} if cleaned is None else {"clean": cleaned}
    return {**clean, "discard": is_discarded(inputs["text"], "lmflow")}


@adapter(
    'RaftAligner._raft_get_rewards: "live" = raft_aligner.py:500-613 (INF=888888888); "live_eval" = '
    'raft_aligner_eval.py, same code with INF=0; "commented_keep_all" = the disabled variant at 617-729; '
    '"commented_first" = the disabled variant at 735-842'
)
def _best_of_n(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.reward_record import RELEASED_RULES, reward_record
    from reproalign.common.generation.select import select_row

    rules = RELEASED_RULES[params["variant"]]
    by_rank = zip(inputs["prompts_by_rank"], inputs["responses_by_rank"], inputs["rewards_by_rank"], strict=True)
    ranks = [[_sampled(*row) for row in zip(*parts, strict=True)] for parts in by_rank]
    stored = [kept for rows in ranks for row in rows if (kept := select_row(row, rules.selection)) is not None]
    record = reward_record(ranks, rules.selection, rules.record)
    return {"stored": {"type": "text_only", "instances": [_instance(row) for row in stored]}, "reward_record": record}


def _sampled(prompt: str, responses: list[str], rewards: list[float]) -> Any:
    from reproalign.common.generation.samples import Sampled

    return Sampled(prompt, [{"role": "user", "content": prompt}], responses, rewards)


def _instance(row: Case) -> Case:
    if "messages" in row:
        return {"text": "".join(turn["content"] for turn in row["messages"])}
    return {"input": row["prompt"][0]["content"], "output": row["responses"], "rewards": row["scores"]}


# Judging.


@adapter("tokenize_pair in run_eval_rate_pairrm.py")
def _tokenize_pair(inputs: Case, params: Case) -> Any:
    from reproalign.common.judging.pairrm import PairFormat, padded

    class Characters:
        """The golden file's tokenizer: a character is its code point."""

        def encode(self, text: str, *, max_length: int, truncation: bool) -> list[int]:
            return [ord(character) for character in text][:max_length]

    source, candidate = params["source_max_length"], params["candidate_max_length"]
    form = PairFormat(*params["prefixes"], source_length=source, candidate_length=candidate)
    texts = zip(inputs["sources"], inputs["candidate1s"], inputs["candidate2s"], strict=True)
    ids, mask = padded([form.encode(Characters(), *row) for row in texts], 0, source + 2 * candidate)
    return {"input_ids": ids.tolist(), "attention_mask": mask.tolist()}


@adapter("evaluate() in run_eval_rate_pairrm.py (batching and win-rate arithmetic)")
def _pairrm_win_rate(inputs: Case, params: Case) -> Any:
    from reproalign.common.judging.pairwise import batch_sizes, logit_verdict
    from reproalign.common.judging.verdict import one_order_rate

    logits = inputs["logits"]
    result = one_order_rate([logit_verdict(logit, "loss") for logit in logits])
    return {"win_rate": result.win_rate, "batch_sizes": batch_sizes(len(logits), params["batch_size"])}


@adapter("HHRLHFData.get_data and the output extraction in text_generation.py")
def _pairrm_prompt_and_output(inputs: Case, params: Case) -> Any:
    from reproalign.common.evaluation.alpacaeval import after_last
    from reproalign.common.text.prompts import one_user_turn

    if params["kind"] == "extract_output":
        return {"output": after_last(inputs["generated"], "\n<|assistant|>\n")}
    turns = one_user_turn(inputs["text"], "You are a helpful, honest and respectful chatbot.")
    return {"user_content": turns[-1]["content"], "roles": [t["role"] for t in turns], "add_generation_prompt": True}
