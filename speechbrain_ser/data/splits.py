"""Splits that somebody published, in whichever form -> a row for each utterance of each part of each fold.

A table (CSV, TSV) with a column of parts or folds; EmoBox's JSON lines, s3prl's JSON and Cai et al.'s CSVs, whose file
names say the part; a manifest of ours with a protocol; runs of ours. What a file is, its content says.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import ruamel.yaml

from speechbrain_ser.data.corpora import read_text
from speechbrain_ser.data.corpora.savee import text_of
from speechbrain_ser.data.corpora.table import read_table
from speechbrain_ser.data.labels import apply_labels, yaml_mapping
from speechbrain_ser.data.manifest import DATA_ROOT
from speechbrain_ser.data.protocols import LINES, SPLIT_NAMES, Fold, make_folds
from speechbrain_ser.data.text import look_alikes, text_identities
from speechbrain_ser.errors import CorpusError, Offenders, UserError, nearest, shown
from speechbrain_ser.files import read_json

#: ours -> what others call it, in lower case and without signs; the first that a table has
COLUMNS = {
    "ID": ("id", "key", "uttid", "utteranceid", "name"),
    "path": ("path", "file", "filename", "filepath", "wav", "audio", "wavpath", "audiopath"),
    "speaker": ("speaker", "speakerid", "spk", "spkid", "actor", "actorid", "subject"),
    "session": ("session", "sessionid"),
    "script": ("script",),
    "emotion": ("emotion", "label", "emo", "emotionlabel", "emoclass", "class", "category"),
    "transcript": ("transcript", "transcription", "sentence", "utterance", "text"),
    "text": ("text",),  # beside a transcript: one name of all that says the same
    "length": ("length", "duration", "seconds"),
    "start": ("start", "starttime", "offset"),  # of a segment of a recording
    "split": ("split", "part", "partition", "subset", "set"),
    "fold": ("fold", "cvfold", "foldid"),
}
FACTS = [column for column in COLUMNS if column not in ("split", "fold")]
PARTS = SPLIT_NAMES | {"validation": "valid", "development": "valid", "training": "train", "testing": "test"}
WANTED = "a column split (train, valid, test) or fold, or one of these words in the file's name"
FOLD_FOLDER = re.compile(r"(fold|session|ses|split|cv)?[ _-]*\d+", re.IGNORECASE)
#: a corpus's own names of recordings: who speaks, and what is known of the text
NAMES = {
    "EMO-DB": r"(?:^|[/_-])(?P<speaker>\d\d)(?P<text>[ab]\d\d)[A-Z][a-z]$",
    "IEMOCAP": r"(?P<session>Ses(?P<speaker>\d\d))[FM]_(?:(?P<script>script\d\d_\d)|impro)\w*_(?P<letter>[FM])[0-9X]+$",
    "SAVEE": r"(?:^|[/_-])(?P<speaker>DC|JE|JK|KL)[/_-](?P<take>(?:sa|su|[adfhn])\d\d)$",
    "RAVDESS": r"\d\d-\d\d-\d\d-\d\d-(?P<text>\d\d)-\d\d-(?P<speaker>\d\d)$",
    "CREMA-D": r"(?:^|[/_-])(?P<speaker>\d{4})_(?P<text>[A-Z]{3})_(?:ANG|DIS|FEA|HAP|NEU|SAD)_[A-Z]{1,2}$",
    "TESS": r"(?:^|[/_-])(?P<speaker>OA|YA)F?_(?P<text>[a-z]+)_[a-z]+$",
}

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """Rows with ``fold``, ``part`` and :data:`FACTS`, all text, "" where unknown; and what had to be decided."""

    name: str
    rows: pd.DataFrame
    notes: Sequence[str] = ()


def read_splits(
    paths: Iterable[str | os.PathLike], columns: str = "{}", speaker: str | None = None, protocol: str | None = None
) -> list[Split]:
    """Return the splits in some files or folders; those of one folder, or of its folders `fold_1`, …, are one.

    Arguments
    ---------
    columns : str
        Ours (:data:`COLUMNS`) -> a table's, where its name does not tell, as YAML: `{label: intended, speaker: who}`.
    speaker : str, optional
        Regular expression whose group (or groups `speaker`, `session`, `text`) is found in each path or ID.
    protocol : str, optional
        The protocol that a manifest is to be split by.
    """
    chosen = yaml_mapping(columns, "--columns: expected ours: theirs, e.g. '{label: emo, speaker: who}'")
    found, parts, splits = [], {}, []
    problems = Offenders(f"not a split; expected tables, JSON or JSON lines with {WANTED}, or runs", UserError)
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"no such file or folder: {path}")
        runs = sorted(path.rglob("metrics.json")) if path.is_dir() else []
        files = [] if runs else _files(path)
        found += _of_runs(path, runs)
        for file in files:
            if name := _part_and_fold(file):
                part, folder, fold = name
                parts.setdefault(folder, []).append(_read(file, chosen).assign(fold=fold, part=part))
            else:
                found.append(_of_table(file, chosen, protocol))
        if not runs and not files:
            problems.add("nothing in", path)
    for folder, each in parts.items():
        classes = read_json(folder / "label_map.json") if (folder / "label_map.json").is_file() else {}  # EmoBox's
        found.append(Split(str(folder), pd.concat(each).replace({"emotion": classes})))
    for split in found:
        has = split.rows.groupby("fold")["part"].agg(set)
        whole = [fold for fold, parts in has.items() if {"train", "test"} <= parts]
        if lacking := [f"{f}: {'/'.join(p)}" for f, p in has.items() if f not in whole]:
            problems.add("no part that is trained on, or none that is tested", f"{split.name} ({'; '.join(lacking)})")
        if whole:
            rows = split.rows[split.rows["fold"].isin(whole)]
            splits.append(_complete(split._replace(rows=rows), speaker))
    if not splits:
        problems.raise_any()
    for kind, which in problems.kinds.items():
        logger.warning("left out, %s: %s", kind, "; ".join(shown(which)))
    return splits


def _files(path: Path) -> list[Path]:
    """Of a folder, the files whose names say a part, else its tables; JSON only without JSON lines of the same name."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("[!.]*") if p.suffix in (".csv", ".tsv", ".json", ".jsonl"))
    lines = {p.with_suffix("") for p in found if p.suffix == ".jsonl"}
    found = [p for p in found if p.suffix != ".json" or p.with_suffix("") not in lines]
    return [p for p in found if _part_and_fold(p)] or [p for p in found if p.suffix in (".csv", ".tsv")]


