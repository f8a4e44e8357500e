"""Temperatures, ECE and abstention: by hand, in trained runs, in reports, in use."""

# ruff: noqa: F811 (fixtures of other files)
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from speechbrain_ser.cli import main as cli
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.calibration import (
    BOUNDS,
    CALIBRATION,
    FILES,
    LOGITS,
    RELIABILITY,
    abstention,
    calibrate,
    calibration_figures,
    chance_error,
    coverage_curve,
    fit_temperature,
    logit_table,
    logits_of,
    read_calibration,
    reliability_bins,
    utterance_scores,
    with_temperature,
)
from speechbrain_ser.evaluation.report import build_report
from speechbrain_ser.evaluation.runs import in_words
from speechbrain_ser.files import write_csv, write_json
from speechbrain_ser.inference.formats import csv_text, json_text, table_text
from speechbrain_ser.inference.recognizer import EmotionRecognizer, Recognition

from .run_folders import CLASSES, FOLDS, predictions, write_run
from .test_inference import CPU, run_of  # noqa: F401 (a fixture)
from .test_report import blank_pictures  # noqa: F401 (a fixture)

RUNS = ["cai", "ha", "fu", "hsu"]


def synthetic(n: int, temperature: float, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 4
    return logits, np.array([rng.choice(classes, p=np.exp(p)) for p in with_temperature(logits, temperature)])


@pytest.mark.parametrize("temperature", [2.5, 0.4])
def test_the_temperature_that_made_the_classes_is_found(temperature):
    logits, true = synthetic(4000, temperature)
    fit = fit_temperature(logits, true)
    assert fit.temperature == pytest.approx(temperature, rel=0.05) and fit.remark is None
    # its own derivative: the mean logit of the true class is the one that the posteriors expect (Guo et al., appendix)
    posteriors = np.exp(with_temperature(logits, fit.temperature))
    expected = (posteriors * logits).sum(1).mean()
    assert logits[np.arange(len(true)), true].mean() == pytest.approx(expected, abs=1e-3)
    before, after = (calibration_figures(utterance_scores(with_temperature(logits, t), true)) for t in (1, fit[0]))
    assert after["WA"] == before["WA"] and after["NLL"] <= before["NLL"]
    assert after["ECE"] < before["ECE"] / 2 and after["ECE"] < 0.03


def test_log_posteriors_do_as_logits_do():
    logits, true = synthetic(300, 2.5)
    fits = [fit_temperature(each, true) for each in (logits, with_temperature(logits), logits + 7.0)]
    assert fits[1:] == fits[:1] * 2


@pytest.mark.parametrize(
    ("logits", "true", "said"),
    [
        ([[3.0, 0.0], [0.0, 2.0]], [0, 1], "all of the 2 utterances are right"),
        ([[3.0, 0.0]], [0], "the only utterance is right"),
        (np.zeros((0, 2)), [], "no validation utterances"),
        ([[1.5], [0.3]], [0, 0], "the same logit"),
        ([[0.2, 0.2], [0.2, 0.2]], [0, 1], "the same logit"),
        ([[np.nan, 0.2], [0.1, 0.2], [np.inf, 0.0]], [0, 1, 0], "2 utterances are not finite"),
    ],
)
def test_no_temperature_and_why(logits, true, said):
    temperature, reason = fit_temperature(np.array(logits), true)
    assert temperature is None and said in reason


def test_at_a_bound_it_says_so():
    wrong = fit_temperature(np.array([[3.0, 0.0], [0.0, 2.0]]), [1, 0])
    assert wrong.temperature == BOUNDS[1] and "no better than chance" in wrong.remark
    small = fit_temperature(np.array([[1e-3, 0.0]] * 9 + [[0.0, 1e-3]]), [0] * 10)
    assert small.temperature == BOUNDS[0] and "very small" in small.remark


def test_posteriors_of_exactly_0_and_1():
    with np.errstate(divide="ignore"):
        logs = np.log(np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]))
    scores = utterance_scores(with_temperature(logs, 3.0), [0, 1, 1])
    assert scores["confidence"].tolist() == pytest.approx([1.0, 1.0, 0.5])
    assert scores["Brier"].tolist() == pytest.approx([0.0, 2.0, 0.5])
    assert scores["NLL"].tolist() == [0.0, np.inf, pytest.approx(math.log(2))]
    found = calibration_figures(scores)
    assert found["ECE"] == pytest.approx((2 * abs(1.0 - 0.5) + abs(0.5 - 0.0)) / 3)  # the third calls the first class


