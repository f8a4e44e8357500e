"""Reports from fabricated run folders: figures, honesty, and every bad input."""

import json
import re
import shutil
from dataclasses import replace

import jiwer
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from speechbrain_ser.cli import main
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.figures import plot_variant_curves
from speechbrain_ser.evaluation.report import (
    PAGES,
    _same_everywhere,
    build_protocol_report,
    build_report,
    compare_folders,
    mean_curves,
)
from speechbrain_ser.evaluation.runs import load_runs, pooled, stacked, summary
from speechbrain_ser.evaluation.tables import Table
from speechbrain_ser.files import write_csv, write_json, write_text

from .run_folders import CLASSES, FOLDS, SENTENCES, epochs, predictions, write_pretraining, write_results, write_run

SWEEP = [({}, 0.8), ({"alpha": "0"}, 0.6), ({"alpha": "0.01"}, 0.7)]
PAPER = {
    "title": "A paper's table 4",
    "columns": ["WA", "WER"],
    "rows": {"alpha=0": [0.7166, 0.9981], "alpha=0.001": [0.7397, 0.2233], "alpha=0.01": [0.7634, 0.2007]},
}
PAPER["rows"]["default"] = {"WA": 0.7815, "WER": 0.1929}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three variants, four folds, two seeds."""
    return write_results(tmp_path_factory.mktemp("sweep") / "results", SWEEP, seeds=(1, 2))


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    return build_report(results, tmp_path_factory.mktemp("out"), PAPER)


@pytest.fixture
def one(tmp_path):
    """One variant, four folds, to spoil."""
    return write_results(tmp_path / "results", [({}, 0.8)])


@pytest.fixture(autouse=True)
def blank_pictures(monkeypatch):
    """Drawn for the reports above alone: pictures take most of a report's time."""
    monkeypatch.setattr("speechbrain_ser.evaluation.report.save_figure", lambda figure, path: write_text("-", path))


def run_of(root, fold="01F"):
    (metrics,) = root.glob(f"*/*/*/{fold}/*/metrics.json")
    return metrics.parent


def change(path, **entries):
    write_json(json.loads(path.read_text()) | entries, path)


def test_pooled_figures_are_scikit_learns_and_jiwers(results, report):
    rows = report.tables["figures"].values.set_index("variant")
    for name, of_variant in load_runs(results).variants.items():
        files = [pd.read_csv(r.folder / "predictions.csv", keep_default_na=False) for r in of_variant]
        frame, row = pd.concat(files), rows.loc[name]
        assert row["n"] == len(frame) == 192
        # Cai et al. 2021, eq. 4: all correct ones over all utterances
        assert row["WA"] == sk.accuracy_score(frame["emotion"], frame["predicted"])
        assert row["UA"] == pytest.approx(sk.balanced_accuracy_score(frame["emotion"], frame["predicted"]))
        assert row["F1"] == pytest.approx(sk.f1_score(frame["emotion"], frame["predicted"], average="macro"))
        if name == "alpha=0":
            assert pd.isna(row["WER"])
            continue
        # eq. 5: the mean of the folds' (here of fold and seed, all folds having both seeds)
        pooled, *of_folds = (
            jiwer.wer(f["transcript"].str.upper().tolist(), list(f["hypothesis"])) for f in (frame, *files)
        )
        assert row["WER"] == pytest.approx(pooled) and row["WER_fold_mean"] == pytest.approx(np.mean(of_folds))
        assert row["WA_low"] < row["WA"] < row["WA_high"] and row["WER_low"] < row["WER"] < row["WER_high"]


