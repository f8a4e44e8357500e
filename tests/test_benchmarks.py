"""The benchmarks run; what they measure is for people."""

import re
import subprocess
import sys

import pytest

from .conftest import ROOT


@pytest.mark.slow
def test_all_of_them_write_their_tables(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "all.py"), "--quick", f"--out={tmp_path / 'results.md'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = re.split(r"^## ", (tmp_path / "results.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(sections) == 9
    for section in sections:
        heading, *rows = [line for line in section.splitlines() if line.startswith("| ")]
        assert re.match(r"\| ---( \|| :?-)", rows[0]) and len(rows) >= 2, section
        assert {row.count(" |") for row in rows[1:]} == {heading.count(" |")}, section
