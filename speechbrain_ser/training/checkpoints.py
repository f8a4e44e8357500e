"""What a checkpoint holds beyond parameters, how it appears whole, and what training does about a damaged one."""

import logging
import random
import shutil
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.checkpoints import CKPT_PREFIX, mark_as_loader, mark_as_saver, register_checkpoint_hooks
from speechbrain.utils.distributed import ddp_barrier, if_main_process, main_process_only, run_on_main

from speechbrain_ser.files import HALF, cannot_be_written
from speechbrain_ser.models.checkpoints import BEST, CheckpointReader, DamagedCheckpoint, damage, find_epoch, when
from speechbrain_ser.training.distributed import gathered, rank, world_size

logger = logging.getLogger(__name__)

NOT_WRITTEN = ("PytorchStreamWriter", "inline_container", "iostream error")  # torch's writer raises no OSError
UNFINISHED = "."  # before the name of a checkpoint that is being written or deleted
DAMAGED = "damaged-"  # begins the names of folders beside the checkpoints, for those that cannot be used

# what every process has its own of: all take part in saving
of_every_process = partial(register_checkpoint_hooks, save_on_main_only=False)


class WholeCheckpointer(CheckpointReader):
    """SpeechBrain's Checkpointer, except that a checkpoint appears by one rename of its folder, and vanishes by one.

    Before training goes on a damaged one is set aside, and the one before it is taken.
    """

    def __init__(self, checkpoints_dir, *args, **kwargs):
        super().__init__(checkpoints_dir, *args, **kwargs)
        self.folder = Path(checkpoints_dir).parent  # the run's; with --debug SpeechBrain moves checkpoints_dir to /tmp

    def save_checkpoint(self, *args, verbosity: int = logging.INFO, **kwargs):
        """As SpeechBrain's; one that finds no room is removed again."""
        try:
            checkpoint = super().save_checkpoint(*args, verbosity=logging.DEBUG, **kwargs)
            if checkpoint is not None:  # in the main process, which alone writes
                whole = checkpoint.path.with_name(checkpoint.path.name.removeprefix(UNFINISHED))
                checkpoint.path.rename(whole)
                (checkpoint,) = self._construct_checkpoint_objects([whole])
                logger.log(verbosity, f"Saved checkpoint in {whole}")  # SpeechBrain tells its first name
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and not any(words in str(error) for words in NOT_WRITTEN):
                raise
            told = cannot_be_written(self.checkpoints_dir, error)
            self._remove_unfinished()
            raise told from error
        ddp_barrier()
        return checkpoint

    def save_and_keep_only(
        self, *args, num_to_keep=1, max_keys=(), ckpt_predicate=None, verbosity=logging.INFO, **kwargs
    ):
        """As SpeechBrain's, except that one is kept as the best by a key, and that all of one vanishes at once."""
        self.save_checkpoint(*args, verbosity=verbosity, **kwargs)
        self.keep_only(num_to_keep, max_keys, ckpt_predicate, verbosity, at_least=2)

    def keep_only(
        self, num_to_keep: int, max_keys=(), ckpt_predicate=None, verbosity: int = logging.INFO, at_least: int = 1
    ) -> None:
        """Delete all that may be deleted, but some of the newest and the best by each key of their meta.

        `at_least` so many stay, whatever else is said: one that is damaged needs one before it.
        """
        n_all, found = len(self.list_checkpoints()), self.find_checkpoints(ckpt_predicate=ckpt_predicate)
        best = [self.find_checkpoint(max_key=key) for key in max_keys]
        kept = {checkpoint.path for checkpoint in [*found[:num_to_keep], *best] if checkpoint is not None}
        ddp_barrier()
        spare = [checkpoint for checkpoint in reversed(found) if checkpoint.path not in kept]  # the oldest first
        for checkpoint in spare[: max(0, n_all - at_least)]:
            self._delete(checkpoint.path)
            logger.log(verbosity, f"Deleted checkpoint in {checkpoint.path}")
        ddp_barrier()

    def keep_for_tests(self) -> None:
        """When a run is finished: keep only the newest and the best ones; nothing is left that could fail."""
        self._remove_unfinished()
        newest = find_epoch(self)
        if newest is not None:
            self.keep_only(1, newest.meta.get(BEST, {}))

    def recover_if_possible(self, *args, **kwargs):
        """As SpeechBrain's, after removing unfinished checkpoints and setting damaged ones aside.

        Where all are damaged it raises :class:`DamagedCheckpoint`, and they are left as they are.
        """
        self._remove_unfinished()
        self._set_damaged_aside()
        return super().recover_if_possible(*args, **kwargs)

    def _set_damaged_aside(self) -> None:
        damaged, good = self.unreadable(), None
        for checkpoint in self.find_checkpoints():
            if not (wrong := damage(checkpoint.path, self.recoverables)):
                good = checkpoint
                break
            damaged[checkpoint.path] = wrong
        if damaged and good is None:
            lines = [f"{path.name}: {wrong}" for path, wrong in damaged.items()]
            raise DamagedCheckpoint(
                f"{self.checkpoints_dir} holds no checkpoint that training can go on from:\n  "
                + "\n  ".join(lines)
                + f"\n  They are left as they are; delete {Path(self.checkpoints_dir).parent} to train from the start"
            )
        ddp_barrier()  # every process has looked
        for path, wrong in damaged.items():
            logger.warning(
                f"DAMAGED CHECKPOINT {path.name}: {wrong}. It is set aside in {path.parent / DAMAGED}…; "
                f"training goes on from {good.path.name} ({when(good)})"
            )
            self._move_aside(path)

    @main_process_only
    def _move_aside(self, path: Path) -> None:
        path.rename(Path(tempfile.mkdtemp(prefix=DAMAGED, dir=path.parent)) / path.name)

    def _remove_unfinished(self) -> None:
        """Sweep what a killed process has left in the run's folder."""
        if if_main_process():  # which others need not wait for
            for folder in Path(self.checkpoints_dir).glob(f"{UNFINISHED}{CKPT_PREFIX}*"):
                shutil.rmtree(folder, ignore_errors=True)
            for half in self.folder.rglob(HALF):
                half.unlink(missing_ok=True)

    @main_process_only
    def _delete(self, folder: Path) -> None:
        """A process that is killed meanwhile leaves no half checkpoint."""
        gone = folder.with_name(f"{UNFINISHED}{folder.name}")
        folder.rename(gone)
        shutil.rmtree(gone)

    def _new_checkpoint_dirpath(self) -> Path:
        whole = super()._new_checkpoint_dirpath()
        return whole.with_name(f"{UNFINISHED}{whole.name}")


