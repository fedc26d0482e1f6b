"""One gradient of averaging ratios, forward and backward through a language model: ours against other ways.

Two models of one shape are averaged layer by layer; every way computes the loss of the same rows and, but for the
first, the gradient of each group's ratio. Ways:

    frozen    forward and backward through a merged model whose weights need no gradient; gives no ratio's gradient.
              Backward reaches the inputs of the first layer, as it must in the others
    merged    `reproalign.ama.adapt.merged.RatioModel` as the exact solver holds it: merged weights and differences
    pair      the same as the published solver holds it: both models, merged a layer at a time where it is used
    explicit  autograd through a weight that is merged in every call, W = Q + a (P - Q): both models, and the graph's
              merged weights
    release   the release's layers: W = a P + (1 - a) Q in every call, with P, Q and a third model in memory

All that give gradients must agree within TOLERANCE, and neither of ours may hold more than MODELS_HELD models, or the
script stops. The time of merged should be at most 1.6 times that of frozen; 1.5 is the
least for differences of full rank, and pair adds three passes over the weights, which count for less the more tokens
there are. Memory is what each way holds (`held_bytes`: weights, and the memory in which pair merges a layer, as a
multiple of one model's) and the peak above it during a call (`peak_bytes`). `refresh_seconds` is what it takes when the
ratios move: merged reads both models' files again, once a pass over all rows; pair has nothing to do, at every step.

    python benchmarks/ratio_gradient.py --output results/benchmarks/ratio_gradient.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from reproalign.ama.adapt.merged import MERGED, PAIR, RatioModel
from reproalign.ama.adapt.pair import merge, open_pair
from reproalign.ama.parts import make_parts
from reproalign.ama.tensors import BASE as BASE_PLACE
from reproalign.ama.tensors import TensorRule, tensor_rule
from reproalign.common.models.load import model_path
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer

TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}  # norm of the difference of two gradients over their norm
MODELS_HELD = 2.1  # by either of ours at most: two models plus 5 %
SHAPES: dict[str, dict[str, Any]] = {  # layers, hidden, intermediate
    "small": {"num_hidden_layers": 6, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8},
    "1b": {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32},
    "7b": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
}
SMOLLM2 = "smollm2"
LEVEL, BASE = "even3", 0.2
Ratios = dict[str, float]


def save_models(shape: str, folder: Path, dtype: torch.dtype, vocabulary: int) -> tuple[Path, Path]:
    """Save two models of a shape; the second is the first with other weights near by."""
    if shape == SMOLLM2:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model_path("demo:smollm2-135m-instruct"), dtype=dtype
        )
    else:
        torch.manual_seed(0)
        made: Any = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SHAPES[shape]))
        model = made.to(dtype)
    paths = (folder / "pre", folder / "post")
    generator = torch.Generator().manual_seed(1)
    for path in paths:
        model.save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.add_((0.002 * noise).to(dtype))
    return paths


def load(path: Path, device: str) -> PreTrainedModel:
    """Load a frozen model."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval().to(device)
    return model.requires_grad_(False)


def held_bytes(*models: nn.Module) -> int:
    """Bytes of parameters and buffers, each storage once."""
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


class Merged(nn.Module):
    """A weight that is merged in every call."""

    post: Tensor

    def __init__(self, post: Tensor, ratio: Tensor, *, release: bool) -> None:
        super().__init__()
        self.register_buffer("post", post, persistent=False)
        self.ratio = [ratio]
        self.release = release

    def forward(self, pre: Tensor) -> Tensor:
        """Return W."""
        share = self.ratio[0].to(pre.dtype)
        if self.release:
            return share * pre + (1 - share) * self.post
        return torch.addcmul(self.post, share, pre - self.post)


def merge_in_calls(
    network: PreTrainedModel, other: PreTrainedModel, rule: TensorRule, leaves: dict[str, Tensor], *, release: bool
) -> None:
    """Let every linear layer of a group merge its weight in every call."""
    for name, module in list(network.named_modules()):
        place = rule.place(f"{name}.weight") if isinstance(module, nn.Linear) else None
        if place in leaves:
            post = other.get_parameter(f"{name}.weight")
            parametrize.register_parametrization(
                module, "weight", Merged(post, leaves[str(place)], release=release), unsafe=True
            )


