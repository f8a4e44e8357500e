"""One line swaps corpus, protocol, backbone or task; wrong input stops before training; one seed, one result."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from .conftest import ROOT

LAYOUT = {"iemocap": "iemocap", "demo": "iemocap", "emodb": "emodb"}


def folder_of(out: str) -> Path:
    return Path(re.search(r"^results: (.*)$", out, re.MULTILINE).group(1))


def metrics_of(out: str) -> dict:
    return json.loads((folder_of(out) / "metrics.json").read_text())


TABLE_COLUMNS = "--table_columns={wav: path, emotion: label, speaker: who, transcript: said, split: part}"


# ------------------------------------------------------------------ one line swaps


@pytest.mark.parametrize("corpus", ["iemocap", "demo", "emodb"])
def test_corpus(train, small, corpus):
    out = train(f"--corpus={corpus}", f"--data_folder={small.corpus(LAYOUT[corpus])}")
    found = metrics_of(out)
    assert found["corpus"] == corpus and found["speaker_disjoint"]
    assert len(found["classes"]) == (7 if corpus == "emodb" else 4)
    assert folder_of(out).parts[-5:-3] == ("cai_mtl", f"{corpus}-speaker")


def test_own_table(train, table):
    out = train("--corpus=table", f"--data_folder={table}", TABLE_COLUMNS, "--protocol=given", "--selection=valid")
    found = metrics_of(out)
    assert found["utterances"]["test"] == 6 and found["utterances"]["valid"] == 2
    predictions = pd.read_csv(folder_of(out) / "predictions.csv")
    assert len(predictions) == 6 and found["selections"]["valid"]["epoch"] == 1


@pytest.mark.parametrize("protocol", ["speaker", "session", "half_session", "random", "random_plain"])
def test_protocol(train, small, protocol):
    found = metrics_of(train("--corpus=demo", f"--data_folder={small.corpus('iemocap')}", f"--protocol={protocol}"))
    disjoint = protocol in ("speaker", "session")
    assert found["speaker_disjoint"] is disjoint and (found["leak"] is None) is disjoint


def test_a_fold_that_yaml_reads_as_a_number(train):
    assert metrics_of(train("--fold=8"))["fold"] == "08"


@pytest.mark.parametrize(
    "settings",
    [
        {"feat_extract_norm": "group"},
        {"model_type": "hubert"},
        {"model_type": "wavlm"},
        {"model_type": "data2vec-audio"},
    ],
    ids=str,
)
def test_backbone(train, small, settings):
    train(f"--encoder={small.backbone(**settings)}")


@pytest.mark.parametrize(
    "line",
    [
        "pooling=sum",
        "pooling=mean_std",
        "pooling=attentive",
        "lora={rank: 2}",
        "tokens=letters",
        "tokens=sentencepiece",
        "decoding=beam",
        "freeze=True",
        "freeze_feature_extractor=True",
        "spec_augment=True",
        "weighted_sum=True",
        "gradient_checkpointing=True",
        "attention=eager",
        "layerdrop=0.5",
        "dropout=0.2",
        "backbone_lr=0.0001",
        "class_weights=balanced",
        "early_stopping=1",
        "tracker=tensorboard",
        "precision=bf16",
        "max_grad_norm=0",
        "seen_fraction=0",
        "labels={angry: negative, sad: negative, fear: negative, happy: positive, '*': null}",
        "augment=!new:speechbrain.augment.augmenter.Augmenter {augmentations: "
        "[!new:speechbrain.augment.time_domain.SpeedPerturb {orig_freq: 16000}]}",
    ],
    ids=lambda line: line.split(":")[0][:40],
)
def test_line(train, line):
    out = train(f"--{line}", "--selection=valid" if line.startswith("early") else "--selection=last")
    key = line.split("=")[0]
    # a tracker changes no figure; SpecAugment and letters are the paper's: no variant
    assert (key in folder_of(out).parts[-3]) is (key not in ("tracker", "spec_augment") and line != "tokens=letters")
    if key == "tracker":
        assert list((folder_of(out) / "tensorboard").glob("events*"))


def test_alpha_0_has_no_asr(train):
    out = train("--alpha=0")
    assert not any("asr" in c or "WER" in c for c in pd.read_csv(folder_of(out) / "epochs.csv"))
    assert "hypothesis" not in pd.read_csv(folder_of(out) / "predictions.csv")
    assert not (folder_of(out) / "save" / "tokens.json").exists()


def test_three_selections_from_one_training(train):
    out = train("--n_epochs=3", "--test_every_epoch=True", "--selection=valid")
    folder, found = folder_of(out), metrics_of(out)
    assert set(found["selections"]) == {"last", "valid", "test"}
    epochs = pd.read_csv(folder / "epochs.csv")
    for part in ("valid", "test"):
        chosen = found["selections"][part]
        assert chosen["epoch"] == epochs["epoch"][epochs[f"{part}_WA"].idxmax()]  # the earliest of the best
        assert chosen["all"]["WA"] == pytest.approx(epochs["test_WA"][chosen["epoch"] - 1])
    assert "oracle" in found["selections"]["test"]["selected_by"]
    assert {p.name for p in folder.glob("predictions*.csv")} == {
        "predictions.csv",
        "predictions_last.csv",
        "predictions_test.csv",
    }


# ------------------------------------------------------------------ reproducible, resumable


def test_same_seed_same_files(train, tmp_path):
    flags = ("--n_epochs=2", "--spec_augment=True", "--layerdrop=0.2")
    first, second = (folder_of(train(*flags, f"--results_folder={tmp_path / name}")) for name in "ab")
    for name in ("metrics.json", "predictions.csv", "epochs.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    other = folder_of(train(*flags, "--seed=2"))
    assert (first / "epochs.csv").read_bytes() != (other / "epochs.csv").read_bytes()


def test_finished_is_not_run_again_and_more_epochs_continue(train):
    folder = folder_of(train("--n_epochs=1"))
    before = (folder / "train_log.txt").read_text()
    train("--n_epochs=1")
    assert (folder / "train_log.txt").read_text() == before
    train("--n_epochs=3")
    epochs = pd.read_csv(folder / "epochs.csv")["epoch"].tolist()
    assert epochs == [1, 2, 3] and json.loads((folder / "metrics.json").read_text())["n_epochs"] == 3
    assert "asks for fewer" in train("--n_epochs=2", code=2)


def test_debug_leaves_no_results(train, tmp_path):
    train("--debug")
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").glob("cai_mtl"))


# ------------------------------------------------------------------ wrong input


def wrong(train, *flags, expect: str | tuple = "", **kwargs):
    error = train(*flags, code=2, **kwargs)
    for words in (expect,) if isinstance(expect, str) else expect:
        assert words in error, error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("flag", "expect"),
    [
        ("--fold=99", "folds: "),
        ("--fold=1O", "folds: "),
        ("--protocol=speakers", "did you mean 'speaker'"),
        ("--protocol=half_session", "IEMOCAP"),
        ("--protocol=given", "split"),
        ("--corpus=emdb", "did you mean 'emodb'"),
        ("--selection=best", "known: last, valid, test"),
        ("--selection=test", "test_every_epoch"),
        ("--tokens=chars", "did you mean 'characters'"),
        ("--decoding=beems", "did you mean 'beam'"),
        ("--pooling=men", "mean"),
        ("--tracker=tensorbord", "did you mean 'tensorboard'"),
        ("--labels={angr: angry}", "angry"),
        ("--loss_weights={emotoin: 1}", "did you mean 'emotion'"),
        ("--alpha=-1", ">= 0"),
        ("--batch_size=0", ">= 1"),
        ("--lr=fast", "lr must be a number"),
        ("--precision=fp61", "fp32, fp16, bf16"),
        ("--early_stopping=never", "early_stopping"),
        ("--class_weights={angry: 2}", "class_weights"),
        (
            "--class_weights={angry: x, boredom: 1, disgust: 1, fear: 1, happy: 1, neutral: 1, sad: 1}",
            "class_weights: expected numbers",
        ),
        ("--loss_weights={emotion: 0}", "emotion"),
        ("--split_seed=-1", "split_seed"),
        ("--encoder=/nowhere/w2v", "/nowhere/w2v"),
        ("--data_folder=/nowhere/corpus", "/nowhere/corpus"),
        ("--attention=flesh", "eager"),
        ("--alhpa=1", "did you mean '--alpha'"),
        ("--opt=1", "--opt is unknown"),
        ("--max=3", "--max is unknown"),
        ("--test", "--test is unknown"),
        ("--grad_accumulation_factor=2", "micro_batch_size"),
        ("--opt_class={lrr: 1}", "did you mean 'lr'"),
        ("--lobe={sorce: x}", "did you mean 'source'"),
        ("--build_backbone={hiden_size: 8}", "did you mean 'hidden_size'"),
        ("--build_backbone={hidden_size: 7}", "num_heads"),
    ],
)
def test_wrong_line(train, tmp_path, flag, expect):
    wrong(train, flag, expect=expect)
    assert not [p for p in (tmp_path / "results").glob("cai_mtl/**/*") if p.is_file()]  # nothing half-written


def test_every_offender_is_named(train):
    wrong(train, "--alhpa=1", "--opt=2", "--n_epochs=many", expect=("--alhpa", "--opt", "many"))


def test_backbone_without_weights(train, small, tmp_path):
    folder = tmp_path / "empty_backbone"
    folder.mkdir()
    (folder / "config.json").write_text((small.backbone() / "config.json").read_text())
    wrong(train, f"--encoder={folder}", expect=("model.safetensors", str(folder)))


def test_folder_of_another_configuration(train, tmp_path):
    train(f"--output_folder={tmp_path / 'mine'}")
    before = (tmp_path / "mine" / "metrics.json").read_bytes()
    wrong(train, f"--output_folder={tmp_path / 'mine'}", "--alpha=0", "--seed=7", expect=("alpha", "seed", "another"))
    assert (tmp_path / "mine" / "metrics.json").read_bytes() == before


def test_folder_that_is_no_run(train, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("x")
    wrong(train, f"--output_folder={tmp_path / 'holiday'}", expect="no run folder")


def test_hand_edited_yaml(train, tmp_path):
    text = (ROOT / "hparams" / "cai_mtl.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("  betas: (0.9", "  beta: (0.9", 1))
    wrong(train, yaml=str(mine), expect=("beta", "did you mean 'betas'"))
    mine.write_text("base: cai_mtl.yaml\nalpha: 0\n")
    assert folder_of(train(yaml=str(mine))).parts[-3].startswith("alpha=0")


@pytest.mark.parametrize("kind", ["empty", "text", "nan", "missing"])
def test_bad_recordings_are_all_listed(train, table, tmp_path, kind):
    import shutil

    folder = tmp_path / "bad"
    shutil.copytree(table, folder)
    for name in ("1", "5"):
        path = folder / f"{name}.flac"
        path.unlink()
        if kind == "text":
            path.write_text("not audio")
        elif kind == "empty":
            soundfile.write(path, np.zeros(0), 16000)
        elif kind == "nan":
            soundfile.write(path, np.full(800, np.nan), 16000, "FLOAT", format="WAV")
    wrong(train, "--corpus=table", f"--data_folder={folder}", TABLE_COLUMNS, expect=("1.flac", "5.flac"))


def test_recordings_too_short_for_a_frame(train, table, tmp_path):
    import shutil

    shutil.copytree(table, tmp_path / "short")
    for name in ("2", "7"):
        soundfile.write(tmp_path / "short" / f"{name}.flac", np.zeros(300), 16000)
    flags = ("--corpus=table", f"--data_folder={tmp_path / 'short'}", TABLE_COLUMNS, "--protocol=given")
    wrong(train, *flags, expect=("2 utterances", "2 (19 ms)", "7 (19 ms)", "25 ms"))


def test_a_run_says_who_validates(train, small):
    for flag, who in (("--fold=16", "7 utterances of 03"), ("--protocol=half_session", "none (protocol half_session")):
        corpus = ["--corpus=demo", f"--data_folder={small.corpus('iemocap')}"] if "half" in flag else []
        log = (folder_of(train(flag, *corpus)) / "log.txt").read_text(encoding="utf-8")
        assert f"validation: {who}" in log


def test_nobody_validates_among_two_speakers(train, table, tmp_path):
    rows = pd.read_csv(table / "mine.tsv", sep="\t", dtype=str)
    rows["who"] = [str(k % 2) for k in range(len(rows))]
    rows.to_csv(table / "two.tsv", sep="\t", index=False)
    flags = ["--corpus=table", f"--data_folder={table}", TABLE_COLUMNS, f"--table_file={table / 'two.tsv'}"]
    for line in ("selection=valid", "early_stopping=1"):
        said = train(*flags, "--n_epochs=2", f"--{line}", code=2)
        assert "needs a validation part: protocol speaker finds no training speaker to leave out for it" in said
    assert "posteriors: not calibrated (protocol speaker finds no training speaker" in train(*flags)


def test_several_processes_that_are_no_group_are_refused(train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    wrong(train, expect="start processes with torchrun")


def test_nonfinite_loss_names_the_utterances(train):
    error = wrong(train, "--lr=1e12", "--max_grad_norm=0", "--n_epochs=3", expect="not finite; utterances: ")
    assert re.search(r"\d\d[ab]\d\d\w\w? \(", error)


# ------------------------------------------------------------------ real speech


def test_real_emodb(train, emodb_folder):
    out = train(f"--data_folder={emodb_folder}", "--fold=03", "--debug")
    assert "LEAKY" not in out


def test_too_little_memory_says_what_to_change(train, monkeypatch):
    def fill(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("speechbrain_ser.training.brain.SERBrain.fit_batch", fill)
    error = train(code=2)
    assert "Tried to allocate 2.00 GiB" in error and "--micro_batch_size" in error


def test_a_cpu_takes_one_utterance_at_a_time_unless_told(train, tmp_path):
    assert "micro-batches of 1, padding 0%" in train("--micro_batch_size=null")
    assert "micro-batches of 4" in train("--micro_batch_size=4", f"--results_folder={tmp_path}")


@pytest.mark.parametrize("yaml", ["cai_mtl", "hsu_mtl"])
def test_a_cached_front_end_trains_alike(train, tmp_path, yaml):
    """The cache computes one utterance at a time, the model a batch: equal but for rounding."""
    flags = ["--freeze_feature_extractor=True", *(["--pretrain=False", "--fold=03"] if yaml == "hsu_mtl" else [])]
    runs = [
        folder_of(train(*flags, f"--cache_front_end={cached}", f"--results_folder={tmp_path / str(cached)}", yaml=yaml))
        for cached in (True, False)
    ]
    assert list((tmp_path / "True" / "cache" / "features").glob("*/*.safetensors"))
    losses = [pd.read_csv(run / "epochs.csv")["train_loss"] for run in runs]
    assert losses[0].tolist() == pytest.approx(losses[1].tolist(), rel=1e-4)
    posteriors = [pd.read_csv(run / "predictions.csv").filter(like="posterior_").to_numpy() for run in runs]
    assert np.abs(posteriors[0] - posteriors[1]).max() < 1e-3


def test_a_cached_front_end_is_refused_where_it_would_be_wrong(train):
    flags = ["--cache_front_end=True", "--augment=!new:speechbrain.augment.time_domain.DropChunk"]
    assert "freeze_feature_extractor" in train(flags[0], code=2)
    assert "give --cache_front_end=False" in train(*flags, "--freeze_feature_extractor=True", code=2)


@pytest.mark.slow
def test_compiled_trains_alike(train, tmp_path):
    """Minutes of compiling; parameters keep their names, so that the run is tested and resumed as any other."""
    flags = ["--spec_augment=True", "--n_epochs=2"]
    runs = [
        folder_of(train(*flags, *more, f"--results_folder={tmp_path / str(len(more))}")) for more in ([], ["--compile"])
    ]
    losses = [pd.read_csv(run / "epochs.csv")["train_loss"].tolist() for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
