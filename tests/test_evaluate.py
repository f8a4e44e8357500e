"""Any model on any corpus: adapters give what scikit-learn says, what a model knows is refused, groups are compared."""

# ruff: noqa: F811 (fixtures of other files)
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import softmax
from sklearn import metrics as sk
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from speechbrain_ser.cli import main as cli
from speechbrain_ser.data import manifest
from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.data.labels import to_classes
from speechbrain_ser.errors import CorpusError, UserError
from speechbrain_ser.evaluation.calibration import cross_fitted, fit_temperature
from speechbrain_ser.evaluation.groups import gap_of, groups_of
from speechbrain_ser.evaluation.tables import group_table
from speechbrain_ser.files import sha256, write_csv, write_json, write_text
from speechbrain_ser.inference.evaluate import open_model
from speechbrain_ser.inference.export import export_run

from .test_inference import CPU, run_of  # noqa: F401 (a fixture)

CLASSES = ["ANGER", "sad", "bored"]
LABELS = "--labels={angry: ANGER, sad: sad, boredom: bored, '*': null}"


# ------------------------------------------------------------------ groups


def rows_of(rates: dict[str, float], n: int = 20, **columns) -> pd.DataFrame:
    """Utterances of speakers, of whom so many are right; one class."""
    right = [k < round(rate * n) for rate in rates.values() for k in range(n)]
    rows = pd.DataFrame({"speaker": np.repeat(list(rates), n), "emotion": "x", **columns})
    return rows.assign(ID=[f"u{k}{columns}" for k in range(len(rows))], predicted=np.where(right, "x", "y"))


WOMEN, MEN = {"a": 0.5, "b": 0.7, "c": 0.65}, {"d": 0.9, "e": 0.75, "f": 0.95, "g": 0.9}


def test_gap_between_two_groups_of_speakers_is_welchs():
    rows = pd.concat([rows_of(WOMEN, gender="F"), rows_of(MEN, gender="M")])
    gap = gap_of(groups_of(rows)["gender"], ["x", "y"], "gender")
    expected = stats.ttest_ind([*MEN.values()], [*WOMEN.values()], equal_var=False).confidence_interval()
    assert (gap.worst, gap.best, gap.gap) == ("F", "M", pytest.approx(0.875 - 37 / 60))
    assert (gap.low, gap.high) == pytest.approx(tuple(expected))


def test_gap_between_texts_is_paired_by_speaker_and_corrected_for_all_pairs():
    rates = {"easy": [0.9, 0.8, 1.0, 0.95], "hard": [0.5, 0.6, 0.7, 0.5], "other": [0.7, 0.7, 0.8, 0.9]}
    rows = pd.concat([rows_of(dict(zip("abcd", of, strict=True)), text=text) for text, of in rates.items()])
    gap = gap_of(groups_of(rows)["text"], ["x", "y"], "text")
    expected = stats.ttest_rel(rates["easy"], rates["hard"]).confidence_interval(1 - 0.05 / 3)
    assert (gap.worst, gap.best) == ("hard", "easy") and (gap.low, gap.high) == pytest.approx(tuple(expected))


def test_gap_between_two_speakers_is_of_their_utterances():
    rows = rows_of({"a": 0.5, "b": 0.8}, n=40)
    gap = gap_of(groups_of(rows)["speaker"], ["x", "y"], "speaker")
    right = [(of["predicted"] == "x").astype(float) for _, of in rows.groupby("speaker")]
    expected = stats.ttest_ind(right[1], right[0], equal_var=False).confidence_interval()
    assert (gap.low, gap.high) == pytest.approx(tuple(expected))


def test_speakers_who_are_alike_seldom_seem_to_differ():
    """The worst of ten is 20 points below the best: by choice alone."""
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        rows = rows_of(dict.fromkeys("abcdefghij", 0.7), n=40)
        rows["predicted"] = np.where(rng.random(len(rows)) < 0.7, "x", "y")
        found.append(gap_of(groups_of(rows)["speaker"], ["x", "y"], "speaker"))
    assert np.mean([gap.gap for gap in found]) > 0.2
    assert sum(gap.low > 0 for gap in found) <= 5


