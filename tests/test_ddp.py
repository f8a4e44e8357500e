"""Several processes that train one model: the result of one process, every utterance once, files and errors once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from speechbrain import Stage
from speechbrain.utils.run_opts import RunOptions

from speechbrain_ser.data.batches import StepSampler
from speechbrain_ser.training import distributed
from speechbrain_ser.training.brain import SERBrain
from speechbrain_ser.training.run import main
from speechbrain_ser.training.signals import stop_wish

from .conftest import NARROW, ROOT

LABELS = "{angry: angry, sad: sad, '*': null}"
PATIENCE = 600  # seconds, on a machine that does other things as well
# no draw at random: the processes then compute what one would
STILL = ("--dropout=0", "--layerdrop=0", "--spec_augment=False")
DRAWN = ("--dropout=0.2", "--layerdrop=0.3", "--spec_augment=True")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They take longer than so small a training; the process that torchrun starts draws them."""
    monkeypatch.setattr("speechbrain_ser.training.results.save_figure", lambda *arguments: None)


@pytest.fixture
def lines(small, tmp_path):
    """train.py's arguments for a system on the smallest of everything."""

    def arguments(*flags: str, yaml: str = "cai_mtl") -> list[str]:
        argv = ["--corpus=emodb", f"--data_folder={small.corpus('emodb')}", f"--results_folder={tmp_path / 'results'}"]
        argv += [f"--manifest_folder={small.folder / 'manifests'}", "--device=cpu", "--noprogressbar", "--lr=0.001"]
        argv += [f"--labels={LABELS}", "--seen_fraction=0"]  # 24 utterances to train on
        if not yaml.startswith("fu_") and yaml != "hsu_pretrain":
            argv += [f"--encoder={small.backbone(num_layers=2)}", "--tokens=characters"]
        given = {flag.split("=")[0] for flag in flags}
        argv += [f"{k}={v}" for k, v in NARROW.get(yaml[:3] + "_", {}).items()]
        return [str(ROOT / "hparams" / f"{yaml}.yaml"), *(a for a in argv if a.split("=")[0] not in given), *flags]

    return arguments


def fork(n: int, work, folder: Path) -> SimpleNamespace:
    """Run ``work(rank)`` in `n` processes with the environment that torchrun gives; its result is an exit status.

    They are forked: nothing is imported anew, which takes most of the time of so small a training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(n):
        if pid := os.fork():
            children.append(pid)
            continue
        status = 70
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
            os.environ.update({**address, **{k: str(v) for k, v in ranks.items()}})
            status = work(rank)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    # processes that wait for each other are killed
    watch = threading.Timer(PATIENCE, lambda: [os.kill(pid, signal.SIGKILL) for pid in children])
    watch.start()
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    watch.cancel()
    err = "".join((folder / f"err{rank}").read_text() for rank in range(n))
    return SimpleNamespace(statuses=statuses, err=err)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(n: int, argv: list[str], folder: Path, code: int = 0) -> SimpleNamespace:
    """train.py's main in `n` processes, into a run folder."""
    ended = fork(
        n,
        lambda rank: main([*argv, f"--output_folder={folder}"], ROOT / "hparams"),
        folder.with_name(f"{folder.name}-said"),
    )
    assert set(ended.statuses) == {code}, f"{ended.statuses}\n{ended.err}"
    return ended


