"""Ratings of dimensions and distributions of raters' votes: figures, losses, trainings, and what is refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from speechbrain_ser.cli import main as cli
from speechbrain_ser.data.labels import apply_labels, vote_shares
from speechbrain_ser.data.manifest import prepare, read_manifest
from speechbrain_ser.data.protocols import make_folds
from speechbrain_ser.errors import CorpusError, UserError
from speechbrain_ser.evaluation.intervals import leave_one_out, speaker_interval, speaker_sums
from speechbrain_ser.evaluation.metrics import FIGURES, metrics
from speechbrain_ser.evaluation.report import build_report, compare_folders
from speechbrain_ser.inference.recognizer import EmotionRecognizer, open_recognizer
from speechbrain_ser.models.heads import DimensionHead
from speechbrain_ser.nnet.losses import ccc_loss, ccc_terms, vote_cross_entropy

from .corpus_trees import iemocap_tree

RATED = "--loss_weights={activation: 1, dominance: 0}"
ALONE = "--loss_weights={emotion: 0, asr: 0, activation: 1}"


def rated(predicted, ratings, speaker="a") -> pd.DataFrame:
    return pd.DataFrame({"speaker": speaker, "activation": ratings, "activation_predicted": predicted}, dtype=object)


# ------------------------------------------------------------------ figures


def test_ccc_by_hand():
    """Means 2 and 8/3, variances 2/3 and 8/9, covariance 2/3: 2 * 2/3 / (2/3 + 8/9 + 4/9) = 2/3."""
    rows = rated([1.0, 2.0, 3.0, 99.0], [2.0, 2.0, 4.0, np.nan])
    assert FIGURES["CCC_activation"].of(rows) == pytest.approx(2 / 3)
    assert metrics(rows, []) == {"n": 4, "CCC_activation": pytest.approx(2 / 3)}
    assert FIGURES["CCC_activation"].of(rated([1.0, 2.0], [np.nan, np.nan])) is None
    assert FIGURES["CCC_activation"].of(rated([3.0, 3.0], [3.0, 3.0])) is None  # nothing varies: it is not defined
    assert FIGURES["CCC_activation"].of(rated([2.0, 4.0], [4.0, 2.0])) == pytest.approx(-1)


def test_ccc_is_audmetrics():
    audmetric = pytest.importorskip("audmetric")
    x, y = np.random.default_rng(0).normal(3, 1, (2, 50))
    expected = audmetric.concordance_cc(y, (x + y) / 2)
    assert FIGURES["CCC_activation"].of(rated((x + y) / 2, y)) == pytest.approx(expected)


def test_intervals_are_the_jackknifes_on_fishers_scale():
    rng = np.random.default_rng(1)
    y = rng.normal(3, 1, 60)
    rows = rated(y + rng.normal(0.2, 0.5, 60), y, np.repeat(list("abcde"), 12))
    sums, figure = speaker_sums(rows, [])["CCC_activation"], FIGURES["CCC_activation"]
    without = [figure.of(rows[rows["speaker"] != s]) for s in "abcde"]
    assert leave_one_out(sums) == pytest.approx(without)
    z, error = np.arctanh(figure.of(rows)), np.sqrt(4 / 5 * sum((w - figure.of(rows)) ** 2 for w in without))
    margin = stats.t.ppf(0.975, 4) * error / (1 - figure.of(rows) ** 2)
    assert speaker_interval(sums, figure.scale) == pytest.approx((np.tanh(z - margin), np.tanh(z + margin)))


# ------------------------------------------------------------------ losses


def test_loss_and_gradient_are_those_of_ccc():
    """At the means of all utterances, and whatever batches these are cut into."""
    y = torch.randn(40, dtype=torch.float64, generator=torch.manual_seed(0))
    y = (y - y.mean()) / y.std(correction=0)
    x = (0.4 * y + 0.3 * torch.randn(40, dtype=torch.float64)).requires_grad_()
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    ccc = 2 * covariance / (x.var(correction=0) + y.var(correction=0) + (x.mean() - y.mean()) ** 2)
    (expected,) = torch.autograd.grad(1 - ccc, x)
    means = ccc_terms(x, y).detach().mean(0)
    losses = [ccc_loss(ccc_terms(x[k], y[k]), means) for k in torch.arange(40).split(7)]
    torch.testing.assert_close(torch.cat(losses).mean(), 1 - ccc)
    torch.testing.assert_close(torch.autograd.grad(torch.cat(losses).mean(), x)[0], expected)


def test_a_head_speaks_in_the_corpus_s_unit_and_learns_of_what_is_rated():
    head = DimensionHead(3)
    head.scale.copy_(torch.tensor([3.0, 0.5]))
    head.linear.weight.data.zero_()
    head.linear.bias.data.fill_(2.0)
    ratings = head(torch.randn(2, 3))
    assert ratings.tolist() == [4.0, 4.0]  # 3 + 0.5 * 2
    losses = head.loss(ratings, torch.tensor([3.5, torch.nan]))
    assert losses.tolist() == [1.0, 0.0]  # standardised: x = 2, y = 1, at first their squared error
    head.end_step(head.terms)
    assert head.running.tolist() == pytest.approx([0.1, 0.9 + 0.1 * 5]) and head.terms == []
    head.end_step([torch.full((1, 2), torch.inf)])
    assert head.running.isfinite().all()
    head.eval().loss(ratings, torch.tensor([3.5, 3.5]))
    assert head.terms == []  # an evaluation leaves no trace


def test_a_head_finds_its_way_back_from_far_off_and_reaches_the_best_ccc():
    """For a linear model that is the least squares' prediction, stretched to the targets' spread."""
    rng = torch.manual_seed(0)
    x, noise = torch.randn(400, 4, generator=rng), torch.randn(400, generator=rng)
    y = x[:, 0] - x[:, 1] + 2 * noise
    head = DimensionHead(4)
    head.scale.copy_(torch.stack([y.mean(), y.std(correction=0)]))
    head.linear.weight.data.fill_(5.0)  # ten times too wide, and most of it noise
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for step in range(400):
        k = torch.randperm(400, generator=rng)[:40]
        optimizer.zero_grad()
        head.loss(head(x[k]), y[k]).mean().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        head.end_step(head.terms)
    fitted = x @ torch.linalg.lstsq(x, y[:, None]).solution
    best = (y.mean() + (fitted[:, 0] - fitted.mean()) * y.std() / fitted.std()).numpy()
    found = FIGURES["CCC_activation"].of(rated(head(x).detach().numpy(), y.numpy()))
    assert found == pytest.approx(FIGURES["CCC_activation"].of(rated(best, y.numpy())), abs=0.01)


def test_cross_entropy_of_votes_weighs_classes():
    logits, shares = torch.tensor([[0.2, 1.0], [0.5, 0.1]]), torch.tensor([[0.75, 0.25], [0.0, 0.0]])
    q, weights = logits[0].log_softmax(-1), torch.tensor([2.0, 1.0])
    expected = -(2 * 0.75 * q[0] + 0.25 * q[1])
    torch.testing.assert_close(vote_cross_entropy(logits, shares, weights), torch.stack([expected, torch.tensor(0.0)]))


# ------------------------------------------------------------------ trainings


@pytest.fixture
def flags(small):
    """Of a small corpus in IEMOCAP's layout, which has ratings and votes."""
    return ["--corpus=iemocap", f"--data_folder={small.corpus('iemocap')}", "--protocol=session", "--fold=Ses05"]


