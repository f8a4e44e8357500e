"""Which runs: rows of a table x swept lines x seeds x folds, and the runs that they need first."""

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ruamel.yaml
from tqdm import tqdm

from speechbrain_ser.data.protocols import choose_fold
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.training import run as training
from speechbrain_ser.training.config import Config, read_config
from speechbrain_ser.training.run import Preparation, prepare, rehearse

EXECUTORS = ("local", "slurm")


USAGE = """usage: python crossval.py hparams/X.yaml --data_folder=… [OPTION …] [--KEY=VALUE of train.py …]

hparams/X.yaml             a system, or a table of a paper (hparams/tables/)
--folds=all                or some of them: --folds=01F,03M
--seeds=1,2,3              training seeds (default: the YAML's)
--sweep KEY=VALUE,VALUE    a run for each value of a line; several --sweep give all combinations
--jobs=N                   runs at a time (default 1); with N > 1 each gets its share of the cores
--executor=local|slurm     here, or a Slurm job a run; the YAML's `slurm` lines say which partition, GPUs and time:
                           --slurm="{partition: gpu, gpus: 1, time: 1440}"
--keep_optimizer           keep the optimiser's state of finished runs, so that they can be trained longer
"""


REFUSED = {
    "fold": "use --folds=…",
    "output_folder": "every run has a folder of its own; use --results_folder=…",
    "debug": "try `python train.py … --debug` first",
    "debug_batches": "try `python train.py … --debug` first",
    "debug_epochs": "try `python train.py … --debug` first",
    "debug_persistently": "try `python train.py … --debug` first",
    "test_only": "use train.py on the run's own lines",
}


UNSWEPT = {
    "fold": "use --folds=…",
    "seed": "use --seeds=…",
    "corpus": "a report is of one corpus: start once for each",
    "protocol": "a report is of one protocol: start once for each",
    "labels": "a report is of one set of classes: start once for each",
}


@dataclass
class Request:
    """What was asked for.

    Arguments
    ---------
    yaml : pathlib.Path
        A system's YAML or a table's.
    options : list of str
        For train.py.
    folds : list of str, optional
        None: all.
    seeds : list of str
        Empty: the YAML's one.
    sweeps : dict of str to list of str
        Line -> values, as text.
    jobs : int
        Runs at a time.
    executor : str
        One of `EXECUTORS`.
    keep_optimizer : bool
        Whether finished runs can be trained longer.
    """

    yaml: Path
    options: list[str] = field(default_factory=list)
    folds: list[str] | None = None
    seeds: list[str] = field(default_factory=list)
    sweeps: dict[str, list[str]] = field(default_factory=dict)
    jobs: int = 1
    executor: str = "local"
    keep_optimizer: bool = False


def read_arguments(argv: list[str]) -> Request:
    """Tell crossval's own options from train.py's.

    Arguments
    ---------
    argv : list of str
        The command line after the program's name.

    Returns
    -------
    Request

    Raises
    ------
    UserError
        Naming everything that is wrong with crossval's own options.

    Example
    -------
    >>> request = read_arguments(["x.yaml", "--sweep", "alpha=0,0.1", "--folds=3,8", "--lr=0.1", "--jobs=2"])
    >>> request.sweeps, request.folds, request.options, request.jobs
    ({'alpha': ['0', '0.1']}, ['3', '8'], ['--lr=0.1'], 2)
    """
    if not argv or argv[0].startswith("-"):
        raise UserError(USAGE)
    request, problems, given, rest = Request(Path(argv[0])), [], set(), list(argv[1:])
    own = {"--folds", "--seeds", "--sweep", "--jobs", "--executor"}
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--keep_optimizer":
            request.keep_optimizer = True
        elif name in own:
            if not equals and (not rest or rest[0].startswith("--")):
                problems.append(f"{name} needs a value: {name}=…")
                continue
            if name in given and name != "--sweep":
                problems.append(f"{name} is given twice")
            given.add(name)
            problems += _set(request, name, value if equals else rest.pop(0))
        elif name[2:] in REFUSED:
            problems.append(f"{name}: {REFUSED[name[2:]]}")
        else:
            request.options.append(word)
    if request.seeds and any(o.partition("=")[0] == "--seed" for o in request.options):
        problems.append("--seed and --seeds are both given")
    if problems:
        raise UserError("\n  ".join(["on the command line:", *problems]))
    return request


