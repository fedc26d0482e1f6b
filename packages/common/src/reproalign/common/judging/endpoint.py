"""Questions to a language model behind an OpenAI-compatible server, with the standard library alone."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar

from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.options import option

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")
Question = str | list[Message]  # a user's turn, or messages that end with one
DENIED = (401, 403)
TRANSIENT = (408, 409, 429, 500, 502, 503, 504)  # statuses after which asking again may help


@dataclass
class EndpointConfig:
    """An OpenAI-compatible server and how it is asked."""

    model: str | None = option(None, help="the judge, as the server names it", null="no server is asked")
    base_url: str = option("https://api.openai.com/v1", help="a server of your own: http://localhost:8000/v1")
    key_variable: str = option(
        "OPENAI_API_KEY", help="environment variable with the key; none is sent if it is not set"
    )
    request: dict[str, Any] = option({}, help="further fields of a request; null leaves one out")
    timeout: float = option(120.0, help="of a request", unit="seconds", above=0)
    retries: int = option(4, help="of a request after a failure that may be transient, such as status 503", at_least=0)
    pause: float = option(1.0, help="before the first retry; doubled for each further one", unit="seconds", at_least=0)
    parallel: int = option(4, help="requests at once", at_least=1)


class EndpointError(Exception):
    """A server that gives no answer; the message is one sentence for the user.

    Attributes:
        status: of its reply; None if there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """Keep the status beside the message."""
        super().__init__(message)
        self.status = status


def check_endpoint(config: EndpointConfig, key: str = "endpoint") -> None:
    """Refuse settings that no request can be made with.

    Raises:
        UserError: naming the key, which begins with ``key``.
    """
    if not config.base_url.startswith(("http://", "https://")):
        raise UserError(f"{key}.base_url={config.base_url} must begin with http:// or https://")


def ask(config: EndpointConfig, question: Question) -> str:
    """Return the model's answer to one question: a user's turn, or messages that end with one.

    Raises:
        EndpointError: if there is none, after ``retries`` further attempts where these may help.
    """
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    fields = {"model": config.model, "messages": messages, **config.request}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(config.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    url = f"{config.base_url.rstrip('/')}/chat/completions"
    body = json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
    attempt, status = 0, None
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=config.timeout) as response:
                return _content(url, response.read())
        except urllib.error.HTTPError as error:
            reason = f"answers with status {error.code} {error.reason}"
            status = error.code
            transient = status in TRANSIENT
            if status in DENIED and not key:
                raise EndpointError(
                    f"{url} {reason}, and no key was sent; put it into the environment variable {config.key_variable}, "
                    "or name another one with endpoint.key_variable",
                    status,
                ) from error
        except (OSError, HTTPException) as error:
            reason = f"cannot be reached ({getattr(error, 'reason', None) or error})"
            status, transient = None, True
        if not transient or attempt == config.retries:
            sentence = f"{url} {reason}; check endpoint.base_url, endpoint.model and {config.key_variable}"
            raise EndpointError(sentence, status)
        time.sleep(config.pause * 2**attempt)
        attempt += 1


def ask_all(config: EndpointConfig, questions: Mapping[Key, Question], write: Callable[[Key, str], None]) -> None:
    """Ask several questions (:func:`ask`) at once and hand over each answer as it comes.

    Raises:
        EndpointError: the first, after the answers that were already under way have been handed over.
    """
    work_on_all(config, questions, lambda question: ask(config, question), write)


def work_on_all(
    config: EndpointConfig,
    questions: Mapping[Key, Question],
    work: Callable[[Question], Found],
    write: Callable[[Key, Found], None],
) -> None:
    """Hand over what ``work`` makes of each question, ``config.parallel`` of them at once, as it comes.

    Raises:
        EndpointError: the first that ``work`` raises, after what was already under way has been handed over.
    """
    failure: EndpointError | None = None
    stopped = threading.Event()  # cancelled futures would never be reported as completed

    def ask_unless_stopped(question: Question) -> Found | None:
        return None if stopped.is_set() else work(question)

    with ThreadPoolExecutor(config.parallel) as pool:
        futures = {pool.submit(ask_unless_stopped, text): key for key, text in questions.items()}
        try:
            for future in as_completed(futures):
                try:
                    answer = future.result()
                except EndpointError as error:
                    failure = failure or error
                    stopped.set()
                else:
                    if answer is not None:
                        write(futures[future], answer)
        finally:
            stopped.set()
    if failure:
        raise failure


def _content(url: str, body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{url} answers without choices[0].message.content; is it OpenAI-compatible?") from error
    return content or ""