def read(folder, name="predictions.csv") -> pd.DataFrame:
    return pd.read_csv(folder / name, dtype={"ID": str, "speaker": str}, keep_default_na=False)


def test_dimensions_beside_the_emotion(trained, flags, tmp_path):
    run = trained(*flags, RATED, "--n_epochs=2", yaml="cai_mtl")
    frame, told = read(run), json.loads((run / "metrics.json").read_text())["selections"]["last"]
    assert [c for c in frame if "activation" in c or "dominance" in c] == ["activation", "activation_predicted"]
    rows = frame.astype({"activation": float})
    assert rows["activation"].between(1, 5).all() and rows["activation_predicted"].between(1, 5).all()
    assert told["all"]["CCC_activation"] == pytest.approx(FIGURES["CCC_activation"].of(rows))
    assert {"train_loss_activation", "valid_CCC_activation"} <= {*read(run, "epochs.csv")}
    report = build_report(run, tmp_path / "report", allow_incomplete=True)
    assert "CCC_activation e-2" in report.console and "CCC_dominance" not in report.console
    assert cli(["export", str(run), str(tmp_path / "package"), "--trust-run"]) == 0
    wav = f"{flags[1][14:]}/Session5/sentences/wav/Ses05F_impro01/Ses05F_impro01_F000.wav"
    (rating,) = rows["activation_predicted"][rows["ID"] == "Ses05F_impro01_F000"]
    for model in (run, tmp_path / "package"):
        found = open_recognizer(model, trust_run=True, run_opts={"device": "cpu"}).classify_file(wav)
        assert found.emotion and found.dimensions == {"activation": pytest.approx(rating, abs=1e-4)}
        assert found.to_dict()["activation"] == round(found.dimensions["activation"], 6)


