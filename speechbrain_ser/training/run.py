"""One run from a command line: prepare, build, fit, test. The same for every system's YAML."""

import contextlib
import hashlib
import inspect
import json
import logging
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, infer_device

from speechbrain_ser.data import manifest as corpora
from speechbrain_ser.data.batches import (
    SAMPLE_RATE,
    AudioCache,
    StepSampler,
    balanced_weights,
    length_sorted_batches,
    make_dataset,
    make_loader,
    samples_of,
)
from speechbrain_ser.data.labels import apply_labels, join
from speechbrain_ser.data.protocols import (
    PARTS,
    Fold,
    choose_fold,
    leakage,
    make_folds,
    text_heard,
    train_on_all,
    who_validates,
    why_none_validates,
)
from speechbrain_ser.data.text import build_tokens, save_tokens
from speechbrain_ser.errors import INTERRUPTED, TRY_LATER, UserError, nearest
from speechbrain_ser.files import NO_ROOM, FolderInUse, locked, write_json, write_text
from speechbrain_ser.lobes.backbone import check_backbone, fingerprint
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
from speechbrain_ser.nnet.losses import frames_needed
from speechbrain_ser.processing.cache import feature_source
from speechbrain_ser.training import results
from speechbrain_ser.training.brain import RunData, check_optimizer
from speechbrain_ser.training.checkpoints import WholeCheckpointer, has_optimizer
from speechbrain_ser.training.config import NEUTRAL_KEYS, Config, read_config, text_of
from speechbrain_ser.training.distributed import (
    is_first_to_fail,
    main_first,
    on_main,
    process_group,
    rank,
    speaks,
    world_size,
)
from speechbrain_ser.training.results import SELECTIONS, check_tracker, selections_of
from speechbrain_ser.training.signals import Stopped, stop_wish

logger = logging.getLogger(__name__)


@dataclass
class Setup:
    """A run that has passed its checks."""

    config: Config
    frame: pd.DataFrame
    fold: Fold
    folds: list[str]
    folder: Path
    science: dict

    @property
    def classes(self) -> list[str]:
        """Emotion classes, sorted; the order of the logits."""
        return sorted(set(self.frame["emotion"]))

    @property
    def leak(self) -> str | None:
        """In words, who is tested although the model knows them; None where nobody is."""
        plain = self.config.plain
        if self.config.needs() and plain.get("pretrain_on") == "all":
            return "pre-trained on all speakers, those of the test part among them (pretrain_on: all)"
        return leakage(self.frame, self.fold)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The fold's training speakers, sorted; the order of the speaker logits."""
        return tuple(sorted(_speakers_of(self.frame, self.fold.train)))

    def finished(self) -> bool:
        """Whether this very run has its results already."""
        found, plain = self.results(), self.config.plain
        if found is None or self.config.run_opts.test_only or not self.trained():
            return False
        wanted = set(selections_of(plain, self.fold))
        return found["selection"] == plain["selection"] and wanted <= set(found["selections"])

    def trained(self) -> bool:
        """Whether nothing is left but to test: all epochs that are asked for are behind a tested run."""
        found, n_epochs = self.results(), self.config.plain["n_epochs"]
        if found is not None and found["n_epochs"] > n_epochs:
            raise UserError(
                f"{self.folder} was trained for {found['n_epochs']} epochs, --n_epochs={n_epochs} asks for "
                "fewer: name another output_folder"
            )
        return found is not None and found["n_epochs"] == n_epochs

    def results(self) -> dict | None:
        """What metrics.json says, where it is."""
        path = self.folder / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@dataclass
class Data:
    """A corpus under one protocol.

    Arguments
    ---------
    frame : pandas.DataFrame
        The manifest after label selection.
    folds : dict of str to Fold
        By name.
    digest : int
        Of what the frame says of its utterances.
    """

    frame: pd.DataFrame
    folds: dict[str, Fold]
    digest: int


