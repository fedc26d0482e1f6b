"""What the model was asked and said, question by question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproalign.common.files import write_text

TEXT = 400  # characters of a prompt or an answer that are shown


def task_hash(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return lm-eval's hash of a task: over its questions, prompts and targets, in their order."""
    parts = [sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in in_order(samples)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def in_order(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return samples as one process has them: by filter, and then by question."""
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    return sorted(samples, key=lambda sample: (filters.index(sample["filter"]), sample["doc_id"]))


def write_samples(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write one line for each question and filter (see :func:`readable`), whole or not at all."""
    write_text(path, "".join(json.dumps(readable(sample), ensure_ascii=False) + "\n" for sample in in_order(samples)))


def readable(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return one of lm-eval's samples as a reader wants it.

    That is question, prompt, target, what was asked after the prompt with its log-probability or what the model wrote,
    what the filter made of it, and the scores. A text whose perplexity is measured stands after no prompt.
    """
    prompts = [arguments[0] if len(arguments) > 1 else "" for arguments in sample["arguments"]]
    requests = []
    for arguments, responses, filtered in zip(
        sample["arguments"], sample["resps"], sample["filtered_resps"], strict=True
    ):
        response = responses[0]
        if len(arguments) == 1:
            requests.append({"continuation": arguments[0], "logprob": float(response)})
            continue
        request: dict[str, Any] = {} if arguments[0] == prompts[0] else {"prompt": arguments[0]}
        if isinstance(response, str):
            request |= {"answer": response, "filtered": filtered}
        else:
            request |= {"continuation": arguments[1], "logprob": float(response[0]), "greedy": bool(response[1])}
        requests.append(request)
    return {
        "question": sample["doc_id"],
        "filter": sample["filter"],
        "prompt": prompts[0],
        "target": sample["target"],
        "requests": requests,
        "scores": {name: _plain(sample[name]) for name in sample["metrics"]},
    }


def truncated(samples: Sequence[Mapping[str, Any]], backend: Any) -> int:
    """Count the questions with a prompt that did not fit with its answer; lm-eval cuts the beginning off.

    A text whose perplexity is measured is read in windows, and loses nothing.
    """
    return len(
        {
            sample["doc_id"]
            for sample in samples
            for arguments in sample["arguments"]
            if len(arguments) > 1 and _overlong(arguments[0], arguments[1], backend)
        }
    )


def _overlong(prompt: str, rest: Any, backend: Any) -> bool:
    if isinstance(rest, str):
        text, room = prompt + rest, backend.max_length + 1  # the last token is only predicted
    else:
        text, room = prompt, backend.max_length - rest.get("max_gen_toks", backend.max_gen_toks)
    return len(backend.tok_encode(text)) > int(room)


def show(path: Path) -> str:
    """Return the first sample of a file as a few lines of text."""
    with path.open(encoding="utf-8") as stream:
        sample = json.loads(stream.readline())
    lines = [f"prompt: …{sample['prompt'][-TEXT:]}" if len(sample["prompt"]) > TEXT else f"prompt: {sample['prompt']}"]
    for request in sample["requests"]:
        if "answer" in request:
            lines.append(f"answer: {request['answer'][:TEXT]!r}")
        else:
            lines.append(f"{request['logprob']:10.3f}  {request['continuation'][:TEXT]!r}")
    scores = ", ".join(f"{name} {value}" for name, value in sample["scores"].items() if isinstance(value, int | float))
    return "\n".join([*lines, f"target: {str(sample['target'])[:TEXT]!r}; {scores}"])


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
