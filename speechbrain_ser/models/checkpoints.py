"""Find a run's checkpoint of an epoch, know whether it is damaged, load the model of it."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    DEFAULT_LOAD_HOOKS,
    METAFNAME,
    Checkpoint,
    Checkpointer,
    get_default_hook,
)
from speechbrain.utils.distributed import main_process_only
from torch import nn

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import read_csv

# in a checkpoint's meta, beside the `epoch` that is finished: the best scores so far; within an epoch the last one that
# was finished, and the steps of the next
BEST, AFTER, STEP = "best", "after_epoch", "step"
BACKBONES = "backbones"  # in a run's save/: the settings of pretrained encoders, whose weights are in the checkpoints


class DamagedCheckpoint(UserError):
    """The checkpoint that is wanted is not what was written."""


class CheckpointReader(Checkpointer):
    """SpeechBrain's Checkpointer, for which a folder whose CKPT.yaml cannot be read is no checkpoint.

    They are ordered by where in training they were taken, whatever the clock said. Of several processes only the main
    one looks into the folder; the others are told what it found.
    """

    @main_process_only
    def find_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's."""
        return super().find_checkpoint(*args, **kwargs)

    def unreadable(self) -> dict[Path, str]:
        """Return the checkpoints of which nothing is known, and why."""
        folders = sorted(Path(self.checkpoints_dir).glob(f"{CKPT_PREFIX}*"))
        return {folder: wrong for folder in folders if (wrong := _wrong_meta(folder / METAFNAME))}

    def _construct_checkpoint_objects(self, checkpoint_dirs):
        readable = [folder for folder in checkpoint_dirs if not _wrong_meta(folder / METAFNAME)]
        found = super()._construct_checkpoint_objects(readable)
        # by this SpeechBrain orders; a clock may be set back, or be another machine's, and is for names alone
        return [each._replace(meta={**each.meta, "unixtime": _place(each.meta)}) for each in found]


def _place(meta: dict) -> tuple[int, int]:
    """Where in training a checkpoint was taken: finished epochs, and steps of the next."""
    return meta.get("epoch", meta.get(AFTER, 0)), meta.get(STEP, 0)


def _wrong_meta(file: Path) -> str | None:
    try:
        meta = yaml.safe_load(text := file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{file.name} is missing"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"{file.name} cannot be read ({type(error).__name__})"
    is_whole = isinstance(meta, dict) and isinstance(meta.get("unixtime"), float) and "end-of-epoch" in meta
    # cut off within a line, or after a key
    is_whole = is_whole and text.endswith("\n") and all(isinstance(number, int) for number in _place(meta))
    return None if is_whole else f"{file.name} is {'damaged' if meta else 'empty'}"


def damage(checkpoint: Path, names: Iterable[str]) -> str:
    """Say what is wrong with a checkpoint's files of some recoverables; empty where all are as they were written.

    What torch saves is a zip archive, which holds a CRC-32 of each of its parts.
    """
    return "; ".join(wrong for name in names if (wrong := _wrong_file(checkpoint / f"{name}.ckpt")))


def _wrong_file(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            head = opened.read(2)
        if not head:
            return f"{file.name} is empty"
        if head != b"PK" and not zipfile.is_zipfile(file):
            return None  # a number or two, in text
        with zipfile.ZipFile(file) as archive:
            is_whole = archive.testzip() is None
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error}"
    except Exception:  # the reader of an altered header may fail in any way
        is_whole = False
    return None if is_whole else f"{file.name} has another content than was written"


def when(checkpoint: Checkpoint) -> str:
    """Say of which epoch a checkpoint is."""
    return f"epoch {checkpoint.meta['epoch']}" if "epoch" in checkpoint.meta else "within an epoch"


def newest_whole(save: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run's ``save/`` whose model is not damaged, in this very process."""
    found = CheckpointReader(save).find_checkpoints()
    return next((checkpoint for checkpoint in found if not damage(checkpoint.path, ["model"])), None)


def find_epoch(checkpointer: CheckpointReader, **keys: str | None) -> Checkpoint | None:
    """Return the checkpoint of a finished epoch, not one taken within it: the newest, or the best by a key of its meta.

    `keys` are ``max_key`` or ``min_key``, as SpeechBrain's ``find_checkpoint`` has them. No other epoch takes its place
    where its model is damaged, where damage leaves open which one it is, or where epochs.csv has a later epoch.
    """
    is_finished = {"ckpt_predicate": lambda c: "epoch" in c.meta}
    newest, found = checkpointer.find_checkpoint(**is_finished), checkpointer.find_checkpoint(**keys, **is_finished)
    wrong = [f"{path.name}: {words}" for path, words in checkpointer.unreadable().items()]
    if found is not None and (words := damage(found.path, ["model"])):
        wrong.append(f"{found.path.name} ({when(found)}): {words}")
    history = Path(checkpointer.checkpoints_dir).parent / "epochs.csv"
    if newest is not None and history.is_file():
        last = read_csv(history, ["epoch"])["epoch"].max()
        if last > newest.meta["epoch"]:
            wrong.append(f"{newest.path.name} ({when(newest)}) is the newest, but {history} has epoch {last}")
    for key in filter(None, keys.values()):
        best = newest.meta.get(BEST, {}).get(key) if newest else None
        if best is not None and (found is None or found.meta[key] < best):
            wrong.append(f"the checkpoint of the best epoch ({key} {best:.4f}) is not there")
    if wrong:
        folder = Path(checkpointer.checkpoints_dir)
        raise DamagedCheckpoint(
            f"damaged checkpoints in {folder}:\n  "
            + "\n  ".join(wrong)
            + "\n  No other epoch is used in the place of the one that is asked for. "
            f"Remove {folder.parent / 'metrics.json'}, where there is one, to train on from the newest whole "
            f"checkpoint, or {folder.parent} to train from the start"
        )
    return found


def load_parameters(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's parameters, and nothing else of it, by the model's own hook where it has one."""
    get_default_hook(model, DEFAULT_LOAD_HOOKS)(model, checkpoint.paramfiles["model"], end_of_epoch=True)
