"""One run from a command line: checks, data, training, test, results. The same for every system's YAML."""

import hashlib
import inspect
import json
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import speechbrain as sb
import torch

from speechbrain_ser.brain import RunData, check_optimizer
from speechbrain_ser.checkpoints import WholeCheckpointer
from speechbrain_ser.config import Config, read_config
from speechbrain_ser.corpora import manifest as corpora
from speechbrain_ser.dataio import (
    SAMPLE_RATE,
    AudioCache,
    StepSampler,
    length_sorted_batches,
    make_dataset,
    make_loader,
)
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.files import write_json, write_text
from speechbrain_ser.lobes.backbone import check_backbone, fingerprint
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
from speechbrain_ser.locks import FolderInUse, locked
from speechbrain_ser.nnet.losses import frames_needed
from speechbrain_ser.optimizer_state import has_optimizer
from speechbrain_ser.protocols import Fold, choose_fold, leakage, make_folds, text_heard
from speechbrain_ser.results import SELECTIONS, evaluate_and_write, print_results, selections_of
from speechbrain_ser.tokens import build_tokens, save_tokens
from speechbrain_ser.trackers import check_tracker

logger = logging.getLogger(__name__)

TRY_LATER = 75  # exit status (sysexits' EX_TEMPFAIL): another process works in the run's folder


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
        0, or 2 after an error that the user can mend, or `TRY_LATER`.
    """
    # force: a second run of one process (a notebook, the tests) must not write to the first one's streams
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        run(read_config(argv, hparams_folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return TRY_LATER if isinstance(error, FolderInUse) else 2
    return 0


def run(config: Config) -> Path:
    """Train and test one configuration.

    Arguments
    ---------
    config : Config
        From :func:`speechbrain_ser.config.read_config`.

    Returns
    -------
    pathlib.Path
        The run's folder.

    Raises
    ------
    UserError
        Before training, for everything a user can have given wrong.
    """
    setup = prepare(config)
    with locked(setup.folder):
        if setup.finished():
            logger.info(f"finished already: {setup.folder} (delete the folder to train again)")
        else:
            hparams, brain, loaders = build(setup)
            if not setup.trained():
                brain.fit(hparams["epoch_counter"], loaders["train"], loaders["valid"])
            evaluate_and_write(setup, brain, loaders)
    print_results(setup)
    return setup.folder


# ------------------------------------------------------------------ before training


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
    def speakers(self) -> tuple[str, ...]:
        """The fold's training speakers, sorted; the order of the speaker logits."""
        return tuple(sorted(set(self.frame["speaker"][self.frame["ID"].isin(self.fold.train)])))

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
        "corpus data_folder manifest_folder table_file table_columns labels protocol seen_fraction split_seed".split()
    )
    BACKBONE_KEYS = ("wav2vec2_hub", "build_backbone")

    def data(self, plain: dict) -> Data:
        """The corpus that a configuration names."""
        return self._once(_read_data, plain, self.DATA_KEYS)

    def backbone(self, plain: dict) -> str:
        """The fingerprint of the backbone that a configuration names, made first where it asks for one."""
        return self._once(_ready_backbone, plain, self.BACKBONE_KEYS)

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
    _check_fold(plain, fold, data)
    science = {**config.science(), "fold": fold.name, "backbone": backbone, "utterances": data.digest}
    science |= {key: _needed_digest(key, plain[key], yaml, shared) for key, yaml in config.needed_yamls().items()}
    science = {k: str(v) for k, v in science.items()}
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
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("several processes (torchrun) would each train on everything: not supported yet, start one")


