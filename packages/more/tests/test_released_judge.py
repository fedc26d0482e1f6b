"""The judge under ``variant=released``: asked over HTTP in both orders, read and counted as the release does."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.config.model import RewardModelConfig
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.invocation import Invocation
from reproalign.common.judging.endpoint import EndpointConfig
from reproalign.common.models.tiny import tiny_folder
from reproalign.common.reward.rules import NOTE, RewardRules
from reproalign.more.compare import compare_responses
from reproalign.more.config import CompareConfig
from reproalign.more.judged import ATTEMPTS, RELEASED_TEMPLATES, judge_template
from reproalign.more.released_judge import BAD, ERROR, FIRST, GOOD, SECOND, TIE, joined_verdict, win_rates

VERDICTS = [FIRST, SECOND, GOOD, BAD, ERROR]
Reply = Callable[[str], tuple[int, str]]


class Judge:
    """A server on loopback that answers chat completions, and keeps the questions."""

    def __init__(self, reply: Reply) -> None:
        self.questions: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.questions.append(body["messages"][0]["content"])
                status, text = reply(outer.questions[-1])
                content = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def config(self) -> EndpointConfig:
        url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        return EndpointConfig(model="judge", base_url=url, pause=0.0, retries=1)


@pytest.fixture
def judge() -> Iterator[Callable[[Reply], Judge]]:
    started: list[Judge] = []

    def start(reply: Reply) -> Judge:
        started.append(Judge(reply))
        return started[-1]

    yield start
    for each in started:
        each.server.shutdown()
        each.server.server_close()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    class Stub:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __call__(self, dialogues: list[Any]) -> list[float]:
            return [0.0] * len(dialogues)

    monkeypatch.setattr("reproalign.more.compare.RewardScorer", Stub)
    shutil.copytree(tiny_folder("llama"), tmp_path / "reward")
    (tmp_path / "reward" / NOTE).write_text(json.dumps(RewardRules().note()))
    found = []
    for name, answers in (("first", ["good", "good", "bad"]), ("second", ["bad", "good", "good"])):
        rows = [
            {"id": k, "prompt": [{"role": "user", "content": f"q{k}"}], "responses": [text]}
            for k, text in enumerate(answers)
        ]
        found.append(tmp_path / f"{name}.jsonl")
        found[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def compared(folder: Path, files: list[Path], **more: Any) -> dict[str, Any]:
    config = CompareConfig(
        output_dir=str(folder),
        model=RewardModelConfig(name=str(files[0].parent / "reward")),
        responses=list(map(str, files)),
        **{"variant": "released", "template": "helpful", **more},
    )
    words = {"command": ["more-rm"], "package": "reproalign.more", "verb": "evaluate", "schema": "", "target": ""}
    compare_responses(config, Invocation(**words, config={"output_dir": str(folder), "seed": 42}))
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return found["pairs"]["first against second"]["judge"]


def prefers_good(question: str) -> tuple[int, str]:
    """Name the answer with ``good``; of two equal ones always the first shown."""
    a, b = question.split("Answer A: ")[1].split("Answer B: ")
    return 200, "A comparison.\n" + ("B" if "good" in b and "good" not in a else "A")


def test_both_orders_are_asked_and_the_rates_are_the_release_s(tmp_path, files, judge):
    server = judge(prefers_good)
    found = compared(tmp_path / "out", files, judge=server.config)
    assert (found["wins"], found["ties"], found["losses"], found["errors"]) == (1, 1, 1, 0)
    assert found["rates"]["normalized_wins"] == pytest.approx(1 / 3)  # ties stay in the denominator
    assert len(server.questions) == 6
    assert all("['good']" in text or "['bad']" in text for text in server.questions)  # lists, as sampling wrote them
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["fingerprints"]["data"]["judge prompt"]["sha256"] == sha256_json(RELEASED_TEMPLATES["helpful"])


def test_a_refused_question_is_an_error_and_another_failure_stops_the_run(tmp_path, files, judge):
    refusing = judge(lambda text: (400, "") if "q1" in text else prefers_good(text))
    found = compared(tmp_path / "refused", files, judge=refusing.config)
    assert (found["wins"], found["losses"], found["errors"]) == (1, 1, 1)
    assert found["rates"]["normalized_wins"] == 0.5
    broken = [True]
    flaky = judge(lambda text: (401, "") if "q2" in text and broken[0] else prefers_good(text))
    with pytest.raises(UserError, match="status 401"):
        compared(tmp_path / "flaky", files, judge=flaky.config)
    broken[0], asked = False, len(flaky.questions)
    assert compared(tmp_path / "flaky", files, judge=flaky.config)["wins"] == 1
    assert len(flaky.questions) - asked < 6  # the verdicts so far were kept


def test_without_a_verdict_it_is_asked_again(tmp_path, files, judge):
    turns = {"count": 0}

    def hesitates(text: str) -> tuple[int, str]:
        turns["count"] += 1
        return (200, "it depends\n") if turns["count"] % 2 else prefers_good(text)

    server = judge(hesitates)
    server_config = server.config
    server_config.parallel = 1
    assert compared(tmp_path / "out", files, judge=server_config)["errors"] == 0
    assert len(server.questions) == 12
    silent = judge(lambda text: (200, "no idea\n"))
    assert compared(tmp_path / "silent", files, judge=silent.config, attempts=2)["errors"] == 3
    assert len(silent.questions) == 12  # two requests in each order
    assert ATTEMPTS > 2


def test_prompts_come_from_a_file(tmp_path, files, judge):
    file = tmp_path / "prompts.yaml"
    file.write_text("helpful: 'Which? {instruction} Answer A: {answer_a} Answer B: {answer_b}'\n")
    server = judge(prefers_good)
    compared(tmp_path / "out", files, judge=server.config, prompts=str(file))
    assert all(text.startswith("Which? q") for text in server.questions)
    fingerprint = json.loads((tmp_path / "out" / "run.json").read_text())["fingerprints"]["data"]["judge prompt"]
    assert fingerprint["path"] == str(file)


def test_union_is_asked_with_the_prompt_alone(tmp_path, files, judge):
    server = judge(lambda text: (200, "model_A is better"))
    found = compared(tmp_path / "out", files, judge=server.config, template="union")
    assert sorted(server.questions) == ["q0", "q0", "q1", "q1", "q2", "q2"]
    assert found["ties"] == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompts": "/nowhere.yaml"}, "cannot be read"),
        ({"template": "kind"}, "template"),
        ({"variant": None, "attempts": 3}, "attempts=3 is for the judge of variant=released"),
    ],
)
def test_mistakes_in_what_the_judge_is_asked_with(tmp_path, more, message):
    plain = {"output_dir": "x", "variant": "released", "judge": EndpointConfig(model="m")}
    with pytest.raises(UserError, match=message):
        judge_template(CompareConfig(**{**plain, **more}))
    file = tmp_path / "prompts.yaml"
    file.write_text("helpful: no places\n")
    with pytest.raises(UserError, match="needs the key harmless"):
        judge_template(CompareConfig(**plain, prompts=str(file), template="harmless"))
    with pytest.raises(UserError, match=r"no place \{instruction\}"):
        judge_template(CompareConfig(**plain, prompts=str(file), template="helpful"))
    with pytest.raises(UserError, match="prompts is for a judge that is asked"):
        judge_template(CompareConfig(output_dir="x", prompts=str(file), template="helpful", variant="paper"))


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from(VERDICTS)), max_size=30))
def test_rates_add_up_and_agreement_is_kept(orders):
    swapped = {FIRST: SECOND, SECOND: FIRST}
    joined = [joined_verdict(first, second) for first, second in orders]
    for (first, second), verdict in zip(orders, joined, strict=True):
        if ERROR in (first, second):
            assert verdict == ERROR
        elif swapped.get(second, second) == first:
            assert verdict == first
        assert verdict != TIE or first != GOOD
    rates = win_rates(joined)
    plain = [rates[name] for name in ("wins", "losses", "equally_good", "equally_bad", "ties", "errors")]
    assert sum(value or 0 for value in plain) == pytest.approx(1 if joined else 0)
    normalized = [rates[f"normalized_{name}"] for name in ("wins", "losses", "ties")]
    assert (None in normalized) == all(verdict == ERROR for verdict in joined)
