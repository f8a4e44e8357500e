"""A database in audformat (audb keeps such folders: db.yaml, a table a file, the media) -> rows of a manifest."""

import fnmatch
import logging
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pandas as pd
import soundfile

from speechbrain_ser.data.corpora.preset import GENDERS
from speechbrain_ser.data.corpora.table import OPTIONAL, rows_of
from speechbrain_ser.data.protocols import FOLD_COLUMN
from speechbrain_ser.data.splits import COLUMNS, PARTS
from speechbrain_ser.errors import CorpusError, Offenders, UserError, nearest

DEFAULT_LABELS = None  # whatever is found

logger = logging.getLogger(__name__)


def library() -> ModuleType:
    """Import audformat, which is an extra."""
    try:
        import audformat
    except ImportError as error:
        raise UserError(f'audformat is not installed: pip install "speechbrain-ser[audb]" ({error})') from error
    return audformat


def find_utterances(data_folder: str | os.PathLike, columns: Mapping[str, str] | None = None) -> list[dict]:
    """Return a row of the manifest, without its duration, for each file that has an emotion.

    Arguments
    ---------
    data_folder : path
        Has db.yaml, tables as CSV or Parquet, and the media.
    columns : mapping, optional
        Our column name -> the scheme or column (or the attribute of a speaker) that has it, where its name does not
        tell, and before it, with a `/`, the tables to look in: `{emotion: emotion.*.gold_standard/emotion}`. By
        default all tables.
    """
    root = Path(data_folder)
    offenders, database = Offenders(f"audformat database in {root}"), _load(root)
    used = _used(database, dict(columns or {}), root)
    places = {ours: _place(database, theirs) for ours, theirs in used.items() if ours != "emotion"}
    found = {ours: _values(database, name, tables, root, offenders) for ours, (tables, name) in places.items()}
    emotion, part = _emotions(database, used["emotion"], root, offenders)
    offenders.raise_any()
    if "split" not in found and set(part) == set(emotion):
        used["split"], found["split"] = "the tables' splits", part
    elif "split" not in found and part:
        n = len(emotion) - len(part)
        logger.warning("%s: %d of %d files are in no split: it is left out", root, n, len(emotion))
    records = {}
    for file, label in emotion.items():
        facts = {ours: values.get(file, "") for ours, values in found.items()}
        facts["gender"] = GENDERS.get(facts.get("gender", ""), facts.get("gender", ""))
        records[file] = {"wav": file, "emotion": label, **facts}
    return rows_of(records, {"wav": "file", **used}, root, offenders, corpus="audformat")


def _load(root: Path):
    """The database by its plain YAML and its CSV or Parquet files: pickled tables and YAML's tags would be executed."""
    audformat = library()
    import yaml  # comes with audformat

    if not (root / "db.yaml").is_file():
        raise CorpusError(f"audformat: expected db.yaml in {root}, found none")
    with tempfile.TemporaryDirectory() as folder:
        try:
            header = yaml.safe_load((root / "db.yaml").read_text(encoding="utf-8"))
            (Path(folder) / "db.yaml").write_text(yaml.safe_dump(header, sort_keys=False), encoding="utf-8")
            for table in [*root.glob("db.*.csv"), *root.glob("db.*.parquet")]:
                shutil.copyfile(table, Path(folder) / table.name)
            return audformat.Database.load(folder, load_data=True)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, yaml.YAMLError) as error:
            said = str(error).replace(folder, str(root))
            raise CorpusError(f"{root}: expected an audformat database that can be read: {said}") from error