def test_ece_by_hand():
    """In 15 bins: one of 0.95 and 0.97 (half right), one of 0.6 (right), which is an upper edge; 0.61 is above it."""
    bins = reliability_bins([0.95, 0.97, 0.6, 0.61], [True, False, True, False])
    assert np.flatnonzero(bins.counts).tolist() == [8, 9, 14] and bins.counts.sum() == 4
    assert bins.error == pytest.approx((2 * abs(0.96 - 0.5) + abs(0.6 - 1) + abs(0.61 - 0)) / 4)


def test_ece_by_chance_is_what_exact_posteriors_have():
    logits, true = synthetic(500, 1.0)
    scores = utterance_scores(with_temperature(logits), true)
    chance = chance_error(scores["confidence"])
    assert 0.01 < chance < 0.06 and abs(calibration_figures(scores)["ECE"] - chance) < 0.02


def test_coverage_and_accuracy():
    scores = pd.DataFrame({"confidence": [0.9, 0.8, 0.6, 0.5], "right": [True, True, False, True]})
    rows = abstention(scores, [0.0, 0.6, 0.95])
    assert [r["n"] for r in rows] == [4, 3, 0] and [r["WA"] for r in rows] == [0.75, pytest.approx(2 / 3), None]
    coverage, accuracy = coverage_curve(scores)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0] and accuracy.tolist() == pytest.approx([1, 1, 2 / 3, 0.75])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_keeps_its_temperature_and_what_it_was_fitted_on(run_of, name):
    folder = run_of(name)
    found, metrics = read_calibration(folder), json.loads((folder / "metrics.json").read_text())
    table = pd.read_csv(folder / LOGITS, dtype={"ID": str, "speaker": str})
    assert found["epoch"] == metrics["selections"]["last"]["epoch"] and found["part"] == "valid"
    parts = {part: table[table["part"] == part] for part in ("valid", "test")}
    assert {p: len(t) for p, t in parts.items()} == {p: metrics["utterances"][p] for p in parts}
    again = fit_temperature(*logits_of(parts["valid"], metrics["classes"]))
    assert again.temperature == found["temperature"] and (again.remark or "") in found["note"]
    predicted = pd.read_csv(folder / "predictions.csv", dtype={"ID": str})
    assert predicted["ID"].tolist() == parts["test"]["ID"].tolist()
    logits, true = logits_of(parts["test"], metrics["classes"])
    posteriors = predicted[[f"posterior_{c}" for c in metrics["classes"]]].to_numpy()
    # written with six digits, which may be half of one off, of a softmax in float32, which is some units of 6e-8 off
    assert np.exp(with_temperature(logits)) == pytest.approx(posteriors, rel=0, abs=5e-7 + 16 * 2**-24)
    expected = utterance_scores(with_temperature(logits, found["temperature"]), true)
    assert found["figures"]["test"]["calibrated"] == pytest.approx(calibration_figures(expected))
    assert found["thresholds"][0]["coverage"] == 1 and (folder / RELIABILITY).stat().st_size > 10_000
    assert f"from {found['n']} validation utterances" in in_words(found)


def test_without_a_validation_part(trained, small):
    flags = "--corpus=demo", f"--data_folder={small.corpus('iemocap')}", "--protocol=half_session"
    folder = trained(*flags, yaml="cai_mtl")
    found = read_calibration(folder)
    assert found["temperature"] is None and found["n"] == 0 and "thresholds" not in found
    assert found["reason"] == "protocol half_session has no validation part" and found["reason"] in in_words(found)
    assert set(pd.read_csv(folder / LOGITS)["part"]) == {"test"} and set(found["figures"]) == {"test"}
    assert set(found["figures"]["test"]) == {"uncalibrated"} and (folder / RELIABILITY).is_file()


