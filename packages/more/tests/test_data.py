"""Rows of every source become the items of its rule; mistakes are named with file and line, and nothing is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reproalign.common.config.data import SetConfig
from reproalign.common.config.model import RewardModelConfig
from reproalign.common.config.text import TextConfig
from reproalign.common.data.reading import Row
from reproalign.common.data.records import RowError, assistant, user
from reproalign.common.data.sources import SOURCES
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.records import Run
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import RewardRules, told_rules
from reproalign.common.testing import composed
from reproalign.common.text.templates import transcript
from reproalign.more.cli import APP
from reproalign.more.config import DomainsConfig, HeldOutDomainsConfig
from reproalign.more.data import Domains, check_domains, check_training, load_domains, load_held_out
from reproalign.more.groups import Groups, Mixture
from reproalign.more.items import Item, dense_ranks, has_pair, items_of, make_item, prepare, prepare_released, ranked
from reproalign.more.prepared import tabulate

SLICES = Path(__file__).parents[4] / "shared" / "data"
FOLDERS = {
    "helpful": ("hh_helpful", "hh_rlhf_helpful_base"),
    "harmless": ("hh_harmless", "hh_rlhf_harmless_base"),
    "oasst1": ("oasst1", "oasst1"),
    "webgpt": ("webgpt", "webgpt_comparisons_qa_feedback"),
    "summarize": ("summarize", "summarize_from_feedback_comparisons"),
}
FORTY = {"first": 40, "eval_first": 40}
ASK = "\n\nHuman: Hi\n\nAssistant:"


def text_score(*scores: Any, name: str = "Hi") -> dict[str, Any]:
    """Return an item as the release has them."""
    texts = [f"\n\nHuman: {name}\n\nAssistant: answer {n}" for n in range(len(scores))]
    return {"text": texts, "score": [*scores]}


def rows_of(count: int, name: str = "q") -> list[dict[str, Any]]:
    return [text_score(1, 0, name=f"{name} {n}") for n in range(count)]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Domains]:
    """Load domains given by their rows."""

    def load(
        train: dict[str, list[Any]],
        held: dict[str, list[Any]] | None = None,
        *,
        variant: str = "paper",
        method: str = "more",
        evaluation_only: bool = False,
        **options: Any,
    ) -> Domains:
        paths = {name: write(tmp_path / f"{name}.train.jsonl", *rows) for name, rows in train.items()}
        eval_paths = {name: write(tmp_path / f"{name}.test.jsonl", *rows) for name, rows in (held or {}).items()}
        text = TextConfig(**{name: options.pop(name) for name in ("layout", "max_length") if name in options})
        of_sets = options.pop("sets", {})
        names = dict.fromkeys([*paths, *eval_paths, *of_sets])
        settings: dict[str, Any] = {
            "sets": {
                name: SetConfig(**{"path": paths.get(name), "eval_path": eval_paths.get(name), **of_sets.get(name, {})})
                for name in names
            },
            "cache_dir": str(tmp_path / "cache"),
        }
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        run = Run.open(
            Invocation(
                ["more-rm", "evaluate"], "reproalign.more", "evaluate", "m:C", "m:f", {"output_dir": str(folder)}
            )
        )
        reader = Reader(tiny_tokenizer(), RewardRules(**told_rules(RewardModelConfig(), text, variant)))
        if evaluation_only:
            return load_held_out(HeldOutDomainsConfig(**(settings | options)), reader, seed=7, run=run)
        config = DomainsConfig(**({"resampling_size": None} | settings | options))
        return load_domains(config, reader, method=method, seed=7, run=run)

    return load


def texts_of(rows: Any) -> list[list[list[str]]]:
    """Return the decoded responses of every item of every row."""
    tokenizer = tiny_tokenizer()
    return [[[str(tokenizer.decode(ids)) for ids in item["input_ids"]] for item in row] for row in rows]


# Sources


def item(source: str, row: dict[str, Any]) -> Item:
    """Return the one item of a row."""
    (found,) = items_of(SOURCES[source].read_one(row), SOURCES[source])
    return found


def replies(rows: list[dict[str, Any]], pairing: str, source: str = "oasst1") -> list[Item]:
    """Return the items of OpenAssistant's rows."""
    gather = SOURCES[source].gather
    assert gather is not None
    trees = gather(Row(str(number), row) for number, row in enumerate(rows))
    prompts = [prompt for tree in trees for prompt in SOURCES[source].read(tree.values)]
    return [found for prompt in prompts for found in items_of(prompt, SOURCES[source], pairing=pairing)]


