"""Options and fixtures of the whole test run, and the check of every type in it."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import gc
import hashlib
import importlib.machinery
import itertools
import marshal
import os
import sys
import traceback
import types
from pathlib import Path

import pytest
from beartype import beartype
from hypothesis import settings
from jaxtyping import jaxtyped

# The same examples everywhere, and no verdict by the clock.
settings.register_profile("reproalign", derandomize=True, deadline=None)
settings.load_profile("reproalign")


def checked(thing):
    """A function, or a dataclass, whose arguments and result have the types and the shapes that it says."""
    if isinstance(thing, type):
        if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = checked(thing.__init__)
        return thing
    stages = [functools.partial(with_checks, thing)]  # in a list, for datasets hashes what the functions in cells name

    @functools.wraps(thing)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        if len(stages) == 1:
            stages.append(stages[0]())
        return stages[1](*args, **kwargs)

    return call


def with_checks(function):
    """Shapes are compared between arguments by jaxtyping; where there are none, beartype alone is much quicker."""
    hints = {}
    for name, hint in function.__annotations__.items():
        try:
            hints[name] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
        except (NameError, AttributeError):
            continue  # imported for type checkers alone
    plain = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    functools.update_wrapper(plain, function)
    del plain.__wrapped__
    plain.__kwdefaults__, plain.__annotations__ = function.__kwdefaults__, hints
    return (jaxtyped(typechecker=beartype) if "jaxtyping" in repr(hints) else beartype)(plain)


class Decorating(ast.NodeTransformer):
    """Decorate every function, next to itself, and every class, around all else, with `checked`."""

    def visit_FunctionDef(self, node):
        node.decorator_list.append(ast.copy_location(ast.Name("__checked__", ast.Load()), node))
        return self.generic_visit(node)

    def visit_ClassDef(self, node):
        node.decorator_list.insert(0, ast.copy_location(ast.Name("__checked__", ast.Load()), node))
        return self.generic_visit(node)


class CheckedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module with its types checked; what was compiled is kept beside Python's own."""

    def get_code(self, fullname):
        source = self.get_data(self.path)
        kept = Path(importlib.util.cache_from_source(self.path, optimization="checked"))
        digest = hashlib.sha256(RULES + source).digest()
        if kept.is_file() and (found := kept.read_bytes()).startswith(digest):
            return marshal.loads(found[len(digest) :])
        code = compile(Decorating().visit(ast.parse(source)), self.path, "exec", dont_inherit=True)
        if not sys.dont_write_bytecode:
            with contextlib.suppress(OSError):  # of a folder that cannot be written to
                kept.parent.mkdir(exist_ok=True)
                temporary = kept.with_suffix(f".{os.getpid()}")
                temporary.write_bytes(digest + marshal.dumps(code))
                temporary.replace(kept)
        return code

    def exec_module(self, module):
        module.__checked__ = checked
        super().exec_module(module)


class CheckedFinder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.split(".")[0] != "reproalign":
            return None
        spec = super().find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


RULES = Path(__file__).read_bytes()
sys.meta_path.insert(0, CheckedFinder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", metavar="DIR", help="folder of golden vectors (default: the one beside the repository)"
    )


LONGEST = {"test_faults.py", "test_train.py", "test_facts.py", "test_ppo.py", "test_recipes.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no worker is left alone with one."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


FROZEN = [0]  # modules


def pytest_runtest_setup() -> None:
    """Leave modules out of garbage collections: a training asks for one at its end, and they are a million objects."""
    if len(sys.modules) > FROZEN[0] + 100:
        gc.collect()
        gc.freeze()
        FROZEN[0] = len(sys.modules)


CACHES = itertools.count()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another prepared, but for the tiny models, which a worker makes once."""
    base = tmp_path_factory.getbasetemp()
    own = base / "caches" / str(next(CACHES))
    own.mkdir(parents=True)
    (own / "models").symlink_to(base / "models")
    (base / "models").mkdir(exist_ok=True)
    monkeypatch.setenv("REPROALIGN_CACHE", str(own))


DRAWN: set[types.CodeType] = set()


@pytest.fixture(autouse=True)
def _pictures_of_each_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one picture of each kind, and of the others the first bytes: drawing was a tenth of all tests."""
    matplotlib = sys.modules.get("matplotlib.figure")
    if matplotlib is None or "pictures" in request.fixturenames:
        return
    draw = matplotlib.Figure.savefig

    def savefig(figure, target, **options):
        kind = next(
            code for code in calling() if code.co_filename.endswith(".py") and "canvas.py" not in code.co_filename
        )
        if kind in DRAWN:
            Path(target).write_bytes(b"\x89PNG\r\n\x1a\n")
        else:
            draw(figure, target, **options)
            DRAWN.add(kind)

    monkeypatch.setattr(matplotlib.Figure, "savefig", savefig)


def calling():
    """Yield the code of reproalign's functions that are being carried out, the innermost first."""
    for frame, _ in traceback.walk_stack(None):
        if "/src/reproalign/" in frame.f_code.co_filename:
            yield frame.f_code


@pytest.fixture
def pictures() -> None:
    """All pictures are drawn."""