def test_the_selected_epoch_is_the_calibrated_one(train, tmp_path):
    """And a run that finished before there was calibration gets it by one more test; nothing else changes."""
    flags = ("--n_epochs=3", "--test_every_epoch=True", "--selection=valid", "--lr=0.01", "--pooling=sum")
    train(*flags)
    (path,) = (tmp_path / "results").glob(f"**/{CALIBRATION}")
    folder = path.parent
    found, metrics = read_calibration(folder), json.loads((folder / "metrics.json").read_text())
    assert found["epoch"] == metrics["selections"]["valid"]["epoch"] and found["selection"] == "valid"
    assert "the epoch was chosen on the same utterances" in found["note"] and "utterances only" in found["note"]
    names = ["metrics.json", "epochs.csv", *FILES, *(p.name for p in folder.glob("predictions*.csv"))]
    before = {name: (folder / name).read_bytes() for name in names}
    for name in FILES:
        (folder / name).unlink()
    assert "--test_only" in train(*flags) and not path.exists()
    train(*flags, "--test_only")
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_speakers_that_are_trained_on_are_named(trained, run_of):
    known = read_calibration(trained("--protocol=random", "--alpha=0", yaml="cai_mtl"))
    assert "its speakers are trained on" in known["note"]
    assert "trained on" not in read_calibration(run_of("cai"))["note"]


@pytest.mark.parametrize("name", RUNS)
def test_posteriors_are_calibrated(run_of, small, name):
    """softmax(logits / T) of logits.csv, which are those of predictions.csv, for every system."""
    folder, wavs = run_of(name), small.corpus("emodb") / "wav"
    rows = pd.read_csv(folder / "predictions.csv", dtype={"ID": str}).head(8)
    columns = [c for c in rows if c.startswith("posterior_")]
    temperature = read_calibration(folder)["temperature"]
    logits = pd.read_csv(folder / LOGITS, dtype={"ID": str}).query("part == 'test'").head(8)
    assert logits["ID"].tolist() == rows["ID"].tolist()
    expected = np.exp(with_temperature(logits.filter(like="logit_").to_numpy(), temperature))
    recognizer = EmotionRecognizer.from_run(folder, CPU, transcribe=False)
    assert recognizer.temperature == temperature and f"-temperature={temperature:g}" in recognizer.model_id
    found = list(recognizer.classify_files(wavs / f"{i}.wav" for i in rows["ID"]))
    given = np.array([list(result.posteriors.values()) for result in found])
    assert given == pytest.approx(expected, abs=1e-4) and [r.emotion for r in found] == rows["predicted"].tolist()
    if temperature != 1:
        assert abs(given - rows[columns].to_numpy()).max() > 1e-3


def test_below_the_threshold_it_keeps_silent(run_of, small):
    paths = sorted((small.corpus("emodb") / "wav").iterdir())[:6]
    every = list(EmotionRecognizer.from_run(run_of("cai"), CPU).classify_files(paths))
    sure = sorted(max(result.posteriors.values()) for result in every)
    threshold = (sure[2] + sure[3]) / 2
    assert sure[2] < sure[3]
    recognizer = EmotionRecognizer.from_run(run_of("cai"), CPU, threshold=threshold)
    for result, answered in zip(recognizer.classify_files(paths), every, strict=True):
        expected = answered.emotion if max(answered.posteriors.values()) >= threshold else None
        assert (result.error, result.emotion, result.transcript) == (None, expected, answered.transcript)
        assert result.posteriors == pytest.approx(answered.posteriors, abs=1e-5)
    assert recognizer.model_id.endswith(f"-threshold={threshold:.6g}")


def test_a_run_without_a_temperature_says_so_once(run_of, tmp_path, monkeypatch):
    copied = shutil.copytree(run_of("cai"), tmp_path / "run")
    write_json(read_calibration(copied) | {"epoch": 9}, copied / CALIBRATION)
    logged = []
    monkeypatch.setattr("speechbrain_ser.inference.recognizer.logger.warning", logged.append)
    recognizer = EmotionRecognizer.from_run(copied, CPU)
    said = "uncalibrated: calibration.json is of epoch 9, the parameters are of epoch 1"
    assert recognizer.temperature == 1 and logged == [said]
    plain, wav = EmotionRecognizer.from_run(copied, CPU, calibrated=False), torch.randn(16_000)
    assert logged == [said] and plain.model_id == recognizer.model_id
    assert plain.classify_batch(wav) == recognizer.classify_batch(wav)


@pytest.mark.parametrize("content", ["", "[]", "{}", *(f'{{"temperature": {t}}}' for t in (0, '"2"', "NaN"))])
def test_a_damaged_calibration_is_refused(tmp_path, content):
    (tmp_path / CALIBRATION).write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json.*: expected "):
        read_calibration(tmp_path)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "high", math.nan])
