"""The linear probe: scikit-learn's own numbers, and a choice that no test utterance can change."""

import json
import shutil
import signal
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.export import export_run
from speechbrain_ser.inference.recognizer import EmotionRecognizer, load_model
from speechbrain_ser.lobes.encoder import Encoder
from speechbrain_ser.lobes.pretrained import LayerStatistics
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.probe import ProbeModel
from speechbrain_ser.training.probing import (
    Copies,
    LayerChoice,
    best,
    fit_regression,
    inner_folds,
    parameters_of,
    training_rows,
    without_texts,
)
from speechbrain_ser.training.signals import Stopped, stop_wish

from .test_train import TABLE_COLUMNS, folder_of, metrics_of

AUGMENT = "--augment=!new:speechbrain_ser.nnet.augment.WaveformAugmentation {room: 0}"
GIVEN = ["--corpus=table", TABLE_COLUMNS, "--protocol=given"]


@pytest.fixture
def encoder(small):
    return Wav2Vec2(str(small.backbone(num_layers=2)), freeze=True).eval()


@pytest.fixture(params=[{}, {"model_type": "wavlm", "do_stable_layer_norm": True}, {"model_type": "whisper"}], ids=str)
def any_encoder(small, request):
    return Encoder(str(small.backbone(num_layers=2, **request.param)), freeze=True).eval()


def data(each=30, values=40):
    """Statistics of which the middle state tells the class best."""
    rng = np.random.default_rng(0)
    emotion, speaker = rng.integers(0, 3, 4 * each), np.repeat(["s0", "s1", "s2", "s3"], each)
    centres = rng.normal(size=(3, values))
    x = 4 * rng.normal(size=(len(emotion), 3, values))
    x[:, 1] += 2.5 * centres[emotion]
    return (x * 7 + 100).astype(np.float32), emotion, speaker


def test_statistics_are_those_of_own_frames_in_any_batch(any_encoder):
    wavs = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    lens = torch.tensor([1.0, 0.4])
    encoder, statistics = any_encoder, LayerStatistics(any_encoder)
    found = statistics.of_batch(wavs, lens)
    for k, n in enumerate((9000, 3600)):
        states, counts = encoder.states(wavs[k : k + 1, :n], None)
        alone = statistics.extract(wavs[k, :n])
        assert alone.shape == (3, 32) and int(counts) == encoder.frame_counts(n)
        torch.testing.assert_close(found[k], alone, atol=1e-4, rtol=0)
        for state, row in zip(states, alone.numpy(), strict=True):
            frames = state[0].detach().double().numpy()
            np.testing.assert_allclose(row, [*frames.mean(0), *frames.std(0)], atol=1e-5)


@pytest.mark.parametrize("state, joined", [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2)])
def test_a_model_in_use_stops_after_its_layers(any_encoder, state, joined):
    wavs, lens = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.4])
    heads = {"emotion": partial(torch.nn.Linear, out_features=4)}
    model = ProbeModel(any_encoder, heads, {"emotion": 1.0}, join_layers=joined)
    model.set(layer=state)
    expected = model((wavs, lens))["emotion"]
    model.keep_tasks({"emotion"})
    assert len(any_encoder.states(wavs, lens)[0]) == min(state + joined, 2) + 1 and model.inputs == {"sig": None}
    torch.testing.assert_close(model((wavs, lens))["emotion"], expected)


def test_scores_are_scikit_learns(encoder):
    x, emotion, speaker = data()
    scores = LayerChoice(encoder, [0, 1], [0.1, 0.001]).scores(x, emotion, speaker)
    assert scores[["layer", "C"]].values.tolist() == [[0, 0.001], [0, 0.1], [1, 0.001], [1, 0.1]]
    for row in scores.itertuples():
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=row.C, max_iter=1000))
        said = cross_val_predict(pipeline, x[:, row.layer], emotion, groups=speaker, cv=LeaveOneGroupOut())
        assert row.WA == pytest.approx((said == emotion).mean(), abs=0.02)
        assert row.UA == pytest.approx(np.mean([(said == k)[emotion == k].mean() for k in range(3)]), abs=0.02)
    assert best(scores)[0] == 1 and scores["WA"].max() > 0.6


def test_asked_to_end_it_does_not_choose_on(encoder, monkeypatch):
    monkeypatch.setattr(stop_wish, "number", signal.SIGTERM)
    with pytest.raises(Stopped):
        LayerChoice(encoder, [0, 1], [0.1]).scores(*data())


