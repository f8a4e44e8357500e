"""A table of the user's own (CSV or TSV, one row a recording) -> rows of a manifest."""

import csv
import io
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from speechbrain_ser.data.corpora import CORPORA, read_text
from speechbrain_ser.data.protocols import FOLD_COLUMN
from speechbrain_ser.data.text import composed, spelling
from speechbrain_ser.errors import CorpusError, Offenders, nearest

logger = logging.getLogger(__name__)

DEFAULT_LABELS = None  # whatever is found
REQUIRED = ("wav", "emotion")
OPTIONAL = (
    *("ID", "speaker", "gender", "session", "dialog", "transcript", "text", "language", "split", "fold"),
    *("valence", "activation", "dominance", "votes"),
)
# where other rows have one, an empty cell would quietly become a speaker or a part of its own
NEVER_PARTLY_EMPTY = ("ID", "speaker", "session", "split", "fold")
SEPARATORS = (",", "\t", ";")
SEPARATOR_LINE = re.compile('"?sep=(.)"?(\r\n?|\n)')  # Excel's own first line


def find_utterances(
    data_folder: str | os.PathLike,
    file: str | None = None,
    columns: Mapping[str, str] | None = None,
    names: Mapping[str, Mapping[str, str]] | None = None,
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
        Our column name (:data:`REQUIRED`, :data:`OPTIONAL`, `split_…`) -> the table's, where they differ: `{wav: path,
        emotion: label, split: part}`. A missing ID is the path of the recording.
    names : mapping, optional
        Our column name -> its names to change: `{speaker: {Anna: anna, '07': '7'}}`.
    """
    root = Path(data_folder)
    path = _table_file(root, file)
    offenders = Offenders(f"table {path}")
    header, lines = read_table(path, offenders)
    used = _used_columns(path, header, dict(columns or {}))
    records = {}
    for line, cells in lines.items():
        if len(cells) == len(header):
            records[line] = {ours: cells[header.index(theirs)].strip() for ours, theirs in used.items()}
        else:
            offenders.add(f"line that has not {len(header)} cells", f"{line}: {len(cells)}")
    rows = rows_of(records, used, root, offenders, names=names)
    if not rows:
        raise CorpusError(f"table {path}: no rows below its header")
    return rows


def table_name(data_folder: str | os.PathLike, file: str | None = None, name: str | None = None) -> str:
    """Return what a table is called wherever results are: its own `name`, else the stem of its file; as no corpus is.

    Example
    -------
    >>> table_name("anywhere", name="my_calls")
    'my_calls'
    """
    others = {*CORPORA} - {"table"}
    if name is None:
        stem = re.sub(r"[^\w.+-]+", "_", composed(_table_file(Path(data_folder), file).stem)).lstrip(".")
        return f"{stem}_table" if stem in others or not stem else stem
    if name in others or not re.fullmatch(r"\w[\w.+-]*", str(name)):
        raise CorpusError(f"table_name: expected a name that is fit for a folder and is no corpus's, found {name!r}")
    return name


def rows_of(
    records: Mapping[str, dict], used: Mapping[str, str], root: Path, offenders: Offenders, corpus="table", names=None
) -> list[dict]:
    """Return a row of the manifest for each record, a dict by our column names, once all of them are good.

    Arguments
    ---------
    records : mapping
        Where a record stands, as offenders tell it -> the record, with the same columns in all.
    used : mapping
        Our column name -> what it is called there.
    """
    _check_cells(records, used, offenders)
    rows, listings = {}, {}
    for line, record in records.items():
        wav = _recording(root / record["wav"], line, listings, offenders) if record["wav"] else root
        rows[line] = {**_row(record, wav, root), "corpus": corpus}
    _check_ids(rows, "ID" in used, offenders)
    _rename(list(rows.values()), names or {}, offenders)
    offenders.raise_any()
    return list(rows.values())


def _table_file(root: Path, file: str | None) -> Path:
    if not root.is_dir():
        raise CorpusError(f"table: no such folder: {root}")
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() in (".csv", ".tsv") and p.name[0] != ".")
    names = ", ".join(table.name for table in tables) or "none"
    if file is not None:
        file = next((table.name for table in tables if composed(table.name) == composed(file)), file)
        if not (root / file).is_file():
            near = nearest(file, [table.name for table in tables])
            raise CorpusError(f"table: no such file: {root / file}{near}; tables in {root}: {names}")
        return root / file
    if len(tables) != 1:
        raise CorpusError(f"table: expected one .csv or .tsv in {root}, found {names}: name one by --table_file=…")
    return tables[0]


def read_table(path: Path, offenders: Offenders) -> tuple[list[str], dict[str, list[str]]]:
    """The header, and every row that is not empty by where it stands (`line 3`, `lines 3 to 5`); cells are text."""
    text = composed(read_text(path))
    told = SEPARATOR_LINE.match(text)
    lines = list(io.StringIO(text[told.end() :] if told else text, newline=""))
    first = next(filter(str.strip, lines), "")
    separator = told[1] if told else max(SEPARATORS, key=first.count)
    reader, rows, end, above = csv.reader(lines, delimiter=separator), {}, 0, 1 if told else 0
    try:
        for cells in reader:
            begin, end = end, reader.line_num
            where = _where(begin + above, end + above)
            if end > begin + 1:
                _check_line_breaks(cells, lines[begin:end], separator, where, offenders)
            if any(cell.strip() for cell in cells):
                rows[where] = cells
    except csv.Error as error:  # a cell is longer than csv takes
        where = _where(end + above, reader.line_num + above)
        raise CorpusError(f"table {path}, {where}: {error}; is a quotation mark not closed?") from error
    if not rows:
        raise CorpusError(f"table {path}: empty; expected a header and a row a recording")
    header = [cell.strip() for cell in rows.pop(next(iter(rows)))]
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise CorpusError(f"table {path}: its header has more than once: {', '.join(map(repr, twice))}")
    return header, rows


def _where(begin: int, end: int) -> str:
    return f"line {end}" if end <= begin + 1 else f"lines {begin + 1} to {end}"


def _check_line_breaks(cells: list[str], lines: list[str], separator: str, where: str, offenders: Offenders) -> None:
    """A cell may have line breaks; one that a stray quotation mark has opened has whole rows in it."""
    try:
        (strictly,) = csv.reader(lines, delimiter=separator, strict=True)
        breaks = {cell: len(re.findall(r"\r\n?|\n", cell)) for cell in strictly}
        has_rows = any(cell.count(separator) >= n * (len(cells) - 1) > 0 for cell, n in breaks.items())
    except csv.Error:
        has_rows = True
    if has_rows:
        opening = next(line for line in lines if '"' in line).rstrip()
        offenders.add('quotation mark (") that takes whole lines into its cell: remove it', f"{where}: {opening[:100]}")
    else:
        logger.warning("%s, %s: one row, a cell of which has line breaks", offenders.where, where)


def _used_columns(path: Path, header: list[str], columns: dict[str, str]) -> dict[str, str]:
    """Ours -> theirs, for every column that the manifest takes over."""
    ours = [*REQUIRED, *OPTIONAL, *(name for name in columns if str(name).startswith(FOLD_COLUMN))]
    offenders = Offenders(
        f"table {path}: columns do not fit; it has {', '.join(header)}: --table_columns='{{ours: yours}}'"
    )
    for name in columns:
        if name not in ours:
            offenders.add(f"no column of ours (known: {', '.join(ours)})", f"{name!r}{nearest(name, ours)}")
    wanted = {name: composed(str(columns.get(name, name))) for name in ours if name in columns or name in REQUIRED}
    for name, theirs in wanted.items():
        if theirs not in header:
            offenders.add("not in the table", f"{theirs!r}, wanted as {name}{nearest(theirs, header)}")
    offenders.raise_any()
    found = [*OPTIONAL, *(name for name in header if name.startswith(FOLD_COLUMN))]
    return wanted | {name: name for name in found if name in header and name not in wanted}


def _check_cells(records: dict[str, dict], used: dict[str, str], offenders: Offenders) -> None:
    for ours, theirs in used.items():
        empty = [line for line, record in records.items() if not record[ours]]
        if ours in REQUIRED or (ours in NEVER_PARTLY_EMPTY and len(empty) < len(records)):
            for line in empty:
                offenders.add(f"empty cell in column {theirs!r}", line)


def _rename(rows: list[dict], names: Mapping, offenders: Offenders) -> None:
    """Change the names that the user wants changed; a rule that changes none is probably mistyped."""
    for column, rules in names.items():
        if not isinstance(rules, Mapping):
            raise CorpusError(f"table_names: expected {{column: {{name: new name}}}}, found {{{column}: {rules}}}")
        rules, found = {composed(str(old)): str(new) for old, new in rules.items()}, {row.get(column) for row in rows}
        for old in sorted(set(rules) - found):
            offenders.add("table_names: no such name", f"{column}: {old!r}{nearest(old, found)}")
        for row in (row for row in rows if row.get(column) in rules):
            row[column] = rules[row[column]]


def _recording(path: Path, line: str, listings: dict, offenders: Offenders) -> Path:
    """The recording that is meant: on disk its name may have another Unicode form."""
    if os.path.isfile(path):
        return path
    alike = _alike(path, listings) or _alike(Path(str(path).replace("\\", "/")), listings)  # Windows wrote it
    same = [found for found in alike if composed(str(found)) == composed(str(path)) and os.path.isfile(found)]
    if len(same) == 1:
        return same[0]
    near = f" (there is {str(alike[0])!r})" if alike else ""
    offenders.add("no such recording", f"{line}: {path}{near}")
    return path


def _alike(path: Path, listings: dict[Path, dict]) -> list[Path]:
    """What is there of the same spelling; `listings` keeps what folders have."""
    if os.path.exists(path) or path == path.parent:
        return [path]
    found = []
    for folder in filter(os.path.isdir, _alike(path.parent, listings)):
        if folder not in listings:
            listings[folder] = defaultdict(list)
            for name in os.listdir(folder):
                listings[folder][spelling(name)].append(folder / name)
        found += listings[folder][spelling(path.name)]
    return found


def _row(record: dict, wav: Path, root: Path) -> dict:
    if wav.is_relative_to(root):
        wav = wav.relative_to(root)
    name = composed(wav.as_posix().removesuffix(wav.suffix))
    return {
        **dict.fromkeys(("speaker", "gender", "session", "dialog", "transcript", "language"), ""),
        **{name: " ".join(record[name].split()) for name in OPTIONAL if name in record},
        **{name: value for name, value in record.items() if name not in (*OPTIONAL, *REQUIRED)},
        "ID": record.get("ID") or re.sub(r"[^\w.-]+", "_", name.lstrip("/")),
        "wav": wav.as_posix() if wav.is_absolute() else f"{{data_root}}/{wav.as_posix()}",
        "emotion": record["emotion"],
    }


def _check_ids(rows: dict[str, dict], is_given: bool, offenders: Offenders) -> None:
    lines_of = defaultdict(list)
    for line, row in rows.items():
        lines_of[row["ID"]].append(line)
    kind = "duplicate ID" if is_given else "duplicate ID, from the path of the recording (an ID column would help)"
    for name, lines in lines_of.items():
        if len(lines) > 1:
            offenders.add(kind, f"{name}: {', '.join(lines)}")