class Ways:
    """The ways on one pair of models, each a function that returns its gradients."""

    def __init__(self, paths: tuple[Path, Path], arguments: argparse.Namespace, tokens: int) -> None:
        self.paths, self.device = paths, arguments.device
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(3, 500, (arguments.rows, tokens), generator=generator).to(self.device)
        self.batch = {"input_ids": ids, "completion_mask": torch.ones_like(ids)}
        self.ratios: Ratios = {}

    def loss(self, network: PreTrainedModel) -> Tensor:
        """Negative log-likelihood per token; the embeddings are a leaf, so that every layer passes a gradient on."""
        embeddings = network.get_input_embeddings()(self.batch["input_ids"]).requires_grad_()
        mask = self.batch["completion_mask"]
        hidden = network.get_decoder()(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        head = network.get_output_embeddings()
        logits = functional.linear(hidden[:, :-1], head.weight).float()
        return functional.cross_entropy(logits[mask[:, 1:].bool()], self.batch["input_ids"][:, 1:].flatten())

    def frozen(self) -> tuple[Callable[[], Any], int]:
        """Forward and backward without ratios."""
        network = load(self.paths[1], self.device)
        return lambda: self.loss(network).backward(), held_bytes(network)

    def ours(self, model: RatioModel, held: str) -> tuple[Callable[[], Tensor], int]:
        """By a model of the ratios."""

        def run() -> Tensor:
            self.loss(model.network).backward()
            return model.take_gradient()

        scratch = max(entry.first.nbytes for entry in model.learned) if held == PAIR else 0
        return run, held_bytes(model.network) + scratch

    def rebuilt(self, rule: TensorRule, *, release: bool) -> tuple[Callable[[], Tensor], int]:
        """By weights merged in every call; the release holds the aligned model beside."""
        pre, post = (load(path, self.device) for path in self.paths)
        beside = [load(self.paths[1], self.device)] if release else []
        leaves = {
            name: torch.tensor(ratio, dtype=torch.float32, device=self.device, requires_grad=True)
            for name, ratio in self.ratios.items()
        }
        merge_in_calls(pre, post, rule, leaves, release=release)
        with torch.no_grad():  # the head, which is not learned
            for name, parameter in pre.named_parameters():
                if not name.startswith("model.layers") and rule.place(name) == BASE_PLACE:
                    parameter.copy_(merge(parameter, post.get_parameter(name), BASE))

        def run() -> Tensor:
            return torch.stack(torch.autograd.grad(self.loss(pre), list(leaves.values()))).double().cpu()

        return run, held_bytes(pre, post, *beside)


def refresh(model: RatioModel) -> None:
    """Move the ratios."""
    model.set_ratios((model.ratios + 1e-3).tolist())


def run_shape(shape: str, tokens: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all ways on one shape."""
    dtype = getattr(torch, arguments.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        paths = save_models(shape, Path(temporary), dtype, arguments.vocab)
        ways = Ways(paths, arguments, tokens)
        with open_pair(*map(str, paths)) as pair:
            parts = make_parts(LEVEL, pair.blocks)
            rule = tensor_rule("linear_head_pre", None, parts, pair.blocks)
            ways.ratios = dict(zip(parts.names, (0.1, 0.2, 0.3), strict=True))
            models = {
                held: RatioModel(load(paths[1], arguments.device), pair, rule, ways.ratios, base=BASE, held=held)
                for held in (MERGED, PAIR)
            }
            made = {
                "frozen": ways.frozen(),
                **{held: ways.ours(model, held) for held, model in models.items()},
                "explicit": ways.rebuilt(rule, release=False),
                "release": ways.rebuilt(rule, release=True),
            }
            found = {name: run() for name, (run, _) in made.items()}
            differences = {
                f"{held}, {name}": float((found[held] - found[name]).norm() / found[name].norm())
                for held in models
                for name in ("explicit", "release")
            }
            runs = {name: run for name, (run, _) in made.items()}
            label = f"{shape}, {arguments.rows} x {tokens} tokens"
            row = measure.measurements(runs, arguments.repeats, arguments.device, label, base="frozen")
            sizes = {name: size for name, (_, size) in made.items()}
            row["held_bytes"] = sizes
            row["held_models"] = {name: size / sizes["frozen"] for name, size in sizes.items()}
            row["refresh_seconds"] = {
                held: measure.seconds(partial(refresh, model), arguments.device) for held, model in models.items()
            }
    for held in models:
        if row["held_models"][held] > MODELS_HELD:
            raise SystemExit(f"{shape}: {held} holds {row['held_models'][held]:.3f} models, more than {MODELS_HELD}")
    largest = max(differences.values())
    if largest > TOLERANCE[arguments.dtype]:
        raise SystemExit(f"{shape}: the gradients differ by {largest:.3g}")
    return {"shape": shape, "tokens": tokens, "rows": arguments.rows, "relative_differences": differences, **row}


def main() -> None:
    """Measure, print, write."""
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES, SMOLLM2], default=["small"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[512], help="of each row")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=4096, help="of the made-up shapes")
    arguments = parser.parse_args()
    rows = [run_shape(shape, tokens, arguments) for shape in arguments.shapes for tokens in arguments.tokens]
    console = Console()
    console.print(measure.table("gradient of the ratios; time and memory over frozen", rows, "shape", "tokens"))
    for row in rows:
        held = ", ".join(f"{name} {count:.3f}" for name, count in row["held_models"].items())
        moved = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in row["refresh_seconds"].items())
        console.print(f"{row['shape']}: models held: {held}; moving the ratios: {moved}")
    measure.write(arguments, {"rows": rows}, "transformers")


if __name__ == "__main__":
    main()