def said(folder: Path, rank: int = 0) -> str:
    """What a process has printed."""
    return (folder.with_name(f"{folder.name}-said") / f"out{rank}").read_text()


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Every training batch's losses by utterance, as the processes go: (folder) -> [{utterance: loss} a step]."""
    original = SERBrain.weighted_sum

    def weighted_sum(brain, losses, predictions, batch, stage):
        loss = original(brain, losses, predictions, batch, stage)
        if stage == Stage.TRAIN:
            with open(brain.run.folder / f"losses-{distributed.rank()}.jsonl", "a") as file:
                file.write(json.dumps({"step": brain.optimizer_step, "losses": brain.utterance_losses}) + "\n")
        return loss

    monkeypatch.setattr(SERBrain, "weighted_sum", weighted_sum)

    def read(folder: Path) -> list[dict[str, float]]:
        steps: dict[int, dict[str, float]] = {}
        for path in sorted(folder.glob("losses-*.jsonl")):
            for line in map(json.loads, path.read_text().splitlines()):
                mine = steps.setdefault(line["step"], {})
                assert not set(mine) & set(line["losses"])  # nobody's utterance is another's as well
                mine.update(line["losses"])
        return [steps[k] for k in sorted(steps)]

    return read


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    (newest, *_) = sorted(folder.glob("save/CKPT*/model.ckpt"), reverse=True)
    return torch.load(newest, weights_only=True)


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("micro", [1, 3])
def test_each_takes_a_share_of_the_same_steps(world_size, micro):
    durations = np.random.default_rng(0).uniform(1, 9, 50)  # steps of 8, and a last one of 2

    def plan(**share):
        sampler = StepSampler(durations, 8, micro, seed=1, **share)
        sampler.set_epoch(1)
        return sampler.plan

    plans = [plan(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, *shares in zip(plan(), *plans, strict=True):
        assert {share.size for share in shares} == {step.size}
        assert sorted(k for share in shares for k in share.indices) == sorted(step.indices)
    assert min(len(share.indices) for plan in plans for share in plan) == (0 if world_size > 2 else 1)


def test_training_is_that_of_one_process(lines, recorded, tmp_path):
    """24 utterances in steps of 11 and one of 2, in which a third process has nothing; twelve steps."""
    argv = lines(*STILL, "--n_epochs=4", "--batch_size=11", "--micro_batch_size=2", "--test_every_epoch=True")
    one, two, three = folders = [tmp_path / name for name in ("one", "two", "three")]
    for n, folder in enumerate(folders, 1):
        train(n, argv, folder)
    alone, weights, epochs = recorded(one), parameters(one), pd.read_csv(one / "epochs.csv")
    assert [len(step) for step in alone] == [11, 11, 2] * 4
    moved = [abs(alone[-2][k] / alone[0][k] - 1) for k in alone[-2].keys() & alone[0].keys()]
    assert max(moved) > 0.01  # there is something to agree in
    for folder in (two, three):
        assert_same_losses(recorded(folder), alone)
        for name, value in parameters(folder).items():  # by the names of the model itself
            torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5)
        pd.testing.assert_frame_equal(pd.read_csv(folder / "epochs.csv"), epochs, rtol=1e-4)
        for path in one.glob("predictions*.csv"):  # every utterance once
            pd.testing.assert_frame_equal(pd.read_csv(folder / path.name), pd.read_csv(path), rtol=0, atol=1e-4)
        assert "results: " in said(folder) and not said(folder, 1)


def assert_same_losses(mine: list[dict[str, float]], theirs: list[dict[str, float]], rel: float = 1e-5) -> None:
    """Of every step, by utterance."""
    for step, other in zip(mine, theirs, strict=True):
        assert step == pytest.approx(other, rel=rel)


def test_gradients_are_summed_parameters_are_the_same_and_draws_are_not(tmp_path):
    def work(rank: int) -> int:
        with distributed.process_group(RunOptions.from_dictionary({"device": "cpu"})):
            both, first, none, frozen = (torch.nn.Parameter(torch.zeros(3)) for _ in range(4))
            frozen.requires_grad = False
            both.grad = torch.full((3,), rank + 1.0)
            first.grad = torch.full((3,), 5.0) if rank == 0 else None
            distributed.sum_gradients([both, first, none, frozen])
            assert both.grad.tolist() == [3.0] * 3 and first.grad.tolist() == [5.0] * 3
            assert none.grad is None and frozen.grad is None
            torch.manual_seed(rank)
            model = torch.nn.Linear(4, 4)
            distributed.same_parameters(model)
            assert torch.equal(*distributed.gathered(model.weight.detach()))
            torch.manual_seed(1)
            distributed.own_random_state(1)
            draws = distributed.gathered((torch.rand(1).item(), float(np.random.rand())))  # noqa: NPY002
            torch.manual_seed(1)
            assert draws[0][0] == torch.rand(1).item() and not set(draws[0]) & set(draws[1])
            return 0

    ended = fork(2, work, tmp_path)
    assert ended.statuses == [0, 0], ended.err


@pytest.mark.parametrize(
    ("number", "interval"), [(signal.SIGKILL, 1), pytest.param(signal.SIGUSR1, 0, marks=pytest.mark.slow)]
)
def test_an_ended_run_ends_as_if_undisturbed(lines, tmp_path, monkeypatch, number, interval):
    """One process gets a signal within the second epoch; the next start goes on, with dropout and all.

    Killed, it ends the other one. Asked to end, all do after the same step, with a checkpoint (there is no other one).
    """
    argv = lines(*DRAWN, "--n_epochs=2", "--batch_size=5", "--micro_batch_size=2", f"--ckpt_interval_steps={interval}")
    train(2, argv, tmp_path / "whole")
    original = SERBrain.fit_batch

    def fit_batch(brain, batch):
        if brain.optimizer_step == 7 and distributed.rank() == 1 and stop_wish.number is None:
            os.kill(os.getpid(), number)  # once: a second one would end it at once
        return original(brain, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SERBrain, "fit_batch", fit_batch)
        ended = fork(2, lambda rank: main([*argv, f"--output_folder={tmp_path / 'parts'}"], ROOT / "hparams"), tmp_path)
    if number == signal.SIGKILL:
        assert ended.statuses[1] == -number and ended.statuses[0] != 0
    else:
        assert ended.statuses == [75, 75] and "Traceback" not in ended.err and ended.err.count("SIGUSR1") == 1, (
            ended.err
        )
    assert not (tmp_path / "parts" / "metrics.json").exists()
    shutil.copytree(tmp_path / "parts", tmp_path / "alone")
    train(2, argv, tmp_path / "parts")
    assert "resumed after epoch 1, within the next" in said(tmp_path / "parts")
    assert_same_files(tmp_path / "parts", tmp_path / "whole")
    if number == signal.SIGKILL:
        train(1, argv, tmp_path / "alone")  # another number of processes: other draws, and said so
        assert "is of 2 process(es), here are 1" in (tmp_path / "alone" / "log.txt").read_text()
        losses = [pd.read_csv(tmp_path / run / "epochs.csv")["train_loss"] for run in ("alone", "whole")]
        assert len(losses[0]) == 2 and 0.8 < losses[0][1] / losses[1][1] < 1.25


def assert_same_files(mine: Path, theirs: Path) -> None:
    for name in ("epochs.csv", "predictions.csv", "metrics.json"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.parametrize(
    ("flag", "expect"),
    [
        ("--data_folder=/nowhere", "/nowhere"),  # in preparation, which is the main process's alone
        ("--pooling=men", "pooling"),  # in building the model
        ("--device=cuda", "need a GPU each, there are 0"),
    ],
)
def test_an_error_ends_all_with_one_message(lines, tmp_path, flag, expect):
    if "cuda" in flag and torch.cuda.is_available():
        pytest.skip("there are GPUs")
    ended = train(2, lines(flag), tmp_path / "run", code=2)
    assert ended.err.count("error: ") == 1 and expect in ended.err and "Traceback" not in ended.err, ended.err
    assert not (tmp_path / "run").exists()


def test_one_process_alone_fails_and_tells(lines, tmp_path, monkeypatch):
    """A loss that is not finite is seen by the process that has the utterance; the others do not wait for it."""
    original = SERBrain.fit_batch

    def fit_batch(brain, batch):
        if distributed.rank() == 1 and brain.optimizer_step == 2:
            batch[0].sig.data.fill_(float("nan"))
        return original(brain, batch)

    monkeypatch.setattr(SERBrain, "fit_batch", fit_batch)
    ended = train(2, lines("--n_epochs=1", "--batch_size=5"), tmp_path / "run", code=2)
    assert ended.err.count("error: ") == 1 and "not finite; utterances: " in ended.err, ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run.lock").exists()


def test_crossval_under_torchrun(monkeypatch, capsys):
    from speechbrain_ser.crossval.program import main as crossval

    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    assert crossval([str(ROOT / "hparams" / "cai_mtl.yaml")], ROOT) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_torchrun(lines, tmp_path):
    argv = lines(*STILL, "--n_epochs=1", "--batch_size=16", f"--output_folder={tmp_path / 'run'}")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [str(ROOT / "train.py"), *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results: ") == 1 and done.stdout.count("Going into epoch 1") == 1, done.stdout
    train(1, argv[:-1], tmp_path / "one")
    one, two = (pd.read_csv(tmp_path / folder / "predictions.csv") for folder in ("one", "run"))
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-5)
    assert not (tmp_path / "run.lock").exists()


SYSTEMS = {
    "cai_mtl": (*STILL, "--lora={rank: 2}", "--backbone_lr=0.01", "--pooling=attentive"),
    "ha_speaker_norm": STILL,
    "fu_cross_lingual": ("--dropout=0",),
    "hsu_pretrain": ("--crop=null", "--resample=False"),
}


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_systems_training(lines, recorded, tmp_path, system):
    flags = [*SYSTEMS[system], "--n_epochs=2", "--batch_size=15", "--micro_batch_size=4"]
    argv = [a for a in lines(*flags, yaml=system) if not a.startswith("--pretrain_")]
    for n, name in ((1, "one"), (2, "two")):
        train(n, argv, tmp_path / name)
    # Fu's RMSprop makes steps of one size of gradients that are next to nothing, rounding among them
    rel = 1e-3 if system == "fu_cross_lingual" else 1e-5
    assert_same_losses(recorded(tmp_path / "two"), recorded(tmp_path / "one"), rel)
    one, two = (sorted(path.name for path in (tmp_path / run).glob("*[!l]")) for run in ("one", "two"))
    assert one == two
