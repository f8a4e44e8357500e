"""A training in a process of its own that something happens to: at a call of a function, or after some seconds."""

import collections
import functools
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE = 600  # seconds until a training that hangs is ended, on a machine that does other things as well
PLACES = {
    "manifest: rows are written, the file has no name": ("speechbrain_ser.data.manifest:_read", "before"),
    "manifest: between the two files": ("speechbrain_ser.data.manifest:write_json", "before"),
    "preparation: in a resampled recording": ("pathlib:Path.write_bytes", "half"),
    "preparation: in a file of the run's folder": ("pathlib:Path.write_text", "half"),
    "step: after a forward pass": ("speechbrain_ser.training.brain:SERBrain.weighted_sum", "after"),
    "step: after a backward pass": ("torch:Tensor.backward", "after"),
    "step: before the optimiser's": ("torch.optim:AdamW.step", "before"),
    "step: after the optimiser's": ("torch.optim:AdamW.step", "after"),
    "checkpoint: in a file": ("torch:save", "half"),
    "checkpoint: between two files": ("torch:save", "after"),
    "checkpoint: all written, not yet named": ("speechbrain.utils.checkpoints:Checkpointer.save_checkpoint", "after"),
    "checkpoint: while an older one is deleted": ("shutil:rmtree", "before"),
    "epoch: validation or test of it": ("speechbrain_ser.training.brain:SERBrain.prediction_rows", "before"),
    "epoch: its row is written, its checkpoint not": ("speechbrain_ser.training.brain:write_csv", "after"),
    "results: a checkpoint is loaded for a test": (
        "speechbrain_ser.training.brain:SERBrain.on_evaluate_start",
        "after",
    ),
    "results: predictions are written": ("speechbrain_ser.training.results:write_csv", "after"),
    "results: before metrics.json": ("speechbrain_ser.training.results:write_json", "before"),
}


@dataclass(frozen=True)
class Fault:
    """What happens, and when."""

    place: str | None = None  # `module:name` of a function
    how: str = "before"  # after, or half: in the middle of writing the file that is its first argument
    call: int = 1  # at which of its calls
    seconds: float | None = None  # so long after the start of training's program
    signals: tuple[int, ...] = (signal.SIGKILL,)  # what the process gets
    loader: bool = False  # whether one of its loading processes gets it
    file_size: int | None = None  # bytes, above which no file can be

    def strike(self, note: Path) -> None:
        """Say where we are, then do it."""
        note.write_text(_where(), encoding="utf-8")
        process = multiprocessing.active_children()[0] if self.loader else None
        for number in self.signals:
            os.kill(process.pid if process else os.getpid(), number)


@dataclass
class Ended:
    """How a training ended."""

    code: int  # its exit status; negative: the signal
    said: str  # on both streams
    where: str  # what it was doing when it was struck; empty where it was not
    seconds: float
    calls: dict[str, int] = field(default_factory=dict)  # of the places, where they were counted

    @property
    def resumed(self) -> str:
        """Where a resumed training began."""
        found = re.search(r"resumed after epoch .*|finished already", self.said)
        return found[0] if found else "from the start"


def server():
    """A process that has imported everything, from which each training is forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "recipes.cai_mtl.brain", "recipes.fu_cross_lingual.brain", __name__])
    return context


def train(context, argv: list[str], folder: Path, fault: Fault | None = None, count: bool = False) -> Ended:
    """Run train.py's main in a process of :func:`server`'s; notes go into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    note, counts = folder / "note", folder / "counts"
    note.unlink(missing_ok=True)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(argv, theirs, fault, note, counts if count else None))
    start = time.monotonic()
    process.start()
    theirs.close()
    watch = threading.Timer(PATIENCE, process.kill)
    watch.start()
    said = b""
    while piece := os.read(ours.fileno(), 1 << 16):
        said += piece
    process.join()
    watch.cancel()
    where = note.read_text(encoding="utf-8") if note.exists() else ""
    calls = json.loads(counts.read_text()) if count and counts.exists() else {}
    return Ended(process.exitcode, said.decode(errors="replace"), where, time.monotonic() - start, calls)


def _main(argv, pipe, fault, note, counts):
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(pipe.fileno(), 1)
    os.dup2(pipe.fileno(), 2)
    pipe.close()
    import torch
    from speechbrain.utils import logger

    from speechbrain_ser.training.run import main

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loading processes, as in a program of its own
    logger.get_environment_description = lambda: "not listed in tests\n"
    tally = collections.Counter()
    if counts:
        for place in {place for place, _ in PLACES.values()}:
            _count(place, tally)
    if fault and fault.place:
        _plant(fault, note)
    if fault and fault.seconds is not None:
        threading.Thread(target=lambda: (time.sleep(fault.seconds), fault.strike(note)), daemon=True).start()
    if fault and fault.file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size,) * 2)
    code = main(argv, ROOT / "hparams")
    if counts:
        counts.write_text(json.dumps(tally))
    sys.stdout.flush()
    os._exit(code)


def _find(place):
    module, _, name = place.partition(":")
    owner, *names = importlib.import_module(module), *name.split(".")
    for each in names[:-1]:
        owner = getattr(owner, each)
    return owner, names[-1]


def _count(place, tally):
    owner, name = _find(place)
    original = getattr(owner, name)

    @functools.wraps(original)
    def counted(*args, **kwargs):
        tally[place] += 1
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def _plant(fault, note):
    owner, name = _find(fault.place)
    original, calls, lock = getattr(owner, name), [0], threading.Lock()

    @functools.wraps(original)
    def struck(*args, **kwargs):
        with lock:
            calls[0] += 1
            is_now = calls[0] == fault.call
        if is_now and fault.how == "before":
            fault.strike(note)
        result = original(*args, **kwargs)
        if is_now and fault.how == "half":
            path = next(a for a in args if isinstance(a, str | os.PathLike))
            os.truncate(path, os.stat(path).st_size // 2)
        if is_now and fault.how != "before":
            fault.strike(note)
        return result

    setattr(owner, name, struck)


def _where() -> str:
    """The innermost function of ours that the main thread is in."""
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests"):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside"


def random_instants(reference: Ended, n_times: int, seed: int) -> dict[str, Fault]:
    """Instants of a run whose calls were counted: every place at a random one of its calls, then random times."""
    draw, instants = random.Random(seed), {}
    for name, (place, how) in PLACES.items():
        fault = Fault(place, how, draw.randint(1, reference.calls[place]))
        instants[f"{name} (call {fault.call} of {reference.calls[place]})"] = fault
    for _ in range(n_times):
        instants[f"random time {len(instants) - len(PLACES) + 1}"] = Fault(seconds=draw.uniform(0.0, reference.seconds))
    return instants