def test_who_is_left_out_is_not_trained_on():
    _, emotion, speaker = data()
    folds, how = inner_folds(emotion, speaker)
    assert len(folds) == 4 and how == "4 inner speakers left out one by one"
    assert all(not set(speaker[train]) & set(speaker[left_out]) for train, left_out in folds)
    assert sorted(k for _, left_out in folds for k in left_out) == list(range(len(emotion)))


def test_an_inner_speaker_is_asked_for_texts_that_are_not_trained_on():
    _, emotion, speaker = data()
    text = np.resize([f"t{k}" for k in range(10)], len(emotion))
    folds = without_texts(inner_folds(emotion, speaker)[0], emotion, text)
    assert len(folds) == 4 * 4
    for train, left_out in folds:
        assert not set(text[train]) & set(text[left_out]) and not set(speaker[train]) & set(speaker[left_out])
    assert sorted(k for _, left_out in folds for k in left_out) == list(range(len(emotion)))


def test_who_is_never_left_out_is_not_counted(encoder, monkeypatch):
    """All say t0, s0 says t1 as well: who would be asked for s0's t0 has nothing to learn from."""
    emotion, speaker = np.resize([0, 1], 12), np.repeat(["s0", "s1", "s2"], 4)
    text = np.array(["t0", "t0", "t1", "t1", *["t0"] * 8])
    tested = np.concatenate([t for _, t in without_texts(inner_folds(emotion, speaker)[0], emotion, text)])
    assert sorted(tested) == list(range(2, 12))
    x, found = data(each=3)[0], set()
    for rest in (0, 1, 2):  # what there may be in the memory that nobody is told into
        monkeypatch.setattr(np, "empty", lambda *a, rest=rest, **k: np.full(a[0], rest, *a[1:], **k))
        found.add(LayerChoice(encoder, [0], [0.1]).scores(x, emotion, speaker, text=text)["WA"].item())
    assert len(found) == 1


def test_texts_that_tell_the_class_choose_nothing(encoder):
    """A layer that has the text alone is best where inner texts are known, and tells nothing where they are not."""
    x, emotion, speaker = data()
    number = 4 * emotion + np.random.default_rng(2).integers(0, 4, len(emotion))
    x[:, 0] = 100 * np.eye(x.shape[2])[number]
    choice = LayerChoice(encoder, [0, 1], [0.1])
    assert best(choice.scores(x, emotion, speaker))[0] == 0
    assert best(choice.scores(x, emotion, speaker, text=number.astype(str)))[0] == 1


@pytest.mark.parametrize(
    "speakers, words", [(["a", "b"], "only 2 speakers"), (["a", "b", "c", ""], "not all speakers")]
)
def test_without_enough_speakers_the_log_says_so(encoder, caplog, speakers, words):
    x, emotion, _ = data()
    speaker = np.resize(np.array(speakers), len(x))
    with caplog.at_level("INFO"):
        scores = LayerChoice(encoder, 1, 0.1).scores(x, emotion, speaker)
    assert "5 stratified folds whose speakers are NOT left out" in caplog.text and words in caplog.text
    assert len(scores) == 1


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2], [1, 2, 3]])
def test_the_model_says_what_scikit_learns_pipeline_says(encoder, present):
    x, emotion, _ = data(values=32)
    emotion = np.array(present)[emotion % len(present)]
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(x))
    pipeline = fit_regression(x[:, 1], emotion, 0.1, weight)
    model = ProbeModel(encoder, {"emotion": partial(torch.nn.Linear, out_features=4)}, {"emotion": 1.0})
    model.set(layer=1, C=0.1, **parameters_of(pipeline, 4))
    found = model((torch.from_numpy(x), None))["emotion"].softmax(-1).detach().numpy()
    expected = np.zeros((len(x), 4))
    expected[:, pipeline.classes_] = pipeline.predict_proba(x[:, 1].astype(float))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_copy_is_trained_on_where_all_that_is_heard_in_it_is():
    x = np.arange(12.0).reshape(4, 3)
    copies = Copies([x + 100, x + 200], [[set(), {2}, set(), {0}], [{3}, set(), set(), set()]])
    values, of, weights = training_rows(x, np.array([0, 1, 2]), np.array([1.0, 2.0, 4.0, 8.0]), copies)
    assert of.tolist() == [0, 1, 2, 0, 1, 2, 1, 2]  # of 0 not the second: 3 is heard in it
    assert np.array_equal(values, np.concatenate([x[:3], x[:3] + 100, x[1:3] + 200]))
    assert np.bincount(of, weights).tolist() == pytest.approx([1.0, 2.0, 4.0])  # each counts as one utterance