def _set(request: Request, name: str, value: str) -> list[str]:
    """Take one option; returns what is wrong with it."""
    values = split_values(value)
    if name != "--sweep" and (not all(values) or len(set(values)) < len(values)):
        return [f"{name}={value}: expected different values, separated by commas"]
    if name == "--folds":
        request.folds = None if value == "all" else values
    elif name == "--seeds":
        request.seeds = values
        return [f"--seeds={value}: expected whole numbers"] * any(not v.isdigit() for v in values)
    elif name == "--sweep":
        return _set_sweep(request, value)
    elif name == "--jobs":
        if not value.isdigit() or int(value) < 1:
            return [f"--jobs={value}: expected a whole number >= 1"]
        request.jobs = int(value)
    elif value not in EXECUTORS:
        return [f"--executor={value}: expected {' or '.join(EXECUTORS)}{nearest(value, EXECUTORS)}"]
    else:
        request.executor = value
    return []


def _set_sweep(request: Request, text: str) -> list[str]:
    key, equals, values = text.partition("=")
    key, found = key.removeprefix("--"), split_values(values)
    if not equals or not key or not all(found):
        return [f"--sweep {text}: expected KEY=VALUE,VALUE"]
    if key in UNSWEPT:
        return [f"--sweep {key}: {UNSWEPT[key]}"]
    if key in REFUSED:
        return [f"--sweep {key}: {REFUSED[key]}"]
    if key in request.sweeps:
        return [f"--sweep {key} is given twice"]
    if len(set(found)) < len(found):
        return [f"--sweep {text}: a value is given twice"]
    request.sweeps[key] = found
    return []


def split_values(text: str) -> list[str]:
    """Split at commas, but not inside brackets or quotes.

    Example
    -------
    >>> split_values("0,{a: 1, b: 2},'x,y'")
    ['0', '{a: 1, b: 2}', "'x,y'"]
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif re.match(r"[\"']", character):
            quote = character
        depth += (character in "[{(") - (character in ")}]") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [p.strip() for p in parts]


KEYS = ("table", "hparams", "published", "lines", "rows")


ROW_KEYS = ("name", "hparams", "lines", "paper")


FIGURES = ("WA", "UA", "F1", "WER", "MSE", "speaker")


@dataclass
class Row:
    """One variant.

    Arguments
    ---------
    name : str
        What the row is called in the report; empty: its lines.
    lines : dict of str to str
        Lines of the YAML and their values as text.
    paper : dict of str to float
        The paper's own figures, as shares; MSE as it is (5.3e-4). What a paper calls ASR accuracy is 1 - WER.
    hparams : pathlib.Path, optional
        The system's YAML, where it is not the table's.
    """

    name: str = ""
    lines: dict[str, str] = field(default_factory=dict)
    paper: dict[str, float] = field(default_factory=dict)
    hparams: Path | None = None


@dataclass
class Table:
    """A table of a paper.

    Arguments
    ---------
    title : str
        Paper and table.
    hparams : pathlib.Path
        The system's YAML.
    published : str
        How the paper's own numbers came about.
    lines : dict of str to str
        For every row.
    rows : list of Row
        In the paper's order.
    """

    title: str
    hparams: Path
    published: str
    lines: dict[str, str]
    rows: list[Row]


def read_table(path: Path, hparams_folder: Path) -> Table | None:
    """Read a table; None where the file is a system's YAML or cannot be read as one (which reading that will say).

    Arguments
    ---------
    path : pathlib.Path
        The YAML.
    hparams_folder : pathlib.Path
        Where the shipped systems are.

    Returns
    -------
    Table or None

    Raises
    ------
    UserError
        Naming everything that is wrong with the table.
    """
    try:
        found = ruamel.yaml.YAML(typ="safe", pure=True).load(path)
    except (OSError, ruamel.yaml.error.YAMLError):  # a system's tags among them
        return None
    if not isinstance(found, Mapping) or "table" not in found:
        return None
    if problems := list(_problems(found, hparams_folder)):
        raise UserError("\n  ".join([f"{path}:", *problems]))
    rows = [
        Row(
            str(r.get("name", "")),
            as_texts(r.get("lines") or {}),
            dict(r.get("paper") or {}),
            hparams_folder / r["hparams"] if r.get("hparams") else None,
        )
        for r in found["rows"]
    ]
    lines = as_texts(found.get("lines") or {})
    return Table(found["table"], hparams_folder / found["hparams"], str(found.get("published", "")), lines, rows)


def as_texts(lines: Mapping) -> dict[str, str]:
    """Values as the command line has them.

    Example
    -------
    >>> as_texts({"alpha": 0.1, "freeze": True, "labels": {"a": None}, "fold": None})
    {'alpha': '0.1', 'freeze': 'True', 'labels': '{"a": null}', 'fold': 'null'}
    """
    return {
        str(k): "null" if v is None else json.dumps(v) if isinstance(v, (Mapping, list)) else str(v)
        for k, v in lines.items()
    }


def _problems(found: Mapping, hparams_folder: Path):
    yield from (f"unknown line {k}{nearest(k, KEYS)}" for k in found if k not in KEYS)
    yield from (f"no line '{k}:'" for k in ("hparams", "rows") if not found.get(k))
    systems = sorted(p.name for p in hparams_folder.glob("*.yaml"))
    for each in [found, *(row for row in found.get("rows") or [] if isinstance(row, Mapping))]:
        if (name := str(each.get("hparams", ""))) and name not in systems:
            yield f"hparams: no {name} among {', '.join(systems)}{nearest(name, systems)}"
    for number, row in enumerate(found.get("rows") or [], 1):
        if not isinstance(row, Mapping):
            yield f"row {number}: expected name, lines, paper, found {row!r}"
            continue
        yield from (f"row {number}: unknown {k}{nearest(k, ROW_KEYS)}" for k in row if k not in ROW_KEYS)
        for figure, value in (row.get("paper") or {}).items():
            if figure not in FIGURES:
                yield f"row {number}: unknown figure {figure}{nearest(figure, FIGURES)}"
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                yield f"row {number}: {figure} must be a number, found {value!r}"


# What a needed run shares with the run that needs it; its other lines are its own YAML's, or named under `needs`
SHARED_LINES = (
    "corpus data_folder labels table_file table_columns second_corpus second_data_folder second_labels "
    "protocol seen_fraction split_seed "
    "results_folder manifest_folder cache_folder precision num_workers"
).split()


@dataclass(eq=False)
class Run:
    """One run of train.py.

    Arguments
    ---------
    name : str
        Its variant, in the report's words.
    setup : speechbrain_ser.training.run.Run
        Checked.
    argv : list of str
        What train.py is given.
    needs : list of Run
        Must be finished before this one starts.
    """

    name: str
    setup: training.Run
    argv: list[str]
    needs: list["Run"] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.setup.folder

    @property
    def log(self) -> Path:
        """What the run says, of all its attempts."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def n_epochs(self) -> int:
        """How many epochs it has in all."""
        return self.setup.config.plain["n_epochs"]

    def finished(self) -> bool:
        """Whether its results are there."""
        return self.setup.finished()

    def epochs_done(self) -> int:
        """How many epochs are behind it."""
        try:
            return max(0, len((self.folder / "epochs.csv").read_text(encoding="utf-8").splitlines()) - 1)
        except FileNotFoundError:
            return 0

    def __str__(self) -> str:
        return f"{self.name}, fold {self.setup.fold.name}, seed {self.setup.config.plain['seed']}"


