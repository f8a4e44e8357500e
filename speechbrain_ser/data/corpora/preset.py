"""The reader of described corpora: what `presets.py` says of one, and its folder -> rows of a manifest.

What tells label and speaker is a recording's name or the release's own table, wherever they lie: copies flatten
folders, nest and rename them, and have everything twice.
"""

import filecmp
import itertools
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from speechbrain_ser.data.corpora import DEMO_MARKER
from speechbrain_ser.data.corpora.table import read_table
from speechbrain_ser.data.text import look_alikes
from speechbrain_ser.errors import CorpusError, Offenders, counted, nearest, shown

logger = logging.getLogger(__name__)

ENDINGS = (".wav", ".flac", ".aif", ".aiff", ".au", ".ogg", ".opus", ".mp3", ".mp4")  # the first that is there is taken
VIDEO = (
    "video alone, which soundfile does not read (in its folder: "
    'for v in *.mp4; do ffmpeg -i "$v" -vn -ac 1 -ar 16000 "${v%.mp4}.wav"; done)'
)
GENDERS = {"f": "F", "m": "M", "female": "F", "male": "M"}  # written as the last ones

Facts = dict[str, str]  # what is told of a recording: `emotion`, `speaker`, `text`, …


@dataclass(frozen=True)
class Preset:
    """A corpus, described; it is used as the module of a corpus is, hence the capitals."""

    corpus: str
    title: str
    example: str  # a recording's path in the release
    licence: str
    language: str
    #: pattern of a recording's name without ending, or of its path, where it has a "/"; its groups are facts
    name: str
    id: str  # an ID, made of facts that are in every name
    #: the values of facts, as the release writes them; of `emotion`, `speaker`, `text` and `split` with their meaning:
    #: emotion, gender, words, part
    parts: Mapping[str, Collection[str]]
    OFFICIAL: Mapping[str, int] = field(default_factory=dict)
    DEFAULT_LABELS: Mapping[str, str | None] | None = None  # all emotions
    tables: Mapping[str, Facts] = field(default_factory=dict)  # name (pattern) -> what is so of all of its rows
    columns: Mapping[str, str] = field(default_factory=dict)  # fact (or `file`, which has a recording's name) -> column
    is_listed: bool = False  # a recording of the corpus is what its tables have a row of
    words: Callable[[list[Path]], dict[str, str]] | None = None  # its text files -> ID in lower case -> transcript
    tell: Callable[[Facts], Facts] = lambda facts: {}  # what no column or group says, but facts tell
    kept: tuple[str, ...] = ()  # facts that are columns of the manifest under their own names
    grid: tuple[str, ...] = ()  # facts of which the release has every combination …
    never: str = "(?!)"  # … but these IDs (pattern)
    is_whole: bool = False  # what is missing is an error
    odd: Mapping[str, str] = field(default_factory=dict)  # IDs that cannot be used -> why
    left_out: Mapping[str, str] = field(default_factory=dict)  # what -> pattern of names that are something else
    skipped: tuple[str, ...] = ()  # folders, in lower case

    @property
    def EMOTIONS(self) -> Mapping[str, str]:
        """The emotions by their codes."""
        return self.parts["emotion"]

    def find_utterances(self, data_folder: str | os.PathLike) -> list[dict]:
        """Return a row of the manifest, without its duration, for each recording below a folder."""
        root = Path(data_folder)
        if not root.is_dir():
            raise CorpusError(f"{self.title}: no such folder: {root}")
        logger.info("%s: %s", self.title, self.licence)
        where = f"{self.title} in {root}"
        offenders = Offenders(where)
        files = list(_files(root, ("__macosx", *self.skipped)))
        told = self._told(root, files, offenders)
        found = self._recordings(root, files, told, offenders)
        if self.words:
            words = self.words([root / file for file in files if file.lower().endswith(".txt")])
            found = {key: (file, {**facts, "transcript": words.get(key, "")}) for key, (file, facts) in found.items()}
        rows = [row for file, facts in found.values() if (row := self._row(file, facts, offenders))]
        if self.grid and rows:
            self._tell_of_missing(root, {row["ID"] for row in rows}, [facts for _, facts in found.values()], offenders)
        offenders.raise_any()
        if not rows:
            raise CorpusError(f"{where}: expected recordings such as {self.example}, found none")
        return _one_spelling(rows, where) if self.is_listed else rows

    def _told(self, root: Path, files: list[str], offenders: Offenders) -> dict[str, Facts]:
        """ID in lower case -> what the tables tell of it."""
        told, lines = {}, {}
        for pattern, common in self.tables.items():
            for where, facts in self._rows_of(self._table(root, pattern, files), common):
                key = self._key(facts)
                if key is None:
                    offenders.add(f"row of a name that cannot be read (expected one like {self.example})", where)
                elif key in told:
                    offenders.add("row of a recording that has one already", f"{where}: as {lines[key]}")
                else:
                    told[key], lines[key] = facts, where
        return told

    def _table(self, root: Path, pattern: str, files: list[str]) -> Path:
        found = [root / file for file in files if re.fullmatch(pattern, file.rpartition("/")[2], re.IGNORECASE)]
        if not found:
            name = pattern.replace("\\", "")
            raise CorpusError(f"{self.title} in {root}: expected its table {name}, found none")
        if others := [path for path in found[1:] if not _same(found[0], path)]:
            raise CorpusError(f"{self.title} in {root}: found a table twice: {found[0]} is not {others[0]}. Remove one")
        return found[0]

    def _rows_of(self, path: Path, common: Facts) -> Iterator[tuple[str, Facts]]:
        bad = Offenders(f"table {path}")
        header, lines = read_table(path, bad)
        for column in self.columns.values():
            if column not in header:
                bad.add(f"no such column (it has {', '.join(header)})", f"{column!r}{nearest(column, header)}")
        for where, cells in lines.items():
            if len(cells) != len(header):
                bad.add(f"line that has not {len(header)} cells", f"{where}: {len(cells)}")
        bad.raise_any()
        places = {fact: header.index(column) for fact, column in self.columns.items()}
        for where, cells in lines.items():
            told = {fact: cells[place].strip() for fact, place in places.items()}
            yield f"{path.name}, {where}", {**common, **told}

    def _key(self, facts: Facts) -> str | None:
        """A row's ID in lower case; the facts that are in its recording's name are added."""
        if "file" in facts:
            match = self._match(_without_ending(facts["file"].rpartition("/")[2]))
            if not match:
                return None
            facts.update(match.groupdict())
        return self.id.format(**facts).lower()

    @cached_property
    def _match(self) -> Callable:
        return re.compile(self.name, re.IGNORECASE).fullmatch

    def _told_by(self, path: str) -> str:
        return path if "/" in self.name else path.rpartition("/")[2]

    def _recordings(
        self, root: Path, files: list[str], told: dict[str, Facts], offenders: Offenders
    ) -> dict[str, tuple[str, Facts]]:
        """ID in lower case -> path and facts, of each recording once."""
        copies, facts, strange = self._by_id(files, offenders.where)
        wanted = dict.fromkeys(sorted(told if self.is_listed else copies))
        for name, why in self.odd.items():
            if name.lower() in wanted:
                logger.warning("%s: %s is left out: %s", offenders.where, name, why)
                del wanted[name.lower()]
        if self.is_listed:
            for key in [key for key in wanted if key not in copies]:
                offenders.add(f"row without its recording (expected one like {self.example})", key)
                del wanted[key]
            strange += [file for key in copies.keys() - told.keys() for file in copies[key]]
        self._tell_of_strange(sorted(strange), copies, offenders)
        taken = {key: _one_of(root, copies[key], offenders) for key in wanted}
        if others := [file for key, file in taken.items() for file in copies[key] if file != taken[key]]:
            text = "%s: %s of recordings left out, byte for byte or in another format, e.g. %s"
            logger.warning(text, offenders.where, counted(len(others), "copy", "copies"), sorted(others)[0])
        return {key: (file, {**facts[key], **told.get(key, {})}) for key, file in taken.items()}

    def _by_id(self, files: list[str], where: str) -> tuple[dict[str, list[str]], dict[str, Facts], list[str]]:
        """Paths and facts by ID, and the paths of which no ID can be told."""
        copies, facts, strange, others = defaultdict(list), {}, [], Counter()
        for file in files:
            path, ending = os.path.splitext(file)
            if ending.lower() not in ENDINGS:
                continue
            name = path.rpartition("/")[2]
            if other := next((w for w, p in self.left_out.items() if re.fullmatch(p, name, re.IGNORECASE)), None):
                others[other] += 1
            elif match := self._match(self._told_by(path)):
                key = self.id.format(**match.groupdict()).lower()
                copies[key].append(file)
                facts[key] = match.groupdict()
            else:
                strange.append(file)
        for other, count in others.items():
            logger.info("%s: %d %s are left out", where, count, other)
        return copies, facts, strange

    def _tell_of_strange(self, strange: list[str], copies: Mapping, offenders: Offenders) -> None:
        if self.is_listed and strange:
            text = "%s: %d recordings that its tables have no row of are left out, e.g. %s"
            logger.warning(text, offenders.where, len(strange), strange[0])
            return
        for file in strange:
            within = re.search(self.name, self._told_by(_without_ending(file)), re.IGNORECASE)
            meant = within and self.id.format(**within.groupdict())
            if meant and meant.lower() in copies:
                offenders.add("doubled under another name", f"{file} (another {copies[meant.lower()][0]})")
            elif meant:
                offenders.add("renamed", f"{file} (expected {meant})")
            else:
                offenders.add(f"name that cannot be read (expected one like {self.example})", file)

    @cached_property
    def _known(self) -> dict[str, dict[str, str]]:
        """Of each part: its values by what they are in lower case."""
        return {part: {value.lower(): value for value in values} for part, values in self.parts.items()}

    def _row(self, file: str, facts: Facts, offenders: Offenders) -> dict | None:
        facts = {**facts, **self.tell(facts)}
        strange = [part for part, known in self._known.items() if facts[part].lower() not in known]
        for part in strange:
            known = " ".join(shown(self.parts[part]))
            offenders.add(f"unknown {part} (known: {known})", f"{file}: {facts[part]!r}")
        if strange:
            return None
        facts.update({part: known[facts[part].lower()] for part, known in self._known.items()})
        means = {part: of[facts[part]] for part, of in self.parts.items() if isinstance(of, Mapping)}
        return {
            "ID": self.id.format(**facts),
            "wav": f"{{data_root}}/{file}",
            "emotion": means["emotion"],
            "speaker": facts["speaker"],
            "gender": means.get("speaker", GENDERS.get(facts.get("gender", "").lower(), "")),
            "session": "",
            "dialog": facts.get("dialog", ""),
            "transcript": means.get("text", facts.get("transcript", "")),
            "text": facts.get("text", ""),
            "language": facts.get("language", self.language),
            "corpus": self.corpus,
            **{column: means.get(column, facts[column]) for column in self.kept},
        }

    def _tell_of_missing(self, root: Path, ids: set[str], facts: list[Facts], offenders: Offenders) -> None:
        """Every combination should be there; of facts that have no list, of what was found."""
        values = [self.parts.get(part) or sorted({each[part].lower() for each in facts}) for part in self.grid]
        expected = (self.id.format(**dict(zip(self.grid, each, strict=True))) for each in itertools.product(*values))
        lost = [name for name in expected if name not in ids and not re.fullmatch(self.never, name)]
        is_demo = any((folder / DEMO_MARKER).is_file() for folder in (root, root.resolve().parent))
        if lost and not self.is_whole:
            logger.warning("%s: %d recordings are missing: %s", offenders.where, len(lost), ", ".join(shown(lost)))
        for name in lost if self.is_whole and not is_demo else ():
            offenders.add("missing", name)


