"""The finished runs below a folder, checked before anything is averaged.

Whatever would make a mean dishonest is an error that names every offender: folds that have not finished, utterances
missing or doubled, folds of other protocols, corpora or label sets, variants tested on other utterances. Runs that only
pre-train recognise nothing and are left out.
"""

import contextlib
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import pandas as pd

from speechbrain_ser.data.labels import DIMENSIONS
from speechbrain_ser.errors import Offenders, UserError, shown
from speechbrain_ser.evaluation.calibration import FILES, LOGITS, read_calibration, temperature_of
from speechbrain_ser.evaluation.controls import CONTROLS_FILE
from speechbrain_ser.evaluation.metrics import CCC, FIGURES, RECOGNITION, word_errors
from speechbrain_ser.files import AGAIN, path_component, read_csv, read_json

NEEDED = ("system", "corpus", "protocol", "fold", "folds", "seed", "variant", "changed", "classes", "utterances")
NEEDED += ("n_epochs", "selection", "selections", "speaker_disjoint", "leak")
COLUMNS = ("ID", "speaker", "emotion", "transcript", "text_heard")
HEADS = {FIGURES[name].column for name in RECOGNITION} - set(COLUMNS)  # of the tasks that a variant may not have
FACTS = ["speaker", "emotion", "transcript"]  # of an utterance, whoever predicts it
SAME = {  # in all runs of a report
    "corpora": "corpus",
    "protocols": "protocol",
    "label sets": "classes",
    "lists of folds": "folds",
    "configured selections": "selection",
}


def _said(key: str) -> property:
    return property(lambda self: self.metrics[key])


@dataclass(frozen=True, eq=False)
class Run:
    """One fold of one variant with one seed; predictions are sorted by ID, with word counts where there are any."""

    folder: Path
    metrics: dict  # its metrics.json
    predictions: dict[str, pd.DataFrame]  # by selection
    epochs: pd.DataFrame
    seen: pd.DataFrame | None  # speakers of held-out utterances of training speakers, where there is a speaker head
    second: dict[str, pd.DataFrame]  # by selection, on a second corpus' held-out utterances; empty where there is none
    calibration: dict | None  # None of a run that finished before there was one, like its logits
    controls: pd.DataFrame | None  # what the words alone say, in the predictions' order; None where nobody asked
    logits: pd.DataFrame | None  # [utterances, classes] of the configured selection's predictions, in their order

    fold = _said("fold")
    seed = _said("seed")

    @property
    def variant(self) -> tuple[str, str]:
        """System and changed lines: what is compared."""
        return self.metrics["system"], self.metrics["variant"]

    def temperature(self, selection: str) -> float | None:
        """Return that of a selection's posteriors: only the configured one has any."""
        if self.calibration is None or selection != self.metrics["selection"]:
            return None
        temperature, lacks = temperature_of(self.calibration)
        return None if lacks else temperature

    def __str__(self) -> str:
        return f"{'/'.join(self.variant)}, fold {self.fold}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs that may stand in one table: one corpus, protocol and label set."""

    runs: tuple[Run, ...]  # by variant, seed and fold
    missing: tuple[str, ...] = ()  # what has not finished, in words; empty unless incomplete folds were asked for
    names: Mapping[str, str] = field(default_factory=dict)  # what a table calls its variants

    corpus = _said("corpus")
    protocol = _said("protocol")
    classes = _said("classes")
    folds = _said("folds")  # all of the protocol, also those that have not finished
    selection = _said("selection")  # the configured one, whose figures come first

    @property
    def metrics(self) -> dict:
        """The first run's: what all runs have in common."""
        return self.runs[0].metrics

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def leak(self) -> str | None:
        """What leaks, from the first run that says so."""
        return next((run.metrics["leak"] for run in self.runs if not run.metrics["speaker_disjoint"]), None)

    @property
    def never_trained(self) -> list[str]:
        """Which classes some fold tests that its training lacks, in words."""
        said = (f"Fold {run.fold}: {found}." for run in self.runs if (found := run.metrics.get("never_trained")))
        return list(dict.fromkeys(said))

    @property
    def common(self) -> dict[str, str]:
        """Changed lines that all variants share, by their last path component."""
        shared = _shared([run.metrics["changed"] for run in self.runs])
        return {k: v.rstrip("/").rsplit("/", 1)[-1] for k, v in shared.items()}

    @cached_property
    def variants(self) -> dict[str, list[Run]]:
        """Runs by the name of their variant: the table's, or only the lines in which variants differ."""
        of = _grouped((run.variant, run) for run in self.runs)
        names = _short_names({variant: runs[0].metrics["changed"] for variant, runs in of.items()})
        told = (self.names.get("/".join(v), self.names.get(v[1], name)) for v, name in zip(of, names, strict=True))
        return dict(zip(told, of.values(), strict=True))

    def sorted_by(self, key: Callable[[str, str], float]) -> "Runs":
        """Return the same runs, variants sorted by `key` of their system and name, and their short name."""
        place = {of[0].variant: key("/".join(of[0].variant), name) for name, of in self.variants.items()}
        return replace(self, runs=tuple(sorted(self.runs, key=lambda run: place[run.variant])))


