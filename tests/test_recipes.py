"""Every YAML in hparams/ runs through train.py's main and gives what tests/recipes.csv promises of it."""

import csv
import json
import operator
import re
from pathlib import Path

import pytest

from .conftest import ROOT

ROWS = list(csv.DictReader((Path(__file__).with_name("recipes.csv")).open(encoding="utf-8")))
COMPARE = {">": operator.gt, "<": operator.lt, "==": operator.eq}


def test_every_system_has_a_row():
    yamls = {f"hparams/{p.name}" for p in (ROOT / "hparams").glob("*.yaml")}
    assert yamls == {row["Hparam_file"] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["System"])
def test_row(row, request):
    assert (ROOT / row["Script_file"]).is_file() and (ROOT / row["Readme_file"]).is_file()
    folder = request.getfixturevalue("trained_demo") if row["System"] == "demo" else _small_run(row, request)
    checks = dict(re.findall(r"(\w+)=\[([^\]]*)\]", row["test_debug_checks"]))
    missing = [f for f in checks["file_exists"].split(",") if not (folder / f).stat().st_size]
    assert not missing
    metrics = json.loads((folder / "metrics.json").read_text())
    for check in checks["figure_check"].split(","):
        path, sign, bound = check.split()
        value = metrics
        for key in path.split("."):
            value = value[key]
        assert COMPARE[sign](value, float(bound)), f"{path} = {value}, expected {sign} {bound}"


def _small_run(row, request) -> Path:
    small, train = request.getfixturevalue("small"), request.getfixturevalue("train")
    flags = [
        f"--data_folder={small.corpus(row['Corpus'])}",
        *row["test_debug_flags"].replace("FOLDER", str(small.folder)).split(),
    ]
    out = train(*flags, yaml=row["System"])
    return Path(re.search(r"^results: (.*)$", out, re.MULTILINE).group(1))