def test_by_hand(tmp_path):
    """Two folds, 3 of 4 and 1 of 2 right: pooled 4/6, over folds 5/8; WER 1/4 and 0/2: pooled 1/6, mean 1/8."""

    def fold(name, emotion, predicted, said, heard):
        frame = pd.DataFrame({"ID": [f"{name}{k}" for k in range(len(emotion))], "speaker": name, "emotion": emotion})
        return frame.assign(predicted=predicted, transcript=said, hypothesis=heard, text_heard=True)

    a = fold("a", ["sad"] * 3 + ["happy"], ["sad", "sad", "happy", "happy"], ["one"] * 4, ["ONE"] * 3 + ["TWO"])
    b = fold("b", ["sad", "happy"], ["happy", "happy"], ["one"] * 2, ["ONE"] * 2)
    for name, frame in (("a", a), ("b", b)):
        write_run(tmp_path, name, by_selection={"last": frame}, folds=["a", "b"], classes=["happy", "sad"])
    found = build_report(tmp_path).tables
    row = found["figures"].values.iloc[0]
    assert row["WA"] == pytest.approx(4 / 6) and row["UA"] == pytest.approx((2 / 2 + 2 / 4) / 2)
    assert row["WER"] == pytest.approx(1 / 6) and row["WER_fold_mean"] == pytest.approx(1 / 8)
    over_folds, over_seeds = found["spread"].values.to_dict("records")
    spread = pytest.approx((5 / 8, np.std([0.75, 0.5], ddof=1)))
    assert (over_folds["WA_mean"], over_folds["WA_sd"]) == spread
    assert over_seeds["number"] == 1 and pd.isna(over_seeds["WA_sd"])
    confusion, text = found["confusion_1"].values, [["2 (100.0)", "0 (0.0)", "2"], ["2 (50.0)", "2 (50.0)", "4"]]
    assert confusion[["n", "share"]].to_numpy().tolist() == [[2, 1], [0, 0], [2, 0.5], [2, 0.5]]
    assert found["confusion_1"].text.set_index("true \\ predicted").loc[["happy", "sad"]].to_numpy().tolist() == text
    assert found["recall"].values.loc[0, CLASSES[1::2]].tolist() == [1, 0.5]


def test_spread_over_folds_and_seeds(results, report):
    folds = report.tables["folds"].values
    assert len(folds) == 3 * 4 * 2
    spread = report.tables["spread"].values.set_index(["variant", "over"])
    for over in ("fold", "seed"):  # folds are of one size
        means = folds[folds["variant"] == "default"].groupby(over)["WA"].mean()
        assert spread.loc[("default", f"{over}s"), "WA_sd"] == pytest.approx(means.std())


def test_the_papers_numbers_stand_beside_ours_in_its_order(report):
    text = report.tables["figures"].text
    assert text["variant"].tolist() == ["alpha=0", "alpha=0.001 (not run)", "alpha=0.01", "default"]
    assert text["paper WER %"].tolist() == ["99.8", "22.3", "20.1", "19.3"]
    assert report.tables["figures"].values["paper_WA"].tolist() == [0.7166, 0.7397, 0.7634, 0.7815]
    assert text["WA %"][1] == ""
    assert "A paper's table 4" in report.title and "A paper's table 4" in report.console


def test_speaker_accuracy_on_seen(tmp_path):
    ids = [f"u{k}" for k in range(6)]
    seen = pd.DataFrame({"ID": ids, "speaker": list("aabbcc"), "speaker_predicted": list("aabcab")})
    for fold in FOLDS:
        write_run(tmp_path, fold, {"beta": "0.1"}, seen=seen)
        write_run(tmp_path, fold, {"beta": "0"})
    table = build_report(tmp_path).tables["figures"]
    row = table.values.set_index("variant").loc["beta=0.1"]
    assert row["speaker"] == pytest.approx(3 / 6) and row["speaker_n"] == 24
    text = table.text.set_index("variant")["speaker acc. on seen %"]
    assert text["beta=0.1"].startswith("50.0 [") and text["beta=0"] == "-"


@pytest.fixture(scope="module")
def with_mse(tmp_path_factory):
    """Of two variants one reconstructs spectrograms; its report, beside a paper's numbers."""
    root = tmp_path_factory.mktemp("mse")
    for fold in FOLDS:
        write_run(root / "results", fold, accuracy=0.8, mse=5e-4)
        write_run(root / "results", fold, {"alpha": "0"}, accuracy=0.6)
    rows = {"default": {"WA": 0.775, "MSE": 5.5e-4, "WER": 0.2241}, "alpha=0": {"WA": 0.7501}}
    return build_report(root / "results", root / "out", {"title": "T", "rows": rows})