def load_runs(folder: str | os.PathLike, allow_incomplete: bool = False) -> Runs:
    """Find, read and check every run below a folder; with `allow_incomplete`, leave out what has not finished.

    A :class:`UserError` names every run, file or utterance that is not what it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    finished, unfinished, pretraining = _find_runs(folder)
    if not finished:
        what = {"unfinished runs": unfinished, "pre-training runs, which have no recognition to report": pretraining}
        found = [f"{len(paths)} {kind}" for kind, paths in what.items() if paths]
        raise UserError(f"{folder} holds {' and '.join(found) or 'no run (no metrics.json)'}")
    problems = Offenders(f"{folder}: no report can be made of this", UserError)
    metrics = {}
    for path in finished:
        try:
            metrics[path] = read_metrics(path)
        except UserError as error:
            problems.add("unreadable file", error)
    problems.raise_any()
    _check_mixture(metrics, problems)
    _check_variants(metrics, problems)
    problems.raise_any()
    runs = [run for path, m in metrics.items() if (run := _read_run(path, m, problems))]
    problems.raise_any()
    runs = tuple(sorted(runs, key=_order))
    _check_utterances(runs, problems)
    _check_parts(runs, problems)
    problems.raise_any()
    missing = _missing(runs, unfinished)
    if not allow_incomplete:
        for what in missing:
            problems.add("not finished (--allow-incomplete reports the others)", what)
        problems.raise_any()
    return Runs(runs, tuple(missing))


def _find_runs(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Finished run folders (with metrics.json), begun ones, and those of pre-training; sorted."""
    finished = {path.parent for path in folder.rglob("metrics.json")}
    begun = {path.parent for name in ("configuration.json", "hyperparams.yaml") for path in folder.rglob(name)}
    pretraining = {path for path in finished | begun if _is_pretraining(path)}
    return sorted(finished - pretraining), sorted(begun - finished - pretraining), sorted(pretraining)


def _is_pretraining(path: Path) -> bool:
    for name in ("metrics.json", "configuration.json"):
        with contextlib.suppress(UserError):  # a damaged metrics.json is named when it is read for its figures
            found = read_json(path / name)
            if isinstance(found, dict) and found.get("kind") == "pretraining":
                return True
    return False


# ------------------------------------------------------------------ reading and checking one run


def read_metrics(folder: Path) -> dict:
    """Return what a finished run's metrics.json says; what is damaged, or of another shape, is an error."""
    found = read_json(folder / "metrics.json", dict, AGAIN)
    if lacking := [k for k in NEEDED if k not in found]:
        raise UserError(f"{folder / 'metrics.json'}: expected a run's figures, found no {', '.join(lacking)}{AGAIN}")
    return found