def test_small_and_unknown_groups_are_none_and_one_speaker_has_no_interval():
    rows = pd.concat([rows_of({"a": 0.5}, gender="F"), rows_of({"b": 0.7, "c": 0.7}, gender="M")])
    rows = pd.concat([rows, rows_of({"d": 1.0}, n=9, gender="X"), rows_of({"e": 0.1}, gender="")], ignore_index=True)
    parts = groups_of(rows)
    assert list(parts["gender"]) == ["F", "M"] and list(parts["speaker"]) == list("abce")
    assert gap_of(parts["gender"], ["x", "y"], "gender")[2:] == (pytest.approx(0.2), None, None)
    table = group_table({"mine": rows}, ["x", "y"], "test")
    assert set(table.text["gap, points"].iloc[1:]) == {"+20.0 ORACLE/leaky"} and len(table.values) == 4 + 2
    of_men = table.values.set_index(["by", "group"]).loc[("gender", "M")]
    assert (of_men["n"], of_men["speakers"], of_men["WA"]) == (40, 2, 0.7)
    assert group_table({"mine": rows[rows["speaker"] == "a"]}, ["x", "y"], "last") is None


def test_a_temperature_is_of_other_speakers():
    rng = np.random.default_rng(0)
    logits, true, who = rng.normal(size=(90, 3)) * 3, rng.integers(0, 3, 90), np.repeat(["a", "b", "c"], 30)
    found = cross_fitted(logits, true, who)
    for name in "abc":
        others = who != name
        assert set(found[~others]) == {fit_temperature(logits[others], true[others]).temperature}


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("classes", "labels", "said"),
    [
        (["Angry"], None, ["Angry", "Angry"]),  # fear is left over on one side only
        (["angry", "fear", "calm"], None, ["angry", "fear", "angry"]),
        (
            ["anger", "fear"],
            None,
            "(?s)of its name: anger; without a class: angry.*--labels='{angry: null, fear: fear}'",
        ),
        (["angry", "Angry", "fear"], None, "of its name: angry, Angry; without a class: angry"),
        (["anger", "fear"], {"angry": "angre", "fear": None}, r"'angre' \(did you mean 'anger'\?\)"),
        (["anger", "fear"], {"angry": "anger"}, "'fear': 1 utterances"),
    ],
)
def test_emotions_become_classes_only_where_that_is_clear(classes, labels, said):
    frame = pd.DataFrame({"ID": list("abc"), "emotion": ["angry", "fear", "angry"], "corpus": "table"})
    if isinstance(said, list):
        assert list(to_classes(frame, classes, labels)["emotion"]) == said
    else:
        with pytest.raises(CorpusError, match=said):
            to_classes(frame, classes, labels)


# ------------------------------------------------------------------ other people's models