def test_with_copies_of_themselves_the_same_is_fitted_and_chosen(encoder):
    x, emotion, speaker = data()
    copies = Copies([x, x], [[set()] * len(x)] * 2)
    choice = LayerChoice(encoder, [0, 1], [0.1, 0.001])
    plain, with_copies = (choice.scores(x, emotion, speaker, None, None, each) for each in (None, copies))
    pd.testing.assert_frame_equal(plain, with_copies, atol=0.02)
    values, of, weights = training_rows(x[:, 1], np.arange(len(x)), None, copies._replace(x=[x[:, 1]] * 2))
    theirs, ours = fit_regression(x[:, 1], emotion, 0.1), fit_regression(values, emotion[of], 0.1, weights)
    np.testing.assert_allclose(theirs.predict_proba(x[:, 1]), ours.predict_proba(x[:, 1]), atol=1e-4)


def test_a_left_out_speaker_may_be_the_only_one_with_a_class(encoder):
    x, emotion, speaker = data(each=4)
    emotion = (speaker == "s0").astype(int)
    scores = LayerChoice(encoder, [1], [0.1]).scores(x, emotion, speaker)
    assert scores["UA"].item() < 1  # s0's class is not known where s0 is left out


@pytest.fixture
def run(train, small):
    """Train a probe of the small encoder, or of another one."""

    def of_encoder(*flags: str, encoder=None, code: int = 0) -> str:
        encoder = encoder or small.backbone(num_layers=2)
        return train(f"--encoder={encoder}", *flags, yaml="probe", code=code)

    return of_encoder


