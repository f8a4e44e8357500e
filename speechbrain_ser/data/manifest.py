"""The manifest: one CSV row an utterance, the only thing that recipes know of a corpus."""

import csv
import hashlib
import inspect
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from speechbrain_ser.data.audio import check_audio
from speechbrain_ser.data.corpora import corpus_module
from speechbrain_ser.data.corpora.table import table_name
from speechbrain_ser.data.labels import MISSING, REST, yaml_line, yaml_mapping
from speechbrain_ser.data.text import composed, look_alikes, spelling, text_identities
from speechbrain_ser.errors import CorpusError, Offenders, counted, nearest, shown
from speechbrain_ser.files import sha256, write_json, written_whole

COLUMNS = (
    *("ID", "wav", "duration", "emotion", "speaker", "gender", "session", "dialog", "transcript", "text", "language"),
    "corpus",
)  # text: one name of all that says the same, known even where the words are not; "": unknown
REQUIRED = ("ID", "wav", "emotion")  # never empty
NAMES = ("speaker", "session", "gender")  # one text is one of them; emotions are judged as classes
DATA_ROOT = "{data_root}/"
FORMAT = 4  # raise it when rows or checks change for the same corpus, so that older manifests are made anew

logger = logging.getLogger(__name__)

TABLE_LINES = ("table_file", "table_columns", "table_names", "table_name")  # of a YAML, about a table
JOINED = ("corpus", "data_folder", "labels", *TABLE_LINES)  # of a corpus that is joined


def prepare(corpus: str, data_folder: str | os.PathLike, manifest_folder: str | os.PathLike, **options) -> Path:
    """Read and check a corpus, and write its manifest; do nothing when nothing changed since the last time.

    Arguments
    ---------
    corpus : str
        One of :data:`speechbrain_ser.data.corpora.CORPORA`.
    manifest_folder : path
        Where `<corpus>-<8 hexadecimal digits of the folder and the options>.csv` is written, which is returned, beside
        a .json that remembers what it was made from.
    **options
        What the corpus's `find_utterances` takes, e.g. `columns` of a table.
    """
    root = Path(data_folder).resolve()
    rows = _with_texts(_find_utterances(corpus, root, options))
    path = Path(manifest_folder) / f"{corpus}-{_digest([corpus, str(root), options])[:8]}.csv"
    wavs = [_resolve_wav(row["wav"], root) for row in rows]
    fingerprint = _fingerprint(rows, wavs, options)
    _compare_with_official(corpus, [row["emotion"] for row in rows])
    if _is_current(path, fingerprint):
        logger.info("%s is unchanged: %d utterances", path, len(rows))
        return path
    looks = check_audio(wavs, f"{corpus} in {root}")
    _check_once_each(rows, [look.digest for look in looks], f"{corpus} in {root}")
    found = [{"duration": f"{look.seconds:.6f}", "recording": look.digest[:16]} for look in looks]
    rows = [{**row, **of_audio} for row, of_audio in zip(rows, found, strict=True)]
    write_manifest(rows, path)
    write_json({**fingerprint, "utterances": len(rows), "manifest": sha256(path)}, path.with_suffix(".json"))
    logger.info("%s: %d utterances, %.1f hours", path, len(rows), sum(look.seconds for look in looks) / 3600)
    return path


def table_options(corpus: str, lines: Mapping) -> dict:
    """Return those of the lines table_file, table_columns and table_names that a corpus's reader has as options."""
    known = inspect.signature(corpus_module(corpus).find_utterances).parameters
    found = {name: lines.get(f"table_{name}") for name in ("file", "columns", "names") if name in known}
    return {name: value for name, value in found.items() if value or name != "names"}


def read_corpus(lines: Mapping) -> pd.DataFrame:
    """Prepare the corpus of a YAML's lines, and return its manifest."""
    options = table_options(lines["corpus"], lines)
    path = prepare(lines["corpus"], lines["data_folder"], lines["manifest_folder"], **options)
    return read_manifest(path, lines["data_folder"])


def corpus_name(lines: Mapping) -> str:
    """Return what the corpus of a YAML's lines is called in results: a table has a name of its own."""
    if lines["corpus"] != "table":
        return lines["corpus"]
    return table_name(lines["data_folder"], lines.get("table_file"), lines.get("table_name"))


