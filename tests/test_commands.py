"""The installed commands, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "matplotlib")


def run(module: str, *words: str, report: str = "None") -> tuple[int, str, str]:
    """Call ``main`` of a command in a new interpreter; ``report`` is printed as the last line, as JSON."""
    code = (
        f"import json, sys; from {module} import main\n"
        "try: code = main()\n"
        "except SystemExit as stop: code = stop.code or 0\n"
        f"print(json.dumps({report})); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("reproalign.mmpo.cli", ["--help"]),
        ("reproalign.mmpo.cli", ["recipes"]),
        ("reproalign.mmpo.cli", ["recipes", "smoke"]),
        ("reproalign.mmpo.cli", ["--version"]),
        ("reproalign.common.cli", ["--help"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_help_is_light(module, words):
    """So that it answers at once: none of the large libraries is imported."""
    code, out, err = run(module, *words, report=f"[name for name in {HEAVY!r} if name in sys.modules]")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1]) == []


def test_a_mistake_is_one_line_and_exit_code_2():
    code, _, err = run("reproalign.mmpo.cli", "trian")
    assert code == 2
    assert err.startswith("mmpo: error: ")
    assert "did you mean 'train'?" in err
    assert len(err.splitlines()) == 1
