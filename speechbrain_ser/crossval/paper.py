"""A table of a paper: which lines make its rows, and the numbers that it prints."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ruamel.yaml

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.metrics import FIGURES

KEYS = ("table", "hparams", "published", "lines", "rows")
ROW_KEYS = ("name", "hparams", "lines", "paper")


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
    """A paper's table, its rows in the paper's order; `published` says how its numbers came about."""

    title: str
    hparams: Path
    published: str
    lines: dict[str, str]
    rows: list[Row]


def read_table(path: Path, hparams_folder: Path) -> Table | None:
    """Read a table; None where the file is a system's YAML or cannot be read as one (which reading that will say).

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
    if problems := list(_problems(found, path, hparams_folder)):
        raise UserError("\n  ".join([f"{path}:", *problems]))
    rows = [
        Row(
            str(row.get("name", "")),
            as_texts(row.get("lines") or {}),
            dict(row.get("paper") or {}),
            beside_or_shipped(row["hparams"], path, hparams_folder) if row.get("hparams") else None,
        )
        for row in found["rows"]
    ]
    hparams = beside_or_shipped(found["hparams"], path, hparams_folder)
    return Table(found["table"], hparams, str(found.get("published", "")), as_texts(found.get("lines") or {}), rows)


def beside_or_shipped(name: str, path: Path, hparams_folder: Path) -> Path:
    """Find the system's YAML that another file names: beside that file, or else among the shipped ones."""
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


def _problems(found: Mapping, path: Path, hparams_folder: Path) -> Iterator[str]:
    yield from (f"unknown line {k}{nearest(k, KEYS)}" for k in found if k not in KEYS)
    yield from (f"no line '{k}:'" for k in ("hparams", "rows") if not found.get(k))
    systems = sorted(p.name for p in hparams_folder.glob("*.yaml"))
    for number, row in enumerate([found, *(found.get("rows") or [])]):
        if not isinstance(row, Mapping):
            yield f"row {number}: expected name, lines, paper, found {row!r}"
            continue
        name = str(row.get("hparams", ""))
        if name and not beside_or_shipped(name, path, hparams_folder).is_file():
            yield f"hparams: no {name} among {', '.join(systems)}{nearest(name, systems)}"
        if number:
            yield from (f"row {number}: unknown {k}{nearest(k, ROW_KEYS)}" for k in row if k not in ROW_KEYS)
        for figure, value in (row.get("paper") or {}).items():
            if figure not in FIGURES:
                yield f"row {number}: unknown figure {figure}{nearest(figure, FIGURES)}"
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                yield f"row {number}: {figure} must be a number, found {value!r}"