def second_corpora(lines: Mapping) -> list[dict]:
    """Return the lines of each corpus that is joined: `second_corpus` is a name, or a list of mappings of lines."""
    second = lines.get("second_corpus")
    if second is None or isinstance(second, str):
        own = {"corpus": second, "data_folder": lines.get("second_data_folder"), "labels": lines.get("second_labels")}
        found = [] if second is None else [{**lines, **own, "table_name": None}]
    else:
        found = [second] if isinstance(second, Mapping) else list(second)
        for each in found:
            if not isinstance(each, Mapping):
                raise CorpusError(f"second_corpus: expected [{{corpus: …, data_folder: …}}, …], found {each!r}")
            if unknown := [f"{name}{nearest(name, JOINED)}" for name in each if name not in JOINED]:
                raise CorpusError(f"second_corpus: no line {', '.join(unknown)}; known: {', '.join(JOINED)}")
    for each in found:
        if not (each.get("corpus") and each.get("data_folder")):
            where = "--second_data_folder=…" if isinstance(second, str) else "[{corpus: …, data_folder: …}]"
            raise CorpusError(f"second_corpus: {each.get('corpus') or second} needs its folder: give {where}")
    return found


def given_options(corpus: str, table_file: str | None, table_columns: str, table_names: str) -> dict:
    """Return :func:`table_options` of a command line, whose mappings are YAML."""
    expected = "expected a YAML mapping, e.g. '{emotion: label}'"
    mappings = {"table_columns": table_columns, "table_names": table_names}
    lines = {line: yaml_mapping(text, f"--{line}: {expected}") for line, text in mappings.items()}
    return table_options(corpus, {"table_file": table_file, **lines})


def _check_once_each(rows: list[dict], digests: list[str], where: str) -> None:
    """Refuse a recording that several rows have, also under other names or in other formats.

    Also where one speaker and label have it: folds and parts are drawn by row, and one would test what another trains.
    """
    offenders, names_of = Offenders(where), defaultdict(list)
    for row, digest in zip(rows, digests, strict=True):
        wav = row["wav"].removeprefix(DATA_ROOT)
        names_of[digest].append(f"{row['ID']} (speaker {row['speaker'] or 'unknown'}, {row['emotion']}: {wav})")
    for names in names_of.values():
        if len(names) > 1:
            offenders.add("one recording in several rows (expected each once)", " = ".join(shown(names)))
    offenders.raise_any()


