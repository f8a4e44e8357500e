"""Before training: everything that a user can have given wrong, and what a run is made from."""

import hashlib
import inspect
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from speechbrain_ser.config import NEUTRAL_KEYS, Config, text_of
from speechbrain_ser.corpora import manifest as corpora
from speechbrain_ser.corpora.joined import join
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.lobes.backbone import check_backbone, fingerprint
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
from speechbrain_ser.optimizer_state import has_optimizer
from speechbrain_ser.protocols import Fold, choose_fold, leakage, make_folds, train_on_all, why_none_validates
from speechbrain_ser.results import SELECTIONS, selections_of
from speechbrain_ser.trackers import check_tracker


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
    return corpora.apply_labels(corpora.read_manifest(manifest, folder), labels)


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