def test_run(run):
    """What is chosen is in the run's files, and the checkpoint holds all but the encoder."""
    out = run("--C=[0.01, 1]", "--test_every_epoch=True", "--class_weights=balanced")
    folder, metrics = folder_of(out), metrics_of(out)
    scores = pd.read_csv(folder / "inner_scores.csv")
    assert len(scores) == 3 * 2 and (metrics["layer"], metrics["C"]) == best(scores)
    epochs = pd.read_csv(folder / "epochs.csv")
    assert epochs[["layer", "C"]].values.tolist() == [[metrics["layer"], metrics["C"]]] and "lr" not in epochs
    assert set(metrics["selections"]) == {"last", "valid", "test"} and epochs["train_WA"].item() > 0.3
    (checkpoint,) = (folder / "save").glob("*/model.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["model"]
    assert set(saved) == {"layer", "C", "mean", "deviation", "heads.emotion.weight", "heads.emotion.bias"}
    assert saved["layer"] == metrics["layer"] and saved["mean"].shape == (32,)


def test_augmented_copies_are_trained_on_kept_and_never_tested(run, small, tmp_path):
    flags = [AUGMENT, "--augmented_copies=2", "--layers=1", "--C=0.1", f"--cache_folder={tmp_path / 'cache'}"]
    folder = folder_of(run(*flags))
    kept = sorted(path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors"))
    again = folder_of(run(*flags, f"--results_folder={tmp_path / 'again'}"))
    assert kept == sorted(path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors"))
    plain = folder_of(run(*flags[2:], f"--results_folder={tmp_path / 'plain'}"))
    assert (folder / "logits.csv").read_bytes() == (again / "logits.csv").read_bytes()
    assert (folder / "logits.csv").read_bytes() != (plain / "logits.csv").read_bytes()
    n = json.loads((folder / "metrics.json").read_text())["utterances"]
    assert len(kept) == sum(n.values()) + 2 * n["train"]
    row = pd.read_csv(folder / "predictions.csv", dtype={"ID": str}).iloc[0]
    recognizer = EmotionRecognizer.from_run(folder, calibrated=False)
    found = recognizer.classify_file(small.corpus("emodb") / "wav" / f"{row['ID']}.wav")  # as it is
    assert found.posteriors == pytest.approx({c: row[f"posterior_{c}"] for c in found.posteriors}, abs=1e-4)


def test_started_again_it_is_finished_and_tested_again_it_says_the_same(run):
    folder = folder_of(run())
    before = {name: (folder / name).read_bytes() for name in ("metrics.json", "predictions.csv", "epochs.csv")}
    run()
    (folder / "metrics.json").unlink()  # killed before it was written
    run()
    run("--test_only")
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_nothing_of_the_test_part_is_looked_at(run, table, tmp_path):
    """Test labels in another order: the same scores, choice and logits."""
    given = [*GIVEN, f"--manifest_folder={tmp_path}"]
    first = folder_of(run(*given, f"--data_folder={table}", f"--results_folder={tmp_path / 'a'}"))
    other = shutil.copytree(table, tmp_path / "other")
    frame = pd.read_csv(other / "mine.tsv", sep="\t", dtype=str)
    is_test = frame["part"] == "test"
    frame.loc[is_test, "label"] = frame.loc[is_test, "label"].map({"angry": "sad", "sad": "angry"})
    frame.to_csv(other / "mine.tsv", sep="\t", index=False)
    second = folder_of(run(*given, f"--data_folder={other}", f"--results_folder={tmp_path / 'b'}"))
    assert (first / "inner_scores.csv").read_bytes() == (second / "inner_scores.csv").read_bytes()
    logits = [pd.read_csv(folder / "logits.csv") for folder in (first, second)]
    pd.testing.assert_frame_equal(*(part.filter(regex="ID|logit_") for part in logits))
    figures = [json.loads((folder / "metrics.json").read_text())["selections"]["last"] for folder in (first, second)]
    assert figures[0]["all"]["WA"] == pytest.approx(1 - figures[1]["all"]["WA"])


@pytest.mark.parametrize("flags", [[], ["--pooling=percentiles", "--join_layers=2"]])
def test_a_package_on_whisper_says_what_the_run_said(run, small, tmp_path, flags):
    folder = folder_of(run(*flags, encoder=small.backbone(num_layers=2, model_type="whisper")))
    assert len(pd.read_csv(folder / "inner_scores.csv")) == 5 * (2 if flags else 3)
    row = pd.read_csv(folder / "predictions.csv", dtype={"ID": str}).iloc[0]
    recognizer = EmotionRecognizer.from_package(export_run(folder, tmp_path / "package"), calibrated=False)
    found = recognizer.classify_file(small.corpus("emodb") / "wav" / f"{row['ID']}.wav")
    assert found.posteriors == pytest.approx({c: row[f"posterior_{c}"] for c in found.posteriors}, abs=1e-4)


def test_a_run_keeps_its_encoder(run, small, tmp_path):
    """In one file for all folds. A run of an earlier version has none: the encoder is looked for where it was."""
    backbone = shutil.copytree(small.backbone(num_layers=2), tmp_path / "backbone")
    folders = [folder_of(run(f"--fold={fold}", encoder=backbone)) for fold in ("03", "08")]
    assert len({(folder / "save" / "encoder.pt").stat().st_ino for folder in folders}) == 1
    folder, weights = folders[0], load_model(folders[0]).model.state_dict()
    assert int(weights["layer"]) == json.loads((folder / "metrics.json").read_text())["layer"]
    moved = backbone.rename(tmp_path / "moved")
    again = load_model(folder).model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.items())
    moved.rename(backbone)
    (folder / "save" / "encoder.pt").unlink()
    shutil.rmtree(folder / "save" / "backbones")
    shutil.copy(small.backbone(num_layers=2, seed=1) / "model.safetensors", backbone)
    with pytest.raises(UserError, match="fitted to the states of another encoder"):
        load_model(folder)


@pytest.mark.parametrize(
    "line, words",
    [
        ("--layers=[1, 3]", "layers: expected whole numbers from 0 to 2, found 3"),
        ("--C=[0.1, 0]", "C: expected numbers > 0, found 0"),
        ("--C=[]", "C: expected a list of different values"),
        ("--join_layers=4", "join_layers: expected a whole number from 1 to 3, found 4"),
        ("--pooling=attentive", "pooling: attentive learns its weights"),
        ("--n_epochs=2", "expected 1, found 2"),
        ("--augment=!new:speechbrain.augment.time_domain.DropChunk", "augment: expected speechbrain_ser.nnet.augment"),
    ],
)
def test_a_grid_that_cannot_be(run, line, words):
    assert words in run(line, code=2)


def test_augmentation_without_copies_is_refused(run):
    assert "give --augmented_copies=6" in run(AUGMENT, "--augmented_copies=0", code=2)