@pytest.fixture
def judge(small, tmp_path, monkeypatch, capfd):
    """`speechbrain-ser evaluate` on the small German corpus; gives metrics.json and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(model, *flags: str, code: int = 0, out: str = "found"):
        corpus = [f"--{k}" for k in ("corpus=emodb", f"data_folder={small.corpus('emodb')}", "device=cpu")]
        capfd.readouterr()
        found = cli(["evaluate", str(model), *corpus, f"--out={out}", *flags])
        said, err = capfd.readouterr()
        assert found == code, err
        return err if code else (json.loads((tmp_path / out / "metrics.json").read_text()), said)

    def read() -> pd.DataFrame:
        """The manifest of the corpus, once it is there."""
        (path,) = (tmp_path / "results" / "manifests").glob("*.csv")
        return manifest.read_manifest(path, small.corpus("emodb"))

    run.manifest = read
    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random wav2vec2 classifier as transformers saves it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    model = Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(**sizes, id2label=names, label2id={name: k for k, name in names.items()}, classifier_proj_size=8)
    )
    with torch.no_grad():
        model.classifier.weight.mul_(200)  # lest all answers be the bias's
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_a_transformers_checkpoint_and_a_csv_of_posteriors_give_what_scikit_learn_says(
    small, judge, checkpoint, tmp_path
):
    found, said = judge(f"transformers:{checkpoint}", LABELS)
    frame = pd.read_csv("found/predictions.csv", dtype={"speaker": str})
    model, extract = Wav2Vec2ForSequenceClassification.from_pretrained(checkpoint), Wav2Vec2FeatureExtractor()
    with torch.inference_mode():
        wavs = [load_audio(small.corpus("emodb") / "wav" / f"{name}.wav") for name in frame["ID"]]
        inputs = [extract(wav.numpy(), sampling_rate=16000, return_tensors="pt") for wav in wavs]
        posteriors = torch.cat([model(**each).logits.softmax(-1) for each in inputs]).numpy()
    assert frame["predicted"].nunique() > 1
    predicted = [CLASSES[k] for k in posteriors.argmax(1)]
    of_all = found["all"]
    assert of_all["WA"] == pytest.approx(sk.accuracy_score(frame["emotion"], predicted))
    assert of_all["UA"] == pytest.approx(sk.balanced_accuracy_score(frame["emotion"], predicted))
    assert of_all["F1"] == pytest.approx(sk.f1_score(frame["emotion"], predicted, average="macro"))
    assert of_all["confusion"] == sk.confusion_matrix(frame["emotion"], predicted, labels=CLASSES).tolist()
    order = np.argsort(CLASSES)
    loss = sk.log_loss(frame["emotion"], posteriors[:, order], labels=np.array(CLASSES)[order])
    assert found["calibration"]["as it came"]["NLL"] == pytest.approx(loss, rel=1e-4)
    assert found["left_out"].keys() == {"disgust", "fear", "happy", "neutral"} and "Left out" in said
    assert found["leak"] is None and "nobody can say" in said and "gender" in found["gaps"]
    logits, true = np.log(posteriors), [CLASSES.index(name) for name in frame["emotion"]]
    refitted = softmax(logits / cross_fitted(logits, true, frame["speaker"])[:, None], axis=1)
    loss = sk.log_loss(frame["emotion"], refitted[:, order], labels=np.array(CLASSES)[order])
    assert found["calibration"]["refitted"]["NLL"] == pytest.approx(loss, rel=1e-4)
    # the same from a file, by path
    paths = [f"wav/{name}.wav" for name in frame["ID"]]
    table = pd.DataFrame(posteriors, columns=CLASSES).assign(path=paths, hypothesis=frame["transcript"])
    write_csv(table.sample(frac=1, random_state=0), tmp_path / "posteriors.csv")
    again, _ = judge("posteriors.csv", LABELS, out="again")
    assert again["all"].pop("WER") == again["all"].pop("WER_low") == 0 < again["all"].pop("WER_high")
    for key in ("all", "gaps"):
        assert again[key] == found[key]
    sure = posteriors**20 / (posteriors**20).sum(1, keepdims=True)  # by far too sure, so that a temperature mends it
    write_csv(pd.DataFrame(sure, columns=CLASSES).assign(path=paths), tmp_path / "sure.csv")
    calibration = judge("sure.csv", LABELS, out="sure")[0]["calibration"]
    assert calibration["refitted"]["NLL"] < calibration["as it came"]["NLL"] / 2
    table[["ANGER", "sad"]].assign(bored=0.7, path=paths).to_csv("logits.csv", index=False)
    assert "expected posteriors of 3 classes" in judge("logits.csv", LABELS, code=2)
    write_csv(table.iloc[1:], tmp_path / "short.csv")
    assert f"no row of an utterance, by its path (1):\n  {small.corpus('emodb') / paths[0]}" in judge(
        "short.csv", LABELS, code=2
    )


def test_a_checkpoint_without_a_classifier_is_refused(judge, small):
    said = judge(f"transformers:{small.backbone()}", LABELS, code=2)
    assert "expected a trained classifier, found none: it lacks classifier" in said


def test_a_function_of_ones_own(judge, tmp_path, monkeypatch):
    program = "def model(wav):\n    assert wav.dtype == 'float32' and wav.ndim == 1\n    return OUTPUT\n\n"
    (tmp_path / "mine.py").write_text(program.replace("OUTPUT", "0.2, 0.8") + "model.classes = ['fear', 'angry']\n")
    (tmp_path / "wrong.py").write_text(program.replace("OUTPUT", "1, 2") + "model.classes = ['fear', 'angry']\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    found, said = judge("mine:model")
    assert found["all"]["UA"] == 0.5 and found["all"]["recall"] == {"fear": 0, "angry": 1}
    assert "mine:model on emodb" in said and found["calibration"]["as it came"]["confidence"] == pytest.approx(0.8)
    assert "expected posteriors of 2 classes" in judge("wrong:model", code=2)
    assert "wrong:none: AttributeError" in judge("wrong:none", code=2)
    assert "no class of the model (1):\n  'anger'" in judge("wrong:model", "--labels={angry: anger, '*': null}", code=1)


# ------------------------------------------------------------------ our own


@pytest.fixture
def blank_pictures(monkeypatch):
    """Drawn in the tests above: pictures take most of a report's time."""
    monkeypatch.setattr("speechbrain_ser.evaluation.report.save_figure", lambda figure, path: write_text("-", path))