def test_wrong_thresholds(run_of, threshold):
    with pytest.raises(UserError, match="threshold: expected a number from 0 to 1"):
        EmotionRecognizer.from_run(run_of("cai"), CPU, threshold=threshold)


def test_an_abstention_in_every_format():
    silent = Recognition("a.wav", None, {"happy": 0.4, "sad": 0.35}, "JA").to_dict() | {"model": "c0ffee"}
    assert table_text(silent).split() == ["a.wav", "-", "0.400", "JA"]
    assert csv_text(silent) == "a.wav,,0.4,0.35,JA,c0ffee\n" and json.loads(json_text(silent)) == silent


def test_predict_with_a_threshold(run_of, small, tmp_path, capfd):
    """A file holds the results of one temperature and one threshold."""
    wav, out = str(sorted((small.corpus("emodb") / "wav").iterdir())[0]), tmp_path / "results.json"
    command = [
        "predict",
        wav,
        f"--model={run_of('cai')}",
        "--trust-run",
        "--device=cpu",
        "--no-transcript",
        f"--out={out}",
    ]
    assert cli([*command, "--threshold=1"]) == 0
    row, before = json.loads(out.read_text()), out.read_bytes()
    assert row["emotion"] is None and "-temperature=" in row["model"] and row["model"].endswith("-threshold=1")
    assert cli([*command, "--threshold=1", "--uncalibrated"]) == 2
    assert "expected results of this model" in capfd.readouterr().err and out.read_bytes() == before


def calibrated_run(root: Path, fold: str, temperature: float | None = 2.5, calibrate_it=True, **metrics) -> Path:
    """A fabricated run with logits that are too sure by a temperature; without one: all validation utterances right."""
    frame, rng = predictions(fold), np.random.default_rng(sum(map(ord, fold)))
    tables = {}
    for part, ids in (("valid", [f"v{k:02}" for k in range(60)]), ("test", list(frame["ID"]))):
        logits, true = synthetic(len(ids), temperature or 1.0, len(CLASSES), int(rng.integers(1000)))
        if temperature is None:
            logits[np.arange(len(ids)), true] += 100
        facts = pd.DataFrame({"ID": ids, "speaker": fold, "emotion": np.array(CLASSES)[true]})
        tables[part] = logit_table(facts, dict(zip(ids, logits.astype(np.float32).tolist(), strict=True)), CLASSES)
    frame["emotion"], frame["predicted"] = facts["emotion"], np.array(CLASSES)[logits.argmax(1)]
    frame[[f"posterior_{c}" for c in CLASSES]] = np.exp(with_temperature(logits)).round(6)
    folder = write_run(root, fold, by_selection={"last": frame}, **metrics)
    if calibrate_it:
        write_json({"epoch": 3, **calibrate(*tables.values(), CLASSES)}, folder / CALIBRATION)
        write_csv(pd.concat([t.assign(part=p) for p, t in tables.items()]), folder / LOGITS)
    return folder


def scores_by_hand(folder, temperature) -> pd.DataFrame:
    """Of logits.csv."""
    table = pd.read_csv(folder / LOGITS).query("part == 'test'")
    logits = torch.tensor(table[[f"logit_{c}" for c in CLASSES]].to_numpy())
    posterior, true = torch.softmax(logits / temperature, -1).numpy(), pd.Index(CLASSES).get_indexer(table["emotion"])
    frame = pd.DataFrame({"confidence": posterior.max(1), "right": posterior.argmax(1) == true})
    return frame.assign(NLL=-np.log(posterior[np.arange(len(true)), true]))


def ece(scores: pd.DataFrame) -> float:
    return reliability_bins(scores["confidence"], scores["right"]).error


