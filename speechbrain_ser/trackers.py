"""Where the figures of an epoch go: train_log.txt always, TensorBoard or Weights & Biases by one YAML line."""

import logging
from collections.abc import Callable
from pathlib import Path

# on its import SpeechBrain warns that it could not save images with torchvision, which nobody asked for
logging.getLogger("speechbrain.utils.train_logger").addFilter(lambda record: "torchvision" not in record.getMessage())

from speechbrain.utils.train_logger import FileTrainLogger, TensorboardLogger, WandBLogger  # noqa: E402

from speechbrain_ser.errors import UserError, nearest  # noqa: E402
from speechbrain_ser.files import cannot_be_written  # noqa: E402

TRACKERS = ("tensorboard", "wandb")
PARTS = ("train", "valid", "test")


def make_loggers(output_folder: str, tracker: str | None) -> list[Callable[[dict, dict], None]]:
    """Functions that take (meta, {"train": figures, …}) after an epoch.

    Arguments
    ---------
    output_folder : str
        The run's folder.
    tracker : str, optional
        ``tensorboard`` or ``wandb``.

    Returns
    -------
    list of callable

    Raises
    ------
    UserError
        For an unknown tracker, or one that is not installed.
    """
    logs = [_log_to_file(FileTrainLogger(str(Path(output_folder) / "train_log.txt")))]
    if tracker:
        check_tracker(tracker)
        logs.append({"tensorboard": _tensorboard, "wandb": _wandb}[tracker](output_folder))
    return logs


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


def _log_to_file(file_logger: FileTrainLogger) -> Callable:
    def log(meta: dict, parts: dict) -> None:
        texts = {p: f and {k: f"{v:.4g}" for k, v in f.items()} for p, f in parts.items()}
        try:
            file_logger.log_stats(meta, *(texts[p] for p in PARTS))
        except OSError as error:
            raise cannot_be_written(file_logger.save_file, error) from error

    return log


def _tensorboard(output_folder: str) -> Callable:
    board = TensorboardLogger(str(Path(output_folder) / "tensorboard"))

    def log(meta: dict, parts: dict) -> None:
        # SpeechBrain's logger counts epochs by itself from 0: a resumed run would start again
        done = meta["epoch"] - 1
        board.global_step = {"meta": done, **{p: dict.fromkeys(f or (), done) for p, f in parts.items()}}
        board.log_stats(meta, *(parts[p] for p in PARTS))
        board.writer.flush()  # else minutes later, and never in a killed process

    return log


def _wandb(output_folder: str) -> Callable:
    import wandb

    board = WandBLogger(wandb.init, dir=output_folder, project="speechbrain-ser", resume="allow")
    return lambda meta, parts: board.log_stats(meta, *(parts[p] for p in PARTS))
