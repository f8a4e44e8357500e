"""Which runs: rows of a table x swept lines x seeds x folds, and the runs that they need first."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from speechbrain_ser.building import rehearse
from speechbrain_ser.config import Config, read_config
from speechbrain_ser.crossval.arguments import Request
from speechbrain_ser.crossval.tables import Row, Table, as_texts, read_table
from speechbrain_ser.errors import UserError
from speechbrain_ser.preparation import Preparation, Setup, prepare
from speechbrain_ser.protocols import choose_fold

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
    setup : Setup
        Checked.
    argv : list of str
        What train.py is given.
    needs : list of Run
        Must be finished before this one starts.
    """

    name: str
    setup: Setup
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
