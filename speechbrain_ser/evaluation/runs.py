"""The finished runs below a folder, checked before anything is averaged.

Whatever would make a mean dishonest is an error that names every offender: folds that have not finished, utterances
missing or doubled, folds of other protocols, corpora or label sets, variants tested on other utterances. Runs that only
pre-train recognise nothing and are left out.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.calibration import LOGITS, read_calibration, temperature_of
from speechbrain_ser.evaluation.metrics import word_errors

SHOWN = 20  # offenders of one kind that a message prints
NEEDED = ("system", "corpus", "protocol", "fold", "folds", "seed", "variant", "changed", "classes", "utterances")
NEEDED += ("n_epochs", "selection", "selections", "speaker_disjoint", "leak")
COLUMNS = ("ID", "speaker", "emotion", "predicted", "transcript", "text_heard")
SEEN_COLUMNS = ("ID", "speaker", "speaker_predicted")
HEADS = ("hypothesis", "mse")  # columns of the tasks that a variant may not have
PRETRAINING = "pretraining"  # the line `kind:` of a run that recognises nothing
FACTS = ["speaker", "emotion", "transcript"]  # of an utterance, whoever predicts it


@dataclass(frozen=True, eq=False)
class Run:
    """One fold of one variant with one seed.

    Attributes
    ----------
    folder : pathlib.Path
        Where its files are.
    metrics : dict
        Its ``metrics.json``.
    predictions : dict of str to pandas.DataFrame
        By selection; sorted by ID, with ``words`` and ``word_errors`` where there are hypotheses, ``mse`` as
        floats where there are reconstructions.
    epochs : pandas.DataFrame
        Its ``epochs.csv``.
    seen : pandas.DataFrame or None
        Speaker predictions on held-out utterances of training speakers, where there is a speaker head.
    second : dict of str to pandas.DataFrame
        As `predictions`, on held-out utterances of the second corpus; empty where there is none.
    calibration : dict or None
        Its ``calibration.json``; None of a run that finished before there was one.
    logits : pandas.DataFrame or None
        [utterances, classes], of the configured selection's predictions in their order; None as `calibration`.
    """

    folder: Path
    metrics: dict
    predictions: dict[str, pd.DataFrame]
    epochs: pd.DataFrame
    seen: pd.DataFrame | None
    second: dict[str, pd.DataFrame]
    calibration: dict | None = None
    logits: pd.DataFrame | None = None

    @property
    def variant(self) -> tuple[str, str]:
        """System and changed lines: what is compared."""
        return self.metrics["system"], self.metrics["variant"]

    @property
    def fold(self) -> str:
        return self.metrics["fold"]

    @property
    def seed(self) -> int:
        return self.metrics["seed"]

    def temperature(self, selection: str) -> float | None:
        """That of a selection's posteriors: only the configured one has any."""
        if self.calibration is None or selection != self.metrics["selection"]:
            return None
        temperature, lacks = temperature_of(self.calibration)
        return None if lacks else temperature

    def __str__(self) -> str:
        return f"{'/'.join(self.variant)}, fold {self.fold}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs that may stand in one table: one corpus, protocol and label set.

    Attributes
    ----------
    runs : tuple of Run
        By variant, seed and fold.
    missing : tuple of str
        What has not finished, in words; empty unless incomplete folds were asked for.
    names : dict of str to str
        What a table calls its variants; others are called by the lines in which they differ.
    """

    runs: tuple[Run, ...]
    missing: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def corpus(self) -> str:
        return self.runs[0].metrics["corpus"]

    @property
    def protocol(self) -> str:
        return self.runs[0].metrics["protocol"]

    @property
    def folds(self) -> list[str]:
        """All folds of the protocol, also those that have not finished."""
        return self.runs[0].metrics["folds"]

    @property
    def classes(self) -> list[str]:
        return self.runs[0].metrics["classes"]

    @property
    def selection(self) -> str:
        """The configured one, whose figures come first."""
        return self.runs[0].metrics["selection"]

    def in_order_of(self, keys: Sequence[str], key_of: Callable[[str, str], str]) -> "Runs":
        """The same runs, variants in the order of `keys`; `key_of` maps a variant and its short name to a key."""
        place = {}
        for name, of_variant in self.variants.items():
            key = key_of("/".join(of_variant[0].variant), name)
            place |= dict.fromkeys(of_variant, keys.index(key) if key in keys else len(keys))
        return replace(self, runs=tuple(sorted(self.runs, key=place.__getitem__)))

    @cached_property
    def variants(self) -> dict[str, list[Run]]:
        """Runs by the name of their variant: the table's, or only the lines in which variants differ."""
        by_variant: dict[tuple, list[Run]] = {}
        for run in self.runs:
            by_variant.setdefault(run.variant, []).append(run)
        names = short_names(list(by_variant), [runs[0].metrics["changed"] for runs in by_variant.values()])
        names = [
            self.names.get("/".join(key), self.names.get(key[1], name))
            for key, name in zip(by_variant, names, strict=True)
        ]
        return dict(zip(names, by_variant.values(), strict=True))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def leak(self) -> str | None:
        """What leaks, from the first run that says so."""
        return next((run.metrics["leak"] for run in self.runs if not run.metrics["speaker_disjoint"]), None)

    @property
    def common(self) -> dict[str, str]:
        """Changed lines that all variants share, by their last path component."""
        shared = _shared([run.metrics["changed"] for run in self.runs])
        return {k: v.rstrip("/").rsplit("/", 1)[-1] for k, v in shared.items()}