def _read_run(path: Path, metrics: dict, problems: Offenders) -> Run | None:
    try:
        expected = metrics["utterances"]
        predictions = _read_predictions(path, "predictions", metrics, expected["test"], problems)
        n_second = expected.get("second", 0)
        second = _read_predictions(path, "predictions_second", metrics, n_second, problems) if n_second else {}
        seen = path / "predictions_seen.csv"
        seen = _read_csv(seen, ("ID", "speaker", "speaker_predicted")) if seen.is_file() else None
        if seen is not None:
            _check_count(path / "predictions_seen.csv", seen, expected["seen"], problems)
        epochs = read_csv(path / "epochs.csv", ["epoch"])
        if (last := metrics["selections"].get("last", {}).get("epoch", len(epochs))) != len(epochs):
            raise ValueError(f"epochs.csv has {len(epochs)} epochs, metrics.json says {last}{AGAIN}")
        calibration = read_calibration(path)
        logits = None if calibration is None else _read_logits(path, metrics)
        controls = path / CONTROLS_FILE
        controls = _read_csv(controls, ("ID", "majority")).sort_values("ID") if controls.is_file() else None
        run = Run(path, metrics, predictions, epochs, seen, second, calibration, controls, logits)
        _check_run(run, problems)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        problems.add("unreadable file", f"{path}: {error}")
        return None
    except (KeyError, TypeError, AttributeError) as error:  # a metrics.json of another shape
        problems.add("metrics.json without what a report needs", f"{path}: {type(error).__name__} {error}")
        return None
    return run


# everything as text: speaker 03 keeps its zero, and a hypothesis that reads NA or nothing is no missing value
_read_csv = partial(read_csv, dtype=str, keep_default_na=False)


def _read_logits(path: Path, metrics: dict) -> pd.DataFrame:
    """Of the test utterances, by ID."""
    columns = [f"logit_{c}" for c in metrics["classes"]]
    frame = _read_csv(path / LOGITS, ["part", "ID", *columns])
    return frame[frame["part"] == "test"].set_index("ID")[columns].astype(float).sort_index()


def _read_predictions(folder: Path, stem: str, metrics: dict, expected: int, problems: Offenders) -> dict:
    found = {}
    for selection in metrics["selections"]:
        path = folder / f"{stem}{'' if selection == metrics['selection'] else f'_{selection}'}.csv"
        columns = (*COLUMNS, "predicted") if metrics["classes"] else COLUMNS  # else dimensions alone
        found[selection] = frame = _prepared(_read_csv(path, columns), path, problems)
        _check_count(path, frame, expected, problems)
        if metrics["classes"] and (unknown := {*frame["emotion"], *frame["predicted"]} - set(metrics["classes"])):
            problems.add("classes that metrics.json does not know", f"{path}: {_listed(unknown)}")
        _check_posteriors(path, frame, metrics["classes"], problems)
    return found


def _prepared(frame: pd.DataFrame, path: Path, problems: Offenders) -> pd.DataFrame:
    """Typed, sorted, with word counts; speakers qualified by corpus where that is a column, '' where unknown."""
    frame = frame.sort_values("ID", ignore_index=True)
    frame["text_heard"] = frame["text_heard"].str.lower().map({"true": True, "false": False}).astype(object)
    if "corpus" in frame:
        frame["speaker"] = (frame["corpus"] + ":" + frame["speaker"]).where(frame["speaker"] != "", "")
    rated = {column for d in DIMENSIONS if f"{d}_predicted" in frame for column in (d, f"{d}_predicted")}
    numbers = [column for column in frame if column.startswith("posterior_") or column in rated]
    for column in numbers:  # what is none becomes NaN, and is named
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    if "hypothesis" in frame:
        frame = frame.join(word_errors(frame["transcript"], frame["hypothesis"]))
    if "mse" in frame:
        mse = pd.to_numeric(frame["mse"], errors="coerce").astype(float)
        wrong = frame[["ID", "mse"]][~mse.between(0, float("inf"), inclusive="left")]
        if len(wrong):
            found = _listed(f"{i} has '{m}'" for i, m in wrong.itertuples(index=False))
            problems.add("mse that is not a finite number >= 0", f"{path}: {found}")
        frame["mse"] = mse
    return frame


