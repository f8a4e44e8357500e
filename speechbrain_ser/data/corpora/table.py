"""A table of the user's own (CSV or TSV, one row a recording) -> rows of a manifest."""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechbrain_ser.errors import CorpusError, Offenders, nearest

DEFAULT_LABELS = None  # whatever is found
REQUIRED = ("wav", "emotion")
OPTIONAL = (
    *("ID", "speaker", "gender", "session", "dialog", "transcript", "language", "split"),
    *("valence", "activation", "dominance"),
)
# where other rows have one, an empty cell would quietly become a speaker or a part of its own
NEVER_PARTLY_EMPTY = ("ID", "speaker", "session", "split")
SEPARATORS = (",", "\t", ";")


def find_utterances(
    data_folder: str | os.PathLike,
    file: str | None = None,
    columns: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
) -> list[dict]:
    """Return a row of the manifest, without its duration, for each row of a table.

    Arguments
    ---------
    data_folder : path
        Paths of recordings that are not absolute begin here.
    file : str, optional
        The table, from `data_folder` or absolute; by default the only .csv or .tsv in `data_folder`. UTF-8; commas,
        tabs or semicolons between its cells.
    columns : mapping, optional
        Our column name (:data:`REQUIRED`, :data:`OPTIONAL`) -> the table's, where they differ: `{wav: path, emotion:
        label, split: part}`. A missing ID is the path of the recording.
    extra : list of str
        Columns of the table to keep under their own names.
    """
    root = Path(data_folder)
    path = _table_file(root, file)
    header, lines = _read_table(path)
    used = _used_columns(path, header, dict(columns or {}), list(extra))
    offenders = Offenders(f"table {path}")
    records = {}
    for number, cells in lines:
        if len(cells) == len(header):
            records[number] = {ours: cells[header.index(theirs)].strip() for ours, theirs in used.items()}
        else:
            offenders.add(f"line that has not {len(header)} cells", f"line {number}: {len(cells)}")
    _check_cells(records, used, offenders)
    rows = {number: _row(record, root) for number, record in records.items()}
    _check_ids(rows, "ID" in used, offenders)
    for number, record in records.items():
        if record["wav"] and not (root / record["wav"]).is_file():
            offenders.add("no such recording", f"line {number}: {root / record['wav']}")
    offenders.raise_any()
    if not rows:
        raise CorpusError(f"table {path}: no rows below its header")
    return list(rows.values())


def _table_file(root: Path, file: str | None) -> Path:
    if not root.is_dir():
        raise CorpusError(f"table: no such folder: {root}")
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv") and p.name[0] != ".")
    names = ", ".join(table.name for table in tables) or "none"
    if file is not None:
        if not (root / file).is_file():
            near = nearest(file, [table.name for table in tables])
            raise CorpusError(f"table: no such file: {root / file}{near}; tables in {root}: {names}")
        return root / file
    if len(tables) != 1:
        raise CorpusError(f"table: expected one .csv or .tsv in {root}, found {names}; name one by `file`")
    return tables[0]


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and every row that is not empty with its line number; cells are text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"table {path}: expected UTF-8 text, found byte {error.start} otherwise") from error
    separator = max(SEPARATORS, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    if not rows:
        raise CorpusError(f"table {path}: empty; expected a header and a row a recording")
    header = [cell.strip() for cell in rows[0][1]]
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise CorpusError(f"table {path}: its header has more than once: {', '.join(map(repr, twice))}")
    return header, rows[1:]


def _used_columns(path: Path, header: list[str], columns: dict[str, str], extra: list[str]) -> dict[str, str]:
    """Ours -> theirs, for every column that the manifest takes over."""
    ours = [*REQUIRED, *OPTIONAL]
    offenders = Offenders(f"table {path}: columns do not fit; it has {', '.join(header)}")
    for name in columns:
        if name not in ours:
            offenders.add(f"no column of ours (known: {', '.join(ours)})", f"{name!r}{nearest(name, ours)}")
    wanted = {name: columns.get(name, name) for name in ours if name in columns or name in REQUIRED}
    wanted |= {name: name for name in extra}
    for name, theirs in wanted.items():
        if theirs not in header:
            offenders.add("not in the table", f"{theirs!r}, wanted as {name}{nearest(theirs, header)}")
    offenders.raise_any()
    return wanted | {name: name for name in OPTIONAL if name in header and name not in wanted}


def _check_cells(records: dict[int, dict], used: dict[str, str], offenders: Offenders) -> None:
    for ours, theirs in used.items():
        empty = [number for number, record in records.items() if not record[ours]]
        if ours in REQUIRED or (ours in NEVER_PARTLY_EMPTY and len(empty) < len(records)):
            for number in empty:
                offenders.add(f"empty cell in column {theirs!r}", f"line {number}")


def _row(record: dict, root: Path) -> dict:
    wav = Path(record["wav"])
    if wav.is_absolute() and wav.is_relative_to(root):
        wav = wav.relative_to(root)
    row = {name: " ".join(record.get(name, "").split()) for name in OPTIONAL if name in record}
    return {
        **dict.fromkeys(("speaker", "gender", "session", "dialog", "transcript", "language"), ""),
        **row,
        **{name: value for name, value in record.items() if name not in (*OPTIONAL, *REQUIRED)},
        "ID": record.get("ID") or re.sub(r"[^\w.-]+", "_", wav.with_suffix("").as_posix().lstrip("/")),
        "wav": wav.as_posix() if wav.is_absolute() else f"{{data_root}}/{wav.as_posix()}",
        "emotion": record["emotion"],
        "corpus": "table",
    }


def _check_ids(rows: dict[int, dict], is_given: bool, offenders: Offenders) -> None:
    lines_of = defaultdict(list)
    for number, row in rows.items():
        lines_of[row["ID"]].append(str(number))
    kind = "duplicate ID" if is_given else "duplicate ID, from the path of the recording (an ID column would help)"
    for name, numbers in lines_of.items():
        if len(numbers) > 1:
            offenders.add(kind, f"{name}: lines {', '.join(numbers)}")