def test_mse_stands_in_every_table_in_its_own_unit(with_mse):
    tables = with_mse.tables
    mse = pd.concat([predictions(f, 0.8, 1, mse=5e-4).assign(fold=f) for f in FOLDS])
    row = tables["figures"].values.set_index("variant").loc["default"]
    assert row["MSE"] == pytest.approx(mse["mse"].mean()) and row["MSE_low"] < row["MSE"] < row["MSE_high"]
    text = tables["figures"].text.set_index("variant")
    shown = "{:.1f} [{:.1f}, {:.1f}]".format(*(1e4 * row[["MSE", "MSE_low", "MSE_high"]]))
    assert text["MSE e-4"].to_dict() == {"default": shown, "alpha=0": "-"}
    assert text["paper MSE e-4"].to_dict() == {"default": "5.5", "alpha=0": ""}
    assert text.loc["default", ["paper WA %", "paper WER %"]].tolist() == ["77.5", "22.4"]
    assert row["paper_MSE"] == 5.5e-4 and any(n.startswith("MSE:") for n in tables["figures"].notes)

    disjoint = 1e4 * mse["mse"][~mse["text_heard"]].mean()
    parts = tables["texts"].text.set_index(["variant", "texts"])["MSE e-4"]
    assert parts["default", "text-disjoint"].startswith(f"{disjoint:.1f} [")
    best = pd.concat([predictions(f, 0.9, 1, mse=5e-4) for f in FOLDS])["mse"].mean()
    selections = tables["selections"].text.set_index(["variant", "figure"]).loc[("default", "MSE e-4")]
    assert float(selections["choosing on test gains"]) == pytest.approx(1e4 * (best - row["MSE"]), abs=0.051)
    of_folds = mse.groupby("fold")["mse"].mean() * 1e4
    spread = tables["spread"].text.set_index(["variant", "over"])["MSE e-4"]
    assert spread["default", "4 folds"] == f"{of_folds.mean():.1f} ± {of_folds.std():.1f}"
    folds = tables["folds"].text.set_index("fold")
    assert folds["MSE e-4 default"].to_dict() == {f: f"{v:.1f}" for f, v in of_folds.items()}
    assert "MSE e-4 alpha=0" not in folds and "WA % alpha=0" in folds


def test_mse_has_a_picture_and_survives_every_format_where_it_is(with_mse, report):
    assert {"curves_MSE.svg", "curves_MSE.pdf"} <= {p.name for p in with_mse.files}
    expected = {"html": "MSE\N{NO-BREAK SPACE}e-4", "tex": r"WER \% & MSE e-4 & WER \%, fold mean", "md": "| MSE e-4 |"}
    for kind, heading in expected.items():
        assert heading in (with_mse.folder / f"report.{kind}").read_text()
    assert not [c for t in report.tables.values() for c in t.text if "MSE" in c] and "MSE" not in report.console


def test_curves_are_means_over_folds_and_a_stopped_run_keeps_its_last_value(one):
    write_csv(epochs(0.5, 2), run_of(one) / "epochs.csv")
    metrics = run_of(one) / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"epoch": 3', '"epoch": 2'))
    part, curves = mean_curves(load_runs(one))
    assert part == "test" and curves["default"].index.tolist() == [1, 2, 3]
    last = {"WA": (0.5 + 3 * 0.8) / 4, "WER": (0.5 + 3 * 0.2) / 4}
    assert curves["default"].iloc[-1].to_dict() == pytest.approx(last)


def test_the_commonest_class_stands_beside_every_accuracy(report, results):
    counts = pooled(r.predictions["last"] for r in load_runs(results).runs)["emotion"].value_counts()
    said = f"WA {100 * counts.iloc[0] / counts.sum():.1f} %, UA 25.0 %"
    with_wa = [t for t in report.tables.values() if "WA %" in t.text]
    assert len(with_wa) > 2 and all(any(said in note for note in t.notes) for t in with_wa)
    curve = epochs(0.8).set_index("epoch").rename(columns=lambda name: name.removeprefix("test_"))
    figure = plot_variant_curves({"a": curve}, "WA", "test", "", floor=0.4)
    assert figure.axes[0].lines[-1].get_ydata()[0] == 0.4


def test_a_name_says_what_its_hash_stands_for(tmp_path):
    sizes = "{'hidden_size': 128, 'num_layers': 3}"
    write_run(tmp_path, FOLDS[0])
    write_run(tmp_path, FOLDS[0], {"build_backbone": sizes}, variant="build_backbone=20562396")
    found = build_report(tmp_path, allow_incomplete=True)
    assert "build_backbone=hidden_size:128 num_layers:3" in found.console and "20562396" not in found.console


