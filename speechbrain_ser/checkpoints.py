"""What a checkpoint holds beyond parameters, and how it becomes visible only when it is whole."""

import json
import logging
import os
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    Checkpoint,
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process, main_process_only, run_on_main

from speechbrain_ser.distributed import gathered, rank, world_size

logger = logging.getLogger(__name__)

# what every process has its own of: all take part in saving
of_every_process = partial(register_checkpoint_hooks, save_on_main_only=False)


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, except that a checkpoint counts as one only when all of it is written.

    SpeechBrain writes CKPT.yaml, by which a folder is recognised, before the parameters: a process killed in between
    leaves a newest checkpoint that cannot be loaded. Here CKPT.yaml comes last, by a rename. And of several processes
    only the main one looks into the folder, where it alone writes; the others are told what it found.
    """

    def save_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's; see there."""
        self._late_meta = None
        checkpoint = super().save_checkpoint(*args, **kwargs)
        if self._late_meta is not None:
            os.replace(*self._late_meta)
        ddp_barrier()
        return checkpoint

    @main_process_only
    def find_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's; see there."""
        return super().find_checkpoint(*args, **kwargs)

    @main_process_only
    def delete_checkpoints(self, *args, **kwargs):
        """As SpeechBrain's; see there."""
        super().delete_checkpoints(*args, **kwargs)

    def recover_if_possible(self, *args, **kwargs):
        """As SpeechBrain's, after removing the checkpoints that killed processes left half-written."""
        self._remove_half_written()
        return super().recover_if_possible(*args, **kwargs)

    @main_process_only
    def _remove_half_written(self):
        for folder in Path(self.checkpoints_dir).glob(f"{CKPT_PREFIX}*"):
            if not (folder / METAFNAME).exists():
                shutil.rmtree(folder)

    def _save_checkpoint_metafile(self, fpath, meta_to_include=None, end_of_epoch=True):
        temporary = Path(fpath).with_name(f".{METAFNAME}.tmp")
        self._late_meta = (temporary, fpath)
        return super()._save_checkpoint_metafile(temporary, meta_to_include or {}, end_of_epoch)


def find_epoch(checkpointer: Checkpointer, **keys: str | None) -> Checkpoint | None:
    """The checkpoint of a finished epoch, not one taken within it: the newest, or the best by a key of its meta.

    Arguments
    ---------
    checkpointer : speechbrain.utils.checkpoints.Checkpointer
        Where to look.
    **keys : str, optional
        ``max_key`` or ``min_key``, as SpeechBrain's ``find_checkpoint`` has them.

    Returns
    -------
    speechbrain.utils.checkpoints.Checkpoint or None
    """
    return checkpointer.find_checkpoint(**keys, ckpt_predicate=lambda c: "epoch" in c.meta)


@of_every_process
class RandomState:
    """The Python, NumPy and torch random states of every process (SpecAugment and layerdrop draw from NumPy and torch).

    Loading sets them at once: the loaders draw from a generator of their own, so nothing comes between.
    """

    @mark_as_saver
    def save(self, path):
        """Write the states, by rank."""
        # the legacy global generator is the one transformers' SpecAugment draws from
        numpy_state = np.random.get_state()  # noqa: NPY002
        states = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()  # of this process's own device
        run_on_main(torch.save, [gathered(states), path])

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Set this process's states; with more processes than there were, some go on from their own seed."""
        del end_of_epoch
        found = torch.load(path, map_location="cpu", weights_only=False)
        if len(found) != world_size():
            logger.warning(
                f"the checkpoint is of {len(found)} process(es), here are {world_size()}: what is drawn at random "
                "(dropout, SpecAugment, crops) differs from a run that was not interrupted"
            )
        if rank() >= len(found):
            return
        states = found[rank()]
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])  # noqa: NPY002
        torch.set_rng_state(states["torch"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])


@of_every_process
class Tally:
    """Sums over the utterances of a stage: losses of each task, correct emotions.

    Example
    -------
    >>> tally = Tally()
    >>> tally.add(loss=torch.tensor([1.0, 3.0]), correct=torch.tensor([True, False]))
    >>> tally.means()
    {'loss': 2.0, 'correct': 0.5}
    """

    def __init__(self):
        self.reset()

    def reset(self):
        """Forget everything."""
        self.sums: dict[str, float] = {}
        self.n = 0

    def add(self, **values: torch.Tensor) -> None:
        """Add a batch: one tensor [batch] a quantity."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach().double().sum())
        self.n += len(next(iter(values.values())))

    def means(self) -> dict[str, float]:
        """The mean of each quantity over the utterances."""
        return {name: total / max(self.n, 1) for name, total in self.sums.items()}

    def join(self) -> None:
        """Add up what all processes have."""
        self._add_up(gathered(self._state()))

    def _add_up(self, states: list[dict]) -> None:
        self.reset()
        for state in states:
            self.n += state["n"]
            for name, total in state["sums"].items():
                self.sums[name] = self.sums.get(name, 0.0) + total

    def _state(self) -> dict:
        return {"sums": self.sums, "n": self.n}

    @mark_as_saver
    def save(self, path):
        """Write the sums of every process (a checkpoint within an epoch)."""
        run_on_main(Path(path).write_text, [json.dumps(gathered(self._state()))])

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read this process's sums; a new epoch starts from nothing."""
        if end_of_epoch:
            return
        states = json.loads(Path(path).read_text())
        if len(states) == world_size():
            self._add_up([states[rank()]])
        else:  # another number of processes: the main one has them all
            self._add_up(states if if_main_process() else [])


@register_checkpoint_hooks
class History:
    """The rows of epochs.csv; part of the checkpoint, so that a resumed run repeats or loses none."""

    def __init__(self):
        self.rows: list[dict] = []

    @mark_as_saver
    def save(self, path):
        """Write the rows."""
        Path(path).write_text(json.dumps(self.rows))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read the rows."""
        del end_of_epoch
        self.rows = json.loads(Path(path).read_text())
