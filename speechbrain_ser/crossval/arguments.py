"""The command line of crossval.py: its own options, and everything else, which is train.py's."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from speechbrain_ser.errors import UserError, nearest

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