def test_a_variant_has_one_name_under_every_protocol(tmp_path):
    """Lines of one protocol (text_folds) are in no name that others must share."""
    write_run(tmp_path, FOLDS[0], {"text_folds": "2"}, variant="text_folds=2")
    runs = load_runs(tmp_path, allow_incomplete=True)
    for first in ("cai_mtl/default", "cai_mtl/text_folds=2"):  # as the first of the protocols calls it
        assert _same_everywhere(runs, {first: "Cai"})["cai_mtl/text_folds=2"] == "Cai"
    assert list(replace(runs, names=_same_everywhere(runs, {})).variants) == ["default"]


def test_protocols_call_a_system_by_its_own_name(tmp_path):
    folders = {protocol: tmp_path / protocol for protocol in ("speaker", "speaker_fewer")}
    for protocol, folder in folders.items():
        for fold in FOLDS:
            write_run(folder, fold, {"alpha": "0"}, protocol=protocol)
            write_run(folder, fold, {"text_folds": "2"}, protocol=protocol, system="probe")
    report = build_protocol_report(folders, tmp_path / "out", {"names": {"cai_mtl/alpha=0": "Cai"}})
    assert report.tables["protocols"].text["variant"].unique().tolist() == ["Cai", "probe"]


def test_cost_of_selection_and_the_word_oracle(report):
    table = report.tables["selections"].text
    oracle = "best on TEST (oracle)"
    assert table[oracle].str.fullmatch(r"\d+\.\d ORACLE/leaky").all()
    values = report.tables["selections"].values
    wa = values[values["figure"] == "WA"]
    assert (wa["test_ORACLE_leaky"] > wa["last"]).all() and (wa["valid"] == wa["last"]).all()


def test_a_report_of_the_oracle_says_so_at_every_number(results, tmp_path):
    found = build_report(results, tmp_path, selection="test").tables
    for name in ("figures", "texts", "recall", "spread", "folds"):
        for column in found[name].text:
            cells = found[name].text[column]
            if column != "texts heard %":
                assert cells[cells.str.match(r"\d+\.\d")].str.endswith("ORACLE/leaky").all(), (name, column)
    assert all("best on TEST (oracle)" in found[name].title for name in ("figures", "confusion_1"))
    assert found["comparisons"].text["difference"].str.endswith("ORACLE/leaky").all()


def test_one_selection_only(tmp_path):
    for fold in FOLDS:
        write_run(tmp_path, fold, by_selection={"last": predictions(fold)})
    table = build_report(tmp_path).tables["selections"]
    assert "test_every_epoch" in table.notes[0] and list(table.values) == ["variant", "figure", "last"]


def test_text_disjoint_part(results, report, tmp_path):
    rows = report.tables["texts"].values.set_index(["variant", "texts"])
    frame = stacked(load_runs(results).variants["default"], "last")
    part = frame[frame["transcript"] == SENTENCES[3]]
    found = rows.loc[("default", "text-disjoint")]
    assert found["n"] == len(part) and found["WA"] == (part["emotion"] == part["predicted"]).mean()
    for fold in FOLDS:  # EMO-DB: everybody says every sentence
        write_run(tmp_path, fold, by_selection={"last": predictions(fold).assign(text_heard=True)})
    text = build_report(tmp_path).tables["texts"].text.set_index("texts").loc["text-disjoint"]
    assert text[["WA %", "UA %", "WER %"]].tolist() == ["none"] * 3
    for file in (tmp_path / "report").glob("report.*"):
        assert "nan" not in re.sub(r"data:[^\"]*", "", file.read_text().lower()).replace("finance", "")


def test_leaky_protocols_are_called_so_everywhere(tmp_path):
    leak = {"protocol": "half_session", "speaker_disjoint": False, "leak": "2 test speakers are also trained on"}
    found = build_report(write_results(tmp_path, **leak))
    assert "LEAKY PROTOCOL" in found.title
    assert all("LEAKY PROTOCOL" in t.title for t in found.tables.values())
    assert not found.tables["figures"].values["speaker_disjoint"].any()
    assert "2 test speakers are also trained on" in (tmp_path / "report" / "report.html").read_text()
    assert "No test speaker was in training" not in found.console


