"""``radpo sample``: a model's responses to the prompts of a data set, in AlpacaEval's file format."""

from __future__ import annotations

from reproalign.common.console import say
from reproalign.common.data.records import Message
from reproalign.common.evaluation.alpacaeval import instruction_text, write_outputs
from reproalign.common.files import sha256_json
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.samplers import SAMPLERS, start_sampling
from reproalign.common.generation.sampling import sample_shared
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import model_label, used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.records import Run
from reproalign.radpo.config import SampleConfig
from reproalign.radpo.evaluate import read_held_out

OUTPUTS = "model_outputs.json"


def sample(config: SampleConfig, invocation: Invocation) -> None:
    """Sample one response to each prompt.

    ``responses-<process>.jsonl`` grows batch by batch, and an interrupted run goes on where it stopped; every batch has
    a seed of its own, so that the responses depend neither on interruptions nor on the number of processes.
    ``model_outputs.json`` is AlpacaEval's file.
    """
    rules = SamplingRules(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        batch_size=config.batch_size,
        max_prompt_length=config.max_prompt_length,
        stop=None if config.stop is None else tuple(config.stop),
        response_prefix=config.response_prefix,
    )
    rules.check()
    state, backend = start_sampling(config.backend, config.launch, config.model)
    check_language_model(config.model)
    with Run.open(invocation, is_main=state.is_main_process) as run:
        used_weights(run, "policy", config.model.name, config.model.revision)
        with state.main_process_first():
            instructions, prompts = _prompts(config, run)
        responses = sample_shared(
            prompts,
            run.dir,
            lambda: SAMPLERS[backend](config.model, rules),
            seed=config.seed,
            at_once=config.batch_size,
            state=state,
        )
        if not state.is_main_process:
            return
        outputs = [response for (response,) in responses]
        generator = config.generator or model_label(config.model.name)
        write_outputs(run.dir / OUTPUTS, instructions, outputs, generator)
        run.add_fingerprint("data", "responses", sha256_json(outputs), made=True, rows=len(outputs), backend=backend)
        run.set_metrics({"responses": len(outputs), "empty": outputs.count("")})
        say(f"{len(outputs)} responses of {generator}: {run.dir / OUTPUTS}")


def _prompts(config: SampleConfig, run: Run) -> tuple[list[str], list[list[Message]]]:
    """Return instructions as AlpacaEval's file has them, and prompts as the model gets them."""
    if config.prompts:
        prompts = read_prompts(config.prompts)
        instructions = [instruction_text(prompt) for prompt in prompts]
        run.add_fingerprint("data", "prompts", sha256_json(prompts), path=config.prompts, rows=len(prompts))
    else:
        examples = [*read_held_out(config.data, run, seed=config.seed).values()][: config.data.max_rows]
        prompts = [example.prompt for example in examples]
        instructions = [example.original_prompt or instruction_text(example.prompt) for example in examples]
    limit = config.max_prompts
    return instructions[:limit], prompts[:limit]