def _used(database, columns: dict[str, str], root: Path) -> dict[str, str]:
    """Ours -> `tables/name` of theirs, as given or by its name."""
    names = _names(database)
    plain = {re.sub("[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    ours = ["emotion", *OPTIONAL, *(name for name in [*names, *columns] if name.startswith(FOLD_COLUMN))]
    problems = Offenders(f"{root}: columns do not fit; it has {', '.join(names)} in {', '.join(database.tables)}")
    for name, theirs in columns.items():
        tables, what = _place(database, theirs)
        if name not in ours:
            problems.add(f"no column of ours (known: {', '.join(ours)})", f"{name!r}{nearest(name, ours)}")
        if what not in names or not tables:
            problems.add("not in the database", f"{theirs!r}, wanted as {name}{nearest(what, names)}")
    aliases = {name: (name.replace("_", "").lower(), *COLUMNS.get(name, ())) for name in ours}
    found = {name: next((plain[a] for a in aliases[name] if a in plain), "") for name in ours} | columns
    if not found["emotion"]:
        problems.add("no emotion", "name it: --table_columns='{emotion: …}'")
    problems.raise_any()
    if found["text"] == found["transcript"]:
        del found["text"]
    return {name: theirs for name, theirs in found.items() if theirs}


def _names(database) -> list[str]:
    """Of its schemes and columns, and of what schemes tell of a label (a speaker's gender)."""
    tables = [*database.tables.values(), *database.misc_tables.values()]
    labels = [
        its for scheme in database.schemes.values() if isinstance(scheme.labels, dict) for its in scheme.labels.values()
    ]
    told = [name for its in labels if isinstance(its, dict) for name in its]
    return list(dict.fromkeys(map(str, [*database.schemes, *(c for table in tables for c in table.columns), *told])))


def _place(database, theirs: str) -> tuple[list[str], str]:
    pattern, _, name = theirs.rpartition("/")
    return fnmatch.filter(database.tables, pattern or "*"), name


def _values(database, name: str, tables: list[str], root: Path, offenders: Offenders) -> dict[str, str]:
    """The values of a scheme or column by file, as text, without the empty ones."""
    try:
        found = database.get(name, tables=tables)[name].dropna()
    except (ValueError, TypeError) as error:
        said = str(error).partition("\n")[0]
        offenders.add(f"several in {', '.join(tables)}: name one, --table_columns='{{…: TABLES/COLUMN}}'", said)
        return {}
    if "start" in found.index.names:
        for file, start, end in found.index:
            if not _is_whole(root / file, start, end):
                offenders.add("segment of a recording (expected a recording an utterance)", f"{file}: {start} to {end}")
        found.index = found.index.get_level_values("file")
    return {file: text for file, value in found.items() if (text := str(value).strip())}


def _is_whole(path: Path, start: pd.Timedelta, end: pd.Timedelta) -> bool:
    """Whether a segment is all of its recording; one that cannot be read is told of elsewhere."""
    if pd.isna(end) or start.total_seconds():
        return not start.total_seconds()
    try:
        return abs(soundfile.info(path).duration - end.total_seconds()) < 1e-3
    except (OSError, soundfile.LibsndfileError):
        return True


def _emotions(database, theirs: str, root: Path, offenders: Offenders) -> tuple[dict[str, str], dict[str, str]]:
    """The emotion of each file, and its part, which the tables' splits or names tell; each must be one."""
    tables, name = _place(database, theirs)
    emotions, parts = defaultdict(dict), defaultdict(dict)
    for table in tables:
        part = _part(database, table)
        for file, label in _values(database, name, [table], root, offenders).items():
            emotions[file].setdefault(label, table)
            if part:
                parts[file].setdefault(part, table)
    way_out = f"choose tables, --table_columns='{{emotion: TABLES/{name}}}'"
    for what, by_file in {"emotions": emotions, "parts": parts}.items():
        for file, values in ((file, values) for file, values in by_file.items() if len(values) > 1):
            offenders.add(f"several {what}: {way_out}", f"{file}: {', '.join(map(' in '.join, values.items()))}")
    if not emotions:
        offenders.add("no emotion", f"{theirs} in {', '.join(tables)}")
    return tuple({file: next(iter(values)) for file, values in found.items()} for found in (emotions, parts))


def _part(database, table: str) -> str | None:
    split = database.splits.get(database[table].split_id)
    words = [split.type] if split else re.split(r"[^a-z]+", table.lower())
    return next((PARTS[word] for word in words if word in PARTS), None)