def test_a_class_that_was_never_trained_is_said(tmp_path):
    write_results(tmp_path, (({}, 0.8), ({"alpha": "0"}, 0.6)), never_trained="fear is tested, never trained")
    report = build_report(tmp_path)
    said = "Fold 01F: fear is tested, never trained."
    assert report.console.count(said) == (report.folder / "report.html").read_text().count(said) == 1
    folder = next(tmp_path.glob("**/01F/1"))
    assert "fear is tested, never trained" in summary(folder)


def test_unknown_speakers_have_no_intervals(tmp_path):
    for fold in FOLDS:
        for changed, accuracy in (({}, 0.8), ({"alpha": "0"}, 0.6)):
            frame = predictions(fold, accuracy).assign(speaker="")
            write_run(tmp_path, fold, changed, by_selection={"last": frame})
    tables = build_report(tmp_path).tables
    assert "[" not in tables["figures"].text["WA %"][0] and any("no intervals" in n for n in tables["figures"].notes)
    assert (tables["comparisons"].text["p (Holm)"] == "none").all()
    assert tables["comparisons"].values["p_mcnemar"].notna().any()


def test_files_and_a_self_contained_page(report):
    names = {p.name for p in report.files}
    assert {"report.html", "report.md", "report.tex", "figures.csv", "comparisons.csv", "confusion_3.csv"} <= names
    assert {"curves_WA.svg", "curves_WER.pdf", "confusion_1.svg", "reliability_1.svg", "coverage.pdf"} <= names
    assert {p for p in report.folder.rglob("*") if p.is_file()} == set(report.files)
    page = report.files[0].read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and "url(" not in page and "<script" not in page
    assert page.count("data:image/svg+xml;base64,") == 2 + 3 + 3 + 1  # curves, confusions, reliabilities, coverage
    assert 'name="viewport"' in page and page.count('class="scroll"') == page.count("<table>")
    assert all(f'id="{table.name}"' in page for table in report.tables.values())


def test_latex_is_booktabs_with_as_many_cells_as_columns(report):
    text = (report.folder / "report.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\bottomrule") == len(report.tables)
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for row in re.findall(r"^(.*) \\\\$", body, re.MULTILINE):
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    assert not re.search(r"(?<!\\)%", "\n".join(line for line in text.splitlines() if not line.startswith("%")))


def test_special_characters_survive():
    rows = pd.DataFrame({"variant": ["a=b_|<c> & 5%"], "WA %": ["-1.0"]})
    table = Table("t", "T & <t>", rows, rows, ("n_1 <n>",))
    assert (
        r"a=b\_|$<$c$>$ \& 5\% & $-$1.0" in table.latex() and r"\caption{T \& $<$t$>$. n\_1 $<$n$>$.}" in table.latex()
    )
    assert r"a=b_\|&lt;c> &amp; 5%" in table.markdown()
    page = PAGES.get_template("report.html").render(title="<t>", tables=[table])
    assert "a=<wbr>b_|&lt;c&gt; &amp; 5%" in page and "T &amp; &lt;t&gt;" in page and "n_1 &lt;n&gt;" in page


def test_names_from_data_are_no_markup(tmp_path):
    """Tags, links and formulas: in the folds' names, and in the classes."""
    names = [*CLASSES[:-1], "<img src=x onerror=alert(1)> [a](http://b) $x$ $\\frac{"]
    made = {f: predictions(f, 0.6).replace(CLASSES[-1], names[-1]) for f in FOLDS[:2]}
    made = {f: of.rename(columns={f"posterior_{CLASSES[-1]}": f"posterior_{names[-1]}"}) for f, of in made.items()}
    for fold, of in made.items():
        changed = {"labels": "<b>|$a$ $\\b{"}
        write_run(tmp_path / "results", fold, changed, by_selection={"last": of}, classes=names, folds=FOLDS[:2])
    report = build_report(tmp_path / "results", tmp_path / "out")
    for ending in ("md", "html"):
        text = (report.folder / f"report.{ending}").read_text()
        assert "<img src=x" not in text and "<b>" not in text and "&lt;img src=x onerror" in text
        assert "](http" not in text or ending == "html"
    assert "2 speakers, 4 classes" in report.console and "of 2 folds" not in report.console


