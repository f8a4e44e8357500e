"""Figures of an epoch reach train_log.txt, TensorBoard and Weights & Biases, at the right epoch."""

import sys
from types import SimpleNamespace

import pytest

from speechbrain_ser.errors import UserError
from speechbrain_ser.training.trackers import check_tracker, make_loggers

META = {"epoch": 7, "lr": 0.1}
PARTS = {"train": {"loss": 1.5}, "valid": None, "test": {"WA": 0.25, "WER": 1}}


def test_train_log(tmp_path):
    (log,) = make_loggers(tmp_path, None)
    log(META, PARTS)
    text = (tmp_path / "train_log.txt").read_text()
    assert "epoch: 7" in text and "train loss: 1.5" in text and "test WA: 0.25" in text and "valid" not in text


def test_tensorboard_counts_from_the_epoch_and_not_from_the_process(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, log = make_loggers(tmp_path, "tensorboard")
    log(META, PARTS)
    log({**META, "epoch": 8}, PARTS)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss/train")] == [(7, 1.5), (8, 1.5)]
    assert [e.step for e in found.Scalars("WA/test")] == [7, 8]


def test_wandb_is_given_the_folder_and_the_epoch(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda figures, step: calls.append((figures, step)))
    fake = SimpleNamespace(init=lambda **settings: calls.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    _, log = make_loggers(tmp_path, "wandb")
    log(META, PARTS)
    assert calls[0]["dir"] == tmp_path
    assert calls[1] == ({"train": {"loss": 1.5}, "test": PARTS["test"], **META}, 7)


def test_unknown_or_absent_tracker(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        check_tracker("wandbb")
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    with pytest.raises(UserError, match=r"pip install \"speechbrain-ser\[track\]\""):
        check_tracker("wandb")
