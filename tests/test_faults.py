"""Nothing lost: whatever ends a training, the next start ends with the files that an undisturbed one writes."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speechbrain_ser.models.checkpoints import damage
from speechbrain_ser.training.signals import Stopped, StopWish

from .conftest import ROOT
from .faults import Fault, random_instants, server, train
from .test_train import TABLE_COLUMNS

SEED = 7
STEP = Fault("torch:Tensor.backward", "after", 8)  # in the second epoch's third micro-batch of five
QUICK = (  # of all places, those of the small form
    "manifest: rows are written, the file has no name",
    "step: after a backward pass",
    "checkpoint: in a file",
    "results: predictions are written",
    "epoch: validation or test of it",
)


class Bench:
    """Trainings of one small configuration, each in a folder of its own, and an undisturbed one to compare with."""

    def __init__(self, root: Path, small, data: Path):
        self.root, self.context = root, server()
        self.flags = [str(ROOT / "hparams" / "cai_mtl.yaml"), "--device=cpu", "--noprogressbar", "--corpus=table"]
        self.flags += [f"--data_folder={data}", TABLE_COLUMNS, "--protocol=given", "--selection=valid"]
        self.flags += [f"--encoder={small.backbone()}", "--tokens=characters", "--lr=0.001", "--layerdrop=0.2"]
        self.flags += ["--n_epochs=3", "--test_every_epoch=True", "--batch_size=4", "--micro_batch_size=2"]
        self.run("warm", fault=Fault("speechbrain_ser.data.manifest:_read"))  # imports everything
        self.quiet = self.run("quiet", count=True)
        assert self.quiet.code == 0, self.quiet.said

    def run(self, name: str, *flags: str, folder: Path | None = None, cache: Path | None = None, **kwargs):
        folder = folder or self.root / name
        places = [f"--{key}_folder={folder / key}" for key in ("results", "manifest")]
        places.append(f"--cache_folder={cache or folder / 'cache'}")
        given = () if any("ckpt_interval" in flag for flag in flags) else ("--ckpt_interval_steps=1",)
        return train(self.context, [*self.flags, *places, *given, *flags], self.root / f"notes {name}", **kwargs)

    def results(self, folder: Path) -> tuple[dict[str, bytes], dict[str, torch.Tensor]]:
        """What must be the same, byte for byte, and the last epoch's parameters."""
        (metrics,) = (folder / "results").glob("**/metrics.json")
        run = metrics.parent
        files = ["metrics.json", "epochs.csv", *sorted(p.name for p in run.glob("predictions*.csv"))]
        (last,) = (meta for meta in run.glob("save/CKPT*/CKPT.yaml") if "\nepoch: 3\n" in f"\n{meta.read_text()}")
        return {name: (run / name).read_bytes() for name in files}, torch.load(last.with_name("model.ckpt"))

    def is_same(self, folder: Path) -> bool:
        """Whether a run's files are those of the undisturbed one."""
        (mine, state), (theirs, other) = self.results(folder), self.results(self.root / "quiet")
        assert len(theirs) >= 5  # two files, three predictions
        assert all(torch.equal(state[name], other[name]) for name in other)
        return mine == theirs


