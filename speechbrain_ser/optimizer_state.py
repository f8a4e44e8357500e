"""The optimiser's part of a run's checkpoints: two thirds of their size, of use only to train on."""

import os
from pathlib import Path

CHECKPOINTS = "CKPT+*"  # SpeechBrain's names, without importing it
FILE = "optimizer.ckpt"


def has_optimizer(save: str | os.PathLike) -> bool:
    """Whether a checkpoint of a run's `save/` folder still holds what further training needs.

    Example
    -------
    >>> save = getfixture("tmp_path")
    >>> checkpoint = save / "CKPT+1"
    >>> checkpoint.mkdir()
    >>> for name in ("CKPT.yaml", "model.ckpt", "optimizer.ckpt"):
    ...     (checkpoint / name).touch()
    >>> has_optimizer(save)
    True
    >>> drop_optimizer(save)
    >>> has_optimizer(save), sorted(file.name for file in checkpoint.iterdir())
    (False, ['CKPT.yaml', 'model.ckpt'])
    """
    return any((meta.parent / FILE).exists() for meta in Path(save).glob(f"{CHECKPOINTS}/CKPT.yaml"))


def drop_optimizer(save: str | os.PathLike) -> None:
    """Delete it from a finished run's `save/` folder."""
    for file in Path(save).glob(f"{CHECKPOINTS}/{FILE}"):
        file.unlink(missing_ok=True)