def test_a_package_says_what_its_run_says_and_both_know_what_they_heard(judge, run_of, tmp_path, blank_pictures):
    """On the run's test part, as its own test says; on anything it knows only by wish, and called LEAKY then."""
    run, package = run_of("ha"), tmp_path / "package"
    export_run(run, package, with_speechbrain=True)
    own = json.loads((run / "metrics.json").read_text())
    expected = own["selections"]["last"]["all"]
    part = ("--protocol=speaker", f"--fold={own['fold']}")
    for model in (run, package):
        trust = ["--trust-run"] * (model == run)
        said = judge(model, *trust, code=2)
        assert "recordings were in the model's training" in said and "--allow-leaky" in said
        found, said = judge(model, *trust, *part)
        assert {name: found["all"][name] for name in expected} == expected
        assert found["leak"] is None and "None of these recordings or speakers was in its training" in said
    found, said = judge(package, "--allow-leaky")
    assert "LEAKY: " in said and "recordings were in" in found["leak"]
    assert "on emodb. LEAKY</h1>" in (tmp_path / "found" / "report.html").read_text()
    with pytest.raises(UserError, match="SpeechBrain executes its"):
        open_model(f"speechbrain:{package}")
    theirs, ours = open_model(f"speechbrain:{package}", **CPU, trust_run=True), open_model(str(package), **CPU)
    posteriors = [model.predictions(judge.manifest()[:3].assign(transcript=""))[1] for model in (theirs, ours)]
    assert theirs.classes == ours.classes and posteriors[0] == pytest.approx(posteriors[1], abs=1e-4)


def test_who_is_trained_on_is_known_in_other_recordings_too(judge, run_of, tmp_path, blank_pictures):
    """Of a package whose list is short, cut off, or not there."""
    package = tmp_path / "package"
    export_run(run_of("probe"), package)
    digests = (package / "recordings.txt").read_text().splitlines()
    assert f"{len(digests)} of " in judge(package, code=2)
    every = judge.manifest().set_index("recording")
    tested = json.loads((run_of("probe") / "metrics.json").read_text())["fold"]
    assert set(digests) == set(every.index[every["speaker"] != tested])
    speaker = every["speaker"][digests[0]]
    rewrite(package, f"{digests[0]}\n")
    n = (every["speaker"] == speaker).sum()
    assert f"1 of {len(every)} recordings were in the model's training, and {n} are of speakers" in judge(
        package, code=2
    )
    assert judge(package, "--protocol=speaker", f"--fold={speaker}", code=2)
    rewrite(package, "no digest\n")
    assert "recordings.txt: expected lines of 16 hexadecimal digits" in judge(package, code=2)
    rewrite(package, None)
    assert "nobody can say" in judge(package)[1]


def rewrite(package, text: str | None) -> None:
    """Change a package's list of recordings, and its hash."""
    path, config = package / "recordings.txt", json.loads((package / "config.json").read_text())
    config["files"].pop("recordings.txt", None)
    path.unlink(missing_ok=True)
    if text is not None:
        config["files"]["recordings.txt"] = sha256(write_text(text, path))
    write_json(config, package / "config.json")


def test_a_leaky_run_knows_its_test_part_too(judge, trained):
    run = trained("--protocol=random", yaml="probe")
    said = judge(run, "--trust-run", "--protocol=random", "--fold=r0", code=2)
    assert "recordings were in the model's training" in said