def _files(root: Path, skipped: Collection[str]) -> Iterator[str]:
    """Paths below a folder, in order, of all that is not hidden; links are followed, no folder twice."""
    seen = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != "." and name.lower() not in skipped)
        inner = Path(parent).relative_to(root).as_posix()
        prefix = "" if inner == "." else f"{inner}/"
        yield from (f"{prefix}{name}" for name in sorted(names) if name[0] != ".")


def _without_ending(file: str) -> str:
    return file[: -len(os.path.splitext(file)[1])] if file.lower().endswith(ENDINGS) else file


def _one_of(root: Path, files: list[str], offenders: Offenders) -> str:
    first, *others = sorted(files, key=lambda file: (_rank(file), file.count("/"), file))
    for other in others:
        if _rank(other) == _rank(first) and not _same(root / first, root / other):
            offenders.add("doubled, with other bytes (expected each once)", f"{other} (another {first})")
    if first.lower().endswith(".mp4"):
        offenders.add(VIDEO, first)
    return first


def _rank(file: str) -> int:
    return ENDINGS.index(os.path.splitext(file)[1].lower())


def _same(first: Path, second: Path) -> bool:
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError:  # the audio check tells what cannot be read
        return False


def _one_spelling(rows: list[dict], where: str) -> list[dict]:
    """Names of speakers that a release's table writes in two ways are one."""
    names = {name: group[0] for group in look_alikes(row["speaker"] for row in rows) for name in group[1:]}
    for name, first in names.items():
        logger.warning("%s: the speaker %r is taken for %r", where, name, first)
    return [{**row, "speaker": names.get(row["speaker"], row["speaker"])} for row in rows]