@pytest.mark.parametrize("name", ["helpful", "harmless"])
def test_transcripts_stand_as_they_are(name):
    row = {"chosen": f"{ASK} Hello  there\n", "rejected": f"{ASK} Go"}
    assert item(f"hh_{name}", row) == Item([row["chosen"], row["rejected"]], [1.0, 0.0])
    home = SOURCES[f"hh_{name}"]
    assert (home.hub, home.data_dir) == ("Anthropic/hh-rlhf", f"{name}-base")


def reply(name: str, parent: str | None, rank: int | None = None, lang: str = "en") -> dict[str, Any]:
    role = "assistant" if rank is not None else "prompter"
    return {"message_id": name, "parent_id": parent, "text": f"text {name}", "role": role, "lang": lang, "rank": rank}


OASST = [
    reply("root", None),
    *(reply(f"r{rank}", "root", rank) for rank in (2, 0, 1)),
    reply("q", "r0"),
    reply("s3", "q", 3),
    reply("s1", "q", 1),
    reply("other", "root", 3, lang="de"),
    *(reply(f"orphan{rank}", "nowhere", rank) for rank in (0, 1)),
    {**reply("unranked", "root"), "role": "assistant"},
    *(reply(name, parent, 0) for name, parent in (("loop", "pool"), ("pool", "loop"))),
]


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [
        ("adjacent", [(["r0", "r1"], [1, 0]), (["r1", "r2"], [1, 0]), (["s1", "s3"], [2, 0])]),
        ("best-vs-rest", [(["r0", "r1"], [1, 0]), (["r0", "r2"], [2, 0]), (["s1", "s3"], [2, 0])]),
        ("all", [(["r0", "r1", "r2"], [2, 1, 0]), (["s1", "s3"], [2, 0])]),
    ],
)
def test_oasst1(pairing, expected):
    items = replies(OASST, pairing)
    assert [([d[-1]["content"][5:] for d in one.dialogues], one.scores) for one in items] == expected
    assert items[-1].dialogues[0][:-1] == [user("text root"), assistant("text r0"), user("text q")]


def test_oasst1_trees_and_messages_give_the_same():
    nodes = {row["message_id"]: {**row, "replies": []} for row in OASST[:8]}
    for node in nodes.values():
        if node["parent_id"]:
            nodes[node["parent_id"]]["replies"].append(node)
    tree = {"message_tree_id": "root", "prompt": {k: v for k, v in nodes["root"].items() if k != "parent_id"}}
    assert replies([tree], "all", "oasst1_trees") == replies(OASST, "all")


def test_trees_whose_messages_have_no_ids_stay_apart():
    def tree(text: str) -> dict[str, Any]:
        answers = [{"role": "assistant", "text": f"{text} {rank}", "rank": rank, "lang": "en"} for rank in (0, 1)]
        return {"prompt": {"role": "prompter", "text": text, "lang": "en", "replies": answers}}

    gather = SOURCES["oasst1_trees"].gather
    rows = (Row(str(number), tree(f"q{number}")) for number in range(20))  # each is freed before the next is made
    prompts = [prompt for found in gather(rows) for prompt in SOURCES["oasst1_trees"].read(found.values)]
    assert [len(prompt.responses) for prompt in prompts] == [2] * 20