def load_runs(folder: str | os.PathLike, allow_incomplete: bool = False) -> Runs:
    """Find, read and check every run below a folder; pre-training runs are passed over.

    Arguments
    ---------
    folder : str or path
        ``results/``, a system's, a protocol's, or a single variant's folder.
    allow_incomplete : bool
        Leave out what has not finished and say so, instead of refusing.

    Returns
    -------
    Runs

    Raises
    ------
    UserError
        Naming every run, file or utterance that is not what it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    finished, unfinished, pretraining = find_runs(folder)
    if not finished:
        raise UserError(f"{folder} holds {_nothing_to_report(unfinished, pretraining)}")
    problems = Problems(folder)
    metrics = {path: _read_metrics(path, problems) for path in finished}
    problems.raise_any()
    _check_mixture(metrics, problems)
    problems.raise_any()
    runs = [run for path, m in metrics.items() if (run := _read_run(path, m, problems))]
    problems.raise_any()
    runs = tuple(sorted(runs, key=_order))
    _check_utterances(runs, problems)
    _check_heads(runs, problems)
    problems.raise_any()
    missing = _missing(runs, unfinished)
    if missing and not allow_incomplete:
        for what in missing:
            problems.add("not finished (--allow-incomplete reports the others)", what)
        problems.raise_any()
    return Runs(runs, tuple(missing))


def find_runs(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Run folders below a folder, sorted: finished ones (with metrics.json), begun ones, and those of pre-training."""
    finished = {path.parent for path in folder.rglob("metrics.json")}
    begun = {path.parent for name in ("configuration.json", "hyperparams.yaml") for path in folder.rglob(name)}
    pretraining = {path for path in finished | begun if _is_pretraining(path)}
    return sorted(finished - pretraining), sorted(begun - finished - pretraining), sorted(pretraining)