@pytest.fixture(scope="session")
def bench(small, table, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"), small, table)


def strike_and_resume(bench, name: str, fault: Fault) -> dict:
    """A row of the log."""
    struck = bench.run(name, fault=fault)
    while struck.code == 0 and fault.seconds:  # it was over before: the machine is quicker now
        shutil.rmtree(bench.root / name)
        fault = replace(fault, seconds=fault.seconds / 2)
        struck = bench.run(name, fault=fault)
    assert struck.code == -signal.SIGKILL and struck.where, struck.said
    resumed = bench.run(name)
    assert resumed.code == 0, resumed.said
    is_same = bench.is_same(bench.root / name)
    killed = name if fault.seconds is None else f"{name}: {fault.seconds:.2f} s"
    result = "identical" if is_same else "DIFFERENT"
    return {"killed": killed, "in": struck.where, "next start": resumed.resumed, "result": result}


def test_killed(bench):
    """The small form: at some of the places."""
    instants = random_instants(bench.quiet, 0, SEED)
    chosen = {name: fault for name, fault in instants.items() if name.startswith(QUICK)}
    assert len(chosen) == len(QUICK)
    rows = [strike_and_resume(bench, name, fault) for name, fault in chosen.items()]
    assert [row["result"] for row in rows] == ["identical"] * len(QUICK), rows
    assert {row["next start"].partition(" ")[0] for row in rows} == {"from", "resumed"}, rows


@pytest.mark.slow
def test_killed_everywhere(bench):
    """The full form: every place at a random call, then random times. FAULTS_LOG=file.csv keeps its log."""
    instants = random_instants(bench.quiet, 8, SEED)
    rows = [strike_and_resume(bench, name, fault) for name, fault in instants.items()]
    log = Path(os.environ.get("FAULTS_LOG") or bench.root / "faults.csv")
    with log.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(log, log.read_text(), sep="\n")
    assert len(rows) >= 20 and all(row["result"] == "identical" for row in rows)


# ------------------------------------------------------------------ asked to end


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_in_training_ends_it_after_the_step_with_a_checkpoint(bench, number, code):
    name = f"signal {number}"
    ended = bench.run(name, "--ckpt_interval_steps=0", fault=replace(STEP, signals=(number,)))
    assert ended.code == code and f"ended by {signal.Signals(number).name}" in ended.said, ended.said
    assert "Traceback" not in ended.said
    resumed = bench.run(name)
    # two micro-batches a step: the third is in the second step
    assert resumed.resumed == "resumed after epoch 1, within the next at step 2", resumed.said
    assert bench.is_same(bench.root / name)


@pytest.mark.parametrize(
    ("fault", "code", "resumed"),
    [
        (Fault("speechbrain_ser.data.manifest:_read", signals=(signal.SIGTERM,)), 75, "from the start"),
        (Fault("speechbrain_ser.training.results:write_csv", signals=(signal.SIGTERM,)), 75, "resumed after epoch 3"),
        (replace(STEP, signals=(signal.SIGTERM,) * 2), -signal.SIGTERM, "resumed after epoch 1"),  # asked twice
    ],
)
def test_a_signal_outside_training_and_a_second_one_end_at_once(bench, fault, code, resumed):
    name = f"signal in {fault.place}"
    ended = bench.run(name, fault=fault)
    assert ended.code == code and "Traceback" not in ended.said, ended.said
    assert ("ended by SIGTERM" in ended.said) == (code > 0)
    assert bench.run(name).resumed.startswith(resumed)
    assert bench.is_same(bench.root / name)


def test_what_torchrun_passes_on_ends_nothing_at_once(monkeypatch):
    """Its processes have had a terminal's Ctrl-C already."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    before, wish, steps = signal.getsignal(signal.SIGINT), StopWish(), []
    with pytest.raises(Stopped) as stopped, wish.heard(), wish.deferred():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            steps.append(number)
    assert len(steps) == 3 and stopped.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


# ------------------------------------------------------------------ loading processes


def test_a_dead_loading_process_is_named(bench):
    cache = bench.root / "quiet" / "cache"  # training itself loads nothing, and each of them two utterances a batch
    fault = Fault("speechbrain_ser.data.batches:load_audio", call=4)
    ended = bench.run("loader", "--num_workers=2", cache=cache, fault=fault)
    assert ended.code == 2 and "Traceback" not in ended.said, ended.said
    assert re.search(r"error: a loading process died: DataLoader worker \(pid\S* [\d, ]+\) .*num_workers", ended.said)
    resumed = bench.run("loader", "--num_workers=2", cache=cache)
    assert resumed.code == 0, resumed.said
    assert bench.is_same(bench.root / "loader")


def test_a_signal_to_the_whole_group_is_heeded_by_training_alone(bench):
    """Ctrl-C on a terminal, scancel: the loading processes get it too, and their data is still wanted."""
    both = bench.run("group", "--num_workers=2", fault=replace(STEP, signals=(signal.SIGINT,), loader=True))
    assert both.code == 0 and bench.is_same(bench.root / "group"), both.said


# ------------------------------------------------------------------ no room


def blocks(folder: Path) -> int:
    """Bytes that a folder takes on a disk."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def assert_whole(folder: Path) -> None:
    """No half file under a name that someone would read: no line of a CSV, no JSON, no checkpoint."""
    hidden = re.compile(r"/\.|/CKPT[^/]*/")
    for path in folder.rglob("*.*"):
        if hidden.search(str(path.relative_to(folder.parent))):
            continue
        assert path.suffix != ".csv" or path.read_bytes().endswith(b"\n"), path
        assert path.suffix != ".json" or json.loads(path.read_text()) is not None
    for meta in folder.rglob("CKPT.yaml"):
        assert damage(meta.parent, [file.stem for file in meta.parent.glob("*.ckpt")]) == ""


@pytest.mark.parametrize("size", ["a manifest", "a recording", "an optimiser's state"])
def test_a_file_that_finds_no_room_is_named(bench, size):
    """A limit on a file's size, which needs no rights: the write that passes it fails in its middle."""
    quiet = bench.root / "quiet"
    patterns = {"a manifest": "manifest/*.csv", "a recording": "cache/audio/*.wav"}
    patterns |= {"an optimiser's state": "results/**/optimizer.ckpt"}
    limit = max(path.stat().st_size for path in quiet.glob(patterns[size])) - 1
    cache = quiet / "cache" if "recording" not in size else None  # recordings are larger than this small model
    ended = bench.run(size, cache=cache, fault=Fault(file_size=limit))
    assert ended.code == 2, ended.said
    assert re.search(r"error: .* cannot be written: .* MB free", ended.said), ended.said
    assert "Traceback" not in ended.said
    assert_whole(bench.root / size)
    assert not list((bench.root / size).rglob("*.tmp"))
    resumed = bench.run(size, cache=cache)
    assert resumed.code == 0 and bench.is_same(bench.root / size), resumed.said


@pytest.mark.slow
def test_a_full_disk(bench):
    """A real file system of a few megabytes, full at random instants; with more room the run goes on."""
    disk, quiet = bench.root / "disk", bench.root / "quiet"
    needed = {name: blocks(quiet / name) for name in ("cache", "results")}
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("to mount a small file system needs root")
    draw, said = random.Random(SEED), []
    try:
        for k in range(14):
            folder = disk / str(k)
            # from nearly nothing free to nearly enough; recordings fill most of it where they are not elsewhere
            cache = None if k < 3 else quiet / "cache"
            room = needed["results"] + (needed["cache"] if cache is None else 0)
            size = round(draw.uniform(0.02, 1.2) * room / 4096) * 4096
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            ended = bench.run(f"disk {k}", folder=folder, cache=cache)
            assert "Traceback" not in ended.said, ended.said
            said.append(f"{size:>9,} bytes: status {ended.code}, {re.findall('error: (.*)', ended.said)}")
            assert ended.code in (0, 2) and (ended.code == 0 or "No space left on device" in ended.said), ended.said
            assert_whole(folder)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            resumed = bench.run(f"disk {k}", folder=folder, cache=cache)
            assert resumed.code == 0 and bench.is_same(folder), resumed.said
            said[-1] += f"; next start: {resumed.resumed}, identical"
            subprocess.run(["rm", "-r", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    print(*said, sep="\n")
    assert sum("status 2" in line for line in said) >= 5
