"""What a checkpoint holds beyond parameters, and how it becomes visible only when it is whole."""

import json
import os
import random
import shutil
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
from speechbrain.utils.distributed import main_process_only


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, except that a checkpoint counts as one only when all of it is written.

    SpeechBrain writes CKPT.yaml, by which a folder is recognised, before the parameters: a process killed in between
    leaves a newest checkpoint that cannot be loaded. Here CKPT.yaml comes last, by a rename.
    """

    def save_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's; see there."""
        self._late_meta = None
        checkpoint = super().save_checkpoint(*args, **kwargs)
        if self._late_meta is not None:
            os.replace(*self._late_meta)
        return checkpoint

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


@register_checkpoint_hooks
class RandomState:
    """The Python, NumPy and torch random states (SpecAugment and layerdrop draw from NumPy and torch).

    Loading sets them at once: the loaders draw from a generator of their own, so nothing comes between.
    """

    @mark_as_saver
    def save(self, path):
        """Write the states."""
        # the legacy global generator is the one transformers' SpecAugment draws from
        numpy_state = np.random.get_state()  # noqa: NPY002
        states = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state_all()
        torch.save(states, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Set the states."""
        del end_of_epoch
        states = torch.load(path, map_location="cpu", weights_only=False)
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])  # noqa: NPY002
        torch.set_rng_state(states["torch"])
        if "cuda" in states and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])


@register_checkpoint_hooks
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

    @mark_as_saver
    def save(self, path):
        """Write the sums (a checkpoint within an epoch)."""
        Path(path).write_text(json.dumps({"sums": self.sums, "n": self.n}))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read the sums; a new epoch starts from nothing."""
        if not end_of_epoch:
            state = json.loads(Path(path).read_text())
            self.sums, self.n = state["sums"], state["n"]


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