def has_optimizer(save: Path) -> bool:
    """Whether the newest checkpoint of a run's `save/` folder still holds what further training needs."""
    newest = CheckpointReader(save).find_checkpoint()
    return newest is not None and "optimizer" in newest.paramfiles


@of_every_process
class RandomState:
    """Random states of Python, NumPy and torch, of every process (SpecAugment draws from NumPy's)."""

    @mark_as_saver
    def save(self, path):
        # the legacy global generator is the one transformers' SpecAugment draws from
        numpy_state = np.random.get_state()  # noqa: NPY002
        states = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()  # of this process's own device
        run_on_main(torch.save, [gathered(states), path])

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Set this process's states; with more processes than there were, some go on from their own seed."""
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
    """Sums over the utterances of a stage: losses of each task, correct emotions."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.sums, self.n = Counter(), Counter()  # and of how many utterances

    def add(self, **values: torch.Tensor) -> None:
        """Add a batch: one tensor a quantity, [batch], or of those utterances that have it."""
        for name, value in values.items():
            self.sums[name] += float(value.detach().double().sum())
            self.n[name] += len(value)

    def means(self) -> dict[str, float]:
        """The mean of each quantity over the utterances."""
        return {name: total / max(self.n[name], 1) for name, total in self.sums.items()}

    def join(self) -> None:
        """Add up what all processes have."""
        self._add_up(gathered(self._state()))

    def _add_up(self, states: list[dict]) -> None:
        self.reset()
        for state in states:
            self.sums.update(state["sums"])
            self.n.update(state["n"])

    def _state(self) -> dict:
        return {"sums": self.sums, "n": self.n}

    @mark_as_saver
    def save(self, path):
        """Write the sums of every process (a checkpoint within an epoch)."""
        run_on_main(torch.save, [gathered(self._state()), path])

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read this process's sums; a new epoch starts from nothing."""
        if end_of_epoch:
            return
        states = torch.load(path, weights_only=False)
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
        torch.save(self.rows, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.rows = torch.load(path, weights_only=False)
