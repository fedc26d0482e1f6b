"""``ama collect``: which responses are candidates for D_θ, and which of them are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.ama.adapt.candidates import Quality, candidates, draw_best, prompt_key
from reproalign.ama.cli import main
from reproalign.common.generation.samples import Sampled, read_selected
from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal
from reproalign.common.testing.tiny import tiny_reward_model


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_every_response_is_a_candidate_but_for_what_is_named():
    rows = [
        Sampled(0, user("Sing."), ["a long song", "no", "a # song", "a long song", "    "], [1.0, 9.0, 8.0, 2.0, 7.0]),
        Sampled(1, user("sing. "), ["another song"], [3.0]),
        Sampled(2, user("Count."), ["one, two", "three"], [5.0, 4.0]),
    ]
    found, counts = candidates(rows, Quality("lmflow", 6, True, {prompt_key(user("SING."))}))
    assert [(row["id"], row["index"], row["reward"]) for row in found] == [(2, 0, 5.0)]
    assert counts == {"excluded": 6, "discarded": 0, "too_short": 1, "duplicates": 0}
    found, counts = candidates(rows, Quality("lmflow"))
    assert [(row["id"], row["index"], row["reward"]) for row in found] == [
        (0, 3, 2.0),
        (1, 0, 3.0),
        (2, 0, 5.0),
        (2, 1, 4.0),
    ]
    assert counts == {"excluded": 0, "discarded": 2, "too_short": 1, "duplicates": 1}
    assert len(candidates(rows, Quality(dedup=False, min_length=0))[0]) == 8
    assert found[0]["messages"] == [*user("Sing."), {"role": "assistant", "content": "a long song"}]


@given(
    rewards=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30),
    top=st.integers(1, 35),
    draw=st.integers(1, 35),
    seed=st.integers(0, 99),
)
def test_the_draw_is_of_the_best_and_seeded(rewards, top, draw, seed):
    """Eq. 8: D_θ is drawn from the rows of highest reward."""
    found = [{"id": place, "reward": reward} for place, reward in enumerate(rewards)]
    drawn = draw_best(found, top, draw, seed)
    best = sorted(found, key=lambda row: (-row["reward"], row["id"]))[:top]
    assert len(drawn) == min(draw, top, len(found))
    assert [row for row in best if row in drawn] == drawn  # the best first, none twice
    assert draw_best(found, top, draw, seed) == drawn
    assert draw_best(found, 1, 1, seed) == best[:1]


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    rows = [
        {
            "id": number,
            "prompt": user(f"q{number}"),
            "responses": [f"answer {number}", "#"],
            "scores": [number / 2, 99.0],
        }
        for number in range(8)
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scored_responses_are_collected(tmp_path, scored):
    exclude = tmp_path / "eval_prompts.jsonl"
    exclude.write_text(json.dumps({"prompt": user("Q7")}) + "\n")
    folder = tmp_path / "out"
    assert main(["collect", f"scored={scored}", f"exclude={exclude}", "top=4", "draw=2", f"output_dir={folder}"]) == 0
    rows = [json.loads(line) for line in (folder / "d_theta.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert {row["reward"] for row in rows} <= {3.0, 2.5, 2.0, 1.5}
    assert len(read_selected(folder / "d_theta.jsonl")) == 2
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    assert (metrics["responses"], metrics["candidates"], metrics["excluded"], metrics["discarded"]) == (16, 7, 2, 7)
    assert metrics["rewards"]["candidates"]["quantile_0.5"] == 1.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["min_length=99"], "D_θ would be empty: no response in"),
        (["draw=3", "top=2"], "draw=3 must not be above top=2"),
        (["draw=0"], "draw=0 must be at least 1"),
        (["prompts=x.jsonl"], "prompts has no meaning beside scored="),
        (["n=2"], "n has no meaning beside scored="),
        (["model.name=tiny:llama"], "model.name has no meaning beside scored="),
        (["scored=null"], "prompts is not set; give prompts, model.name and reward, or scored=FOLDER"),
        (["scored=none.jsonl"], "scored=none.jsonl: no such file"),
        (["exclude=none.jsonl"], "exclude=none.jsonl: no such file"),
        (["filters=some"], "unknown filters 'some'"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, scored, capsys, words, message):
    given = ["collect", f"scored={scored}", *words, f"output_dir={tmp_path / 'out'}"]
    assert message in refusal("ama", main, given, capsys, untouched=tmp_path)


@pytest.mark.slow
def test_sampled_scored_and_collected(tmp_path):
    reward, folder = tmp_path / "rm", tmp_path / "out"
    tiny_reward_model().save_pretrained(reward)
    tiny_tokenizer().save_pretrained(reward)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"name {number} colours"}) + "\n" for number in range(4)))
    words = [f"prompts={prompts}", f"model.name={save_tiny(tmp_path / 'policy')}", f"reward={reward}", "n=2", "draw=3"]
    words += ["sample.max_new_tokens=5", "filters=none", "min_length=1", f"output_dir={folder}"]
    assert main(["collect", *words, "--dry-run"]) == 0
    assert main(["collect", *words]) == 0
    rows = [json.loads(line) for line in (folder / "d_theta.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert [row["reward"] for row in rows] == sorted((row["reward"] for row in rows), reverse=True)
    record = json.loads((folder / "run.json").read_text())
    assert [child["status"] for child in record["children"].values()] == ["finished", "finished"]