def test_made_again_without_training_it_is_the_same_byte_for_byte(results, report, tmp_path, monkeypatch):
    monkeypatch.undo()
    again = build_report(results, tmp_path / "again", PAPER)
    assert len(again.files) == len(report.files) and again.console == report.console
    for mine, theirs in zip(again.files, report.files, strict=True):
        assert mine.read_bytes() == theirs.read_bytes(), mine.name


def test_a_smaller_report_sweeps_the_files_of_a_larger_one(tmp_path):
    write_results(tmp_path / "results")
    build_report(tmp_path / "results", tmp_path / "out")
    shutil.rmtree(tmp_path / "results" / "cai_mtl" / "demo-speaker" / "alpha=0")
    found = build_report(tmp_path / "results", tmp_path / "out")
    assert not [p for p in found.folder.rglob("*") if p.is_file() and p not in found.files]


def test_two_systems_in_one_report(tmp_path):
    for system, changed in (("cai_mtl", {}), ("ha_speaker_norm", {"beta": "0.1"})):
        write_results(tmp_path, [(changed, 0.7)], folds=FOLDS[:1], system=system)
    assert list(load_runs(tmp_path, allow_incomplete=True).variants) == ["cai_mtl", "ha_speaker_norm beta=0.1"]


def test_lines_that_all_variants_share_are_said_once(tmp_path):
    hub = {"encoder": "/backbones/tiny"}
    for changed in (hub, hub | {"alpha": "0"}):
        variant = ",".join(f"{k}={v.rsplit('/', 1)[-1]}" for k, v in sorted(changed.items()))
        for fold in FOLDS:
            write_run(tmp_path, fold, changed, variant=variant)
    found = build_report(tmp_path, paper=PAPER)
    text = found.tables["figures"].text.set_index("variant")
    assert text.loc["alpha=0", "paper WA %"] == "71.7" and text.loc["default", "paper WER %"] == "19.3"
    assert "All variants: encoder=tiny" in found.console


def test_pretraining_runs_are_left_out(one):
    before = build_report(one).console
    write_pretraining(one, "01F")
    write_pretraining(one, "01M", finished=False)
    (write_pretraining(one, "02F") / "configuration.json").unlink()  # copied without it
    assert build_report(one).console == before and "pretrain" not in before


def test_nothing_but_pretraining(tmp_path):
    write_pretraining(tmp_path, "01F")
    write_pretraining(tmp_path, "01M", finished=False)
    with pytest.raises(UserError, match="holds 2 pre-training runs, which have no recognition to report"):
        build_report(tmp_path)
    write_json({"kind": "joint"}, write_pretraining(tmp_path, "02F", finished=False) / "configuration.json")
    with pytest.raises(UserError, match="holds 1 unfinished runs and 2 pre-training runs"):
        build_report(tmp_path)


def test_no_such_folder(tmp_path):
    for folder, message in ((tmp_path / "nowhere", "is not a folder"), (tmp_path, "no run")):
        with pytest.raises(UserError, match=message):
            build_report(folder)


def test_a_fold_that_nobody_finished_is_named_once(results, tmp_path):
    results = shutil.copytree(results, tmp_path / "results")
    for path in results.glob("*/*/*/01M/*/metrics.json"):
        path.unlink()
    found = build_report(results, allow_incomplete=True)
    assert found.title.endswith("INCOMPLETE, missing: fold 01M of every variant and seed")
    page = (results / "report" / "report.html").read_text()
    assert page.count("fold 01M of every") == 2  # the page's title and its heading


def test_an_unfinished_fold_is_named(one):
    (run_of(one, "02F") / "metrics.json").unlink()
    shutil.rmtree(run_of(one, "01M"))
    with pytest.raises(UserError, match=r"--allow-incomplete.*\n.*cai_mtl/default, seed 1: fold 01M, 02F$"):
        build_report(one)
    assert not (one / "report").exists()
    found = build_report(one, allow_incomplete=True)
    assert "2 of 4 folds" in found.title and "INCOMPLETE, missing: cai_mtl/default, seed 1: fold 01M" in found.title
    assert all("fold 01M, 02F" in (one / "report" / f"report.{kind}").read_text() for kind in ("html", "md", "tex"))
    assert found.tables["figures"].values["n"][0] == 48