def write_manifest(rows: Iterable[dict], path: str | os.PathLike) -> None:
    """Write rows, sorted by ID, all or nothing; keys beside `COLUMNS` become columns after them."""
    rows = sorted(({key: str(value) for key, value in row.items()} for row in rows), key=lambda row: row.get("ID", ""))
    _validate(rows, path)
    columns = list(dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)]))
    cells = {column: [row.get(column, "") for row in rows] for column in columns}
    with written_whole(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([columns, *zip(*cells.values(), strict=True)])
        # a full disk or a cell that CSV cannot carry shows here, not in a training
        if _read(temporary).to_dict("list") != cells:
            raise CorpusError(f"{path}: what was read back is not what was written")


def read_manifest(path: str | os.PathLike, data_root: str | os.PathLike) -> pd.DataFrame:
    """Read a manifest, with the paths of the recordings below `data_root`, wherever the corpus is now.

    All is text ("03" and "NA" stay what they are, empty is ""), but for `duration`, in seconds.
    """
    frame = _read(path)
    if missing := [column for column in COLUMNS if column not in frame]:
        raise CorpusError(f"{path} is no manifest: it has no column {', '.join(missing)}")
    wavs = [str(_resolve_wav(wav, data_root)) for wav in frame["wav"]]
    return frame.assign(wav=pd.Series(wavs, dtype=frame["wav"].dtype), duration=frame["duration"].astype(float))


def _resolve_wav(wav: str, data_root: str | os.PathLike) -> Path:
    """Braces other than those of `{data_root}/…` are left alone."""
    return Path(data_root) / wav.removeprefix(DATA_ROOT) if wav.startswith(DATA_ROOT) else Path(wav)


def _read(path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8")


def _find_utterances(corpus: str, root: Path, options: dict) -> list[dict]:
    find_utterances = corpus_module(corpus).find_utterances
    known = list(inspect.signature(find_utterances).parameters)[1:]
    if unknown := [f"{name}{nearest(name, known)}" for name in options if name not in known]:
        raise CorpusError(f"corpus {corpus} has no option {', '.join(unknown)}; it has: {', '.join(known) or 'none'}")
    found = find_utterances(root, **options)
    # a recording keeps the name that it has on disk; all else is compared
    rows = [{key: value if key == "wav" else composed(str(value)) for key, value in row.items()} for row in found]
    _refuse_look_alikes(rows, f"{corpus} in {root}")
    return rows


def _refuse_look_alikes(rows: list[dict], where: str) -> None:
    """Whoever is written in two ways would be two people, one of them tested, the other trained on."""
    groups = {c: found for c in NAMES if (found := look_alikes(row.get(c, "") for row in rows))}
    rules = {c: {name: names[0] for names in found for name in names[1:]} for c, found in groups.items()}
    line = f"One line makes them one, or tells them apart:\n{yaml_line('table_names', rules)}"
    offenders = Offenders(f"{where}: names that differ in spelling alone. {line}")
    for column, names in ((column, names) for column, found in groups.items() for names in found):
        ids = {name: [row["ID"] for row in rows if row.get(column) == name] for name in names}
        told = (f"{name!r} ({len(of)} utterances, first {of[0]})" for name, of in ids.items())
        offenders.add(f"the same {column}?", " and ".join(told))
    offenders.raise_any()
    nobody = Counter(row.get("speaker") for row in rows if spelling(row.get("speaker", "")) in MISSING)
    line = yaml_line("table_names", {"speaker": dict.fromkeys(nobody, "somebody")})
    offenders = Offenders(
        f"{where}: one person, who is no other speaker? Say so by a name, or leave these rows out:\n{line}"
    )
    for name, n in nobody.items():
        offenders.add("speaker that reads like a missing value", f"{name!r} ({counted(n, 'utterance')})")
    offenders.raise_any()


def _with_texts(rows: list[dict]) -> list[dict]:
    """Name what an utterance says by its transcript, where the corpus has no name of its own for it."""
    names = text_identities([row["transcript"] for row in rows])
    return [{**row, "text": row.get("text") or name} for row, name in zip(rows, names, strict=True)]


def _validate(rows: list[dict], path) -> None:
    offenders, wavs_of = Offenders(f"manifest {path}"), defaultdict(list)
    for row in rows:
        name = row.get("ID") or row.get("wav") or row
        if lost := [column for column in COLUMNS if column not in row]:
            offenders.add("row without a column", f"{name}: {', '.join(lost)}")
        for column in REQUIRED:
            if column in row and not row[column].strip():
                offenders.add(f"empty {column}", name)
        if "duration" in row and not _is_positive(row["duration"]):
            offenders.add("duration that is no positive number of seconds", f"{name}: {row['duration']!r}")
        wavs_of[row.get("ID", "")].append(row.get("wav", ""))
    for name, wavs in wavs_of.items():
        if name and len(wavs) > 1:
            offenders.add("duplicate ID", f"{name}: {', '.join(wavs)}")
    if not rows:
        offenders.add("no rows", "expected at least one utterance")
    offenders.raise_any()


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _is_current(path: Path, fingerprint: dict) -> bool:
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        same = all(sidecar.get(key) == value for key, value in fingerprint.items())
        return same and sidecar.get("manifest") == sha256(path)
    except (OSError, ValueError, AttributeError):  # not there, or damaged: make it anew
        return False


def _fingerprint(rows: list[dict], wavs: list[Path], options: dict) -> dict:
    """What a manifest is made from: label files by what was read from them, recordings by size and time."""
    digests = {"rows": _digest(rows), "recordings": _digest([_size_and_time(wav) for wav in wavs])}
    return {"format": FORMAT, "options": json.loads(json.dumps(options, default=str)), **digests}


def _size_and_time(wav: Path) -> list[int] | None:
    try:
        stat = wav.stat()
    except OSError:  # the audio check reports it
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _digest(value: list) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _compare_with_official(corpus: str, emotions: list[str]) -> None:
    """Complete or not is judged from the corpus's own files; official totals only make one look twice."""
    module = corpus_module(corpus)
    rules = module.DEFAULT_LABELS or {}
    chosen = [emotion for emotion in emotions if rules.get(emotion, rules.get(REST)) is not None]
    official, counts = getattr(module, "OFFICIAL", {}), (len(emotions), len(chosen))
    for (what, expected), found in zip(official.items(), counts, strict=False):
        if found != expected:
            note = getattr(module, "OTHER_RELEASES", "")
            logger.warning("%s: %d %s; the official release has %d%s", corpus, found, what, expected, note)
