"""Where an epoch's figures go beside epochs.csv: train_log.txt, and TensorBoard or Weights & Biases where asked for."""

import logging
from collections.abc import Callable
from pathlib import Path

from speechbrain.utils.train_logger import FileTrainLogger, TensorboardLogger, WandBLogger

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.files import cannot_be_written

# on its import SpeechBrain warns that it could not save images with torchvision, which nobody asked for
logging.getLogger("speechbrain.utils.train_logger").addFilter(lambda record: "torchvision" not in record.getMessage())

PARTS = ("train", "valid", "test")


def make_loggers(output_folder: Path, tracker: str | None) -> list[Callable[[dict, dict], None]]:
    """Return functions that take (meta, {"train": figures, …}) after an epoch.

    Arguments
    ---------
    output_folder : pathlib.Path
        The run's folder.
    tracker : str, optional
        ``tensorboard`` or ``wandb``.

    Raises
    ------
    UserError
        For an unknown tracker, or one that is not installed.
    """
    check_tracker(tracker)
    return [_log_to_file(output_folder), *([TRACKERS[tracker](output_folder)] if tracker else [])]


def check_tracker(tracker: str | None) -> None:
    """Raise early where the tracker is unknown or its package is missing."""
    if not tracker:
        return
    if tracker not in TRACKERS:
        raise UserError(f"tracker: '{tracker}' is unknown{nearest(tracker, TRACKERS)}; known: {', '.join(TRACKERS)}")
    try:
        __import__(tracker)
    except ImportError:
        raise UserError(f'tracker: {tracker} is not installed: pip install "speechbrain-ser[track]"') from None


def _log_to_file(output_folder: Path) -> Callable:
    logger = FileTrainLogger(str(output_folder / "train_log.txt"))

    def log(meta: dict, parts: dict) -> None:
        texts = {p: f and {k: f"{v:.4g}" for k, v in f.items()} for p, f in parts.items()}
        try:
            logger.log_stats(meta, *(texts[p] for p in PARTS))
        except OSError as error:
            raise cannot_be_written(logger.save_file, error) from error

    return log


def _tensorboard(output_folder: Path) -> Callable:
    board = TensorboardLogger(str(output_folder / "tensorboard"))

    def log(meta: dict, parts: dict) -> None:
        # SpeechBrain's logger counts epochs by itself from 0: a resumed run would start again
        done = meta["epoch"] - 1
        board.global_step = {"meta": done, **{p: dict.fromkeys(f or (), done) for p, f in parts.items()}}
        board.log_stats(meta, *(parts[p] for p in PARTS))
        board.writer.flush()  # else minutes later, and never in a killed process

    return log


def _wandb(output_folder: Path) -> Callable:
    import wandb

    board = WandBLogger(wandb.init, dir=output_folder, project="speechbrain-ser", resume="allow")
    return lambda meta, parts: board.log_stats(meta, *(parts[p] for p in PARTS))


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}