def _check_count(file: Path, frame: pd.DataFrame, expected: int, problems: Offenders) -> None:
    if doubled := set(frame["ID"][frame["ID"].duplicated()]):
        problems.add("doubled utterances", f"{file}: {_listed(doubled)}")
    elif len(frame) != expected:
        problems.add("missing or surplus utterances", f"{file}: {len(frame)}, metrics.json says {expected}")


def _check_posteriors(file: Path, frame: pd.DataFrame, classes: Sequence[str], problems: Offenders) -> None:
    """They are rounded to six digits; a table need not have any."""
    columns = [c for c in frame if c.startswith("posterior_")]
    if not columns:
        return
    if set(columns) != {f"posterior_{c}" for c in classes}:
        problems.add("posteriors of other classes than those of metrics.json", f"{file}: {', '.join(columns)}")
    elif not (is_right := (frame[columns] >= 0).all(axis=1) & ((frame[columns].sum(axis=1) - 1).abs() < 1e-3)).all():
        problems.add("posteriors that are no shares of 1", f"{file}: {_listed(frame['ID'][~is_right])}")


def _check_run(run: Run, problems: Offenders) -> None:
    metrics, chosen = run.metrics, run.metrics["selection"]
    if run.fold not in metrics["folds"]:
        problems.add("a fold that its protocol does not have", f"{run}: folds are {', '.join(metrics['folds'])}")
    for selection, frame in run.predictions.items():
        said = metrics["selections"][selection]["all"]
        figure = FIGURES["WA" if metrics["classes"] else next(name for name in CCC if name in said)]
        told, found = said[figure.name] or 0.0, figure.of(frame) or 0.0
        if len(frame) == metrics["utterances"]["test"] and abs(told - found) > 1e-9:
            what = f"{run.folder} ({selection}): {figure.name} {found:.4f}, there {told:.4f}"
            problems.add("predictions that metrics.json was not made of", what)
    if run.controls is not None and run.controls["ID"].tolist() != run.predictions[chosen]["ID"].tolist():
        problems.add("controls of other utterances than predictions.csv has", run.folder / CONTROLS_FILE)
    if run.calibration is not None:  # a killed process may have left that of an earlier epoch
        if (found := run.calibration.get("epoch")) != (expected := metrics["selections"][chosen]["epoch"]):
            problems.add("calibration of another epoch", f"{run}: {found}, metrics.json says {expected}")
        elif run.logits.index.tolist() != run.predictions[chosen]["ID"].tolist():
            problems.add("logits of other utterances than predictions.csv has", run.folder / LOGITS)


# ------------------------------------------------------------------ checks between runs


def _check_mixture(metrics: dict[Path, dict], problems: Offenders) -> None:
    for kind, key in SAME.items():
        found = _grouped((", ".join(m[key]) if isinstance(m[key], list) else m[key], p) for p, m in metrics.items())
        for value, paths in found.items() if len(found) > 1 else ():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            problems.add(f"different {kind} in one report: name a folder with one", f"{value}: {paths[0]}{more}")


def _check_variants(metrics: dict[Path, dict], problems: Offenders) -> None:
    """A variant is trained once with each fold and seed, always for as many epochs."""
    places = _grouped(((m["system"], m["variant"], m["fold"], m["seed"]), path) for path, m in metrics.items())
    for place, paths in places.items():
        if len(paths) > 1:
            problems.add("the same run twice", f"{', '.join(map(str, place))}: {', '.join(map(str, paths))}")
    epochs = _grouped((f"{m['system']}/{m['variant']}", m["n_epochs"]) for m in metrics.values())
    for variant, numbers in epochs.items():
        if len(set(numbers)) > 1:
            problems.add("folds trained for different numbers of epochs", f"{variant}: {_listed(set(numbers))}")