@dataclass
class Plan:
    """All runs of a cross-validation.

    Arguments
    ---------
    runs : list of Run
        Needed ones before those that need them.
    rows : list of Row
        The report's rows, by name.
    table : Table, optional
        Of a paper.
    """

    runs: list[Run]
    rows: list[Row]
    table: Table | None = None

    @property
    def reported(self) -> list[Run]:
        """The runs of the report: not those that only serve others."""
        names = {row.name for row in self.rows}
        return [run for run in self.runs if run.name in names]

    @property
    def config(self) -> Config:
        """A configuration, for the lines that all runs share."""
        return self.reported[0].setup.config


def make_plan(request: Request, hparams_folder: Path) -> Plan:
    """Every run that a request asks for, checked as train.py would, before anything long starts.

    Arguments
    ---------
    request : Request
        The command line.
    hparams_folder : pathlib.Path
        Where the shipped YAMLs are.

    Returns
    -------
    Plan

    Raises
    ------
    UserError
        With everything that is wrong with any of the runs.
    """
    table = read_table(request.yaml, hparams_folder)
    rows = _rows(request, table)
    yaml = table.hparams if table else request.yaml
    planner = _Planner(yaml, _options(request, table), request, hparams_folder)
    return Plan(list(planner.runs(rows).values()), rows, table)


def check_builds(runs: list[Run]) -> None:
    """Build one run of each variant that starts from nothing, so that what a constructor refuses is known now."""
    chosen = {run.name: run for run in runs if not run.folder.exists() and not any(not n.finished() for n in run.needs)}
    problems: dict[str, list[str]] = {}
    for run in chosen.values():
        try:
            rehearse(run.setup)
        except UserError as error:
            problems.setdefault(str(error), []).append(run.name)
    _raise(problems)


def _options(request: Request, table: Table | None) -> list[str]:
    """train.py's options: the user's, and the table's lines where the user has none."""
    given = {o.partition("=")[0].removeprefix("--") for o in request.options}
    lines = table.lines if table else {}
    quiet = [] if "noprogressbar" in given else ["--noprogressbar"]  # a run's log is read afterwards
    return [*request.options, *quiet, *(f"--{k}={v}" for k, v in lines.items() if k not in given)]