def _is_pretraining(path: Path) -> bool:
    """Whether a run's figures, or the lines that it was begun with, say so."""
    for name in ("metrics.json", "configuration.json"):
        try:
            found = json.loads((path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a damaged metrics.json is named when it is read for its figures
            continue
        if isinstance(found, dict) and found.get("kind") == PRETRAINING:
            return True
    return False


def _nothing_to_report(unfinished: Sequence[Path], pretraining: Sequence[Path]) -> str:
    parts = [f"{len(unfinished)} unfinished runs"] if unfinished else []
    if pretraining:
        parts.append(f"{len(pretraining)} pre-training runs, which have no recognition to report")
    return " and ".join(parts) or "no run (no metrics.json)"


class Problems:
    """Collects what is wrong, so that a user sees all of it at once.

    Example
    -------
    >>> problems = Problems("results")
    >>> problems.add("doubled utterances", "fold 03: a, b")
    >>> problems.raise_any()
    Traceback (most recent call last):
    speechbrain_ser.errors.UserError: results: no report can be made of this
    doubled utterances (1):
      fold 03: a, b
    """

    def __init__(self, where):
        self.where = where
        self.kinds: dict[str, list[str]] = {}

    def add(self, kind: str, offender: object) -> None:
        """Note one offender."""
        self.kinds.setdefault(kind, []).append(str(offender))

    def raise_any(self) -> None:
        """Raise a UserError when anything was noted."""
        if self.kinds:
            parts = [f"{kind} ({len(o)}):\n  " + "\n  ".join(_shown(o)) for kind, o in self.kinds.items()]
            raise UserError("\n".join([f"{self.where}: no report can be made of this", *parts]))


def _shown(items: Iterable) -> list[str]:
    items = list(map(str, items))
    return [*items[:SHOWN], f"… and {len(items) - SHOWN} more"] if len(items) > SHOWN else items


def _listed(items: Iterable) -> str:
    return ", ".join(_shown(sorted(items)))


# ------------------------------------------------------------------ reading


def _read_metrics(path: Path, problems: Problems) -> dict:
    try:
        found = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.add("unreadable file", f"{path / 'metrics.json'}: {error}")
        return {}
    if not isinstance(found, dict) or (lacking := [k for k in NEEDED if k not in found]):
        problems.add(
            "metrics.json without what a report needs", f"{path}: {', '.join(lacking) if found else 'no mapping'}"
        )
    return found


def _read_run(path: Path, metrics: dict, problems: Problems) -> Run | None:
    try:
        files = {s: path / _file_name("predictions", s, metrics) for s in metrics["selections"]}
        predictions = {s: _read_predictions(file, problems) for s, file in files.items()}
        epochs = _read_epochs(path / "epochs.csv")
        seen = path / "predictions_seen.csv"
        seen = _read_csv(seen, SEEN_COLUMNS) if seen.is_file() else None
        second = _read_second(path, metrics, problems)
        calibration = read_calibration(path)
        logits = None if calibration is None else _read_logits(path, metrics)
        run = Run(path, metrics, predictions, epochs, seen, second, calibration, logits)
        for selection, file in files.items():
            _check_predictions(run, selection, file, problems)
        if calibration is not None:
            _check_calibration(run, problems)
        if seen is not None:
            _check_count(path / "predictions_seen.csv", seen, metrics["utterances"]["seen"], problems)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        problems.add("unreadable file", f"{path}: {error}")
        return None
    except (KeyError, TypeError, AttributeError) as error:  # a metrics.json of another shape
        problems.add("metrics.json without what a report needs", f"{path}: {type(error).__name__} {error}")
        return None
    return run


def _read_second(path: Path, metrics: dict, problems: Problems) -> dict[str, pd.DataFrame]:
    expected = metrics["utterances"].get("second", 0)
    files = {s: path / _file_name("predictions_second", s, metrics) for s in metrics["selections"] if expected}
    frames = {selection: _read_predictions(file, problems) for selection, file in files.items()}
    for selection, frame in frames.items():
        _check_count(files[selection], frame, expected, problems)
    return frames


def _read_logits(path: Path, metrics: dict) -> pd.DataFrame:
    """Of the test utterances, by ID."""
    columns = [f"logit_{c}" for c in metrics["classes"]]
    frame = _read_csv(path / LOGITS, ["part", "ID", *columns])
    return frame[frame["part"] == "test"].set_index("ID")[columns].astype(float).sort_index()


def _file_name(stem: str, selection: str, metrics: dict) -> str:
    return f"{stem}.csv" if selection == metrics["selection"] else f"{stem}_{selection}.csv"


def _read_predictions(path: Path, problems: Problems) -> pd.DataFrame:
    frame = _read_csv(path, COLUMNS)
    if "mse" in frame:
        is_right = pd.to_numeric(frame["mse"], errors="coerce").between(0, float("inf"), inclusive="left")
        if not is_right.all():
            found = (f"{i} has '{m}'" for i, m in frame.loc[~is_right, ["ID", "mse"]].itertuples(index=False))
            problems.add("mse that is not a finite number >= 0", f"{path}: {_listed(found)}")
    return _prepared(frame)


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Everything as text: speaker 03 keeps its zero, and a hypothesis that reads NA or nothing is no missing value."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if lacking := [c for c in columns if c not in frame]:
        raise ValueError(f"{path.name} lacks the columns {', '.join(lacking)}")
    return frame


def _read_epochs(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path)
    if "epoch" not in frame:
        raise ValueError(f"{path.name} lacks the column epoch")
    return frame


def _prepared(predictions: pd.DataFrame) -> pd.DataFrame:
    """Typed, sorted, with word counts; speakers qualified by corpus where that is a column, '' where unknown.

    An ``mse`` or a posterior that is no number becomes NaN.
    """
    frame = predictions.sort_values("ID", ignore_index=True)
    frame["text_heard"] = frame["text_heard"].str.lower() == "true"
    if "corpus" in frame:
        frame["speaker"] = (frame["corpus"] + ":" + frame["speaker"]).where(frame["speaker"] != "", "")
    for column in (c for c in frame if c.startswith("posterior_")):
        frame[column] = pd.to_numeric(frame[column], errors="coerce")
    if "hypothesis" in frame:
        frame = frame.join(word_errors(frame["transcript"], frame["hypothesis"]))
    if "mse" in frame:
        frame["mse"] = pd.to_numeric(frame["mse"], errors="coerce").astype(float)
    return frame


# ------------------------------------------------------------------ checks of one run


def _check_predictions(run: Run, selection: str, file: Path, problems: Problems) -> None:
    frame, metrics = run.predictions[selection], run.metrics
    _check_count(file, frame, metrics["utterances"]["test"], problems)
    unknown = {*frame["emotion"], *frame["predicted"]} - set(metrics["classes"])
    if unknown:
        problems.add("classes that metrics.json does not know", f"{file}: {_listed(unknown)}")
    _check_posteriors(file, frame, metrics["classes"], problems)
    if metrics["fold"] not in metrics["folds"]:
        problems.add("a fold that its protocol does not have", f"{run}: folds are {', '.join(metrics['folds'])}")
    told, found = metrics["selections"][selection]["all"]["WA"], (frame["emotion"] == frame["predicted"]).mean()
    if len(frame) == metrics["utterances"]["test"] and abs(told - found) > 1e-9:
        problems.add("predictions that metrics.json was not made of", f"{file}: WA {found:.4f}, there {told:.4f}")


def _check_posteriors(file: Path, frame: pd.DataFrame, classes: Sequence[str], problems: Problems) -> None:
    """They are rounded to six digits; a table need not have any."""
    columns = [c for c in frame if c.startswith("posterior_")]
    if not columns:
        return
    if set(columns) != {f"posterior_{c}" for c in classes}:
        problems.add("posteriors of other classes than those of metrics.json", f"{file}: {', '.join(columns)}")
    elif not (is_right := (frame[columns] >= 0).all(axis=1) & ((frame[columns].sum(axis=1) - 1).abs() < 1e-3)).all():
        problems.add("posteriors that are no shares of 1", f"{file}: {_listed(frame['ID'][~is_right])}")


def _check_calibration(run: Run, problems: Problems) -> None:
    """A killed process may have left the calibration of an earlier epoch."""
    selection = run.metrics["selection"]
    if (found := run.calibration.get("epoch")) != (expected := run.metrics["selections"][selection]["epoch"]):
        problems.add("calibration of another epoch", f"{run}: {found}, metrics.json says {expected}")
    elif run.logits.index.tolist() != run.predictions[selection]["ID"].tolist():
        problems.add("logits of other utterances than predictions.csv has", run.folder / LOGITS)


def _check_count(file: Path, frame: pd.DataFrame, expected: int, problems: Problems) -> None:
    if doubled := sorted(set(frame["ID"][frame["ID"].duplicated()])):
        problems.add("doubled utterances", f"{file}: {_listed(doubled)}")
    elif len(frame) != expected:
        problems.add("missing or surplus utterances", f"{file}: {len(frame)}, metrics.json says {expected}")


# ------------------------------------------------------------------ checks between runs


def _check_mixture(metrics: dict[Path, dict], problems: Problems, twice: bool = False) -> None:
    """One report, one corpus, protocol, list of folds, label set and selection; a variant has one number of epochs."""
    tests = {
        "corpora": lambda m: m["corpus"],
        "protocols": lambda m: m["protocol"],
        "label sets": lambda m: ", ".join(m["classes"]),
        "lists of folds": lambda m: ", ".join(m["folds"]),
        "configured selections": lambda m: m["selection"],
    }
    for kind, value in tests.items():
        found: dict[str, list[Path]] = {}
        for path, m in metrics.items():
            found.setdefault(value(m), []).append(path)
        if len(found) > 1:
            for each, paths in found.items():
                problems.add(f"different {kind} in one report: name a folder with one", f"{each}: {_some(paths)}")
    if twice:  # two folders may hold the same variant, trained otherwise
        return
    by_place: dict[tuple, list[Path]] = {}
    epochs: dict[tuple, set] = {}
    for path, m in metrics.items():
        variant = (m["system"], m["variant"])
        by_place.setdefault((*variant, m["fold"], m["seed"]), []).append(path)
        epochs.setdefault(variant, set()).add(m["n_epochs"])
    for place, paths in by_place.items():
        if len(paths) > 1:
            problems.add("the same run twice", f"{', '.join(map(str, place))}: {', '.join(map(str, paths))}")
    for variant, numbers in epochs.items():
        if len(numbers) > 1:
            problems.add("folds trained for different numbers of epochs", f"{'/'.join(variant)}: {_listed(numbers)}")


def _some(paths: Sequence[Path]) -> str:
    return f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"


def _check_utterances(runs: Sequence[Run], problems: Problems) -> None:
    """A fold tests the same utterances, by the same speakers, whatever the variant, seed and selection."""
    of_fold: dict[str, tuple[Run, pd.DataFrame]] = {}
    for run in runs:
        for selection, frame in run.predictions.items():
            facts = frame.set_index("ID")[FACTS]
            first, known = of_fold.setdefault(run.fold, (run, facts))
            _check_same(f"{run} ({selection})", facts, str(first), known, problems)
        if (run.seen is None) != (_first_of(runs, run).seen is None):
            problems.add("predictions_seen.csv in some folds only", run)
        if set(run.predictions) != set(_first_of(runs, run).predictions):
            problems.add("selections that other folds do not have", f"{run}: {', '.join(run.predictions)}")
    owner: dict[str, str] = {}
    for fold, (_, facts) in of_fold.items():
        if twice := [i for i in facts.index if owner.setdefault(i, fold) != fold]:
            problems.add("utterances tested in two folds", f"{owner[twice[0]]} and {fold}: {_listed(twice)}")


def _check_heads(runs: Sequence[Run], problems: Problems) -> None:
    """A variant has the same tasks in all its files: no mean over a part of them."""
    for run in runs:
        known = _heads(next(iter(_first_of(runs, run).predictions.values())))
        for selection, frame in run.predictions.items():
            if differing := _heads(frame) ^ known:
                problems.add("columns in some files of a variant only", f"{run} ({selection}): {_listed(differing)}")


def _heads(predictions: pd.DataFrame) -> set[str]:
    return {column for column in HEADS if column in predictions}


def check_same_tests(first: Runs, second: Runs, problems: Problems, allow_incomplete: bool) -> None:
    """Whether two sets of runs can be paired: the same corpus, protocol, classes, selection, and utterances by fold.

    Arguments
    ---------
    first, second : Runs
        Each checked by itself.
    problems : Problems
        Takes what differs.
    allow_incomplete : bool
        Whether one may have folds or seeds that the other lacks.
    """
    _check_mixture({r.folder: r.metrics for r in (*first.runs, *second.runs)}, problems, twice=True)
    _check_utterances((*first.runs, *second.runs), problems)
    there = [{(r.fold, r.seed) for r in runs.runs} for runs in (first, second)]
    if not there[0] & there[1]:
        problems.add("no fold and seed in common", f"{sorted(there[0])} and {sorted(there[1])}")
    elif not allow_incomplete:
        for fold, seed in sorted(there[0] ^ there[1]):
            problems.add("in one of the two only (--allow-incomplete compares the rest)", f"fold {fold}, seed {seed}")


def _check_same(who: str, facts: pd.DataFrame, other: str, known: pd.DataFrame, problems: Problems) -> None:
    if facts.equals(known):
        return
    for label, ids in (("lacks", known.index.difference(facts.index)), ("has", facts.index.difference(known.index))):
        if len(ids):
            problems.add("folds of the same name tested on different utterances", f"{who} {label} {_listed(ids)}")
    both = facts.index.intersection(known.index)
    differing = both[(facts.loc[both] != known.loc[both]).any(axis=1)]
    if len(differing):
        problems.add("utterances with another speaker, emotion or transcript", f"{who}, {other}: {_listed(differing)}")


def _first_of(runs: Sequence[Run], run: Run) -> Run:
    return next(r for r in runs if r.variant == run.variant)


def _missing(runs: Sequence[Run], unfinished: Sequence[Path]) -> list[str]:
    """Folds and seeds that some variant lacks, and folders that were begun, each named once."""
    folds, seeds = runs[0].metrics["folds"], sorted({r.seed for r in runs})
    there = {(*r.variant, r.seed, r.fold) for r in runs}
    lacking: dict[tuple, list[tuple]] = {}  # folds: who lacks them
    for system, variant in dict.fromkeys(r.variant for r in runs):
        for seed in seeds:
            if absent := tuple(f for f in folds if (system, variant, seed, f) not in there):
                lacking.setdefault(absent, []).append((system, variant, seed))
    everybody = len({r.variant for r in runs}) * len(seeds)
    missing = []
    for absent, who in lacking.items():
        if len(who) == everybody > 1:
            missing.append(f"fold {', '.join(absent)} of every variant and seed")
        else:
            missing += [_whose(absent, folds, *each) for each in who]
    places = {(v, f, str(seed)) for absent, who in lacking.items() for _, v, seed in who for f in absent}
    return missing + [f"{path} (begun)" for path in unfinished if path.parts[-3:] not in places]  # the end of its path


def _whose(absent: Sequence[str], folds: Sequence[str], system: str, variant: str, seed: int) -> str:
    what = "all folds" if len(absent) == len(folds) else f"fold {', '.join(absent)}"
    return f"{system}/{variant}, seed {seed}: {what}"


# ------------------------------------------------------------------ names


def short_names(variants: Sequence[tuple[str, str]], changed: Sequence[dict]) -> list[str]:
    """Names by the lines in which variants differ; the system's where there are several.

    Arguments
    ---------
    variants : sequence of tuple
        System and full variant of each.
    changed : sequence of dict
        The changed lines of each.

    Returns
    -------
    list of str

    Example
    -------
    >>> changed = [{"alpha": "0", "freeze": "True"}, {"freeze": "True"}]
    >>> short_names([("cai", "alpha=0,freeze=True"), ("cai", "freeze=True")], changed)
    ['alpha=0', 'default']
    >>> short_names([("cai", "default"), ("ha", "beta=0")], [{}, {"beta": "0"}])
    ['cai', 'ha beta=0']
    """
    if len(variants) == 1:
        return [variants[0][1]]
    shared = _shared(changed)
    lines = [items_of(full, without=shared) for _, full in variants]
    if len({system for system, _ in variants}) > 1:
        names = [" ".join(filter(None, [s, line])) for (s, _), line in zip(variants, lines, strict=True)]
    else:
        names = [line or "default" for line in lines]
    return names if len(set(names)) == len(names) else ["/".join(v) for v in variants]


def _shared(changed: Sequence[dict]) -> dict:
    return {k: v for k, v in changed[0].items() if all(c.get(k) == v for c in changed)}


def items_of(variant: str, without: Iterable[str] = (), only: Iterable[str] | None = None) -> str:
    """The ``key=value`` items of a variant's name, some left out.

    Example
    -------
    >>> items_of("alpha=0,freeze=True", without=["freeze"]), items_of("default", only=["alpha"])
    ('alpha=0', '')
    """
    items = [i for i in variant.split(",") if "=" in i]
    keys = {i: i.split("=")[0] for i in items}
    return ",".join(i for i in items if keys[i] not in set(without) and (only is None or keys[i] in set(only)))


def _order(run: Run) -> tuple:
    system, variant = run.variant
    folds = run.metrics["folds"]
    return system, variant != "default", natural(variant), run.seed, folds.index(run.fold) if run.fold in folds else -1


def natural(text: str) -> list[tuple]:
    """A sort key by which alpha=0.01 comes before alpha=0.1, and 2 before 10.

    Example
    -------
    >>> sorted(["b=10", "b=2", "a=0.1", "a=0.01"], key=natural)
    ['a=0.01', 'a=0.1', 'b=2', 'b=10']
    """
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    return [(float(p), "") if k % 2 else (0.0, p) for k, p in enumerate(parts)]


def stacked(runs: Iterable[Run], selection: str, part: str = "predictions") -> pd.DataFrame:
    """All predictions of some runs, with columns fold and seed; one unknown speaker makes all unknown.

    `part` is ``predictions``, or ``second`` for the second corpus.
    """
    frames = [getattr(r, part)[selection].assign(fold=r.fold, seed=r.seed) for r in runs]
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(speaker="") if (frame["speaker"] == "").any() else frame


def selections_of(runs: Sequence[Run]) -> Iterator[str]:
    """The selections that runs have, the last epoch first."""
    return (s for s in ("last", "valid", "test") if s in runs[0].predictions)
