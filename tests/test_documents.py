"""What the documents say can be done, can be done: commands compose, verbs and links exist."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from papers import CLIS, CORE, PAPERS, ROOT
from reproalign.common.config.launch import STRATEGIES
from reproalign.common.options.groups import options
from reproalign.common.options.renamed import RENAMED
from reproalign.common.text.templates import TEMPLATES

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("packages/*/*.md"))]


def commands(document: Path, name: str) -> list[list[str]]:
    """The words of every line in a shell block, fenced or indented, that begins with ``name``."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.DOTALL)
    found = []
    for line in [*"\n".join(blocks).splitlines(), *re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE)]:
        if line.startswith(f"{name} "):
            words = shlex.split(line, comments=True)
            found.append(words[1 : words.index(">")] if ">" in words else words[1:])
    return found


COMMANDS = [
    pytest.param(paper, words, id=f"{document.relative_to(ROOT)}: {paper.APP.command} {shlex.join(words)[:60]}")
    for paper in [*CLIS, CORE]
    for document in DOCUMENTS
    for words in commands(document, paper.APP.command)
    if words[0] not in (name for name, _, _ in paper.APP.more)
]


@pytest.mark.parametrize(("paper", "words"), COMMANDS)
def test_documented_commands_compose(paper, words, capsys, monkeypatch, tmp_path):
    """Verbs with their keys compose to a whole configuration; help and recipes answer as they stand."""
    for name in [word.removeprefix("config=") for word in words if word.startswith("config=")]:
        assert paper.main([words[0], "experiment=smoke", "--cfg"]) == 0
        monkeypatch.chdir(tmp_path)
        file = Path(name) if name.endswith(".yaml") else Path(name, "config.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(capsys.readouterr().out, encoding="utf-8")
    verbs = [verb.name.split()[0] for verb in paper.APP.verbs]
    flags = [word for word in words if word.startswith("--")]
    extra = ["--cfg"] if words[0] in verbs and "--help" not in flags else []
    words = [word for word in words if word != "--dry-run"]
    assert paper.main([*words, *extra]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("paper", CLIS, ids=lambda paper: paper.APP.command)
def test_some_commands_are_documented(paper):
    assert sum(command.values[0] is paper for command in COMMANDS) > 5


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_every_paper_is_in_the_table_of_the_readme(paper):
    assert f"| [`packages/{paper.name}`](packages/{paper.name}) |" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("paper", CLIS, ids=lambda paper: paper.APP.command)
def test_every_verb_is_in_the_package_readme(paper):
    app = paper.APP
    text = (ROOT / "packages" / app.package.rpartition(".")[2] / "README.md").read_text(encoding="utf-8")
    for name in [*(verb.name for verb in app.verbs), *(name for name, _, _ in app.more), "recipes"]:
        assert f"{app.command} {name}" in text, name


def test_every_word_of_the_cores_command_is_in_its_readme():
    text = (ROOT / "packages" / "common" / "README.md").read_text(encoding="utf-8")
    for name in [*(verb.name for verb in CORE.APP.verbs), *(name for name, _, _ in CORE.APP.more), "completion"]:
        assert f"`{name}`" in text, name


EQUATION = re.compile(r"\((R\d+|eq\. \d+)\)")


def plain(text: str) -> str:
    """Words as they are compared: those of names and of sentences, ``Ra-DPO R1`` and ``radpo R1``, alike."""
    return re.sub(r"[-.]", "", text.replace("_", " ")).lower()


def docstrings(file: Path) -> dict[str, str]:
    """Docstrings of a file's functions, classes and methods, by name."""
    found: dict[str, str] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ast.get_docstring(node) or ""
            inner = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
            found |= {f"{node.name}.{name}": ast.get_docstring(method) or "" for name, method in inner.items()}
    return found


@pytest.mark.parametrize("paper", CLIS, ids=lambda paper: paper.APP.command)
def test_every_equation_has_its_code_that_cites_it_and_its_test(paper):
    """The table "equation, code, test" is complete; what it names exists and cites the number, tests among it.

    A docstring does, or a test's name (``…_eq_7_…``); what lies in the core names the paper too: ``MORE eq. 3``.
    """
    folder = ROOT / "packages" / paper.APP.package.rpartition(".")[2]
    text = (folder / "README.md").read_text(encoding="utf-8")
    method, rows = (
        text[: text.index("| equation | code | test |")],
        re.findall(r"^\| (\(.*) \|$", text, flags=re.MULTILINE),
    )
    listed = [number for row in rows for number in EQUATION.findall(row.split(" | ")[0])]
    assert sorted(listed) == sorted(set(EQUATION.findall(method)))
    for equations, code, tests in (row.split(" | ") for row in rows):
        numbers = {plain(number) for number in EQUATION.findall(equations)}
        for cell in (code, tests):
            cited = set()
            places = re.findall(r"\]\((\S+?)\): (`[\w.]+`(?:, `[\w.]+`)*)", cell)
            assert places, cell
            for path, names in places:
                known = docstrings(folder / path)
                owner = f"{folder.name} " if path.startswith("../common/") else ""
                for name in re.findall(r"[\w.]+", names):
                    assert name in known, f"{equations}: {path} has no {name}"
                    words = plain(f"{name} {known[name]}")
                    found = {number for number in numbers if re.search(rf"\b{owner}{number}\b", words)}
                    assert found, f"{path}: {name} cites nothing of {equations}"
                    cited |= found
            assert cited == numbers, f"{cell} does not cite all of {equations}"


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ("docs/launch.md", [*STRATEGIES, *options("reproalign.mmpo", "launch")]),
        ("docs/data.md", [*options("reproalign.mmpo", "data"), *TEMPLATES]),
        ("CONTRIBUTING.md", ["test", "lint", "types", "integration", "golden", "install", "bench"]),
    ],
)
def test_every_choice_is_documented(document, names):
    text = (ROOT / document).read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf"[`=\s/]{re.escape(name)}[`\s,.]", text), name


def braces(text: str) -> list[str]:
    """``a.{b,c}`` as a shell expands it."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", text)
    return [f"{found[1]}{part}{found[3]}" for part in found[2].split(",")] if found else [text]


def test_every_renamed_key_of_the_changes_is_answered_with_its_new_name():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*`.*) \|$", text[: text.index("### New")], flags=re.MULTILINE)
    keys = [key for row in rows for word in re.findall(r"`(.*?)`", row.split(" | ")[0]) for key in braces(word)]
    known = {*RENAMED, *(key for cli in CLIS for key in cli.APP.renamed)}
    assert len(keys) > 30
    assert [key for key in keys if not known & {key, key.partition("=")[0]}] == ["data.sets.NAME=FILE"]  # by its value


def test_every_session_is_named_in_the_documents():
    sessions = re.findall(r"@nox\.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(encoding="utf-8"))
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    assert len(sessions) >= 8
    for name in sessions:
        assert f"./run {name}" in text, name


TOY = ROOT / "packages" / "common" / "tests" / "toy"


@pytest.mark.parametrize(
    "file",
    [file for kind in ("py", "yaml") for file in TOY.rglob(f"*.{kind}") if file.stem not in ("__init__", "paper")],
    ids=lambda file: str(file.relative_to(TOY)),
)
def test_the_worked_example_is_the_toy_paper_that_the_tests_run(file):
    shown = textwrap.indent(file.read_text(encoding="utf-8"), "    ")
    assert f"\n\n{shown}\n" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