def test_a_report_pools_folds_each_with_its_own_temperature(tmp_path):
    folders = [calibrated_run(tmp_path, fold) for fold in FOLDS]
    temperatures = [read_calibration(folder)["temperature"] for folder in folders]
    assert len(set(temperatures)) == 4
    report = build_report(tmp_path)
    rows = report.tables["calibration"].values.set_index("posteriors")
    for way, each in (("as trained", [1] * 4), ("calibrated", temperatures)):
        of_folds = list(map(scores_by_hand, folders, each))
        scores, row = pd.concat(of_folds), rows.loc[way]
        assert row["ECE"] == pytest.approx(ece(scores)) and row["NLL"] == pytest.approx(scores["NLL"].mean())
        assert row["ECE_fold_mean"] == pytest.approx(np.mean(list(map(ece, of_folds)))) and row["n"] == 96
        for name in ("NLL", "Brier", "too_sure"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert (rows.loc["calibrated", ["ECE", "NLL"]] < rows.loc["as trained", ["ECE", "NLL"]]).all()
    low, high = (f"{t:.3g}" for t in (min(temperatures), max(temperatures)))
    assert report.tables["calibration"].text["temperature"].tolist() == ["1", f"{low} to {high}"]
    assert "60 validation utterances" in " ".join(report.tables["calibration"].notes)
    assert {"reliability_1.svg", "coverage.svg", "abstention.csv"} <= {p.name for p in report.files}
    assert "Calibration, last epoch" in report.console and 'id="abstention"' in report.files[0].read_text()

    answers = report.tables["abstention"].values.set_index("threshold").loc[0.6]
    kept = scores["right"][scores["confidence"] >= 0.6]
    assert answers["n"] == len(kept) and answers["WA"] == pytest.approx(kept.mean())
    on_valid = pd.DataFrame(row for folder in folders for row in read_calibration(folder)["thresholds"])
    on_valid = on_valid[on_valid["threshold"] == 0.6]
    assert answers["valid_coverage"] == pytest.approx(on_valid["coverage"].mean())
    assert answers["valid_WA"] == pytest.approx((on_valid["n"] * on_valid["WA"]).sum() / on_valid["n"].sum())


def test_some_folds_without_a_temperature_stay_as_trained(tmp_path):
    for fold in FOLDS:
        calibrated_run(tmp_path, fold, None if fold == "02F" else 2.5, calibrate_it=fold != "02M")
    table = build_report(tmp_path).tables["calibration"]
    said = "2 of 4 runs have none and stay as trained: all of the 60 utterances are right"
    assert any(said in n and "no calibration.json" in n for n in table.notes)
    assert table.values["runs_with_temperature"].tolist() == [2, 2]


def test_another_selection_has_no_temperature(tmp_path):
    for fold in FOLDS:
        folder = calibrated_run(tmp_path, fold)
        shutil.copy(folder / "predictions.csv", folder / "predictions_test.csv")
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["selections"]["test"] = metrics["selections"]["last"]
        write_json(metrics, folder / "metrics.json")
    table = build_report(tmp_path, selection="test").tables["calibration"]
    assert table.text["posteriors"].tolist() == ["as trained"] and "configured selection (last epoch)" in table.notes[1]
    for column in ("ECE %", "ECE %, fold mean", "too sure by, points"):
        assert table.text[column].str.endswith("ORACLE/leaky").all()


def test_predictions_without_posteriors_have_no_calibration(tmp_path):
    for fold in FOLDS:
        plain = predictions(fold).drop(columns=[f"posterior_{c}" for c in CLASSES])
        write_run(tmp_path, fold, by_selection={"last": plain})
    report = build_report(tmp_path)
    assert not {"calibration", "abstention"} & set(report.tables)
    assert not [p for p in report.files if "reliability" in p.name or "coverage" in p.name]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: write_json(read_calibration(f) | {"epoch": 2}, f / CALIBRATION), r"another epoch \(1\):\n.*2, .* 3"),
        (lambda f: (f / CALIBRATION).write_text("{}"), "unreadable file"),
        (lambda f: (f / LOGITS).unlink(), rf"unreadable file \(1\):\n.*{LOGITS}"),
        (lambda f: (f / LOGITS).write_text("part,ID\n"), "lacks the columns logit_angry"),
        (lambda f: edit(f / LOGITS, ID=lambda t: t["ID"] + "x"), "logits of other utterances"),
        (lambda f: edit(f / LOGITS, logit_sad="high"), "unreadable file"),
        (lambda f: edit(f / "predictions.csv", posterior_sad="high"), r"posteriors that are no shares of 1 \(1\)"),
        (lambda f: edit(f / "predictions.csv", posterior_bored=0.0), "posteriors of other classes"),
    ],
)
def test_what_does_not_fit_stops_a_report(tmp_path, spoil, said):
    folders = [calibrated_run(tmp_path, fold) for fold in FOLDS]
    spoil(folders[1])
    with pytest.raises(UserError, match=said) as error:
        build_report(tmp_path)
    assert "01M" in str(error.value)


def edit(path: Path, **columns) -> None:
    """Give a table other columns."""
    write_csv(pd.read_csv(path, dtype=str, keep_default_na=False).assign(**columns), path)
