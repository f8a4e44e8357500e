"""Which runs: rows of a table x swept lines x seeds x folds, and the runs that they need first."""

import argparse
import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ruamel.yaml
from tqdm import tqdm

from speechbrain_ser.data.manifest import TABLE_LINES
from speechbrain_ser.data.protocols import LINES, choose_fold
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.metrics import FIGURES
from speechbrain_ser.training.config import Config, given_names, read_config, strict
from speechbrain_ser.training.run import Preparation, Run, prepare, rehearse

_KEYS = ("table", "hparams", "published", "protocols", "corpora", "lines", "rows")
_ROW_KEYS = ("name", "hparams", "lines", "paper")
REFUSED = {
    "fold": "use --folds=…",
    "output_folder": "every run has a folder of its own; use --results_folder=…",
    "test_only": "use train.py on the run's own lines",
    **dict.fromkeys(("debug", "debug_batches", "debug_epochs", "debug_persistently"), "use train.py --debug first"),
}
UNSWEPT = {
    "seed": "use --seeds=…",
    "protocol": "use --protocols=…",
    **{key: "a report is of one: start once for each" for key in ("corpus", "labels")},
    **REFUSED,
}
# What a needed run shares with the run that needs it; its other lines are its own YAML's, or named under `needs`
SHARED_LINES = [
    *("corpus", "data_folder", "labels", "votes", *TABLE_LINES, "second_corpus", "second_data_folder", "second_labels"),
    *("protocol", "seen_fraction", "split_seed", *LINES, "fold", "seed"),
    *("results_folder", "manifest_folder", "cache_folder", "precision", "num_workers"),
]


# ------------------------------------------------------------------ a paper's table


@dataclass
class Row:
    """One variant of a table."""

    name: str = ""  # in the report; empty: its lines
    lines: dict[str, str] = field(default_factory=dict)  # of the YAML, their values as text
    paper: dict[str, float] = field(default_factory=dict)  # its figures, as shares, but MSE; ASR accuracy is 1 - WER
    hparams: Path | None = None  # the system's YAML, where it is not the table's


@dataclass
class Table:
    """A paper's table, its rows in the paper's order; `published` says how its numbers came about."""

    title: str
    hparams: Path
    published: str
    lines: dict[str, str]
    rows: list[Row]
    protocols: list[str]
    corpora: dict[str, dict]  # lines of each, of which one is trained on and all are tested on; empty: the YAML's one


def read_table(path: Path, hparams_folder: Path) -> Table | None:
    """Read a table; None where the file is a system's YAML or cannot be read as one (which reading that will say)."""
    try:
        found = ruamel.yaml.YAML(typ="safe", pure=True).load(path)
    except (OSError, ruamel.yaml.error.YAMLError):  # a system's tags among them
        return None
    if not isinstance(found, Mapping) or "table" not in found:
        return None
    if problems := list(_wrong_lines(found, path, hparams_folder)):
        raise UserError("\n  ".join([f"{path}:", *problems]))

    def lines_and_yaml(part: Mapping) -> dict:
        yaml = beside_or_shipped(part["hparams"], path, hparams_folder) if part.get("hparams") else None
        return {"lines": as_texts(part.get("lines") or {}), "hparams": yaml}

    rows = [Row(str(row.get("name", "")), paper=row.get("paper") or {}, **lines_and_yaml(row)) for row in found["rows"]]
    told = {"published": str(found.get("published", "")), "protocols": list(found.get("protocols") or [])}
    told["corpora"] = {str(name): dict(lines or {}) for name, lines in (found.get("corpora") or {}).items()}
    return Table(found["table"], rows=rows, **told, **lines_and_yaml(found))


def beside_or_shipped(name: str, path: Path, hparams_folder: Path) -> Path:
    """Find the YAML that another file names: beside that file, or else among the shipped ones."""
    beside = path.parent / name
    return beside if beside.is_file() else hparams_folder / name


def as_texts(lines: Mapping) -> dict[str, str]:
    """Write values as the command line has them.

    Example
    -------
    >>> as_texts({"alpha": 0.1, "freeze": True, "labels": {"a": None}, "fold": None})
    {'alpha': '0.1', 'freeze': 'True', 'labels': '{"a": null}', 'fold': 'null'}
    """
    return {
        str(k): "null" if v is None else json.dumps(v) if isinstance(v, (Mapping, list)) else str(v)
        for k, v in lines.items()
    }