def test_webgpt_scores_are_not_negative():
    row = {"question": {"full_text": "Why?"}, "answer_0": "A", "answer_1": "B", "score_0": -0.5, "score_1": 0.5}
    assert item("webgpt", row) == Item([[user("Why?"), assistant("A")], [user("Why?"), assistant("B")]], [0.5, 1.5])
    tie = item("webgpt", {**row, "score_1": -0.5})
    assert prepare(tie, ranked) is None
    assert prepare(tie, prepare_released) is not None  # it takes a slot and gives no pair (ERRATA Q17)


def test_summarize():
    info = {"post": "I ran.", "title": "Running", "subreddit": "tifu", "article": None}
    row = {"info": info, "summaries": [{"text": " a"}, {"text": " b"}], "choice": 1}
    found = item("summarize", row)
    assert transcript(found.dialogues[0]) == (
        "\n\nHuman: SUBREDDIT: r/tifu\n\nTITLE: Running\n\nPOST: I ran.\n\nTL;DR:\n\nAssistant: b"
    )
    assert found.scores == [1, 0]
    news = item("summarize", {**row, "info": {"article": "News.", "post": None}})
    assert news.dialogues[0][0] == user("News.\n\nTL;DR:")
    with pytest.raises(RowError, match="'info' must be an object"):
        item("summarize", {**row, "info": "post"})


def test_an_integer_beyond_all_floats_is_a_bad_row():
    row = {"question": {"full_text": "Why?"}, "answer_0": "A", "answer_1": "B", "score_0": 10**400, "score_1": 0.5}
    with pytest.raises(RowError, match="score_0: inf is not a finite number"):
        item("webgpt", row)