@dataclass
class Preparation:
    """What several runs share: corpora are read, and backbones built and hashed, once for all of them.

    Arguments
    ---------
    needed : dict of pathlib.Path to dict
        Runs that are planned but not run yet: by folder, the configuration that others rely on.
    """

    needed: dict[Path, dict] = field(default_factory=dict)
    _made: dict[str, object] = field(default_factory=dict)

    DATA_KEYS = (
        "corpus data_folder manifest_folder table_file table_columns labels protocol seen_fraction split_seed "
        "second_corpus second_data_folder second_labels"
    ).split()
    BACKBONE_KEYS = ("encoder", "build_backbone", "cache_folder")

    def data(self, plain: dict) -> Data:
        """The corpus that a configuration names."""
        return self._once(_read_data, plain, self.DATA_KEYS)

    def backbone(self, plain: dict) -> dict:
        """The fingerprint of a configuration's backbone, which is made first where it asks for one."""
        if "encoder" not in plain:
            return {}
        return {"backbone": self._once(_ready_backbone, plain, self.BACKBONE_KEYS)}

    def _once(self, make, plain: dict, keys):
        key = json.dumps([make.__name__, *(plain[k] for k in keys)], default=str)
        if key not in self._made:
            self._made[key] = make(plain)
        return self._made[key]


def prepare(config: Config, shared: Preparation | None = None) -> Setup:
    """Everything that can go wrong before training: corpus, labels, fold, backbone, output folder.

    Arguments
    ---------
    config : Config
        The checked configuration.
    shared : Preparation, optional
        Of other runs that are prepared together.

    Returns
    -------
    Setup
    """
    shared = shared or Preparation()
    plain = config.plain
    _check_lines(plain)
    backbone, data = shared.backbone(plain), shared.data(plain)
    fold = choose_fold(data.folds, plain["fold"])
    if plain.get("train_on", "fold") != "fold":
        fold = _train_on(plain["train_on"], fold, data)
    _check_fold(plain, fold, data)
    parts = hashlib.sha256(repr(fold).encode()).hexdigest()[:16]  # of a run that goes on, they must be the same
    science = {**config.science(), "fold": fold.name, "parts_digest": parts, **backbone, "utterances": data.digest}
    science = {k: str(v) for k, v in science.items()}
    for key, need in config.needs().items():
        theirs = _needed_science(key, plain[key], need["yaml"], shared)
        _check_needed(key, plain[key], theirs, _common_lines(science, need), _speakers_of(data.frame, fold.test))
        science[key] = hashlib.sha256(json.dumps(theirs, sort_keys=True).encode()).hexdigest()[:16]
    setup = Setup(config, data.frame, fold, list(data.folds), _output_folder(config, fold), science)
    _check_folder(setup)
    return setup


def _check_lines(plain: dict) -> None:
    check_tracker(plain["tracker"])
    if plain["selection"] not in SELECTIONS:
        known = ", ".join(SELECTIONS)
        raise UserError(
            f"selection '{plain['selection']}' is unknown{nearest(plain['selection'], SELECTIONS)}; known: {known}"
        )
    if plain["selection"] == "test" and not plain["test_every_epoch"]:
        raise UserError("selection: test (an oracle) needs --test_every_epoch=True")


def _check_fold(plain: dict, fold: Fold, data: Data) -> None:
    if plain["selection"] == "valid" and not fold.valid:
        raise UserError(f"selection: valid needs a validation part: {why_none_validates(plain['protocol'])}")
    if plain["loss_weights"].get("speaker") and (data.frame["speaker"] == "").any():
        raise UserError("the speaker task needs a speaker for every utterance: some have none")
    patience = plain.get("early_stopping", plain["n_epochs"])
    if not isinstance(patience, int) or patience < 1:
        raise UserError(f"early_stopping must be a whole number >= 1 (n_epochs: off), found {patience!r}")
    if patience < plain["n_epochs"] and not fold.valid:
        raise UserError(f"early_stopping needs a validation part: {why_none_validates(plain['protocol'])}")