def _wrong_lines(found: Mapping, path: Path, hparams_folder: Path) -> Iterator[str]:
    yield from (f"unknown line {k}{nearest(k, _KEYS)}" for k in found if k not in _KEYS)
    yield from (f"no line '{k}:'" for k in ("hparams", "rows") if not found.get(k))
    systems = sorted(p.name for p in hparams_folder.glob("*.yaml"))
    kinds = {"rows": list, "protocols": list, "lines": Mapping, "paper": Mapping, "corpora": Mapping}
    rows = found.get("rows") if isinstance(found.get("rows"), list) else []
    for number, row in enumerate([found, *rows]):
        if not isinstance(row, Mapping):
            yield f"row {number}: expected name, lines, paper, found {row!r}"
            continue
        where = f"row {number}: " * bool(number)
        wrong = [k for k, kind in kinds.items() if row.get(k) is not None and not isinstance(row[k], kind)]
        yield from (
            f"{where}{k}: expected {'a list' if kinds[k] is list else 'a mapping'}, found {row[k]!r}" for k in wrong
        )
        name = str(row.get("hparams") or "")
        if name and not beside_or_shipped(name, path, hparams_folder).is_file():
            yield f"hparams: no {name} among {', '.join(systems)}{nearest(name, systems)}"
        if number:
            yield from (f"row {number}: unknown {k}{nearest(k, _ROW_KEYS)}" for k in row if k not in _ROW_KEYS)
        paper = row.get("paper") if isinstance(row.get("paper"), Mapping) else {}
        for figure, value in paper.items():
            if figure not in FIGURES:
                yield f"row {number}: unknown figure {figure}{nearest(figure, FIGURES)}"
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                yield f"row {number}: {figure} must be a number, found {value!r}"


# ------------------------------------------------------------------ the command line


def read_arguments(argv: list[str]) -> argparse.Namespace:
    """Tell crossval's own options from train.py's, which are in `options`.

    Example
    -------
    >>> request = read_arguments(["x.yaml", "--sweep", "alpha=0,0.1", "--folds=3,8", "--lr=0.1", "--jobs=2"])
    >>> request.sweep, request.folds, request.options, request.jobs
    ({'alpha': ['0', '0.1']}, ['3', '8'], ['--lr=0.1'], 2)
    """
    usage = "%(prog)s hparams/X.yaml --data_folder=… [OPTION …] [--KEY=VALUE of train.py …]"
    parser = strict(argparse.ArgumentParser("python crossval.py", usage))
    slurm = "here, or a Slurm job a run, as the YAML's slurm lines say: --slurm='{partition: gpu, time: 1440}'"
    option = parser.add_argument
    sweep = "a run for each value of a line; several --sweep give all combinations"
    option("yaml", type=Path, metavar="hparams/X.yaml", help="a system, or a table of a paper (hparams/tables/)")
    option("--folds", type=_different, metavar="01F,03M", help="some of them (default: all)")
    option(
        "--protocols", type=_different, metavar="random,speaker", help="the same under each, and what they differ by"
    )
    folders = "of corpora of a table that has several: {emodb: /corpora/EMO-DB, …}; at least two"
    option("--data_folders", type=_folders, default={}, metavar="YAML", help=folders)
    option("--seeds", type=_different, metavar="1,2,3", help="training seeds (default: the YAML's)")
    option("--sweep", type=_sweep, action="append", default=[], metavar="KEY=VALUE,VALUE", help=sweep)
    option("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    option("--executor", choices=("local", "slurm"), default="local", help=slurm)
    option("--keep_optimizer", action="store_true", help="so that finished runs can be trained longer")
    names = given_names(argv)
    problems = [f"{name}: {REFUSED[name[2:]]}" for name in names if name[2:] in REFUSED]
    problems += [f"{name} is given twice" for name, times in names.items() if times > 1 and name != "--sweep"]
    problems += [
        f"--{k} and --{k}s are both given" for k in ("seed", "protocol") if {f"--{k}", f"--{k}s"} <= set(names)
    ]
    try:
        request, options = parser.parse_known_args(argv)
    except UserError as error:
        _refuse([*problems, str(error).removeprefix("argument ")])
    swept = [key for key, _ in request.sweep]
    problems += [f"--sweep {key} is given twice" for key in dict.fromkeys(swept) if swept.count(key) > 1]
    problems += [f"--jobs={request.jobs}: expected a whole number >= 1"] * (request.jobs < 1)
    problems += [f"--seeds={seed}: expected whole numbers" for seed in request.seeds or () if not seed.isdigit()]
    _refuse(problems)
    request.options, request.sweep = options, dict(request.sweep)
    return request


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("\n  ".join(["on the command line:", *problems])) from None


def _different(text: str) -> list[str]:
    values = split_values(text)
    if not all(values) or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"expected different values, separated by commas, found '{text}'")
    return values


def _folders(text: str) -> dict[str, str]:
    found = None
    with contextlib.suppress(ruamel.yaml.error.YAMLError):
        found = ruamel.yaml.YAML(typ="safe", pure=True).load(text)
    if not isinstance(found, Mapping) or not all(found.values()):
        raise argparse.ArgumentTypeError(f"expected {{corpus: folder, …}}, found '{text}'")
    return {str(corpus): str(folder) for corpus, folder in found.items()}