def _check_fold(plain: dict, fold: Fold, data: Data) -> None:
    if plain["selection"] == "valid" and not fold.valid:
        raise UserError(f"selection: valid needs a validation part; protocol '{plain['protocol']}' has none")
    if plain["loss_weights"].get("speaker") and (data.frame["speaker"] == "").any():
        raise UserError("the speaker task needs a speaker for every utterance: some have none")
    patience = plain["early_stopping"]
    if not isinstance(patience, int) or patience < 1:
        raise UserError(f"early_stopping must be a whole number >= 1 (n_epochs: off), found {patience!r}")
    if patience < plain["n_epochs"] and not fold.valid:
        raise UserError(f"early_stopping needs a validation part; protocol '{plain['protocol']}' has none")


def _read_data(plain: dict) -> Data:
    frame = corpora.read_manifest(_prepare_manifest(plain), plain["data_folder"])
    frame = corpora.apply_labels(frame, plain["labels"])
    folds = make_folds(frame, plain["protocol"], plain["seen_fraction"], plain["split_seed"])
    return Data(frame, folds, pd.util.hash_pandas_object(frame.drop(columns="wav"), index=False).sum().item())


def _ready_backbone(plain: dict) -> str:
    if plain["build_backbone"]:
        _build_backbone(plain["wav2vec2_hub"], plain["build_backbone"])
    check_backbone(plain["wav2vec2_hub"])
    return fingerprint(plain["wav2vec2_hub"])


def _needed_digest(key: str, folder: str | None, yaml: str, shared: Preparation) -> str:
    """A run that another one starts from, by its configuration: its folder may move."""
    if folder is None:
        raise UserError(f"this needs a run of {yaml} first: give its folder as --{key}=…, or let crossval.py do both")
    science = shared.needed.get(Path(folder))
    if science is None:
        path = Path(folder) / "configuration.json"
        if not path.is_file() or not (path.parent / "metrics.json").is_file():
            raise UserError(f"{key}: {folder} holds no finished run of {yaml}")
        science = json.loads(path.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:16]


