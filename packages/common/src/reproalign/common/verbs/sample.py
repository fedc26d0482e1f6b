"""The verb ``sample``: several responses of a language model to each prompt, the candidates of rejection sampling."""

from __future__ import annotations

from reproalign.common.console import say
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.samplers import SAMPLERS, start_sampling
from reproalign.common.generation.samples import RESPONSES, write_rows
from reproalign.common.generation.sampling import sample_shared
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.records import Run
from reproalign.common.text.prompts import one_user_turn
from reproalign.common.text.templates import transcript, turn_header
from reproalign.common.verbs.config import SampleConfig

VLLM_CHUNK = 128  # prompts that vLLM gets at once (the chunk of MORE's release); it makes batches itself


def sample(config: SampleConfig, invocation: Invocation) -> None:
    """Sample n responses to each prompt into ``responses.jsonl``: id, prompt (messages), responses.

    ``responses-<process>.jsonl`` grows batch by batch, and an interrupted run goes on where it stopped; every batch has
    a seed of its own, so that the responses depend neither on interruptions nor on the number of processes.
    """
    rules = sampling_rules(config)
    state, backend = start_sampling(config.backend, config.launch, config.model)
    check_language_model(config.model)
    prompts = asked(read_prompts(config.prompts)[: config.max_prompts], config)
    with Run.open(invocation, is_main=state.is_main_process) as run:
        used_weights(run, "policy", config.model.name, config.model.revision)
        run.add_fingerprint("data", "prompts", sha256_json(prompts), path=config.prompts, rows=len(prompts))
        responses = sample_shared(
            prompts,
            run.dir,
            lambda: SAMPLERS[backend](config.model, rules),
            seed=config.seed,
            at_once=VLLM_CHUNK if backend == "vllm" else max(1, config.batch_size // config.n),
            state=state,
        )
        if not state.is_main_process:
            return
        rows = [
            {"id": number, "prompt": prompt, "responses": texts}
            for number, (prompt, texts) in enumerate(zip(prompts, responses, strict=True))
        ]
        write_rows(run.dir / RESPONSES, rows)
        run.add_fingerprint("data", "responses", sha256_json(responses), made=True, rows=len(rows), backend=backend)
        texts = [text for row in responses for text in row]
        run.set_metrics({"prompts": len(prompts), "responses": len(texts), "empty": texts.count("")})
        say(f"{config.n} response{'s' * (config.n != 1)} to each of {len(rows)} prompts: {run.dir / RESPONSES}")


def asked(prompts: list[list[Message]], config: SampleConfig) -> list[list[Message]]:
    """Return the prompts as the model is asked them: with a system turn, a dialogue as one user turn.

    Raises:
        UserError: for a turn that is neither the user's nor the assistant's where ``one_turn`` is asked for.
    """
    if config.one_turn:
        header = turn_header("assistant", "lmflow")
        return [one_user_turn(transcript(prompt, "lmflow") + header, config.system) for prompt in prompts]
    if config.system is None:
        return prompts
    turn: Message = {"role": "system", "content": config.system}
    return [prompt if prompt[0]["role"] == "system" else [turn, *prompt] for prompt in prompts]


def sampling_rules(config: SampleConfig) -> SamplingRules:
    """Return how the options say that responses are drawn.

    Raises:
        UserError: for options that nothing can be sampled with.
    """
    rules = SamplingRules(
        n=config.n,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        batch_size=config.batch_size,
        max_prompt_length=config.max_prompt_length,
        stop=None,
        layout=config.layout,
        clean=config.clean,
        min_new_tokens=config.min_new_tokens,
    )
    rules.check()
    for key in ("system", "one_turn"):
        if getattr(config, key) and config.layout != "chat":
            raise UserError(f"{key} is for layout=chat, and layout={config.layout}; leave {key} out")
    if config.n > 1 and not config.temperature:
        raise UserError(f"temperature=0 would make all n={config.n} responses the same; raise it, or set n=1")
    return rules