def test_a_variant_or_seed_that_is_not_there_is_named(one):
    folder = one / "cai_mtl" / "demo-speaker" / "alpha=0" / "01F" / "1"
    folder.mkdir(parents=True)
    write_json({}, folder / "configuration.json")
    with pytest.raises(UserError, match=r"alpha=0/01F/1 \(begun\)"):
        build_report(one)
    write_results(one, [({"alpha": "1"}, 0.6)], seeds=(1, 2))
    with pytest.raises(UserError, match="cai_mtl/default, seed 2: all folds"):
        build_report(one)


def edit(change_it, fold="01F", name="predictions.csv"):
    def spoil(root):
        path = run_of(root, fold) / name
        write_csv(change_it(pd.read_csv(path, dtype=str, keep_default_na=False)), path)

    return spoil


def claim(**entries):
    return lambda root: change(run_of(root) / "metrics.json", **entries)


def write(name, content):
    return lambda root: (run_of(root) / name).write_text(content)


def shorter_fold(root):
    for fold in FOLDS:
        frame = predictions(fold, n=20 if fold == "01F" else 24)
        write_run(root, fold, {"alpha": "0"}, by_selection={"last": frame})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit(lambda f: f[1:]), r"missing or surplus utterances \(1\):\n.*predictions.csv: 23, metrics.json says 24"),
        (edit(lambda f: pd.concat([f, f[3:5]])), r"doubled utterances \(1\):\n.*01F_003, 01F_004"),
        (edit(lambda f: f.replace({"ID": {"01F_003": "x"}})), r"tested on different utterances"),
        (edit(lambda f: f.assign(emotion=["bored", *f["emotion"][1:]])), "classes that metrics.json.*\n.*bored"),
        (edit(lambda f: f.assign(predicted=f["emotion"])), "predictions that metrics.json was not made of"),
        (edit(lambda f: f.assign(speaker="02F")), "another speaker, emotion or transcript"),
        (edit(lambda f: f.drop(columns="text_heard")), "unreadable file.*\n.*lacks the columns text_heard"),
        (
            edit(lambda f: f.drop(columns="hypothesis"), "02F", "predictions_valid.csv"),
            r"columns in some folds of a variant only \(1\):\n.*fold 02F, seed 1: valid: hypothesis",
        ),
        (
            claim(protocol="half_session"),
            r"different protocols.*\n  half_session: .*01F/1\n  speaker: .*01M/1 and 2 more",
        ),
        (claim(corpus="emodb"), "different corpora"),
        (claim(classes=["angry", "happy", "neutral", "sad", "tired"]), "different label sets"),
        (claim(folds=["01F", "01M"]), "different lists of folds"),
        (claim(n_epochs=7), r"different numbers of epochs \(1\):\n  cai_mtl/default: 3, 7"),
        (claim(fold="01M"), "the same run twice"),
        (claim(selection="valid"), "different configured selections"),
        (claim(utterances=3), "metrics.json without what a report needs"),
        (write("metrics.json", '{"a": '), "unreadable file.*\n.*metrics.json"),
        (write("metrics.json", '{"a": 1}'), "metrics.json: expected a run's figures, found no system, corpus"),
        (write("predictions_test.csv", ""), "unreadable file"),
        (write("epochs.csv", "\0\0\n"), "lacks the columns epoch|contains NUL"),  # Python 3.10's csv says the latter
        (write("epochs.csv", "epoch,test_WA\n1,0.5\n2,0.5\n3"), "epochs.csv: expected a whole table, found row 4"),
        (write("epochs.csv", "epoch\n1\n2\n"), "epochs.csv has 2 epochs, metrics.json says 3"),
        (lambda root: (run_of(root) / "predictions_valid.csv").unlink(), r"unreadable file.*\n.*predictions_valid.csv"),
        (shorter_fold, r"alpha=0, fold 01F, seed 1 \(last\) lacks 01F_020, 01F_021"),
        (
            lambda root: write_csv(predictions("01F").iloc[:0].assign(speaker_predicted=""), seen_of(root)),
            r"fold 01M, seed 1: predictions_seen\.csv",
        ),
    ],
)
def test_what_would_make_a_mean_dishonest(one, spoil, message):
    spoil(one)
    with pytest.raises(UserError, match=message) as error:
        build_report(one)
    assert re.search("0[12]F|cai_mtl/default", str(error.value).partition("\n")[2])


def seen_of(root):
    return run_of(root) / "predictions_seen.csv"