def test_a_weight_of_0_moves_nothing(trained, flags):
    runs = [trained(*flags, *more, yaml="cai_mtl") for more in ([], ["--loss_weights={activation: 0, valence: 0}"])]
    names = ["predictions.csv", "epochs.csv", "calibration.json", "logits.csv", "controls.csv"]
    assert [(runs[0] / n).read_bytes() for n in names] == [(runs[1] / n).read_bytes() for n in names]
    states = [torch.load(next(run.glob("save/CKPT*/model.ckpt")), weights_only=True) for run in runs]
    assert states[0].keys() == states[1].keys()


@pytest.mark.parametrize("yaml", ["fu_cross_lingual", "ha_speaker_norm"])
def test_micro_batches_change_nothing(trained, flags, yaml):
    more = ["--loss_weights={valence: 0.5, activation: 1}", "--lr=0.01"]
    drop = {"fu_cross_lingual": "--dropout=0.0"}.get(yaml, "--layerdrop=0")
    more += [drop, *(["--dropout=0"] if yaml != "fu_cross_lingual" else [])]
    one, four = (read(trained(*flags, *more, f"--micro_batch_size={n}", yaml=yaml)) for n in (1, 4))
    columns = ["valence_predicted", "activation_predicted"]
    np.testing.assert_allclose(one[columns], four[columns], atol=1e-4)
    assert one["activation_predicted"].std() > 1e-3


def test_dimensions_alone(trained, train, flags, tmp_path, capfd):
    run = trained(*flags, ALONE, "--selection=valid", "--test_every_epoch=True", "--n_epochs=2", yaml="cai_mtl")
    told = json.loads((run / "metrics.json").read_text())
    assert told["classes"] == [] and "WA" not in told["selections"]["valid"]["all"]
    epochs = read(run, "epochs.csv")
    best = told["selections"]["valid"]["epoch"]
    assert best == epochs["epoch"][epochs["valid_CCC_activation"].idxmax()]
    report = build_report(run, tmp_path / "report", allow_incomplete=True)
    value = f"{100 * told['selections']['valid']['all']['CCC_activation']:.1f}"
    assert "CCC_activation e-2" in report.console and value in report.console and "WA %" not in report.console
    recordings = f"{flags[1][14:]}/Session5/sentences/wav/Ses05F_impro01"
    assert cli(["predict", recordings, f"--model={run}", "--trust-run", "--device=cpu"]) == 0
    head, first = [line for line in capfd.readouterr().out.splitlines() if "activation" in line or ".wav" in line][:2]
    assert head.split() == ["recording", "emotion", "posterior", "activation", "speech"] and first.split()[1:3] == [
        "-",
        "-",
    ]
    recognizer = EmotionRecognizer.from_run(run, {"device": "cpu"})
    with pytest.raises(UserError, match="this model tells dimensions alone"):
        recognizer.timeline("a.wav")
    assert cli(["export", str(run), str(tmp_path / "package"), "--trust-run"]) == 2
    assert "it recognises no emotion (loss_weights), which a package needs" in capfd.readouterr().err
    flags += ["--loss_weights={emotion: 0, speaker: 0, activation: 1}", "--selection=valid", "--test_every_epoch=True"]
    other = trained(*flags, yaml="fu_cross_lingual")
    compared = compare_folders(run, other, tmp_path / "comparison", allow_incomplete=True).tables["comparisons"].values
    (difference,) = compared["difference"]
    of_each = [json.loads((r / "metrics.json").read_text())["selections"]["valid"]["all"] for r in (run, other)]
    assert difference == pytest.approx(of_each[1]["CCC_activation"] - of_each[0]["CCC_activation"])