def _build_backbone(folder: str, sizes: dict) -> None:
    known = inspect.signature(build_tiny_wav2vec2).parameters
    if unknown := [f"{k}{nearest(k, known)}" for k in sizes if k not in known]:
        raise UserError(f"build_backbone: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    try:
        build_tiny_wav2vec2(folder, **sizes)
    except ValueError as error:
        raise UserError(f"build_backbone: {error}") from error


def _prepare_manifest(plain: dict) -> Path:
    options = {"file": plain["table_file"], "columns": plain["table_columns"]} if plain["corpus"] == "table" else {}
    return corpora.prepare(plain["corpus"], plain["data_folder"], plain["manifest_folder"], **options)


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


# ------------------------------------------------------------------ training


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
        if is_new:  # else a corrected line would meet a folder of another configuration
            shutil.rmtree(setup.folder, ignore_errors=True)
        raise


def _build(setup: Setup):
    config = setup.config
    tokens = _tokens(config.plain, setup.frame.set_index("ID").loc[list(setup.fold.train), "transcript"])
    config.computed = _computed(setup, tokens)
    setup.folder.mkdir(parents=True, exist_ok=True)
    write_json(setup.science, setup.folder / "configuration.json")  # first: by it a killed run's folder is known
    sb.create_experiment_directory(str(setup.folder))
    write_text(config.resolved(), setup.folder / "hyperparams.yaml")
    save = setup.folder / "save"
    save.mkdir(exist_ok=True)
    write_json(setup.classes, save / "classes.json")
    write_json(setup.speakers, save / "speakers.json")
    if tokens:
        save_tokens(tokens, save / "tokens.json")
    _log_split(setup)

    hparams, data, loaders, sampler = _parts(setup, tokens)
    checkpointer = WholeCheckpointer(save, {"model": hparams["model"]})
    brain = hparams["brain_class"](
        data=data,
        sampler=sampler,
        loaders=loaders,
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=config.run_opts,
        checkpointer=checkpointer,
    )
    return hparams, brain, loaders


def _parts(setup: Setup, tokens):
    """What the YAML declares and the data, which judge each other."""
    hparams = setup.config.build()
    frame = setup.frame.set_index("ID")
    weights = _class_weights(hparams["class_weights"], setup)
    data = RunData(frame, setup.fold, setup.classes, weights, tokens, setup.speakers)
    loaders, sampler = _loaders(hparams, data)
    _refuse_too_short(data, hparams["encoder"])
    _warn_ctc(data, hparams["encoder"])
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
    config = replace(setup.config)  # what is computed here is not the run's
    with tempfile.TemporaryDirectory() as folder:
        setup = replace(setup, config=config, folder=Path(folder))
        tokens = _tokens(config.plain, setup.frame.set_index("ID").loc[list(setup.fold.train), "transcript"])
        config.computed = _computed(setup, tokens)
        hparams, *_ = _parts(setup, tokens)
        check_optimizer(hparams, hparams["opt_class"])


def _computed(setup: Setup, tokens) -> dict:
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


def _loaders(hparams: dict, data: RunData):
    cache = AudioCache(Path(hparams["cache_folder"]) / "audio")
    cache.fill(data.frame["wav"].tolist())
    frames = {
        part: data.frame.loc[list(getattr(data.fold, part))].reset_index()
        for part in ("train", "valid", "seen", "test")
    }
    encode = data.tokens.encode if data.tokens else None
    sampler = StepSampler(
        frames["train"]["duration"], hparams["batch_size"], hparams["micro_batch_size"], hparams["seed"]
    )
    logger.info(
        f"{sampler.steps_per_epoch} steps of {hparams['batch_size']} utterances an epoch, "
        f"micro-batches of {sampler.micro_batch_size}, padding {sampler.padding_share():.0%}"
    )
    loaders = {"valid": None}
    for part, frame in frames.items():
        if len(frame):
            batches = (
                sampler if part == "train" else length_sorted_batches(frame["duration"], hparams["eval_batch_size"])
            )
            dataset = make_dataset(frame, cache, data.classes, encode, data.speakers)
            loaders[part] = make_loader(dataset, batches, hparams["num_workers"])
    return loaders, sampler


def _log_split(setup: Setup) -> None:
    fold, plain = setup.fold, setup.config.plain
    sizes = ", ".join(f"{p} {len(getattr(fold, p))}" for p in ("train", "valid", "seen", "test"))
    logger.info(f"{plain['corpus']}, protocol {plain['protocol']}, fold {fold.name}: {sizes}")
    if leak := leakage(setup.frame, fold):
        logger.warning(f"LEAKY PROTOCOL: {leak}")
    heard = text_heard(setup.frame, fold)
    logger.info(f"{heard.mean():.0%} of the test utterances say a text that is also said in training")


def _samples(durations: pd.Series) -> torch.Tensor:
    return torch.tensor((durations * SAMPLE_RATE).round().to_numpy(), dtype=torch.long)


def _refuse_too_short(data: RunData, encoder) -> None:
    """An utterance without a single frame would stop an epoch in its middle."""
    samples = zip(data.frame.index, _samples(data.frame["duration"]).tolist(), strict=True)
    if short := [f"{utterance} ({n / 16:.0f} ms)" for utterance, n in samples if n < encoder.min_samples]:
        raise UserError(
            f"{len(short)} utterances are shorter than the {encoder.min_samples / 16:.0f} ms the backbone needs for a "
            f"frame: {', '.join(short[:20])}{' …' if len(short) > 20 else ''}"
        )


def _warn_ctc(data: RunData, encoder) -> None:
    """CTC cannot spell more tokens than there are frames: such utterances teach only the other tasks."""
    if not data.tokens:
        return
    train = data.frame.loc[list(data.fold.train)]
    frames = encoder.frame_counts(_samples(train["duration"]))
    needed = [frames_needed(data.tokens.encode(t)) for t in train["transcript"]]
    if short := [i for i, f, n in zip(train.index, frames.tolist(), needed, strict=True) if n > f]:
        logger.warning(f"{len(short)} utterances are too short for their transcript, CTC leaves them out: {short[:20]}")