def _check_utterances(runs: Sequence[Run], problems: Offenders) -> None:
    """A fold tests the same utterances, by the same speakers, whatever the variant, seed and selection."""
    of_fold: dict[str, tuple[Run, pd.DataFrame]] = {}
    for run in runs:
        for selection, frame in run.predictions.items():
            facts = frame.set_index("ID")[FACTS]
            first, known = of_fold.setdefault(run.fold, (run, facts))
            _check_same(f"{run} ({selection})", facts, str(first), known, problems)
    owner: dict[str, str] = {}
    for fold, (_, facts) in of_fold.items():
        if twice := [i for i in facts.index if owner.setdefault(i, fold) != fold]:
            problems.add("utterances tested in two folds", f"{owner[twice[0]]} and {fold}: {_listed(twice)}")


def _check_same(who: str, facts: pd.DataFrame, other: str, known: pd.DataFrame, problems: Offenders) -> None:
    if facts.equals(known):
        return
    for label, ids in (("lacks", known.index.difference(facts.index)), ("has", facts.index.difference(known.index))):
        if len(ids):
            problems.add("folds of the same name tested on different utterances", f"{who} {label} {_listed(ids)}")
    both = facts.index.intersection(known.index)
    differing = both[(facts.loc[both] != known.loc[both]).any(axis=1)]
    if len(differing):
        problems.add("utterances with another speaker, emotion or transcript", f"{who}, {other}: {_listed(differing)}")


def _check_parts(runs: Sequence[Run], problems: Offenders) -> None:
    """A variant has the same selections and tasks in all its folds: no mean over a part of them."""
    first: dict[tuple, set] = {}
    for run in runs:
        found = {f"{s}: {c}" for s, f in run.predictions.items() for c in HEADS if c in f}
        found |= set() if run.seen is None else {"predictions_seen.csv"}
        if differing := found ^ first.setdefault(run.variant, found):
            problems.add("files or columns in some folds of a variant only", f"{run}: {_listed(differing)}")


def check_same_tests(first: Runs, second: Runs, problems: Offenders, allow_incomplete: bool) -> None:
    """Note what keeps two sets of runs from being paired: other corpora, protocols, classes, selections, utterances.

    With `allow_incomplete` one may have folds or seeds that the other lacks.
    """
    both = (*first.runs, *second.runs)
    _check_mixture({r.folder: r.metrics for r in both}, problems)
    _check_utterances(both, problems)
    mine, theirs = ({(r.fold, r.seed) for r in runs.runs} for runs in (first, second))
    if not mine & theirs:
        problems.add("no fold and seed in common", f"{sorted(mine)} and {sorted(theirs)}")
    elif not allow_incomplete:
        for fold, seed in sorted(mine ^ theirs):
            problems.add("in one of the two only (--allow-incomplete compares the rest)", f"fold {fold}, seed {seed}")


def _missing(runs: Sequence[Run], unfinished: Sequence[Path]) -> list[str]:
    """Folds and seeds that some variant lacks, and folders that were begun, each named once."""
    folds, seeds = runs[0].metrics["folds"], sorted({r.seed for r in runs})
    there = {(r.variant, r.seed, r.fold) for r in runs}
    expected = list(product(dict.fromkeys(r.variant for r in runs), seeds))
    lacking = _grouped((tuple(f for f in folds if (*each, f) not in there), each) for each in expected)
    missing, named = [], set()
    for absent, who in lacking.items():
        what = f"fold {', '.join(absent)}"
        if absent and len(who) == len(expected) > 1:
            missing.append(f"{what} of every variant and seed")
        elif absent:
            what = "all folds" if len(absent) == len(folds) else what
            missing += [f"{'/'.join(variant)}, seed {seed}: {what}" for variant, seed in who]
        named |= {tuple(map(path_component, (variant, f, str(seed)))) for (_, variant), seed in who for f in absent}
    return missing + [f"{path} (begun)" for path in unfinished if path.parts[-3:] not in named]


