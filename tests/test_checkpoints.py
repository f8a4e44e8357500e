"""A damaged checkpoint: found before anything is loaded, told, and made good by the one before it, bit for bit."""

import itertools
import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from speechbrain_ser.models.checkpoints import DamagedCheckpoint
from speechbrain_ser.training.checkpoints import DAMAGED, WholeCheckpointer

from .test_brain import Killed, fake_scores, fit, frame, make_brain, same, stop_after, weights  # noqa: F401


def emptied(path):
    os.truncate(path, 0)


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def one_bit(path):
    """In the middle, where a tensor's values are: torch would load it without a word."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def newest(run):
    return max(run.brain.checkpointer.list_checkpoints(), key=lambda c: c.meta["unixtime"]).path


CASES = [
    ("model.ckpt", truncated, "another content"),
    ("model.ckpt", one_bit, "another content"),
    ("optimizer.ckpt", emptied, "is empty"),
    ("history.ckpt", one_bit, "another content"),
    ("random.ckpt", Path.unlink, "is missing"),
    ("CKPT.yaml", emptied, "is empty"),
    ("CKPT.yaml", truncated, "is damaged"),
    ("CKPT.yaml", Path.unlink, "is missing"),
]


@pytest.fixture(scope="module")
def whole(frame, tmp_path_factory):  # noqa: F811
    """An uninterrupted run of three epochs, and one that was ended in the last of them."""
    folder = tmp_path_factory.mktemp("runs")
    quiet = fit(make_brain(frame, folder / "quiet", **OPTIONS))
    stopped = make_brain(frame, folder / "stopped", **OPTIONS)
    stop_after(stopped.brain, 8)
    with pytest.raises(Killed):
        fit(stopped)
    return quiet, stopped


OPTIONS = {"n_epochs": 3, "dropout": 0.4, "test_every_epoch": True}


@pytest.mark.parametrize(("file", "harm", "expect"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_training_goes_on_from_the_one_before(frame, whole, tmp_path, caplog, file, harm, expect):  # noqa: F811
    quiet, stopped = whole
    shutil.copytree(stopped.folder, tmp_path / "run")
    run = make_brain(frame, tmp_path / "run", **OPTIONS)
    damaged = newest(run)
    harm(damaged / file)
    content = sorted(p.name for p in damaged.iterdir())
    with caplog.at_level(logging.WARNING, "speechbrain_ser.training.checkpoints"):
        fit(run)
    (said,) = [r.getMessage() for r in caplog.records if "DAMAGED CHECKPOINT" in r.getMessage()]
    assert damaged.name in said and file in said and expect in said and "(epoch 1)" in said
    (aside,) = (tmp_path / "run" / "save").glob(f"{DAMAGED}*/{damaged.name}")  # nothing is deleted
    assert sorted(p.name for p in aside.iterdir()) == content
    assert same(weights(quiet), weights(run))
    assert (quiet.folder / "epochs.csv").read_bytes() == (run.folder / "epochs.csv").read_bytes()
    run.brain.evaluate(run.loaders["test"])
    assert run.brain.tested_epoch == 3


def test_only_the_runs_folder_is_swept(tmp_path):
    """Debugging, SpeechBrain puts checkpoints beside what others are writing."""
    checkpointer, halves = WholeCheckpointer(tmp_path / "run" / "save"), []
    checkpointer.checkpoints_dir = tmp_path / "elsewhere" / "debug"
    for folder in (checkpointer.checkpoints_dir, tmp_path / "run"):
        folder.mkdir(parents=True, exist_ok=True)
        halves.append(folder.parent / ".theirs.tmp" if folder.name == "debug" else folder / ".ours.tmp")
        halves[-1].touch()
    checkpointer.recover_if_possible()
    assert [half.exists() for half in halves] == [True, False]


def test_a_damaged_checkpoint_within_an_epoch(frame, tmp_path, caplog):  # noqa: F811
    options = {"dropout": 0.4, "micro": 2, "run_opts": {"ckpt_interval_steps": 1}}
    quiet = fit(make_brain(frame, tmp_path / "quiet", **{**options, "run_opts": {}}))
    stopped = make_brain(frame, tmp_path / "parts", **options)
    stop_after(stopped.brain, 5)
    with pytest.raises(Killed):
        fit(stopped)
    one_bit(newest(stopped) / "optimizer.ckpt")
    resumed = fit(make_brain(frame, tmp_path / "parts", **options))
    assert "optimizer.ckpt has another content" in caplog.text
    assert same(weights(quiet), weights(resumed))
    assert (quiet.folder / "epochs.csv").read_bytes() == (resumed.folder / "epochs.csv").read_bytes()


def test_two_checkpoints_are_kept_while_training(frame, tmp_path):  # noqa: F811
    run = make_brain(frame, tmp_path, n_epochs=4, micro=2, valid=False, run_opts={"ckpt_interval_steps": 1})
    found = []
    original = run.brain.checkpointer.keep_only

    def count(*args, **kwargs):
        original(*args, **kwargs)
        found.append(len(run.brain.checkpointer.list_checkpoints()))

    run.brain.checkpointer.keep_only = count
    fit(run)
    assert len(found) > 8 and found[0] == 1 and set(found[1:]) == {2}


def test_all_damaged(frame, whole, tmp_path):  # noqa: F811
    shutil.copytree(whole[1].folder, tmp_path / "run")
    run = make_brain(frame, tmp_path / "run", **OPTIONS)
    folders = [c.path for c in run.brain.checkpointer.list_checkpoints()]
    assert len(folders) == 2
    truncated(folders[0] / "model.ckpt")
    emptied(folders[1] / "CKPT.yaml")
    with pytest.raises(DamagedCheckpoint, match="no checkpoint that training can go on from") as caught:
        fit(run)
    assert all(folder.name in str(caught.value) and folder.is_dir() for folder in folders)
    assert not list((tmp_path / "run" / "save").glob(f"{DAMAGED}*"))


@pytest.mark.parametrize("file", ["model.ckpt", "CKPT.yaml", None])
def test_no_other_epoch_is_tested_in_the_place_of_the_best(frame, tmp_path, file):  # noqa: F811
    run = make_brain(frame, tmp_path, n_epochs=4)
    fake_scores(run, [0.2, 0.6, 0.6, 0.4])
    fit(run)
    best = next(c.path for c in run.brain.checkpointer.list_checkpoints() if c.meta["epoch"] == 2)
    if file is None:
        shutil.rmtree(best)
    else:
        truncated(best / file)
    with pytest.raises(DamagedCheckpoint, match="No other epoch is used") as caught:
        run.brain.evaluate(run.loaders["test"], max_key="valid_score")
    assert (f"{best.name}" in str(caught.value)) is (file is not None)
    if file != "CKPT.yaml":  # else that one might be the last
        (newest(run) / "optimizer.ckpt").unlink()  # which a test needs not
        run.brain.evaluate(run.loaders["test"])
        assert run.brain.tested_epoch == 4


def test_a_kill_while_one_is_deleted_leaves_no_half(frame, tmp_path, monkeypatch):  # noqa: F811
    def killed(path):
        (path / "model.ckpt").unlink()
        raise Killed

    run = make_brain(frame, tmp_path, n_epochs=3, valid=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("speechbrain_ser.training.checkpoints.shutil.rmtree", killed)
        fit(run)
    assert list((tmp_path / "save").glob(".CKPT*")) and len(run.brain.checkpointer.list_checkpoints()) == 2
    fit(make_brain(frame, tmp_path, n_epochs=3, valid=False))
    assert not [*(tmp_path / "save").glob(".CKPT*"), *(tmp_path / "save").glob(f"{DAMAGED}*")]


CLOCKS = {  # the time at its n-th reading
    "back": lambda n: 2e9 - 1000 * n,
    "to and fro": lambda n: 2e9 + 1000 * n * (-1) ** n,
    "a year ahead, then right": lambda n: 2e9 + 3e7 * (n < 40),
    "still": lambda n: 2e9,
}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_no_clock_decides_which_is_the_last(frame, whole, tmp_path, monkeypatch, clock):  # noqa: F811
    readings = itertools.count()
    monkeypatch.setattr(time, "time", lambda: clock(next(readings)))
    options = {**OPTIONS, "micro": 4, "run_opts": {"ckpt_interval_steps": 1}}
    for stop in (2, 2, 1):  # steps, of three an epoch
        stopped = make_brain(frame, tmp_path, **options)
        stop_after(stopped.brain, stop)
        with pytest.raises(Killed):
            fit(stopped)
    run = fit(make_brain(frame, tmp_path, **options))
    assert same(weights(whole[0]), weights(run))
    assert (whole[0].folder / "epochs.csv").read_bytes() == (run.folder / "epochs.csv").read_bytes()
    run.brain.checkpointer.keep_for_tests()
    run.brain.evaluate(run.loaders["test"])
    assert run.brain.tested_epoch == 3
    # an earlier epoch does not pass for the last one
    shutil.rmtree(newest(run))
    if run.brain.checkpointer.list_checkpoints():
        with pytest.raises(DamagedCheckpoint, match=r"\(epoch [12]\) is the newest, but .*epochs.csv has epoch 3"):
            run.brain.evaluate(run.loaders["test"])