def _read_data(plain: dict) -> Data:
    second = plain["second_corpus"]
    frame = _read_corpus(plain, plain["corpus"], plain["data_folder"], plain["labels"])
    if second is not None:
        if plain["second_data_folder"] is None:
            raise UserError(f"second_corpus: {second} needs its folder: give --second_data_folder=…")
        frame = join(frame, _read_corpus(plain, second, plain["second_data_folder"], plain["second_labels"]))
    folds = make_folds(frame, plain["protocol"], plain["seen_fraction"], plain["split_seed"], second)
    return Data(frame, folds, pd.util.hash_pandas_object(frame.drop(columns="wav"), index=False).sum().item())


def _read_corpus(plain: dict, corpus: str, folder: str, labels) -> pd.DataFrame:
    options = {"file": plain["table_file"], "columns": plain["table_columns"]} if corpus == "table" else {}
    manifest = corpora.prepare(corpus, folder, plain["manifest_folder"], **options)
    return apply_labels(corpora.read_manifest(manifest, folder), labels)


def _ready_backbone(plain: dict) -> str:
    if plain["build_backbone"]:
        _build_backbone(plain["encoder"], plain["build_backbone"])
    hub = Path(plain["cache_folder"]) / "hub"
    check_backbone(plain["encoder"], hub)
    return fingerprint(plain["encoder"], hub)


def _train_on(whom: str, fold: Fold, data: Data) -> Fold:
    if whom != "all":
        raise UserError(f"train_on: expected fold (the fold's training part) or all (leaky), found {whom!r}")
    return train_on_all(fold, data.frame["ID"])


def _speakers_of(frame: pd.DataFrame, utterances: tuple[str, ...]) -> set[str]:
    return set(frame["speaker"][frame["ID"].isin(utterances)])


# Lines of its data that a run shares with the run it starts from
COMMON_LINES = ("corpus", "second_corpus", "protocol", "fold", "split_seed", "seen_fraction", "utterances")


def _common_lines(science: dict[str, str], need: dict) -> dict[str, str]:
    """What a needed run's configuration must say: the same data, and of the lines it is given those that must fit."""
    lines = need.get("lines") or {}
    given = {k: text_of(lines[k]) for k in need.get("fits", lines) if k not in NEUTRAL_KEYS}
    return {**{k: science[k] for k in COMMON_LINES}, **given}


def _check_needed(key: str, folder: str, theirs: dict, ours: dict, tested: set[str]) -> None:
    """A run of other sizes does not fit; one of another fold has heard the speakers who are tested here."""
    differing = [k for k in ours if theirs.get(k) != ours[k]]
    if not differing:
        return
    lines = [f"{k}: there {theirs.get(k, '(absent)')}, here {ours[k]}" for k in differing]
    path = Path(folder) / "save" / "speakers.json"
    heard = set(json.loads(path.read_text(encoding="utf-8"))) & tested if path.is_file() else set()
    if heard and ours.get("train_on", "fold") == "fold":
        lines.append(f"it was trained on speakers who are tested here ({', '.join(sorted(heard))}): it would leak")
    raise UserError("\n  ".join([f"{key}: {folder} does not fit this run:", *lines]))


def _needed_science(key: str, folder: str | None, yaml: str, shared: Preparation) -> dict[str, str]:
    """The configuration of a run that another one starts from: its folder may move."""
    if folder is None:
        raise UserError(f"this needs a run of {yaml} first: give its folder as --{key}=…, or let crossval.py do both")
    science = shared.needed.get(Path(folder))
    if science is None:
        path = Path(folder) / "configuration.json"
        if not path.is_file() or not (path.parent / "metrics.json").is_file():
            raise UserError(f"{key}: {folder} holds no finished run of {yaml}")
        science = json.loads(path.read_text(encoding="utf-8"))
    return science


