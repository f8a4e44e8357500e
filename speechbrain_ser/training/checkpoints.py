"""What a checkpoint holds beyond parameters, how it appears whole, and what is wrong with a damaged one."""

import json
import logging
import os
import random
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    DEFAULT_LOAD_HOOKS,
    METAFNAME,
    Checkpoint,
    Checkpointer,
    get_default_hook,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process, main_process_only, run_on_main
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import cannot_be_written
from speechbrain_ser.training.distributed import gathered, rank, world_size

logger = logging.getLogger(__name__)


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


FILE_CHECKSUMS = "checksums.json"


PIECE = 1 << 20  # bytes read at a time


def write_checksums(folder: str | os.PathLike, names: dict[str, str] | None = None) -> None:
    """Note size and CRC-32 of a folder's files, in a file beside them.

    What torch saves is a zip archive that holds a CRC-32 of each of its parts already: those are taken, and nothing
    large is read again. :func:`damage` reads everything.

    Arguments
    ---------
    folder : str or os.PathLike
        The folder.
    names : dict of str to str, optional
        Files that will have another name.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a.txt").write_text("hello"), (folder / "b.txt").write_text("world")
    >>> write_checksums(folder)
    >>> damage(folder)
    []
    >>> _ = (folder / "a.txt").write_text("hallo"), (folder / "b.txt").write_text("wor")
    >>> damage(folder)
    ['a.txt has another content than was written', 'b.txt has 3 of 5 bytes']
    """
    files = sorted(file for file in Path(folder).iterdir() if file.is_file())
    noted = {(names or {}).get(file.name, file.name): [file.stat().st_size, _checksum(file)] for file in files}
    (Path(folder) / FILE_CHECKSUMS).write_text(json.dumps(noted, indent=0, sort_keys=True), encoding="utf-8")