@pytest.mark.parametrize("value", ["", "nan", "inf", "-0.001", "1e-3x"])
def test_an_mse_that_is_no_error_is_named(tmp_path, value):
    for fold in FOLDS:
        write_run(tmp_path, fold, mse=5e-4)
    edit(lambda f: f.assign(mse=f["mse"].where(f["ID"] != "01F_007", value)))(tmp_path)
    message = rf"mse that is not a finite number >= 0 \(1\):\n.*01F/1/predictions\.csv: 01F_007 has '{value}'"
    with pytest.raises(UserError, match=message) as error:
        build_report(tmp_path)
    assert "01F_006" not in str(error.value)


def test_utterances_in_two_folds(tmp_path):
    for fold in FOLDS:
        write_run(tmp_path, fold, by_selection={"last": predictions("01F")})
    with pytest.raises(UserError, match="utterances tested in two folds"):
        build_report(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "test"}, "no predictions of selection 'test'"),
        ({"reference": "defult"}, r"no variant 'defult' \(did you mean 'default'\?\): default"),
        ({"paper": {"rows": {"default": {"WAR": 0.7}}}}, r"paper: 'WAR' is no figure.*did you mean 'WA'"),
    ],
)
def test_a_selection_reference_or_figure_that_there_is_not(tmp_path, options, message):
    for fold in FOLDS:
        write_run(tmp_path, fold, by_selection={"last": predictions(fold)})
    with pytest.raises(UserError, match=message):
        build_report(tmp_path, **options)


def folders(tmp_path):
    write_results(tmp_path / "a", [({}, 0.8)])
    write_results(tmp_path / "b", [({"alpha": "0"}, 0.6)])
    return tmp_path / "a", tmp_path / "b"


def test_compare_two_folders(tmp_path):
    a, b = folders(tmp_path)
    found = compare_folders(a, b, tmp_path / "out")
    shutil.copytree(a, tmp_path / "both")
    shutil.copytree(b, tmp_path / "both", dirs_exist_ok=True)
    report = build_report(tmp_path / "both", reference="default").tables["comparisons"].values
    both = (t.drop(columns=["first", "second"]) for t in (found.tables["comparisons"].values, report))
    pd.testing.assert_frame_equal(*both)
    assert {p.name for p in found.files} == {"comparison.md", "comparison.tex", "comparisons.csv"}
    assert "cai_mtl/alpha=0 against cai_mtl/default" in found.title
    title = compare_folders(a, shutil.copytree(a, tmp_path / "copy"), tmp_path / "out").title
    assert title.startswith("B (") and " against A (" in title  # the same variant


def test_folders_that_cannot_be_compared(tmp_path, results):
    a, b = folders(tmp_path)
    shutil.rmtree(run_of(b, "02M"))
    write_results(tmp_path / "c", [({}, 0.8)], protocol="session")
    write_results(tmp_path / "d", [({}, 0.8)], seeds=(2,))
    refused = {
        results: "has 3 variants",
        b: "fold 02M",
        tmp_path / "c": "different protocols",
        tmp_path / "d": "no fold and seed in common",
    }
    for folder, message in refused.items():
        with pytest.raises(UserError, match=message):
            compare_folders(a, folder, tmp_path / "out")
    found = compare_folders(a, b, tmp_path / "out", allow_incomplete=True)
    assert "INCOMPLETE" in found.title and found.tables["comparisons"].values["n"][0] == 72


def test_command_line(one, tmp_path, capsys):
    assert main(["report", str(one), f"--out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "Results, last epoch" in out and "report.html" in out and (tmp_path / "out" / "report.html").is_file()
    other = shutil.copytree(one, tmp_path / "b")
    assert main(["compare", str(one), str(other), f"--out={tmp_path / 'c'}"]) == 0
    assert "Paired comparison" in capsys.readouterr().out
    (run_of(one) / "metrics.json").unlink()
    nowhere = str(tmp_path / "nowhere")
    wrong = {("report", nowhere): "no", ("compare", str(other), nowhere): "no", ("report", str(one)): "fold 01F"}
    for command, said in wrong.items():
        assert main([*command]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and said in err and "Traceback" not in err
    assert main(["report", str(one), "--allow-incomplete"]) == 0 and "INCOMPLETE" in capsys.readouterr().out