def _sweep(text: str) -> tuple[str, list[str]]:
    key, _, values = text.partition("=")
    if not key or not values:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE,VALUE, found '{text}'")
    if key in UNSWEPT:
        raise argparse.ArgumentTypeError(f"{key}: {UNSWEPT[key]}")
    return key, _different(values)


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
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{(") - (character in ")}]")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


# ------------------------------------------------------------------ the runs


@dataclass(eq=False)
class PlannedRun:
    """One run of train.py: its name in the report, what train.py is given, and what must be finished first."""

    name: str
    setup: Run
    argv: list[str]
    needs: list["PlannedRun"] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.setup.folder

    @property
    def log(self) -> Path:
        """What the run says, of all its attempts."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def n_epochs(self) -> int:
        return self.setup.config.plain["n_epochs"]

    def finished(self) -> bool:
        return self.setup.finished()

    def epochs_done(self) -> int:
        try:
            return max(0, len((self.folder / "epochs.csv").read_text(encoding="utf-8").splitlines()) - 1)
        except FileNotFoundError:
            return 0

    def __str__(self) -> str:
        return f"{self.name}, fold {self.setup.fold.name}, seed {self.setup.config.plain['seed']}"


@dataclass
class Plan:
    """All runs of a cross-validation, needed ones before those that need them, and the rows of its report."""

    runs: list[PlannedRun]
    rows: list[Row]
    table: Table | None = None

    @property
    def reported(self) -> list[PlannedRun]:
        """The runs of the report: not those that only serve others."""
        names = {row.name for row in self.rows}
        return [run for run in self.runs if run.name in names]

    @property
    def config(self) -> Config:
        """A configuration, for the lines that all runs share."""
        return self.reported[0].setup.config


def make_plans(request: argparse.Namespace, hparams_folder: Path) -> list[Plan]:
    """Return every run that a command line asks for, checked as train.py would; says all that is wrong at once.

    A plan for each protocol that the command line, or a table, names, or for each corpus of a table; one where nothing
    does.
    """
    table = read_table(request.yaml, hparams_folder)
    given = "--protocol" in given_names(request.options)
    names = request.protocols or (table.protocols if table and not given else [])
    corpora = _of_corpora(request, table, names)
    each = [[f"--protocol={name}"] for name in names] or corpora
    options = [[*lines, *request.options] for lines in each]
    requests = [argparse.Namespace(**vars(request) | {"options": each}) for each in options]
    shared = Preparation()  # the encoder is looked for and hashed once for all protocols
    planners = [_Planner(each, table, hparams_folder, shared) for each in requests]
    plans = [Plan(planner.runs(), planner.rows, table) for planner in planners]
    if len({tuple(run.setup.classes) for plan in plans for run in plan.reported}) > 1:
        found = (f"{plan.config.corpus}: {', '.join(plan.reported[0].setup.classes)}" for plan in plans)
        raise UserError("\n  ".join(["expected the same classes everywhere (labels of `corpora:`), found", *found]))
    return plans


def _of_corpora(request: argparse.Namespace, table: Table | None, protocols: list[str]) -> list[list[str]]:
    """The lines of each corpus that a folder is given for; of one alone, no line."""
    known, folders = table.corpora if table else {}, request.data_folders
    unknown = [name for name in folders if name not in known]
    problems = [f"--data_folders: no {name} in `corpora:`{nearest(name, known)}" for name in unknown]
    problems += ["several protocols, or several corpora: not both"] * bool(known and protocols)
    if known and len(folders) < 2:
        problems.append(f"--data_folders: expected folders of two at least of {', '.join(known)}")
    _refuse(problems)
    lines = [as_texts({"corpus": name, "data_folder": folder, **known[name]}) for name, folder in folders.items()]
    return [[f"--{key}={value}" for key, value in each.items()] for each in lines] or [[]]


def check_builds(runs: list[PlannedRun]) -> None:
    """Build one run of each variant that starts from nothing, so that what a constructor refuses is known now."""
    chosen = {run.name: run for run in runs if not run.folder.exists() and all(need.finished() for need in run.needs)}
    problems = _Problems()
    for run in chosen.values():
        with problems.of(run.name):
            rehearse(run.setup)
    problems.tell()


class _Problems(dict):
    """What is wrong, and with which runs: what many have in common is said once."""

    @contextlib.contextmanager
    def of(self, run: str):
        try:
            yield
        except UserError as error:
            self.setdefault(str(error), []).append(run)

    def tell(self) -> None:
        if self:
            parts = (f"{what}\n  ({', '.join(of[:3])}{', …' if len(of) > 3 else ''})" for what, of in self.items())
            raise UserError("\n".join(parts))


class _Planner:
    """Makes runs; a folder has one run, however many others need it."""

    def __init__(self, request: argparse.Namespace, table: Table | None, hparams_folder: Path, shared: Preparation):
        self.request, self.hparams_folder = request, hparams_folder
        self.yaml = table.hparams if table else request.yaml
        given, lines = given_names(request.options), table.lines if table else {}
        quiet = [] if "--noprogressbar" in given else ["--noprogressbar"]  # a run's log is read afterwards
        self.options = [*request.options, *quiet, *(f"--{k}={v}" for k, v in lines.items() if f"--{k}" not in given)]
        self.rows = [*self._rows(table.rows if table else [Row()])]
        if twice := [name for name, n in Counter(row.name for row in self.rows).items() if n > 1]:
            raise UserError(f"rows of one name: {', '.join(twice)}: give each its own `name:`")
        if both := sorted({k for row in self.rows for k in row.lines if f"--{k}" in given}):
            raise UserError(f"--{both[0]} is given twice: on the command line, and by --sweep or the table's rows")
        self.shared = shared
        self.by_folder: dict[Path, PlannedRun] = {}

    def _rows(self, rows: list[Row]):
        sweeps = [[(key, value) for value in values] for key, values in self.request.sweep.items()]
        for row, *swept in itertools.product(rows, *sweeps):
            lines = {**row.lines, **dict(swept)}
            name = ", ".join([*filter(None, [row.name]), *(f"{k}={v}" for k, v in swept)])
            name = name or ",".join(f"{k}={v}" for k, v in lines.items()) or "default"
            yield Row(name, lines, {} if swept else row.paper, row.hparams)  # the paper has no swept row

    def runs(self) -> list[PlannedRun]:
        """All of them, seeds outermost and variants innermost, so that variants can be compared early."""
        places, problems = {}, _Problems()
        for row in self.rows:
            with problems.of(row.name):
                places[row.name] = self._places(row)
        problems.tell()
        order = dict.fromkeys(place for of_row in places.values() for place in of_row)
        wanted = [(row, *place) for place in order for row in self.rows if place in places[row.name]]
        for row, seed, fold in tqdm(wanted, "checking", disable=True if len(wanted) < 20 else None, leave=False):
            with problems.of(f"{row.name}, fold {fold}"):
                self._add(row, seed, fold)
        problems.tell()
        return list(self.by_folder.values())

    def _places(self, row: Row) -> list[tuple[str, str]]:
        plain = read_config(self._argv(row), self.hparams_folder).plain
        folds, names, problems = self.shared.data(plain).folds, {}, _Problems()
        for name in folds if self.request.folds is None else self.request.folds:
            with problems.of("--folds"):
                names[choose_fold(folds, name, "folds").name] = None
        problems.tell()
        return list(itertools.product(self.request.seeds or [str(plain["seed"])], names))

    def _argv(self, row: Row) -> list[str]:
        return [str(row.hparams or self.yaml), *self.options, *(f"--{k}={v}" for k, v in row.lines.items())]

    def _add(self, row: Row, seed: str, fold: str) -> None:
        seeds = [f"--seed={seed}"] if self.request.seeds else []  # else it is in the options, or the YAML's own
        run = self._run(row.name, [*self._argv(row), f"--fold={fold}", *seeds])
        if run.name != row.name:
            raise UserError(f"this and {run.name} are one run (folder {run.folder}): what differs changes no training")

    def _run(self, name: str, argv: list[str]) -> PlannedRun:
        """The run of a command line, after those it needs; an existing one where the folder is the same."""
        config, needs = read_config(argv, self.hparams_folder), []
        for key, need in config.needs().items():
            if config.plain[key] is None:
                yaml = beside_or_shipped(need["yaml"], Path(argv[0]), self.hparams_folder)
                needs.append(self._needed(config, yaml, need.get("lines") or {}))
                argv = [*argv, f"--{key}={needs[-1].folder}"]
        if needs:
            config = read_config(argv, self.hparams_folder)
        run = PlannedRun(name, prepare(config, self.shared), argv, needs)
        return self.by_folder.setdefault(run.folder, run)

    def _needed(self, config: Config, yaml: Path, lines: dict) -> PlannedRun:
        options = config.run_opts.overridden_args - set(config.tree)
        flags = [f"--{k}" if config.run_opts[k] is True else f"--{k}={config.run_opts[k]}" for k in sorted(options)]
        lines = as_texts({**{k: config.plain[k] for k in SHARED_LINES}, **lines})
        run = self._run(yaml.stem, [str(yaml), *flags, *(f"--{k}={v}" for k, v in lines.items())])
        self.shared.needed[run.folder] = run.setup.science
        return run