def test_records_with_responses():
    row = {"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [0.5, None, -2]}
    assert item("responses", row) == Item([[user("Hi"), assistant(text)] for text in "abc"], [0.5, None, -2.0])
    turns = [user("x"), assistant("y"), user("z")]
    assert item("responses", {**row, "prompt": turns}).dialogues[0] == [*turns, assistant("a")]


# Scores


def test_ranks_keep_order_and_ties_and_are_never_negative():
    assert dense_ranks([-3.5, 7.0, -3.5, -1.0]) == [0, 2, 0, 1]
    assert prepare(make_item(["a", "b", "c", "d"], [-2, None, -1, -2]), ranked) == (["a", "c", "d"], [0, 1, 0])


def test_released_scores_keep_two_responses():
    dialogues, scores = prepare(make_item(["a", "b", "c"], [1, 3, 9]), prepare_released)
    assert dialogues == ["b", "a"]
    assert scores == pytest.approx([3 / 3.00001, 1 / 3.00001], rel=1e-12)
    # Negative scores read as padding, so no pair is left; the paper's ranks keep it.
    negative = make_item(["a", "b"], [1, -1])
    kept = prepare(negative, prepare_released)
    assert kept is not None
    assert not has_pair(kept[1])
    assert prepare(negative, ranked) == (["a", "b"], [1, 0])


def test_released_items_of_unequal_lengths_are_dropped():
    assert prepare_released(["a", "b", "c"], [0.0, 1.0, 2.0]) == (["b", "a"], [1 / 1.00001, 0])
    assert prepare_released(["a", "b"], [1.0]) is None


def test_pairs_need_two_scores_that_are_not_padding():
    assert has_pair([1.0, 1.0, 0.0])
    assert not has_pair([1.0, 1.0])
    assert not has_pair([1.0, -1.0])


# Domains


def test_groups_and_held_out_items(load):
    found = load({"a": rows_of(5, "a"), "b": rows_of(3, "b")}, {"a": rows_of(2, "held")})
    assert isinstance(found.train, Groups)
    assert len(found.train) == 5
    for row in texts_of(found.train):
        assert [item[0].split(" ")[1] for item in row] == ["a", "b"]
        assert all(item[0].endswith("answer 0</s>") for item in row)
    assert list(found.held_out) == ["a"]
    assert len(found.held_out["a"]) == 2
    ((item,), _) = found.held_out["a"]
    assert (item["domain"], item["scores"]) == (0, [1.0, 0.0])
    assert [(s.domain, s.split, s.items, s.used) for s in found.statistics] == [
        ("a", "train", 5, 5),
        ("b", "train", 3, 5),
        ("a", "held out", 2, 2),
    ]


@pytest.mark.parametrize(
    ("options", "kind", "length"),
    [
        ({"method": "multitask"}, Mixture, 10),
        ({"resampling": False}, Mixture, 8),
        ({"resampling": False, "method": "multitask"}, Mixture, 8),
        ({"resampling_size": 2}, Groups, 2),
    ],
)
def test_rows_by_method(load, options, kind, length):
    found = load({"a": rows_of(5), "b": rows_of(3)}, **options)
    assert type(found.train) is kind
    assert len(found.train) == length


def test_released_ids_and_sizes(load):
    found = load({"a": rows_of(5), "b": rows_of(2)}, variant="released", resampling_size=6, sets={"a": {"first": 2}})
    (first, _) = found.train[0]
    assert first["scores"] == pytest.approx([0.99999, 0], abs=1e-6)
    assert (first["input_ids"][0][0], first["input_ids"][0][-1], found.pad_id) == (1, 2, 3)
    with pytest.raises(UserError, match=r"cannot bring the 5 items of domain 'a' to it.*\(up to 2 for every domain\)"):
        load({"a": rows_of(5), "b": rows_of(2)}, variant="released", resampling_size=6)


def test_more_than_two_responses_and_missing_scores(load):
    found = load({"a": [text_score(3, None, -1, 3)]}, method="multitask")
    ((item,),) = found.train
    assert item["scores"] == [1, 0, 1]
    assert [text.split()[-1] for text in texts_of(found.train)[0][0]] == ["0</s>", "2</s>", "3</s>"]
    (statistics,) = found.statistics
    assert (statistics.responses, statistics.tied, statistics.best_first) == (3, pytest.approx(1 / 3), 0)


def test_items_without_a_pair_are_set_aside_and_counted(load):
    found = load({"a": [*rows_of(2), text_score(1, 1), text_score(1), text_score(1, None)]})
    assert len(found.train) == 2
    (statistics,) = found.statistics
    assert (statistics.items, statistics.set_aside, statistics.tied) == (5, 3, pytest.approx(1 / 3))


def test_truncation_is_counted(load):
    long = text_score(1, 0, name="long " * 40)
    (statistics,) = load({"a": [*rows_of(1), long]}, max_length=64).statistics
    assert statistics.truncated == 0.5
    assert statistics.tokens < 64


def test_the_first_rows_alone(load):
    found = load({"a": rows_of(5)}, {"a": rows_of(4)}, sets={"a": {"first": 3, "eval_first": 2}})
    assert (len(found.train), len(found.held_out["a"])) == (3, 2)


def test_whole_prompts_are_held_out(load):
    rows = [text_score(1, 0, name=f"q {n // 2}") for n in range(20)]
    found = load({"a": rows}, eval_fraction=0.25)
    train, held = ({t[0][0] for t in texts_of(part)} for part in (found.train, found.held_out["a"]))
    assert (len(train), len(held)) == (7, 3)
    assert not train & held
    alone = load({"a": rows}, eval_fraction=0.25, evaluation_only=True)
    assert alone.train is None
    assert texts_of(alone.held_out["a"]) == texts_of(found.held_out["a"])


def test_an_evaluation_says_that_it_measures_a_share_of_a_file(load, caplog):
    rows = [text_score(1, 0, name=f"q {n}") for n in range(20)]
    load({"a": rows}, eval_fraction=0.25)
    assert not caplog.messages
    load({"a": rows}, eval_fraction=0.25, evaluation_only=True)
    (message,) = caplog.messages
    assert "data.sets.a: 5 rows are measured" in message
    assert "data.sets.a.eval_path=FILE" in message
    caplog.clear()
    found = load({}, {"a": rows}, eval_fraction=0.25, evaluation_only=True)
    assert len(found.held_out["a"]) == 20
    assert not caplog.messages


def test_domains_that_are_only_measured(load):
    found = load({"a": rows_of(4, "a"), "b": rows_of(3, "b"), "c": rows_of(2, "c")}, train_domains=["c", "a"])
    # Numbered as train_domains lists them.
    assert [item[0].split(" ")[1] for item in texts_of([found.train[0]])[0]] == ["c", "a"]
    assert [item["domain"] for item in found.train[0]] == [0, 1]
    assert {name: len(rows) for name, rows in found.held_out.items()} == {"b": 3}


def test_an_evaluation_reads_training_rows_only_if_there_are_no_others(load):
    found = load({"a": rows_of(4), "b": rows_of(3)}, {"a": rows_of(2)}, evaluation_only=True)
    assert found.train is None
    assert {name: len(rows) for name, rows in found.held_out.items()} == {"a": 2, "b": 3}


def test_data_are_recorded(load, tmp_path):
    load({"a": rows_of(2)}, {"a": rows_of(1)})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    prints = record["fingerprints"]["data"]
    assert set(prints) == {"train:a", "held out:a"}
    assert prints["train:a"]["sha256"] != prints["held out:a"]["sha256"]
    assert prints["train:a"]["rows_read"] == prints["train:a"]["items"] == 2
    assert record["domains"][0]["domain"] == "a"


def test_the_table_fits_into_80_columns(load):
    statistics = load({"summarize": [*rows_of(3), text_score(1, 1)]}).statistics
    console = Console(width=80)
    with console.capture() as captured:
        console.print(tabulate(statistics))
    row = captured.get().splitlines()[-1].split()
    assert row[:7] == ["summarize", "train", "4", "0", "1", "3", "2.00"]
    assert row[-3:] == ["0.0%", "25.0%", "75.0%"]


# Mistakes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ["a", "b"], "score": [1]}, "line 2: there are 2 responses but 1 scores"),
        ('{"text": ["a", "b"], "score": [NaN, 1]}', "line 2: score: nan is not a finite number"),
        ('{"text": ["a", "b"], "score": [Infinity, 1]}', "line 2: score: inf is not a finite number"),
        ({"text": ["a", "b"], "score": ["1", 0]}, "line 2: score: '1' is not a finite number"),
        ({"text": ["a", "b"], "score": [True, 0]}, "line 2: score: True is not a finite number"),
        ({"text": "a", "score": [1]}, "line 2: 'text' must be a list of text"),
        ({"text": ["a", "b"], "score": 1}, "line 2: 'score' must be a list"),
        ({"text": ["a", " "], "score": [1, 0]}, "line 2: a response is empty"),
        ({"text": ["a", "a"], "score": [1, 0]}, "line 2: all responses are the same"),
        ({"text": ["a", "b"]}, "line 2: column 'score' is missing"),
        ('{"text": [', "line 2: not valid JSON"),
    ],
    ids=str,
)
def test_bad_rows(load, row, message, tmp_path):
    rows = [text_score(1, 0), row]
    with pytest.raises(UserError, match=re.escape(message)):
        load({"a": rows})
    found = load({"a": rows}, on_error="skip")
    assert len(found.train) == 1
    assert found.statistics[0].rejected == 1
    assert "line 2" in (tmp_path / "run" / "rejects-train-a.jsonl").read_text()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "the file has no rows"),
        ([text_score(1, 1), text_score(0, 0)], {}, "domain 'a', train items: none of the 2 has two responses of diff"),
        ([{"question": "x"}], {}, "columns question are those of no known source; set data.sets.a.source"),
        ([{"text": ["x", "y"], "score": [1, 0]}], {"layout": "chat"}, "line 1: 'text' must be a transcript"),
        (rows_of(2), {"domains": ["a", "a"]}, "data.domains lists 'a' twice"),
        (rows_of(2), {"domains": []}, "data.domains is empty"),
        (rows_of(2), {"sets": {"x/y": {"source": "hh"}}}, "'x/y' must consist of letters"),
        (rows_of(2), {"domains": ["a", "aa"]}, "unknown domain 'aa' (did you mean 'a'?)"),
        (rows_of(2), {"sets": {"b": {}}}, "data.sets.b says nowhere what is to be read"),
        (rows_of(2), {"task_num": 5}, "data.task_num=5, but there are 1 domains: a"),
        (rows_of(2), {"train_domains": ["b"]}, "data.train_domains=['b'] must name some of the domains"),
        (rows_of(2), {"train_domains": []}, "data.train_domains=[] must name"),
        (rows_of(1), {"eval_fraction": 0.5}, "leaves none to train on"),
        (rows_of(2), {"variant": "both"}, "unknown variant 'both'"),
        (rows_of(2), {"sets": {"a": {"path": "nowhere.jsonl"}}}, "nowhere.jsonl: no such file"),
    ],
    ids=str,
)
def test_mistakes(load, rows, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load({"a": rows}, **options)


def test_a_source_without_held_out_rows_says_so(load):
    with pytest.raises(UserError, match=r"data.sets.webgpt has no held-out rows; set data.sets.webgpt.eval_path=FILE"):
        load({}, sets={"webgpt": {"source": "webgpt"}}, evaluation_only=True)


# Configurations and real rows


@pytest.mark.parametrize("name", ["five", "three", "demo"])
def test_shipped_configurations(name):
    data = composed(APP, f"data={name}", "model.name=tiny:llama", "output_dir=run", verb="train")["data"]
    config = DomainsConfig(**data)
    assert check_training(config) == check_domains(config) == [*config.sets]


def test_domains_of_a_shipped_configuration_may_be_left_out():
    data = composed(APP, "data=five", "data.domains=[webgpt]", "model.name=tiny:llama", "output_dir=run", verb="train")
    assert check_training(DomainsConfig(**data["data"])) == ["webgpt"]


def test_the_demo(load):
    path = {"path": "demo:pairs-train"}
    found = load({}, sets={"whole": path, "half": {**path, "first": 160}})
    assert len(found.train) == 320
    whole, half = texts_of([found.train[0]])[0]
    assert whole == half
    assert whole[0].startswith("\n\nHuman: What is 14 minus 3?\n\nAssistant: That makes 11.")


@pytest.mark.skipif(not SLICES.is_dir(), reason="no slices of the real data here")
@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("layout", ["transcript", "chat"])
def test_real_rows(load, variant, layout):
    sets = {
        name: {"source": source, "path": str(SLICES / folder), "eval_path": str(SLICES / folder), **FORTY}
        for name, (source, folder) in FOLDERS.items()
    }
    found = load({}, variant=variant, layout=layout, on_error="skip", resampling_size=20, sets=sets)
    assert len(found.train) == 20
    assert set(found.held_out) == set(FOLDERS)
    for one in found.train[0]:
        assert len(one["scores"]) == len(one["input_ids"]) == 2
        assert variant == "released" or has_pair(one["scores"])  # the release keeps ties


@pytest.mark.skipif(not SLICES.is_dir(), reason="no slices of the real data here")
def test_real_trees_and_messages_agree():
    def items(folder: str) -> list[Item]:
        with (SLICES / folder / "train.jsonl").open(encoding="utf-8") as lines:
            return replies([json.loads(line) for line in lines], "all", folder)

    flat, trees = items("oasst1"), items("oasst1_trees")
    assert len(flat) > 100
    assert sorted(map(str, flat)) == sorted(map(str, trees))