def _grouped(pairs: Iterable[tuple[Hashable, object]]) -> dict:
    """Values by key, in the order in which keys come."""
    groups: dict = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _listed(items: Iterable) -> str:
    return ", ".join(shown(sorted(items)))


# ------------------------------------------------------------------ names


def _short_names(changed: Mapping[tuple[str, str], dict]) -> list[str]:
    """Names by the lines in which variants (system and full variant: changed lines) differ."""
    is_one, several = len(changed) == 1, len({system for system, _ in changed}) > 1
    shared = {} if is_one else _shared(list(changed.values()))
    for of in (readable, lambda items, _: items):  # what is written out is cut, and may be alike
        lines = [
            (system * several, of(items_of(variant, without=shared), texts) or variant * is_one)
            for (system, variant), texts in changed.items()
        ]
        names = [" ".join(filter(None, line)) or "default" for line in lines]
        if len(set(names)) == len(names):
            return names
    return ["/".join(variant) for variant in changed]


def _shared(changed: Sequence[dict]) -> dict:
    return {k: v for k, v in changed[0].items() if all(c.get(k) == v for c in changed)}


def items_of(variant: str, without: Iterable[str] = (), only: Iterable[str] | None = None) -> str:
    """Return the ``key=value`` items of a variant's name, some left out; ``default`` has none."""
    keys = {item: item.split("=")[0] for item in variant.split(",") if "=" in item}
    return ",".join(i for i, k in keys.items() if k not in without and (only is None or k in only))


def readable(items: str, changed: Mapping[str, str]) -> str:
    """Write out what ``key=value`` items of a folder's name have a hash of, in at most 40 characters.

    Example
    -------
    >>> readable("alpha=0,build_backbone=20562396", {"alpha": "0", "build_backbone": "{'units': 8, 'layers': 2}"})
    'alpha=0,build_backbone=units:8 layers:2'
    >>> readable("augment=77d850b8", {"augment": "!new:speechbrain_ser.nnet.augment.WaveformAugmentation {room: 0}"})
    'augment=WaveformAugmentation room:0'
    """

    def value_of(found: re.Match) -> str:
        text = re.sub(r"!(new|name):(\w+\.)*|['\"]", "", str(changed.get(found[1], found[2]))).replace(": ", ":")
        words = re.sub(r"[^\w.:+*-]+", " ", text).strip()
        return f"{found[1]}={words if len(words) <= 40 else words[:39] + '…'}"

    return re.sub(r"(?<![^,])(\w+)=([0-9a-f]{8})(?![^,])", value_of, items)


def _order(run: Run) -> tuple:
    system, variant = run.variant
    folds = run.metrics["folds"]
    return system, variant != "default", _natural(variant), run.seed, folds.index(run.fold) if run.fold in folds else -1


def _natural(text: str) -> list[tuple]:
    """A sort key by which alpha=0.01 comes before alpha=0.1, and 2 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    return [(float(p), "") if k % 2 else (0.0, p) for k, p in enumerate(parts)]


def stacked(runs: Iterable[Run], selection: str, part: str = "predictions") -> pd.DataFrame:
    """Return all predictions of some runs, with columns fold and seed; `part` ``second`` is the second corpus."""
    return pooled(getattr(r, part)[selection].assign(fold=r.fold, seed=r.seed) for r in runs)


def pooled(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all tables; one unknown speaker makes all unknown."""
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(speaker="") if (frame["speaker"] == "").any() else frame


PRETRAINING_PARTS = {"test": "test speakers", "seen": "known speakers, held out"}