def _build_backbone(folder: str, sizes: dict) -> None:
    known = inspect.signature(build_tiny_wav2vec2).parameters
    if unknown := [f"{k}{nearest(k, known)}" for k in sizes if k not in known]:
        raise UserError(f"build_backbone: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    try:
        build_tiny_wav2vec2(folder, **sizes)
    except ValueError as error:
        raise UserError(f"build_backbone: {error}") from error


def _output_folder(config: Config, fold: Fold) -> Path:
    plain = config.plain
    if config.run_opts.debug and not config.run_opts.debug_persistently:
        return Path(tempfile.mkdtemp(prefix="speechbrain-ser-debug-"))
    if plain["output_folder"]:
        return Path(plain["output_folder"])
    place = (
        config.system,
        f"{plain['corpus']}-{plain['protocol']}",
        config.variant(),
        fold.name,
        str(plain["seed"]),
    )
    return Path(plain["results_folder"]).joinpath(*place)


def _check_folder(setup: Setup) -> None:
    """An existing folder must be of this configuration; more epochs may be asked of it, nothing else."""
    path = setup.folder / "configuration.json"
    if not path.is_file():
        # a name with a dot is what a killed process had not finished writing
        if setup.folder.is_dir() and any(not p.name.startswith(".") for p in setup.folder.iterdir()):
            raise UserError(f"{setup.folder} exists, is not empty and is no run folder: name another output_folder")
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    keys = sorted(k for k in {*theirs, *setup.science} if theirs.get(k) != setup.science.get(k))
    if keys:
        lines = [f"{k}: there {theirs.get(k, '(absent)')}, here {setup.science.get(k, '(absent)')}" for k in keys]
        raise UserError("\n  ".join([f"{setup.folder} belongs to another configuration:", *lines]))
    if setup.results() is not None and not setup.trained() and not has_optimizer(setup.folder / "save"):
        raise UserError(
            f"{setup.folder} finished after {setup.results()['n_epochs']} epochs and its optimiser state was dropped "
            f"(crossval.py keeps it with --keep_optimizer): it can be tested, but not be trained for "
            f"{setup.config.plain['n_epochs']} epochs. Delete the folder to train anew, or give another results_folder"
        )


def build(setup: Setup):
    """The run's folder, data loaders and Brain.

    Arguments
    ---------
    setup : Setup
        From :func:`prepare`.

    Returns
    -------
    tuple
        The built YAML (dict), the Brain, and the loaders by part.
    """
    is_new = not (setup.folder / "configuration.json").exists()
    try:
        return _build(setup)
    except Exception:
        if is_new and if_main_process():  # else a corrected line would meet a folder of another configuration
            shutil.rmtree(setup.folder, ignore_errors=True)
        raise


def _build(setup: Setup):
    config = setup.config
    tokens = _tokens(config.plain, setup.frame.set_index("ID").loc[list(setup.fold.train), "transcript"])
    if if_main_process():
        _fill_folder(setup, tokens)
    _log_split(setup)

    hparams, data, loaders, sampler = _parts(setup, tokens)
    checkpointer = WholeCheckpointer(setup.folder / "save", {"model": hparams["model"]})
    brain = hparams["brain_class"](
        data=data,
        sampler=sampler,
        loaders=loaders,
        modules=hparams["modules"],
        opt_class=hparams.get("opt_class"),
        hparams=hparams,
        run_opts=config.run_opts,
        checkpointer=checkpointer,
    )
    return hparams, brain, loaders


def _fill_folder(setup: Setup, tokens) -> None:
    setup.folder.mkdir(parents=True, exist_ok=True)
    write_json(setup.science, setup.folder / "configuration.json")  # first: by it a killed run's folder is known
    sb.create_experiment_directory(str(setup.folder))
    write_text(setup.config.resolved(_sizes(setup, tokens)), setup.folder / "hyperparams.yaml")
    save = setup.folder / "save"
    save.mkdir(exist_ok=True)
    write_json(setup.classes, save / "classes.json")
    write_json(setup.speakers, save / "speakers.json")
    if tokens:
        save_tokens(tokens, save / "tokens.json")


def _parts(setup: Setup, tokens):
    """What the YAML declares and the data, which judge each other."""
    hparams = setup.config.build(_sizes(setup, tokens))
    frame = setup.frame.set_index("ID")
    weights = _class_weights(hparams["class_weights"], setup)
    data = RunData(frame, setup.fold, setup.classes, weights, tokens, setup.speakers)
    _refuse_too_short(data, hparams["model"])
    _refuse_too_long(data, hparams["model"])
    _warn_ctc(data, hparams["model"])
    loaders, sampler = _loaders(hparams, data, torch.device(setup.config.run_opts.device or infer_device()).type)
    return hparams, data, loaders, sampler


def rehearse(setup: Setup) -> None:
    """Build everything that a run needs and forget it: what a constructor refuses is known before many runs start.

    Arguments
    ---------
    setup : Setup
        From :func:`prepare`; nothing is written into its folder.

    Raises
    ------
    UserError
        As training would.
    """
    with tempfile.TemporaryDirectory() as folder:
        setup = replace(setup, folder=Path(folder))
        tokens = _tokens(setup.config.plain, setup.frame.set_index("ID").loc[list(setup.fold.train), "transcript"])
        hparams, *_ = _parts(setup, tokens)
        check_optimizer(hparams, hparams.get("opt_class"))


def _sizes(setup: Setup, tokens) -> dict:
    sizes = {
        "n_emotions": len(setup.classes),
        "n_tokens": len(tokens) if tokens else None,
        "n_speakers": len(setup.speakers),
    }
    sizes = {key: size for key, size in sizes.items() if key in setup.config.tree}
    return {**sizes, "output_folder": str(setup.folder), "fold": setup.fold.name}


def _tokens(plain: dict, transcripts: pd.Series):
    if not plain["loss_weights"].get("asr"):
        return None
    tokens = build_tokens(plain["tokens"], transcripts, plain["n_pieces"])
    if deleted := tokens.deleted(transcripts):
        listed = ", ".join(f"{c} ({n})" for c, n in deleted.most_common())
        logger.warning(
            f"characters outside `tokens: {plain['tokens']}` are deleted from training transcripts: {listed}"
        )
    return tokens


def _class_weights(wanted, setup: Setup) -> torch.Tensor | None:
    """Weights of the emotion loss, mean 1 over the training utterances, so that a step's size does not matter."""
    if not wanted:
        return None
    emotion = setup.frame.set_index("ID").loc[list(setup.fold.train), "emotion"]
    counts = emotion.value_counts().reindex(setup.classes, fill_value=0)
    if wanted == "balanced":
        weights = 1.0 / counts.clip(lower=1)
    elif isinstance(wanted, dict) and set(wanted) == set(setup.classes):
        weights = pd.to_numeric(pd.Series(wanted), errors="coerce").reindex(setup.classes)
        if not (weights > 0).all() or not (weights < float("inf")).all():
            raise UserError(f"class_weights: expected numbers > 0, found {wanted}")
    else:
        raise UserError(f"class_weights: expected balanced or a weight for each of {setup.classes}, found {wanted}")
    return torch.tensor((weights / (weights * counts).sum() * counts.sum()).to_numpy(), dtype=torch.float32)


def _micro_batch_size(hparams: dict, device: str) -> int:
    """Utterances at a time: what the YAML says, else what is fastest on a device."""
    if hparams["micro_batch_size"] is not None:
        return hparams["micro_batch_size"]
    # a CPU gains nothing from more at a time, and loses by their padding and by activations that leave its caches
    # (benchmarks/README.md); other devices want all they can get
    return 1 if device == "cpu" else hparams["batch_size"]


def _loaders(hparams: dict, data: RunData, device: str):
    frames = {part: data.frame.loc[list(getattr(data.fold, part))].reset_index() for part in PARTS}
    train = frames["train"]
    sampler = StepSampler(
        train["duration"],
        hparams["batch_size"],
        _micro_batch_size(hparams, device),
        hparams["seed"],
        balanced_weights(train, hparams.get("balance"), hparams["second_corpus"], hparams.get("second_share")),
        hparams.get("epoch_steps", 0),
        hparams.get("bucket_steps", 1),
        rank(),
        world_size(),
    )
    if hparams.get("opt_class"):
        logger.info(
            f"{sampler.steps_per_epoch} steps of {hparams['batch_size']} utterances an epoch, "
            f"micro-batches of {sampler.micro_batch_size}, padding {sampler.padding_share():.0%}"
            + (f", shared by {world_size()} processes" if world_size() > 1 else "")
        )
    inputs = _inputs(hparams, data.frame)
    encode = data.tokens.encode if data.tokens else None
    loaders = {"valid": None}
    for part, frame in frames.items():
        if len(frame):
            batches = sampler
            if part != "train":  # the batches are those of one process: so are the predictions, each in one of them
                batches = length_sorted_batches(frame["duration"], hparams["eval_batch_size"])[rank() :: world_size()]
            dataset = make_dataset(frame, inputs, data.classes, encode, data.speakers)
            loaders[part] = make_loader(dataset, batches, hparams["num_workers"], pin_memory=device == "cuda")
    return loaders, sampler


def _inputs(hparams: dict, frame: pd.DataFrame) -> dict:
    """What the model reads of a recording, by name: waveforms, or features that are computed once and kept."""
    folder, inputs = Path(hparams["cache_folder"]), {}
    for name, features in hparams["model"].inputs.items():
        if features is None:
            inputs[name] = AudioCache(folder / "audio")
        elif hparams.get("augment") is not None:
            switches = ("cache_features", "cache_front_end", "cache_embeddings")
            lines = [f"--{line}=False" for line in switches if hparams.get(line)]
            way_out = f"give {lines[0]}" if lines else "leave augment: null"
            raise UserError(f"augment changes waveforms, but {name} are computed once: {way_out}")
        else:
            inputs[name] = feature_source(features, folder / "features", frame)
        inputs[name].fill(frame["wav"].tolist(), progress=if_main_process())
    return inputs


def _log_split(setup: Setup) -> None:
    fold, plain = setup.fold, setup.config.plain
    sizes = ", ".join(f"{p} {len(getattr(fold, p))}" for p in PARTS if getattr(fold, p))
    logger.info(f"{plain['corpus']}, protocol {plain['protocol']}, fold {fold.name}: {sizes}")
    logger.info(f"validation: {who_validates(setup.frame, fold, plain['protocol'])}")
    if leak := setup.leak:
        logger.warning(f"LEAKY PROTOCOL: {leak}")
    heard = text_heard(setup.frame, fold)
    logger.info(f"{heard.mean():.0%} of the test utterances say a text that is also said in training")


def _refuse_too_short(data: RunData, model) -> None:
    """An utterance without a single frame would stop an epoch in its middle."""
    samples = zip(data.frame.index, samples_of(data.frame["duration"]).tolist(), strict=True)
    if short := [f"{utterance} ({n / 16:.0f} ms)" for utterance, n in samples if n < model.min_samples]:
        raise UserError(
            f"{len(short)} utterances are shorter than the {model.min_samples / 16:.0f} ms the model needs for a "
            f"frame: {', '.join(short[:20])}{' …' if len(short) > 20 else ''}"
        )


def _refuse_too_long(data: RunData, model) -> None:
    """What an encoder has no positions for would stop an epoch in its middle as well."""
    if (most := getattr(getattr(model, "encoder", None), "max_samples", None)) is None:
        return
    durations = data.frame["duration"]
    if long := [f"{k} ({n:.1f} s)" for k, n in durations.items() if n * SAMPLE_RATE > most]:
        raise UserError(
            f"{len(long)} utterances are longer than the {most / SAMPLE_RATE:g} s that Whisper encodes: "
            f"{', '.join(long[:20])}{' …' if len(long) > 20 else ''} (--windows=True encodes them in pieces)"
        )


def _warn_ctc(data: RunData, model) -> None:
    """CTC cannot spell more tokens than there are frames: such utterances teach only the other tasks."""
    if not data.tokens:
        return
    train = data.frame.loc[list(data.fold.train)]
    frames = model.frame_counts(samples_of(train["duration"]))
    needed = [frames_needed(data.tokens.encode(t)) for t in train["transcript"]]
    if short := [i for i, f, n in zip(train.index, frames.tolist(), needed, strict=True) if n > f]:
        logger.warning(f"{len(short)} utterances are too short for their transcript, CTC leaves them out: {short[:20]}")


# by the YAML's line `kind`: what writes the results, and what tells them
WRITERS = {
    "recognition": (results.evaluate_and_write, results.print_results),
    "pretraining": (results.evaluate_and_write_pretraining, results.print_results_pretraining),
}


def main(argv: list[str], hparams_folder: Path) -> int:
    """Run one configuration; errors of the user's are printed without a traceback.

    Arguments
    ---------
    argv : list of str
        The command line after the program's name.
    hparams_folder : pathlib.Path
        Where the shipped YAMLs are.

    Returns
    -------
    int
        0, or 2 after an error that the user can mend, or `TRY_LATER`, or `INTERRUPTED`.
    """
    _set_up_messages()
    try:
        with stop_wish.heard(), _disk_and_loaders_named():
            run(read_config(argv, hparams_folder))
    except UserError as error:
        return _tell(f"error: {error}", TRY_LATER if isinstance(error, FolderInUse) else 2)
    except torch.OutOfMemoryError as error:
        return _tell(
            f"error: the device has too little memory: {error}\n  A smaller --micro_batch_size changes nothing else "
            "(nor does --gradient_checkpointing=True, where the YAML has it); the same command goes on",
            2,
        )
    except Stopped as stopped:
        status = INTERRUPTED if stopped.number == signal.SIGINT else TRY_LATER
        return _tell(f"\nended by {stopped}: the same command goes on from here", status)
    except Exception:
        if is_first_to_fail():
            raise
        return 2  # of several processes another one tells why
    return 0


def _set_up_messages() -> None:
    """Of several processes one speaks."""
    # force: a second run of one process (a notebook, the tests) must not write to the first one's streams
    logging.basicConfig(level=logging.INFO if speaks() else logging.ERROR, format="%(message)s", force=True)
    if not speaks():
        warnings.simplefilter("ignore")


def _tell(message: str, status: int) -> int:
    if is_first_to_fail():
        print(message, file=sys.stderr)
    return status


@contextlib.contextmanager
def _disk_and_loaders_named() -> Iterator[None]:
    """What is nobody's mistake in the configuration, but can be mended."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or "a file could not be written (in the run's folder, a cache or a log)"
        raise UserError(f"{where}: {error.strerror}") from error
    except RuntimeError as error:
        # torch: "DataLoader worker (pid 7) is killed by signal: Killed." or "DataLoader worker (pid(s) 7) exited …"
        if not (found := re.search(r"DataLoader worker \(pid\S* ([\d, ]+)\) .*", str(error))):
            raise
        raise UserError(
            f"a loading process died: {found[0]} The system ends processes that want more memory than there is: fewer "
            "num_workers need less. The same command goes on from the last checkpoint"
        ) from error


def run(config: Config) -> Path:
    """Train and test one configuration, with the processes that torchrun has started, or alone.

    Arguments
    ---------
    config : Config
        From :func:`speechbrain_ser.training.config.read_config`.

    Returns
    -------
    pathlib.Path
        The run's folder.

    Raises
    ------
    UserError
        Before training, for everything a user can have given wrong.
    """
    with process_group(config.run_opts) as run_opts:
        config = replace(config, run_opts=run_opts)
        setup = replace(on_main(lambda: prepare(config)), config=config)  # the main process's device is another one
        evaluate_and_write, print_results = WRITERS[config.plain.get("kind", "recognition")]
        with contextlib.ExitStack() as stack:
            on_main(lambda: stack.enter_context(locked(setup.folder)))
            _train_and_test(setup, evaluate_and_write)
        if if_main_process():
            print_results(setup)
    return setup.folder


def _train_and_test(setup: Setup, evaluate_and_write) -> None:
    if on_main(setup.finished):
        logger.info(f"finished already: {setup.folder} (delete the folder to train again)")
        return
    hparams, brain, loaders = main_first(lambda: build(setup))
    if not on_main(setup.trained):
        with stop_wish.deferred():
            brain.fit(hparams["epoch_counter"], loaders["train"], loaders["valid"])
    evaluate_and_write(setup, brain, loaders)
    brain.checkpointer.keep_for_tests()
