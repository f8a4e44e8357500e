"""The project's own promises: README and CI say the same, every shipped file is where it should be."""

import ast
import contextlib
import importlib.metadata
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError, metadata, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import speechbrain_ser
from speechbrain_ser.errors import PAIR

from .conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = re.findall(r"^pip install .*pytest$", README, re.MULTILINE)
    assert command == 'pip install -c constraints.txt -e ".[test]" && pytest'
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(line.replace("pip install -q", "pip install") == command for line in script)


LOCK = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]


def locked(python: str) -> dict[str, str]:
    """Name -> version under a Python on this platform."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    pins = [Requirement(line) for line in LOCK]
    pins = [pin for pin in pins if not pin.marker or pin.marker.evaluate(environment)]
    assert len({pin.name for pin in pins}) == len(pins)
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}


def test_the_lock_holds_exact_releases_and_nothing_else():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^/@]+)?", line) for line in LOCK)
    assert all(name_and_version in LOCK for name_and_version in PAIR.split())
    (build,) = re.findall(r"^requires = (.*)$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert json.loads(build) == [line for line in LOCK if line.startswith("setuptools==")]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_lock_has_every_dependency_in_a_version_that_setup_allows(python):
    """Those of setup.py, of all extras; under the Python that runs this, theirs as well, where they are installed."""
    pins, asked, is_here = locked(python), set(), python == ".".join(map(str, sys.version_info[:2]))
    todo = [("speechbrain-ser", extra) for extra in ("", *metadata("speechbrain-ser").get_all("Provides-Extra"))]
    while todo:
        name, extra = todo.pop()
        asked.add((name, extra))
        with contextlib.suppress(PackageNotFoundError):
            for needed in map(Requirement, requires(name) or []):
                environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
                if needed.marker and not needed.marker.evaluate(environment):
                    continue
                needed_name = canonicalize_name(needed.name)
                assert needed_name in pins, f"{name} needs {needed}"
                assert name != "speechbrain-ser" or needed.specifier.contains(pins[needed_name]), needed
                deeper = [(needed_name, e) for e in ("", *needed.extras) if is_here]  # other releases stand elsewhere
                todo += [each for each in deeper if each not in asked]


def test_version_is_the_installed_one():
    assert importlib.metadata.version("speechbrain-ser") == speechbrain_ser.__version__


def test_importing_data_and_evaluation_needs_no_torch():
    """But where a batch is made of the data."""
    files = [file for room in ("data", "evaluation") for file in (ROOT / "speechbrain_ser" / room).rglob("*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    names = [n for n in names if not n.endswith(("data.batches", "data.audio", "__init__", "worker"))]
    code = f"import sys, {', '.join(names)}; print([n for n in ('torch', 'speechbrain') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# what each room may import: these, and what they may import
BELOW = {
    **{"errors": "", "files": "errors", "data": "files", "processing": "data", "nnet": "processing", "lobes": "nnet"},
    **{"models": "lobes", "evaluation": "data", "training": "models evaluation", "crossval": "training inference"},
    "inference": "models evaluation",
}


def rooms_below(room: str) -> set[str]:
    return {room}.union(*(rooms_below(other) for other in BELOW[room].split()))


def test_arrows_between_rooms_and_no_circle_between_files():
    """Types included; CONTRIBUTING.md draws the arrows."""
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "speechbrain_ser").rglob("*.py")}
    paths = {name.removesuffix(".__init__"): p for name, p in paths.items() if name.count(".") > 1 or p.stem in BELOW}
    asked = {}
    for name, path in paths.items():
        nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        full = {f"{n.module}.{a.name}" for n in nodes for a in n.names} | {n.module for n in nodes}
        asked[name] = (full & set(paths)) - {name}
    assert len(asked) > 70
    rooms = {(a.split(".")[1], b.split(".")[1]) for a, below in asked.items() for b in below}
    assert [(a, b) for a, b in rooms if b not in rooms_below(a)] == []
    list(TopologicalSorter(asked).static_order())  # raises CycleError