def test_utterances_without_a_rating_have_no_loss_and_no_figure(small, train, tmp_path):
    frame = read_manifest(
        prepare("iemocap", small.corpus("iemocap"), small.folder / "manifests"), small.corpus("iemocap")
    )
    frame = apply_labels(frame)[["wav", "emotion", "speaker", "session", "activation"]]
    frame.loc[frame["session"].isin(["Ses02", "Ses05"]) & (frame["emotion"] == "sad"), "activation"] = ""
    frame.rename(columns={"activation": "arousal"}).to_csv(tmp_path / "mine.csv", index=False)
    flags = ["--corpus=table", f"--data_folder={tmp_path}", "--protocol=session", "--fold=Ses05", "--alpha=0"]
    columns = "--table_columns={activation: arousal}"
    out = train(*flags, columns, RATED, f"--output_folder={tmp_path / 'run'}")
    assert "activation: utterances without a rating have no loss and no figure: train 2, test 6" in out
    rows = read(tmp_path / "run")
    assert (rows["activation"] == "").sum() == 6 and (rows["activation_predicted"] != "").all()
    assert "activation has a weight, but the corpus has no such column" in train(*flags, RATED, code=2)
    frame.assign(activation="high").to_csv(tmp_path / "mine.csv", index=False)
    assert "no number (56)" in train(*flags, RATED, code=2)
    frame.assign(activation="3").to_csv(tmp_path / "mine.csv", index=False)
    assert "expected different ratings in the training part" in train(*flags, RATED, code=2)
    shutil.rmtree(tmp_path / "run")


# ------------------------------------------------------------------ votes


def test_iemocaps_raters_vote(tmp_path):
    release = iemocap_tree(tmp_path / "release")
    path = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    votes = "C-E2:\tAnger; Frustration;\t()\nC-E4:\tNeutral state;\t(curious)\nC-F1:\tSadness;\t()\n"
    path.write_text(path.read_text().replace("C-E2:\tNeutral;\t()\n", votes, 1))
    frame = read_manifest(prepare("iemocap", release, tmp_path / "out"), release).set_index("ID")
    assert frame["votes"]["Ses01F_impro01_F000"] == "angry; frustrated; neutral"  # not what the actor herself says
    assert set(frame["votes"].drop("Ses01F_impro01_F000")) == {"neutral"}


def test_what_raters_do_not_agree_on_is_trained_on_alone(small):
    root = small.corpus("iemocap")
    frame = read_manifest(prepare("iemocap", root, small.folder / "manifests"), root)
    chosen, alike = apply_labels(frame, by_votes=True), apply_labels(frame)
    kept = chosen[chosen["emotion"] == ""]
    assert set(kept["ID"]) == set(frame["ID"][frame["emotion"] == "undecided"])
    assert chosen[chosen["emotion"] != ""]["ID"].tolist() == alike["ID"].tolist()
    folds, those = (make_folds(rows, "session", seen_fraction=0) for rows in (chosen, alike))
    assert set(folds["Ses01"].train) - set(those["Ses01"].train) == set(kept["ID"])  # session 5's
    for name in ("Ses04", "Ses05"):  # which it validates, and tests
        assert folds[name] == those[name]
    shares = pd.DataFrame(vote_shares(chosen, ["angry", "happy", "neutral", "sad"])).T
    assert np.allclose(shares.sum(axis=1), 1) and (shares.loc[kept["ID"]] < 1).any(axis=1).all()
    with pytest.raises(CorpusError, match="iemocap has no column of votes"):
        apply_labels(frame.drop(columns="votes"), by_votes=True)


def test_training_on_votes(trained, train, flags):
    flags = [*flags[:-1], "--fold=Ses01", "--seen_fraction=0"]  # raters disagree on two of session 5's
    run, plain = (trained(*flags, *more, yaml="fu_cross_lingual") for more in (["--votes=True"], []))
    assert read(run)["ID"].tolist() == read(plain)["ID"].tolist()
    told, alike = (json.loads((r / "metrics.json").read_text()) for r in (run, plain))
    assert told["classes"] == alike["classes"] == ["angry", "happy", "neutral", "sad"]
    assert told["utterances"]["train"] == alike["utterances"]["train"] + 2
    assert "train_WA" not in read(run, "epochs.csv")  # no single label is trained on
    assert (run / "controls.csv").read_bytes() == (plain / "controls.csv").read_bytes()
    out = train(*flags, "--votes=True", yaml="fu_cross_lingual")
    assert "votes: raters do not agree on 2 utterances: 2 are trained on, none is tested" in out
    assert "a probe learns the emotion alone" in train(*flags, "--votes=True", yaml="probe", code=2)
