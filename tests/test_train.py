"""One line swaps corpus, protocol, backbone or task; wrong input stops before training; one seed, one result."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from speechbrain_ser.cli import main as console
from speechbrain_ser.inference.recognizer import load_model

from .conftest import ROOT
from .corpus_trees import table_folder, write_wav


def folder_of(out: str) -> Path:
    return Path(re.search(r"^results: (.*)$", out, re.MULTILINE).group(1))


def metrics_of(out: str) -> dict:
    return json.loads((folder_of(out) / "metrics.json").read_text())


TABLE_COLUMNS = "--table_columns={wav: path, emotion: label, speaker: who, transcript: said, split: part}"


@pytest.mark.parametrize("corpus, layout", [("iemocap", "iemocap"), ("demo", "iemocap"), ("emodb", "emodb")])
def test_corpus(train, small, corpus, layout):
    out = train(f"--corpus={corpus}", f"--data_folder={small.corpus(layout)}")
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


def test_a_table_of_strange_names(train, tmp_path):
    """A speaker who would be a path of his own, and whose emotion nobody else has."""
    said = {"../../up": ("fear", "sad"), **dict.fromkeys(("b", "b/1", "J\u00fcrgen"), ("angry", "sad"))}
    rows = [(f"{k}{emotion}.wav", emotion, who) for k, who in enumerate(said) for emotion in said[who]]
    table = "".join(f"{','.join(row)}\n" for row in [("wav", "emotion", "speaker"), *rows])
    folder = table_folder(tmp_path / "own", table)
    for k, (wav, *_) in enumerate(rows):
        write_wav(folder / wav, 0.5 + k / 10)
    out = train("--corpus=table", f"--data_folder={folder}", "--fold=../../up", "--alpha=0", "--seen_fraction=0")
    assert (
        metrics_of(out)["never_trained"] == "fear is tested, never trained" and "fear is tested, never trained" in out
    )
    assert folder_of(out).parents[4] == tmp_path / "results" and folder_of(out).parent.name.startswith("up~")
    out = train("--corpus=table", f"--data_folder={folder}", "--fold=Ju\u0308rgen", "--alpha=0", "--seen_fraction=0")
    assert metrics_of(out)["fold"] == "J\u00fcrgen" and "never_trained" not in metrics_of(out)


@pytest.mark.parametrize("protocol", ["session", "half_session", "random_plain"])
def test_protocol(train, small, protocol):
    found = metrics_of(train("--corpus=demo", f"--data_folder={small.corpus('iemocap')}", f"--protocol={protocol}"))
    assert found["speaker_disjoint"] is (found["leak"] is None) is (protocol == "session")


def test_a_fold_that_yaml_reads_as_a_number(train):
    assert metrics_of(train("--fold=8"))["fold"] == "08"


AUGMENT = "!new:speechbrain.augment.augmenter.Augmenter {augmentations: "
AUGMENT += "[!new:speechbrain.augment.time_domain.SpeedPerturb {orig_freq: 16000}]}"
LINES = {
    "a": {"pooling": "sum", "lora": "{rank: 2}", "tokens": "letters", "decoding": "beam", "tracker": "tensorboard"},
    "b": {"pooling": "mean_std", "freeze": True, "tokens": "sentencepiece", "weighted_sum": True, "seen_fraction": 0},
    "c": {"freeze_feature_extractor": True, "spec_augment": True, "attention": "eager", "layerdrop": 0.5},
    "d": {"pooling": "attentive", "gradient_checkpointing": True, "backbone_lr": 0.0001, "class_weights": "balanced"},
    "e": {"precision": "bf16", "max_grad_norm": 0, "early_stopping": 1, "selection": "valid", "augment": AUGMENT},
    "f": {
        "labels": "{angry: negative, sad: negative, fear: negative, happy: positive, '*': null}",
        "lr_schedule": "!name:transformers.get_scheduler [constant_with_warmup]",
    },
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
def test_lines(train, lines):
    folder = folder_of(train(*(f"--{key}={value}" for key, value in lines.items())))
    # these change no figure, or are the paper's own: no variant
    same = {"tracker", "selection", "spec_augment", *(["tokens"] if lines.get("tokens") == "letters" else [])}
    variant = json.loads((folder / "metrics.json").read_text())["changed"]
    assert set(variant) >= set(lines) - same and not set(variant) & set(lines) & same
    assert "tracker" not in lines or list((folder / "tensorboard").glob("events*"))
    assert not (folder / "learning_curves.png").exists()  # of one epoch


def test_three_selections_from_one_training(train):
    out = train("--n_epochs=3", "--test_every_epoch=True", "--selection=valid")
    folder, found = folder_of(out), metrics_of(out)
    assert set(found["selections"]) == {"last", "valid", "test"} and (folder / "learning_curves.png").is_file()
    epochs = pd.read_csv(folder / "epochs.csv")
    for part in ("valid", "test"):
        chosen = found["selections"][part]
        assert chosen["epoch"] == epochs["epoch"][epochs[f"{part}_WA"].idxmax()]  # the earliest of the best
        assert chosen["all"]["WA"] == pytest.approx(epochs["test_WA"][chosen["epoch"] - 1])
    assert "oracle" in found["selections"]["test"]["selected_by"]
    names = {f"predictions{suffix}.csv" for suffix in ("", "_last", "_test")}
    assert {p.name for p in folder.glob("predictions*.csv")} == names


def test_a_head_from_outside(train, tmp_path):
    """The YAML and the Brain of docs/own_system.md, in a folder of the user's own."""
    page = (ROOT / "docs" / "own_system.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(text, encoding="utf-8")
    out = train(yaml=str(tmp_path / "mine.yaml"))
    folder, last = folder_of(out), metrics_of(out)["selections"]["last"]
    predictions = pd.read_csv(folder / "predictions.csv")
    assert last["gender_accuracy"] == (predictions["gender"] == predictions["gender_predicted"]).mean()
    epochs = pd.read_csv(folder / "epochs.csv")
    assert {"train_loss_gender", "train_gender_accuracy", "valid_gender_accuracy"} <= set(epochs)
    assert "nothing reads the line" not in out


RANDOM = {
    "cai_mtl": ["--spec_augment=True", "--layerdrop=0.2"],
    "fu_cross_lingual": [
        *("--cut=random", "--fixed_length=60", "--balance=[emotion]"),
        "--feature_augment=!new:speechbrain.augment.freq_domain.SpectrogramDrop",
    ],
    "hsu_pretrain": ["--epoch_steps=3"],
}


@pytest.mark.parametrize("yaml", RANDOM)
def test_same_seed_same_files(train, tmp_path, yaml):
    flags = ["--n_epochs=2", *RANDOM[yaml]]
    first, second = (folder_of(train(*flags, f"--results_folder={tmp_path / name}", yaml=yaml)) for name in "ab")
    for name in ("metrics.json", "predictions.csv", "epochs.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_one_line_augments_alike_whatever_the_micro_batch(train, tmp_path):
    line = "--augment=!new:speechbrain_ser.nnet.augment.WaveformAugmentation {room: 0}"
    losses = []
    for name, *flags in (["plain"], ["1", line, "--micro_batch_size=1"], ["4", line, "--micro_batch_size=4"]):
        folder = folder_of(train("--alpha=0", "--dropout=0.0", *flags, f"--results_folder={tmp_path / name}"))
        losses.append(pd.read_csv(folder / "epochs.csv")["train_loss"].item())
    assert losses[1] == pytest.approx(losses[2], rel=1e-4) and losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_finished_is_not_run_again_and_more_epochs_continue(train):
    folder = folder_of(train("--n_epochs=1"))
    before = (folder / "train_log.txt").read_text()
    train("--n_epochs=1")
    assert (folder / "train_log.txt").read_text() == before
    train("--n_epochs=3")
    epochs = pd.read_csv(folder / "epochs.csv")["epoch"].tolist()
    assert epochs == [1, 2, 3] and json.loads((folder / "metrics.json").read_text())["n_epochs"] == 3
    assert "asks for fewer" in train("--n_epochs=2", code=2)
    wrong(train, "--n_epochs=3", "--test_every_epoch=True", expect="finished without --test_every_epoch=True, and its")


@pytest.mark.parametrize("yaml", ["cai_mtl", "probe"])
def test_a_run_needs_no_backbone_once_it_has_checkpoints(train, small, tmp_path, monkeypatch, yaml):
    """Given as a path of one working folder; in the other one it might be a stranger's name on the hub."""
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **_: pytest.fail("the hub was asked"))
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    home = shutil.copytree(small.backbone(), tmp_path / "here" / "pretrained" / "w2v")
    shutil.move(home / "preprocessor_config.json", home / "processor_config.json")
    (home / "processor_config.json").write_text('{"feature_extractor": {"do_normalize": false}}')
    flags = ["--encoder=pretrained/w2v"]
    flags += ["--freeze_feature_extractor=True", "--cache_front_end=True"] if yaml == "cai_mtl" else []
    monkeypatch.chdir(tmp_path / "here")
    folder = folder_of(train(*flags, yaml=yaml))
    written = {name: (folder / name).read_bytes() for name in ("metrics.json", "predictions.csv", "epochs.csv")}
    again = folder_of(train(*flags, f"--results_folder={tmp_path / 'again'}", yaml=yaml))
    monkeypatch.chdir(tmp_path / "there")
    home.rename(tmp_path / "gone")
    train(*flags, "--test_only", yaml=yaml)
    assert load_model(folder).model.encoder.normalize_wav is False
    for name in written:
        assert (folder / name).read_bytes() == written[name]
    if yaml == "probe":  # of one epoch
        return
    longer = folder_of(train(*flags, "--n_epochs=2", yaml=yaml))
    (tmp_path / "gone").rename(home)
    monkeypatch.chdir(tmp_path / "here")
    assert longer == folder != again
    train(*flags, "--n_epochs=2", f"--results_folder={tmp_path / 'again'}", yaml=yaml)
    for name in written:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name
    # another preprocessing is another model
    (home / "processor_config.json").unlink()
    assert ", do_normalize: False, here" in train(*flags, "--n_epochs=3", yaml=yaml, code=2)


READ = {  # by a command, of a finished run
    "train": ("metrics.json", "configuration.json", "calibration.json"),
    "report": ("metrics.json", "epochs.csv", "predictions.csv", "calibration.json"),
    "predict": ("metrics.json", "epochs.csv", "hyperparams.yaml", "calibration.json"),
    "export": ("metrics.json", "epochs.csv", "predictions.csv", "hyperparams.yaml", "calibration.json"),
}


@pytest.mark.parametrize("name", sorted({name for names in READ.values() for name in names}))
def test_a_damaged_file_is_named_and_written_anew(train, trained, small, tmp_path, capfd, name):
    run = shutil.copytree(trained(yaml="cai_mtl"), tmp_path / "run")
    path, whole = run / name, (run / name).read_bytes()
    wav = next(small.corpus("emodb").rglob("*.wav"))
    trust = "--trust-run"
    words = {"report": [run], "predict": [wav, f"--model={run}", trust], "export": [run, tmp_path / "out", trust]}
    for content in (b"", whole[: len(whole) // 2], whole[:-2]):
        path.write_bytes(content)
        for command in (command for command, names in READ.items() if name in names):
            if command == "train":
                said = train(f"--output_folder={run}", code=2)
            else:
                assert console([command, *map(str, words[command])]) == 2, (command, content)
                said = capfd.readouterr().err
            assert str(path) in said, (command, content)
            assert ("--test_only" if name != "configuration.json" else "delete the folder") in said
    if name != "configuration.json":
        path.unlink()
        train(f"--output_folder={run}", "--test_only")
        assert path.read_bytes() == whole or name == "hyperparams.yaml"  # which has the folder's name
        assert path.stat().st_size > 0.9 * len(whole)


def test_the_next_start_sweeps_what_a_kill_has_left(train, trained, tmp_path):
    run = shutil.copytree(trained(yaml="cai_mtl"), tmp_path / "run")
    (checkpoint,) = (run / "save").glob("CKPT*")
    older = shutil.copytree(checkpoint, checkpoint.with_name("CKPT+2099-01-01+00-00-00+00"))
    (older / "CKPT.yaml").write_text((older / "CKPT.yaml").read_text().replace("epoch: 1", "epoch: 0"))
    shutil.copytree(checkpoint, checkpoint.with_name(f".{checkpoint.name}"))
    for half in (".metrics.json.1.tmp", "save/.classes.json.2.tmp"):
        (run / half).touch()
    train(f"--output_folder={run}")
    assert list((run / "save").glob("*CKPT*")) == [checkpoint] and not list(run.rglob(".*"))


def test_a_recording_that_is_another_one_is_named(train, table, tmp_path):
    data = shutil.copytree(table, tmp_path / "data")
    flags = ("--corpus=table", f"--data_folder={data}", TABLE_COLUMNS, "--protocol=given")
    train(*flags)
    (data / "3.flac").touch()  # copied, or restored
    train(*flags, "--test_only")
    wav, rate = soundfile.read(data / "3.flac")
    soundfile.write(data / "3.flac", wav[::-1], rate)
    for more in ("--test_only", "--n_epochs=2"):
        wrong(train, *flags, more, expect=("not the recording that the run began with (1)", "3.flac", "put these back"))


def test_a_half_trained_run_is_not_tested_as_a_whole_one(train, tmp_path):
    flags = (f"--output_folder={tmp_path / 'run'}", "--n_epochs=2")
    train(flags[0])
    wrong(train, *flags, "--test_only", expect=("stopped after epoch 1 of 2", "trains on"))
    train(*flags)
    train(*flags, "--test_only")


def test_debug_leaves_no_results(train, tmp_path):
    train("--debug")
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").glob("cai_mtl"))


def wrong(train, *flags, expect: str | tuple, **kwargs):
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
        ("--backbone_lr=fast", "backbone_lr must be a number"),
        ("--opt_class={betas: [2, 0.9]}", "opt_class: "),
        ("--lr=fast", "lr must be a number"),
        ("--early_stopping=never", "early_stopping"),
        ("--n_epochs=0", "n_epochs must be a whole number >= 1, found 0"),
        ("--seed=4294967296", "from 0 to 4294967295"),  # SpeechBrain would take 0 in its place
        ("--warmup=2", "a share of the steps"),
        ("--precision=fp16", "fp16 takes a GPU"),
        ("--eval_batch_size=-1", "eval_batch_size must be a whole number >= 1"),
        ("--balance=5", "balance: expected columns"),
        ("--labels=5", "labels: expected a mapping"),
        ("--build_backbone=True", "build_backbone: expected {"),
        ("--build_backbone={num_heads: 0}", "build_backbone: "),
        ("--class_weights={angry: 2}", "class_weights"),
        ("--class_weights={angry: x, boredom: 1, disgust: 1, fear: 1, happy: 1, neutral: 1, sad: 1}", "numbers > 0"),
        ("--loss_weights={emotion: 0}", "emotion"),
        ("--split_seed=-1", "split_seed"),
        ("--encoder=/nowhere/w2v", "/nowhere/w2v"),
        ("--data_folder=/nowhere/corpus", "/nowhere/corpus"),
        ("--attention=flesh", "eager"),
        ("--build_backbone={hiden_size: 8}", "did you mean 'hidden_size'"),
        ("--build_backbone={hidden_size: 7}", "num_heads"),
    ],
)
def test_wrong_line(train, tmp_path, flag, expect):
    wrong(train, flag, expect=expect)
    assert not [p for p in (tmp_path / "results").glob("cai_mtl/**/*") if p.is_file()]  # nothing half-written


def test_a_tracker_that_is_not_installed(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    wrong(train, "--tracker=wandb", expect='pip install "speechbrain-ser[track]"')


def test_folder_of_another_configuration(train, tmp_path):
    train(f"--output_folder={tmp_path / 'mine'}")
    before = (tmp_path / "mine" / "metrics.json").read_bytes()
    wrong(train, f"--output_folder={tmp_path / 'mine'}", "--alpha=0", "--seed=7", expect=("alpha", "seed", "another"))
    assert (tmp_path / "mine" / "metrics.json").read_bytes() == before


def test_folder_that_is_no_run(train, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("x")
    wrong(train, f"--output_folder={tmp_path / 'holiday'}", expect="no run folder")


def test_recordings_too_short_for_a_frame(train, table, tmp_path):
    shutil.copytree(table, tmp_path / "short")
    for name in ("2", "7"):
        soundfile.write(tmp_path / "short" / f"{name}.flac", np.sin(np.arange(300) + int(name)), 16000)
    flags = ("--corpus=table", f"--data_folder={tmp_path / 'short'}", TABLE_COLUMNS, "--protocol=given")
    wrong(train, *flags, expect=("2 utterances", "2 (19 ms)", "7 (19 ms)", "25 ms"))


def test_a_run_says_who_validates(train, small):
    weak = ("--protocol=random", "WEAK validation: ")  # who are trained on, too
    strong = ("--fold=16", "INFO - validation: 7 utterances of 03")
    for flag, who in (weak, strong, ("--protocol=half_session", "validation: none (protocol half_session")):
        corpus = ["--corpus=demo", f"--data_folder={small.corpus('iemocap')}"] if "half" in flag else []
        log = (folder_of(train(flag, *corpus)) / "log.txt").read_text(encoding="utf-8")
        assert who in log


def test_nobody_validates_among_two_speakers(train, table, tmp_path):
    rows = pd.read_csv(table / "mine.tsv", sep="\t", dtype=str)
    rows["who"] = [str(k % 2) for k in range(len(rows))]
    rows.to_csv(tmp_path / "two.tsv", sep="\t", index=False)
    flags = ["--corpus=table", f"--data_folder={table}", TABLE_COLUMNS, f"--table_file={tmp_path / 'two.tsv'}"]
    for line in ("selection=valid", "early_stopping=1"):
        said = train(*flags, "--n_epochs=2", f"--{line}", code=2)
        assert "needs a validation part: protocol speaker finds no training speaker to leave out for it" in said
    assert "posteriors: not calibrated (protocol speaker finds no training speaker" in train(*flags)


def test_nonfinite_loss_names_the_utterances(train):
    error = wrong(train, "--lr=1e12", "--max_grad_norm=0", "--n_epochs=3", expect="not finite; utterances: ")
    assert re.search(r"\d\d[ab]\d\d\w\w? \(", error)


def test_too_little_memory_says_what_to_change(train, monkeypatch):
    def fill(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("speechbrain_ser.training.brain.SERBrain.fit_batch", fill)
    error = train(code=2)
    assert "Tried to allocate 2.00 GiB" in error and "--micro_batch_size" in error


def test_a_cpu_takes_one_utterance_at_a_time_unless_told(train, tmp_path):
    assert "micro-batches of 1, padding 0%" in train("--micro_batch_size=null")
    assert "micro-batches of 4" in train("--micro_batch_size=4", f"--results_folder={tmp_path}")


CACHED = {
    "cai_mtl": ["cache_front_end", "--freeze_feature_extractor=True"],
    "hsu_mtl": ["cache_front_end", "--freeze_feature_extractor=True", "--pretrain=False", "--fold=03"],
    "fu_cross_lingual": ["cache_features"],
}


@pytest.mark.parametrize("yaml", ["cai_mtl", "fu_cross_lingual", pytest.param("hsu_mtl", marks=pytest.mark.slow)])
def test_what_is_cached_trains_alike(train, tmp_path, yaml):
    """The cache computes one utterance at a time, the model a batch: equal but for rounding."""
    switch, *flags = CACHED[yaml]
    runs = [
        folder_of(train(*flags, f"--{switch}={cached}", f"--results_folder={tmp_path / str(cached)}", yaml=yaml))
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
    losses = []
    for k, flags in enumerate(([], ["--compile"])):
        out = train("--spec_augment=True", "--n_epochs=2", f"--results_folder={tmp_path / str(k)}", *flags)
        losses.append(pd.read_csv(folder_of(out) / "epochs.csv")["train_loss"].tolist())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
