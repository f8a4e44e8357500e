"""The project's own promises: README and CI say the same, every shipped file is where it should be."""

import importlib.metadata
import re
import subprocess
import sys

import speechbrain_ser

from .conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = re.findall(r"^pip install .*pytest$", README, re.MULTILINE)
    assert command == 'pip install -e ".[test]" && pytest'
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(line.replace("pip install -q", "pip install") == command for line in script)


def test_readme_names_files_that_exist():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links and all((ROOT / link).exists() for link in links)
    for page in (ROOT / "recipes").glob("*/README.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_version_is_the_installed_one():
    assert importlib.metadata.version("speechbrain-ser") == speechbrain_ser.__version__


def test_importing_corpora_protocols_and_evaluation_needs_no_torch():
    names = "corpora.manifest, corpora.demo, protocols, evaluation.metrics, evaluation.figures, evaluation.report, "
    names += "evaluation.versus, evaluation.attention_figure, evaluation.decomposition_figure"
    code = (
        "; ".join(f"import speechbrain_ser.{n}" for n in names.split(", "))
        + "; import sys; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