def summary(folder: Path) -> str:
    """Return the figures of a finished run and where its files are, in words."""
    results = read_metrics(folder)
    is_pretraining = results.get("kind") == "pretraining"
    where = f"{results['corpus']}, protocol {results['protocol']}, fold {results['fold']}, seed {results['seed']}"
    lines = ["", f"{results['system']}{' (pre-training)' if is_pretraining else ''}: {where}"]
    lines += [f"speaker-disjoint: {'yes' if results['speaker_disjoint'] else 'NO, LEAKY: ' + results['leak']}"]
    lines += filter(None, [results.get("never_trained")])
    rows = _pretraining_rows(results) if is_pretraining else _recognition_rows(results)
    table = pd.DataFrame(rows).fillna("").to_string(index=False)
    if is_pretraining:
        lines += [table]
    else:
        texts = [in_words_of_texts(results["texts"])] if "texts" in results else []  # of an earlier version
        lines += [*texts, table, *([in_words(read_calibration(folder))] if results["classes"] else [])]
    names = ("metrics.json", "predictions.csv", "epochs.csv", "confusion.png", "learning_curves.png", "reconstructions")
    found = [f"  {name}" for name in (*names, *FILES) if (folder / name).exists()]
    return "\n".join([*lines, "", f"results: {folder}{os.sep}", *found])


def in_words_of_texts(texts: Mapping) -> str:
    """Say how far the test part's texts were heard in training, and what they tell (:func:`told_by_texts`)."""
    if not texts["known"]:
        return "texts are not known: whether training has heard them, nobody can say"
    of_known = "" if texts["known"] == 1 else f" whose text is known ({texts['known']:.0%} of all)"
    said = f"{texts['heard']:.0%} of the test utterances{of_known} say a text heard in training"
    if not texts["heard"]:
        return said
    return f"{said}, and those texts tell the emotion in {texts['told']:.0%}"


def _recognition_rows(results: dict) -> Iterator[dict]:
    for found in results["selections"].values():
        chosen = {"selection": found["selected_by"], "epoch": found["epoch"]}
        parts = {part.replace("_", " "): found[part] for part in ("all", "text_heard", "text_disjoint")}
        if "second" in found:
            parts |= {results["second_corpus"]: found["second"], **found.get("seconds", {})}
        for part, figures in parts.items():
            if figures == "none":
                continue
            row = {**chosen, "test utterances": part, "n": figures["n"]}
            row |= {name: f"{figures[name]:.1%}" for name in ("WA", "UA", "F1") if name in figures}
            row["WER"] = "" if figures.get("WER") is None else f"{figures['WER']:.1%}"
            row |= {"MSE": f"{figures['MSE']:.1e}"} if "MSE" in figures else {}
            row |= {c: "none" if figures[c] is None else f"{figures[c]:.3f}" for c in CCC if c in figures}
            for name, value in found.items() if part == "all" else ():
                if name.endswith("_accuracy") and value != "none":
                    label = name.removesuffix("_accuracy").replace("seen_speaker", "speaker (seen)")
                    row[label] = f"{value:.1%}"
            yield row


def _pretraining_rows(results: dict) -> Iterator[dict]:
    for found in results["selections"].values():
        for part in (p for p in PRETRAINING_PARTS if p in found):
            figures = found[part]
            row = {"selection": found["selected_by"], "epoch": found["epoch"]}
            row |= {"utterances of": PRETRAINING_PARTS[part], "n": figures["n"], "MSE": f"{figures['MSE']:.2e}"}
            row["of the mean spectrum"] = f"{figures['MSE_of_mean_spectrum']:.2e}"
            if "speaker_accuracy" in figures:
                row["speaker"] = f"{figures['speaker_accuracy']:.1%}"
            yield row


def in_words(calibration: dict | None) -> str:
    """Return what a run's ``calibration.json`` says; None is for one that is missing."""
    if calibration is None:
        return "posteriors: not calibrated (the same command with --test_only tests once more and does it)"
    if calibration["temperature"] is None:
        return f"posteriors: not calibrated ({calibration['reason']})"
    said = f"posteriors: temperature {calibration['temperature']:.3g} from {calibration['n']} validation utterances"
    said += f" ({calibration['note']})" if calibration["note"] else ""
    figures = calibration["figures"].get("test", {})  # none of logits that are not finite
    ece = [f"{way} {found['ECE']:.1%}" for way, found in figures.items()]
    return "; ECE on the test utterances: ".join([said, *filter(None, [", ".join(ece)])])
