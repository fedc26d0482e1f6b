"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(name: str) -> Callable[[Callable[[Case, Case], Any]], Callable[[Case, Case], Any]]:
    """Register an adapter under the golden file's ``function``."""

    def register(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
        ADAPTERS[name] = function
        return function

    return register


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
    from reproalign.ama.parts import make_parts
    from reproalign.ama.ratios_file import ReleasedAlphas
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
    rule = tensor_rule("linear_head_pre", head, parts, blocks, released=True)
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
    from reproalign.ama.parts import HEAD, linear_modules, make_parts

    blocks = untied_blocks(inputs["architecture"], inputs["num_layers"])
    parts = make_parts(params["mask_level"], blocks, released=True)
    grouped = parts.layer_groups or parts.modules
    modules = linear_modules(blocks) if grouped else []
    groups = {name: parts.group(blocks.block(f"{name}.weight").layer, name) for name in modules}
    members = [group for group in groups.values() if group in parts.names] + [HEAD] * parts.has_head
    raw = float(torch.logit(torch.tensor(params["init_val"])))
    none = "None" if parts.modules else None
    return {
        "normaliser_groups": list(parts.names),
        "n_mask_keys": len(modules) + parts.has_head,
        "key_to_group": {name: group if group in parts.names else None for name, group in groups.items()},
        "n_linear_per_group": {name: members.count(name) for name in parts.names},
        "lm_head_in_mask_keys": parts.has_head,
        "layer_to_group": list(parts.layer_groups) or [none] * inputs["num_layers"],
        "raw_init": {name: raw for name in parts.names or (["any"] if parts.modules else [])},
    }


# Adapting: ratios, regulariser, merged linear layers, the released optimiser.


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