def _part_and_fold(file: Path) -> tuple[str, Path, str] | None:
    """The part that a file's name says, the folder of its split, and its fold; None where none or several are said.

    `fold_1/savee_test_fold_1.jsonl`, `Session1/test_meta_data.json`, `iemocap_01F.test.csv`.
    """
    words = [word for word in re.split(r"[^a-z]+", file.stem.lower()) if word in PARTS]
    if len(words) != 1:
        return None
    rest = re.sub(rf"(^|[^a-z]){words[0]}(?![a-z])", "", file.stem, flags=re.IGNORECASE).strip("._- ")
    if FOLD_FOLDER.fullmatch(file.parent.name):
        return PARTS[words[0]], file.parent.parent, rest if re.search(r"\d", rest) else file.parent.name
    return PARTS[words[0]], file.parent, rest


# ------------------------------------------------------------------ files


def _read(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table, JSON or JSON lines, all text, under our names where they can be told."""
    try:
        text, frame = read_text(path), pd.DataFrame()
        if text.lstrip()[:1] in ("{", "["):
            frame = pd.DataFrame(_records(text))
        elif text.strip():
            offenders = Offenders(f"table {path}")
            header, rows = read_table(path, offenders)
            offenders.raise_any()
            frame = pd.DataFrame(rows.values(), columns=header)
    except CorpusError:  # it says what is wrong
        raise
    except (OSError, ValueError, TypeError) as error:  # JSON's errors are ValueErrors
        raise UserError(f"{path}: expected a CSV, TSV, JSON or JSON lines: {error}") from error
    if frame.empty:
        raise UserError(f"{path}: expected a row an utterance, found none")
    frame = frame.where(frame.notna(), "").astype(str).apply(lambda column: column.str.strip())
    return _renamed(frame, path, columns)


def _records(text: str) -> list[dict]:
    try:
        found = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    if isinstance(found, dict) and "meta_data" not in found:
        return [{"key": key, **row} for key, row in found.items()]
    return found["meta_data"] if isinstance(found, dict) else found


def _renamed(frame: pd.DataFrame, path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    problems = Offenders(f"{path}: columns do not fit; it has {', '.join(map(str, frame))}", UserError)
    plain = {re.sub("[^a-z0-9]", "", str(name).lower()): name for name in reversed(frame.columns)}
    used = {ours: next((plain[a] for a in aliases if a in plain), None) for ours, aliases in COLUMNS.items()}
    for given, name in columns.items():
        ours = next((o for o, aliases in COLUMNS.items() if given in (o, *aliases)), None)
        if ours is None:
            known = [name for aliases in COLUMNS.values() for name in aliases]
            problems.add(f"no column of ours (known: {', '.join(COLUMNS)})", f"{given!r}{nearest(given, known)}")
        elif name not in frame:
            problems.add("not in the file", f"{name!r}, wanted as {given}{nearest(name, frame)}")
        used[ours] = name
    if used["text"] == used["transcript"]:
        used["text"] = None
    for what, ours in {"path": ("ID", "path"), "label": ("emotion",)}.items():
        if not any(used[name] for name in ours):
            problems.add(f"no {' or '.join(ours)}", f"name it: --columns='{{{what}: …}}'")
    problems.raise_any()
    found = frame.rename(columns={theirs: ours for ours, theirs in used.items() if theirs is not None})
    return found.loc[:, ~found.columns.duplicated()]


def _of_table(path: Path, columns: Mapping[str, str], protocol: str | None) -> Split:
    """One file with all parts: of a column, of several columns, of folds that are tested in turn, of a protocol."""
    frame = _read(path, columns)
    if protocol:
        frame = apply_labels(_as_manifest(frame))
        return Split(str(path), _rows_of(frame, make_folds(frame, protocol).values()))
    part_of = {c: frame[c].str.lower().str.rstrip("0123456789_ ").map(PARTS) for c in frame if c not in FACTS}
    several = [c for c, part in part_of.items() if str(c)[-1:].isdigit() and (part.notna() | frame[c].eq("")).all()]
    if "split" in frame:
        if strange := sorted(set(frame["split"][part_of["split"].isna()])):
            raise UserError(f"{path}: the column split must be one of {', '.join(PARTS)}; found {strange[:12]}")
        found = [frame.assign(part=part_of["split"], fold=frame.get("fold", ""))]
    elif several:
        found = [frame.assign(part=part_of[c], fold=str(c))[part_of[c].notna()] for c in several]
    elif "fold" in frame:
        tested = {fold: frame["fold"] == fold for fold in sorted(set(frame["fold"]))}
        found = [frame.assign(part=of.map({True: "test", False: "train"}), fold=fold) for fold, of in tested.items()]
    else:
        what = "a manifest without a --protocol=…" if "corpus" in frame else "not a split"
        raise UserError(f"{path} is {what}: expected {WANTED}; it has {', '.join(map(str, frame))}")
    return Split(str(path), pd.concat(found))


# ------------------------------------------------------------------ our own


def _as_manifest(frame: pd.DataFrame) -> pd.DataFrame:
    """With every column that protocols ask for; a manifest of an earlier version has no texts."""
    frame = frame.reindex(columns=dict.fromkeys([*frame, *FACTS, "dialog", "corpus"])).fillna("")
    frame["ID"] = frame["ID"].where(frame["ID"] != "", frame["path"])
    frame["corpus"] = frame["corpus"].where(frame["corpus"] != "", "table")
    return frame.assign(text=frame["text"].where(frame["text"] != "", text_identities(frame["transcript"])))


def _rows_of(frame: pd.DataFrame, folds: Iterable[Fold]) -> pd.DataFrame:
    frame, found = frame.set_index("ID", drop=False), []
    for fold in folds:
        parts = {"train": fold.train, "valid": fold.valid, "test": fold.test}
        found += [frame.loc[list(ids)].assign(fold=fold.name, part=part) for part, ids in parts.items()]
    return pd.concat(found)


def _of_runs(root: Path, found: Sequence[Path]) -> list[Split]:
    """A split for each corpus and protocol that runs below a folder had, of the folds that were run."""
    lines = [*"corpus second_corpus protocol labels votes seen_fraction split_seed manifest_folder".split(), *LINES]
    groups: dict[str, tuple[dict, dict]] = {}  # what a run was made of, and the utterances that each fold tested
    for folder in (path.parent for path in found):
        metrics = read_json(folder / "metrics.json")
        if metrics.get("kind") == "pretraining":
            continue
        try:  # of its YAML nothing is executed
            plain = ruamel.yaml.YAML().load((folder / "hyperparams.yaml").read_text(encoding="utf-8"))
            plain = {line: plain[line] for line in lines if line in plain}
            _, tested = groups.setdefault(json.dumps(plain), (plain, {}))
            tested[metrics["fold"]] = {*pd.read_csv(folder / "predictions.csv", dtype=str)["ID"]}
        except (OSError, ValueError, LookupError, TypeError, ruamel.yaml.error.YAMLError) as error:
            raise UserError(f"{folder}: expected a finished run: {error}") from error
    return [_of_group(root, *group) for group in groups.values()]


def _of_group(root: Path, plain: dict, tested: Mapping[str, set]) -> Split:
    """Make the folds anew, of that manifest which gives what was tested."""
    options = {line: plain[line] for line in ("seen_fraction", "split_seed", *LINES) if line in plain}
    place = Path(plain["manifest_folder"])
    for path in [] if plain.get("second_corpus") else sorted(place.glob(f"{plain['corpus']}-*.csv")):
        frame = apply_labels(_as_manifest(_read(path, {})), plain["labels"], plain.get("votes", False))
        folds = make_folds(frame, plain["protocol"], **options)
        if all(name in folds and set(folds[name].test) == ids for name, ids in tested.items()):
            notes = [f"{len(tested)} of the protocol's {len(folds)} folds have been run"]
            rows = _rows_of(frame, [folds[name] for name in folds if name in tested])
            return Split(f"{root}: {plain['corpus']}, protocol {plain['protocol']}", rows, notes)
    found = f"no manifest {plain['corpus']}-*.csv of one corpus in {place} gives the utterances that these runs tested"
    raise UserError(f"{root}: {found}; audit a manifest itself: speechbrain-ser audit MANIFEST --protocol=…")


# ------------------------------------------------------------------ what is known of an utterance


def _complete(split: Split, speaker: str | None) -> Split:
    """Give rows all facts: of their columns, else of the corpus's own names, and an identity of what is said."""
    rows = split.rows.reset_index(drop=True).reindex(columns=["fold", "part", *FACTS]).fillna("")
    rows["path"] = rows["path"].str.removeprefix(DATA_ROOT)
    rows["ID"] = rows["ID"].where(rows["ID"] != "", rows["path"])
    for column, what in {"ID": "an ID or a path", "emotion": "a label"}.items():
        if (empty := rows[column] == "").any():
            raise UserError(f"{split.name}: expected {what} in every row, found none in {empty.sum()}")
    if (twice := rows.duplicated(["fold", "part", "ID", "path", "start"])).mean() > 0.1:
        again = f"found {rows['ID'][twice].iloc[0]!r} again; give --columns='{{ID: …}}'"
        raise UserError(f"{split.name}: expected one row an utterance, {again}")
    found, notes = _told_by_names(rows, speaker, split.name)
    for column, values in found.items():
        is_known = (rows[column] != "") | ((column == "text") & (rows["transcript"] != ""))
        rows[column] = values if column == "speaker" else rows[column].where(is_known, values)
    for same in look_alikes(rows["speaker"]):
        rows["speaker"] = rows["speaker"].replace(same, same[0])
        notes.append(f"{', '.join(map(repr, same))} are taken for one speaker")
    said = rows["transcript"].drop_duplicates()
    names = dict(zip(said, text_identities(said), strict=True))
    rows["text"] = rows["text"].where(rows["text"] != "", rows["transcript"].map(names))
    return Split(split.name, rows, [*split.notes, *notes])


def _told_by_names(rows: pd.DataFrame, pattern: str | None, where: str) -> tuple[dict[str, pd.Series], list[str]]:
    """What the recordings' names tell; who speaks, they are believed, also where a column differs.

    s3prl's column speaker is IEMOCAP's dialog (Ses01F), in which two people speak.
    """
    name = rows["path"].where(rows["path"] != "", rows["ID"]).str.replace(r"\.\w+$", "", regex=True)
    unique, notes = name.drop_duplicates(), []
    for corpus, its in (NAMES if pattern is None else {"--speaker": pattern}).items():
        try:
            found = unique.str.extract(its if re.compile(its).groups else f"({its})").set_axis(unique)
            found = found.rename(columns={0: "speaker"})
            lost = found["speaker"].isna()
        except (re.error, KeyError) as error:
            raise UserError(f"--speaker: expected a regular expression for the speaker, found {its!r}") from error
        if not lost.any():
            notes.append(f"told by the names of the recordings ({corpus}): ")
            break
        if pattern is not None:
            raise UserError(f"{where}: --speaker={its} finds nobody in {lost.sum()} names, e.g. {lost.idxmax()}")
    else:
        return {}, []
    if "letter" in found:
        found["speaker"] += found["letter"]
    if "take" in found:
        found["text"] = found["take"].map(text_of)
    told = {c: name.map(found[c].fillna("")) for c in found if c in FACTS}
    notes[0] += ", ".join(told)
    both = pd.DataFrame({"given": rows["speaker"], "told": told["speaker"]})[rows["speaker"] != ""].drop_duplicates()
    if len(twice := both[both["given"].duplicated(keep=False)].sort_values(["given", "told"])):
        of = f"'{twice['given'].iloc[0]}' is {' and '.join(twice['told'][:2])}"
        notes.append(f"the column speaker is not who speaks: {of} by these names, which are believed")
    return told, notes