def _rows(request: Request, table: Table | None) -> list[Row]:
    sweeps = [[(key, value) for value in values] for key, values in request.sweeps.items()]
    rows = []
    for row, *swept in itertools.product(table.rows if table else [Row()], *sweeps):
        name = ", ".join([*([row.name] if row.name else []), *(f"{k}={v}" for k, v in swept)])
        lines = {**row.lines, **dict(swept)}
        paper = {} if swept else row.paper  # the paper has no such row
        name = name or ",".join(f"{k}={v}" for k, v in lines.items()) or "default"
        rows.append(Row(name, lines, paper, row.hparams))
    return rows


def _raise(problems: dict[str, list[str]]) -> None:
    """One error for all; what many runs have in common is said once."""
    if problems:
        raise UserError(
            "\n".join(f"{what}\n  ({', '.join(of[:3])}{', …' if len(of) > 3 else ''})" for what, of in problems.items())
        )


class _Planner:
    """Makes runs; a folder has one run, however many others need it."""

    def __init__(self, yaml: Path, options: list[str], request: Request, hparams_folder: Path):
        self.yaml, self.options, self.request, self.hparams_folder = yaml, options, request, hparams_folder
        self.shared = Preparation()
        self.by_folder: dict[Path, Run] = {}

    def runs(self, rows: list[Row]) -> dict[Path, Run]:
        """All of them, by folder, seeds outermost and variants innermost, so that variants can be compared early."""
        places, problems = {}, {}
        for row in rows:
            try:
                places[row.name] = self._places(row)
            except UserError as error:
                problems.setdefault(str(error), []).append(row.name)
        _raise(problems)
        order = list(dict.fromkeys(p for of_row in places.values() for p in of_row))
        wanted = [(seed, fold, row) for seed, fold in order for row in rows if (seed, fold) in places[row.name]]
        for seed, fold, row in tqdm(wanted, "checking", disable=len(wanted) < 20, leave=False):
            try:
                self._add(row, seed, fold)
            except UserError as error:
                problems.setdefault(str(error), []).append(f"{row.name}, fold {fold}")
        _raise(problems)
        return self.by_folder

    def _places(self, row: Row) -> list[tuple[str, str]]:
        """Seeds and folds of a row."""
        config = read_config(self._argv(row), self.hparams_folder)
        folds = self.shared.data(config.plain).folds
        wrong, names = [], []
        for name in list(folds) if self.request.folds is None else self.request.folds:
            try:
                names.append(choose_fold(folds, name).name)
            except UserError as error:
                wrong.append(str(error))
        if wrong:
            raise UserError("--folds: " + "\n  ".join(wrong))
        return list(itertools.product(self.request.seeds or [str(config.plain["seed"])], dict.fromkeys(names)))

    def _argv(self, row: Row) -> list[str]:
        return [str(row.hparams or self.yaml), *self.options, *(f"--{k}={v}" for k, v in row.lines.items())]

    def _add(self, row: Row, seed: str, fold: str) -> None:
        seeds = [f"--seed={seed}"] if self.request.seeds else []  # else it is in the options, or the YAML's own
        run = self._run(row.name, [*self._argv(row), f"--fold={fold}", *seeds])
        if run.name != row.name:
            raise UserError(f"this and {run.name} are one run (folder {run.folder}): what differs changes no training")

    def _run(self, name: str, argv: list[str]) -> Run:
        """The run of a command line, after those it needs; an existing one where the folder is the same."""
        config, needs = read_config(argv, self.hparams_folder), []
        for key, need in config.needs().items():
            if config.plain[key] is None:
                needs.append(self._needed(config, need))
                argv = [*argv, f"--{key}={needs[-1].folder}"]
        if needs:
            config = read_config(argv, self.hparams_folder)
        run = Run(name, prepare(config, self.shared), argv, needs)
        return self.by_folder.setdefault(run.folder, run)

    def _needed(self, config: Config, need: dict) -> Run:
        yaml, lines = str(self.hparams_folder / need["yaml"]), as_texts(need.get("lines") or {})
        shared = {k: config.plain[k] for k in (*SHARED_LINES, "fold", "seed") if k not in lines}
        options = config.run_opts.overridden_args - set(config.tree) - {"param_file"}
        flags = [f"--{k}" if config.run_opts[k] is True else f"--{k}={config.run_opts[k]}" for k in sorted(options)]
        run = self._run(
            Path(yaml).stem, [yaml, *flags, *(f"--{k}={v}" for k, v in as_texts({**shared, **lines}).items())]
        )
        self.shared.needed[run.folder] = run.setup.science
        return run