def damage(folder: str | os.PathLike, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with a folder's files.

    Arguments
    ---------
    folder : str or os.PathLike
        Where :func:`write_checksums` has been.
    names : iterable of str, optional
        The files that matter; default: all.

    Returns
    -------
    list of str
        A sentence for each damaged or missing file.
    """
    try:
        noted = json.loads((Path(folder) / FILE_CHECKSUMS).read_text(encoding="utf-8"))
        wanted = {name: noted[name] for name in (sorted(noted) if names is None else names)}
        return [wrong for name, (size, crc) in wanted.items() if (wrong := _damage(Path(folder) / name, size, crc))]
    except FileNotFoundError:
        return [f"{FILE} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{FILE} is damaged ({type(error).__name__}: {error})"]


def _damage(file: Path, size: int, crc: str) -> str | None:
    try:
        found = file.stat().st_size
        if found != size:
            return f"{file.name} has {found:,} of {size:,} bytes" if found else f"{file.name} is empty"
        if _checksum(file) != crc or not _parts_are_whole(file):
            return f"{file.name} has another content than was written"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error}"
    return None


def _checksum(file: Path) -> str:
    """CRC-32 of a file; of a zip archive, of the list of its parts at its end, in which their own CRC-32 stand."""
    start = _list_of_parts(file)
    crc = 0
    with file.open("rb") as opened:
        opened.seek(start or 0)
        while piece := opened.read(PIECE):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}" if start is None else f"{crc:08x} and parts"


def _list_of_parts(file: Path) -> int | None:
    """Where a zip archive's list of its parts begins; None where it is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.start_dir
    except zipfile.BadZipFile:
        return None


def _parts_are_whole(file: Path) -> bool:
    """Whether a zip archive's parts agree with its list; any other file has none."""
    if _list_of_parts(file) is None:
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # the reader of an altered header may fail in any way
        return False


NOT_WRITTEN = ("PytorchStreamWriter", "inline_container", "iostream error")  # torch's writer raises no OSError


DAMAGED = "damaged"  # folder beside the checkpoints, for those that cannot be used


DELETED = ".deleted-"  # before the name of a checkpoint that is being deleted


BEST = "best"  # in a checkpoint's meta: the best scores so far


# what every process has its own of: all take part in saving
of_every_process = partial(register_checkpoint_hooks, save_on_main_only=False)


class DamagedCheckpoint(UserError):
    """The checkpoint that is wanted is not what was written."""


class WholeCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, except that a checkpoint counts as one only when all of it is written and unchanged.

    SpeechBrain writes CKPT.yaml, by which a folder is recognised, before the parameters: a process killed in between
    leaves a newest checkpoint that cannot be loaded. Here CKPT.yaml comes last, by a rename, after checksums of all
    files; a checkpoint that no longer agrees with them is set aside, and the one before it is taken. And of several
    processes only the main one looks into the folder, where it alone writes; the others are told what it found.
    """

    def save_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's; one that finds no room is removed again.

        Raises
        ------
        UserError
            Where the disk does not take it.
        """
        self._late_meta = None
        try:
            checkpoint = super().save_checkpoint(*args, **kwargs)
            if self._late_meta is not None:
                temporary, final = self._late_meta
                write_checksums(final.parent, {temporary.name: final.name})
                os.replace(temporary, final)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and not any(words in str(error) for words in NOT_WRITTEN):
                raise
            folder = self._late_meta[1].parent if self._late_meta else Path(self.checkpoints_dir)
            told = cannot_be_written(folder, error)
            if self._late_meta is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise told from error
        ddp_barrier()
        return checkpoint

    @main_process_only
    def find_checkpoint(self, *args, **kwargs):
        """As SpeechBrain's; see there."""
        return super().find_checkpoint(*args, **kwargs)

    def save_and_keep_only(
        self, *args, num_to_keep=1, max_keys=(), ckpt_predicate=None, verbosity=logging.INFO, **kwargs
    ):
        """As SpeechBrain's, except that one is kept as the best by a key, and that all of one vanishes at once."""
        self.save_checkpoint(*args, verbosity=verbosity, **kwargs)
        self.keep_only(num_to_keep, max_keys, ckpt_predicate, verbosity, at_least=2)

    def keep_only(
        self, num_to_keep: int, max_keys=(), ckpt_predicate=None, verbosity: int = logging.INFO, at_least: int = 1
    ) -> None:
        """Delete checkpoints.

        Arguments
        ---------
        num_to_keep : int
            How many of the newest stay.
        max_keys : iterable of str
            Keys of their meta; the best by each stays.
        ckpt_predicate : callable, optional
            Which may be deleted at all.
        verbosity : int
            Level at which deletions are logged.
        at_least : int
            How many stay, whatever else is said: one that is damaged needs one before it.
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
        """When a run is finished: only the newest and the best ones; nothing is left that could fail."""
        newest = find_epoch(self)
        if newest is not None:
            self.keep_only(1, newest.meta.get(BEST, {}))

    def recover_if_possible(self, *args, **kwargs):
        """As SpeechBrain's, after removing half-written checkpoints and setting damaged ones aside.

        Raises
        ------
        DamagedCheckpoint
            Where there are checkpoints, and none that training can go on from; they are left as they are.
        """
        self._remove_half_written()
        self._set_damaged_aside()
        return super().recover_if_possible(*args, **kwargs)

    def unreadable(self) -> dict[Path, str]:
        """Checkpoints of which nothing is known, and why; what is being written is none."""
        folders = [f for f in sorted(Path(self.checkpoints_dir).glob(f"{CKPT_PREFIX}*")) if not _is_half_written(f)]
        return {folder: wrong for folder in folders if (wrong := _unreadable(folder))}

    def _construct_checkpoint_objects(self, checkpoint_dirs):
        readable = [folder for folder in checkpoint_dirs if not _unreadable(folder)]
        return super()._construct_checkpoint_objects(readable)

    def _set_damaged_aside(self) -> None:
        damaged, good = self.unreadable(), None
        for checkpoint in self.find_checkpoints():
            if not (wrong := _damage_checkpoints(checkpoint)):
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
                f"DAMAGED CHECKPOINT {path.name}: {wrong}. It is set aside in {path.parent / DAMAGED}; "
                f"training goes on from {good.path.name} ({_when(good)})"
            )
            self._move_aside(path)

    @main_process_only
    def _move_aside(self, path: Path) -> None:
        aside = path.parent / DAMAGED / path.name
        aside.parent.mkdir(exist_ok=True)
        while aside.exists():  # names are of the second, and used again
            aside = aside.with_name(f"{aside.name}+")
        path.rename(aside)

    @main_process_only
    def _remove_half_written(self):
        """What killed processes left."""
        for folder in Path(self.checkpoints_dir).glob(f"{CKPT_PREFIX}*"):
            if _is_half_written(folder):
                shutil.rmtree(folder)
        for folder in Path(self.checkpoints_dir).glob(f"{DELETED}*"):
            shutil.rmtree(folder)

    @main_process_only
    def _delete(self, folder: Path) -> None:
        """A process that is killed meanwhile leaves no half checkpoint."""
        gone = folder.with_name(f"{DELETED}{folder.name}")
        folder.rename(gone)
        shutil.rmtree(gone)

    def _save_checkpoint_metafile(self, fpath, meta_to_include=None, end_of_epoch=True):
        temporary = _late(Path(fpath).parent)
        self._late_meta = (temporary, Path(fpath))
        noted = {**(meta_to_include or {}), "checksums": FILE_CHECKSUMS}
        return super()._save_checkpoint_metafile(temporary, noted, end_of_epoch)


def _late(folder: Path) -> Path:
    """CKPT.yaml before the checkpoint is whole."""
    return folder / f".{METAFNAME}.tmp"


def _is_half_written(folder: Path) -> bool:
    """A whole checkpoint that has lost its CKPT.yaml is not."""
    return not (folder / METAFNAME).exists() and (_late(folder).exists() or not any(folder.iterdir()))


def _unreadable(folder: Path) -> str | None:
    """What is wrong with CKPT.yaml."""
    try:
        meta = yaml.safe_load((folder / METAFNAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{METAFNAME} is missing"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"{METAFNAME} cannot be read ({type(error).__name__})"
    whole = isinstance(meta, dict) and isinstance(meta.get("unixtime"), float) and "end-of-epoch" in meta
    if not whole:
        return f"{METAFNAME} is {'damaged' if meta else 'empty'}"
    if (folder / FILE_CHECKSUMS).exists():
        return "; ".join(damage(folder, [METAFNAME])) or None
    return None


def _damage_checkpoints(checkpoint: Checkpoint, names=None) -> str:
    """What is wrong with a checkpoint's files; one of an earlier version of this program has no checksums."""
    if FILE_CHECKSUMS not in checkpoint.meta.values() and not (checkpoint.path / FILE_CHECKSUMS).exists():
        return ""
    return "; ".join(damage(checkpoint.path, names))


def _when(checkpoint: Checkpoint) -> str:
    return f"epoch {checkpoint.meta['epoch']}" if "epoch" in checkpoint.meta else "within an epoch"


def find_epoch(checkpointer: WholeCheckpointer, **keys: str | None) -> Checkpoint | None:
    """The checkpoint of a finished epoch, not one taken within it: the newest, or the best by a key of its meta.

    Arguments
    ---------
    checkpointer : WholeCheckpointer
        Where to look.
    **keys : str, optional
        ``max_key`` or ``min_key``, as SpeechBrain's ``find_checkpoint`` has them.

    Returns
    -------
    speechbrain.utils.checkpoints.Checkpoint or None

    Raises
    ------
    DamagedCheckpoint
        Where its model is damaged, or where damage leaves open which one it is: no other epoch takes its place.
    """
    is_finished = {"ckpt_predicate": lambda c: "epoch" in c.meta}
    newest, found = checkpointer.find_checkpoint(**is_finished), checkpointer.find_checkpoint(**keys, **is_finished)
    wrong = [f"{path.name}: {words}" for path, words in checkpointer.unreadable().items()]
    if found is not None and (words := _damage_checkpoints(found, ["model.ckpt"])):
        wrong.append(f"{found.path.name} ({_when(found)}): {words}")
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
    """A checkpoint's parameters, and nothing else of it, into a model, by the model's own hook where it has one."""
    get_default_hook(model, DEFAULT_LOAD_HOOKS)(model, checkpoint.paramfiles["model"], end_of_epoch=True)


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


DECOMPOSITION, SPEAKER = "decomposition.", "heads.speaker."


def load_stage_1(model: nn.Module, run_folder: str | os.PathLike, speakers: Sequence[str]) -> None:
    """Take over the parameters of a pre-training run, through SpeechBrain's Pretrainer.

    Arguments
    ---------
    model : HsuModel
        Its decomposition may have fewer parts than stage 1's; its speaker head, where it has one, is stage 1's as
        far as the speakers are.
    run_folder : str or os.PathLike
        Of a run of hsu_pretrain.yaml.
    speakers : sequence of str
        Of the model's speaker head, in the order of its logits.

    Raises
    ------
    UserError
        Without a checkpoint there, or with one that does not fit.
    """
    save = Path(run_folder) / "save"
    checkpoint = find_epoch(WholeCheckpointer(save))  # the last one's
    if checkpoint is None:
        raise UserError(f"pretrained: {run_folder} holds no checkpoint of a finished epoch")
    theirs = json.loads((save / "speakers.json").read_text(encoding="utf-8"))
    hook = partial(_take_over, theirs=theirs, ours=list(speakers))
    pretrainer = Pretrainer(
        loadables={"model": model}, paths={"model": str(checkpoint.paramfiles["model"])}, custom_hooks={"model": hook}
    )
    pretrainer.collect_files()
    pretrainer.load_collected()
    logger.info(f"started from {run_folder}, epoch {checkpoint.meta['epoch']}")


def _take_over(model: nn.Module, path: str | os.PathLike, theirs: list[str], ours: list[str]) -> None:
    """Copy what both models have; rows of the speaker head by the speakers' names."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith((DECOMPOSITION, SPEAKER))}
    taken = {name: state[name] for name in wanted if name in state}
    if strangers := sorted(set(ours) - set(theirs)):
        if any(name.startswith(SPEAKER) for name in wanted):
            raise UserError(f"pretrained: {path} knows no speakers {', '.join(strangers)}, who are trained on here")
    else:
        rows = [theirs.index(speaker) for speaker in ours]
        taken |= {name: value[rows] for name, value in taken.items() if name.startswith(SPEAKER)}
    wrong = [
        f"{name}: there {list(taken[name].shape) if name in taken else 'absent'}, here {list(value.shape)}"
        for name, value in wanted.items()
        if (name not in taken and not name.startswith(SPEAKER)) or (name in taken and taken[name].shape != value.shape)
    ]
    if wrong:
        more = f"\n  … and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise UserError("\n  ".join([f"pretrained: {path} has other sizes:", *wrong[:10]]) + more)
    model.load_state_dict(taken, strict=False)
