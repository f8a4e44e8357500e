"""How results are written: JSON lines that any later call goes on with, CSV and tables made of them, TextGrids."""

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO

from praatio.data_classes.interval_tier import IntervalTier
from praatio.data_classes.textgrid import Textgrid

from speechbrain_ser.data.labels import DIMENSIONS
from speechbrain_ser.errors import UserError, printable
from speechbrain_ser.files import cannot_be_written, file_stem, locked, write_text, written_whole
from speechbrain_ser.inference.timeline import Timeline

SILENT = "-"  # in a table, in place of an emotion below the threshold; empty in CSV, null in JSON
NUMBERS = ("start", "end", "posterior", *DIMENSIONS, "speech")  # columns of a table that are aligned to the right
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # a file's name may be in any encoding
BEGINNING = b'{"path": '  # of a record's line
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet may compute, and what it has become below


# ------------------------------------------------------------------ records as text
# A record is what `to_dict` of a Recognition or a Timeline gives, and the model's name.


def json_text(record: dict, header: bool = False) -> str:
    """Return a record as one line of JSON, with no header ever."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def _rows(record: dict) -> list[dict]:
    """One row, or, of a timeline, one a segment with the recording's duration."""
    if "segments" not in record:
        return [record]
    about = {n: record[n] for n in ("window", "step", "segments_by", "model", "speech_by") if n in record}
    places = {"path": record["path"], "start": 0.0, "end": 0.0, "duration": record["duration"]}  # the columns' order
    return [{**places, **segment, **about} for segment in record["segments"]]


def csv_text(record: dict, header: bool = False) -> str:
    """Return the rows of a record as CSV, with the columns of a run's predictions.csv.

    Text that a spreadsheet would take for a formula (``=2+3.wav``) gets an apostrophe, as people write it there; who
    reads paths back takes one away from what begins with apostrophes and one of ``= + - @``, tab, carriage return.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in _rows(record):
        cells = {}
        for name, value in row.items():
            cells |= {f"posterior_{c}": p for c, p in value.items()} if name == "posteriors" else {name: value}
        if header:
            writer.writerow(cells)
        header = False
        writer.writerow(f"'{c}" if isinstance(c, str) and FORMULA.match(c) else c for c in cells.values())
    return text.getvalue()


def table_text(record: dict, header: bool = False, widths: tuple[int, int] = (0, 0)) -> str:
    """Return the rows of a record for people to read, times in seconds.

    `widths` are the characters of the longest path and of the longest emotion, of all records.

    Example
    -------
    >>> segments = [{"start": 0.0, "end": 4.0, "emotion": "sad", "posteriors": {"sad": 0.751}, "transcript": "NEIN"},
    ...             {"start": 4.0, "end": 5.5, "emotion": None, "posteriors": {"sad": 0.5}, "transcript": ""}]
    >>> record = {"path": "a.wav", "duration": 5.5, "segments": segments, "window": 4, "step": 2, "model": "c0ffee"}
    >>> print(table_text(record, True), end="")
    recording    start      end  emotion  posterior  transcript
    a.wav         0.00     4.00  sad          0.751  NEIN
    a.wav         4.00     5.50  -            0.500
    """
    lines = []
    for row in _rows(record):
        cells = {"recording": row["path"].ljust(max(widths[0], len("recording")))}
        cells |= {name: f"{row[name]:7.2f}" for name in ("start", "end") if name in row}
        cells |= {"speaker": printable(row["speaker"]).ljust(12)} if "speaker" in row else {}
        cells["emotion"] = (row["emotion"] or SILENT).ljust(max(widths[1], len("emotion")))
        told = [p for p in row["posteriors"].values() if p is not None]
        cells["posterior"] = f"{max(told):9.3f}" if told else SILENT.rjust(9)
        numbers = {name: row[name] for name in (*DIMENSIONS, "speech") if name in row}
        cells |= {name: (SILENT if x is None else f"{x:.2f}").rjust(len(name)) for name, x in numbers.items()}
        cells |= {name: row[name] for name in ("transcript",) if name in row}
        names = [name.rjust(len(cell)) if name in NUMBERS else name.ljust(len(cell)) for name, cell in cells.items()]
        lines += ["  ".join(names)] if header and not lines else []
        lines.append(printable("  ".join(cells.values()), also="\n\t"))
    return "".join(line.rstrip() + "\n" for line in lines)


FORMATS = {"table": table_text, "json": json_text, "csv": csv_text}


def records_to_csv(records: Iterable[dict], path: Path) -> None:
    with written_whole(path) as temporary, temporary.open("w", newline="", **TEXT) as file:
        header = True
        for text in (csv_text(record, header) for record in records):  # of a recording without segments, nothing
            file.write(text)
            header = header and not text


def write_textgrid(timeline: Timeline, path: str | os.PathLike) -> Path:
    """Write tiers ``emotion``, empty where there is none, and ``transcript``; one each a speaker, where one is told."""
    path, tiers = Path(path), {} if timeline.segments else {"emotion": []}
    for segment in timeline.segments:
        of_speaker = f" of {segment.speaker}" if segment.speaker else ""
        tiers.setdefault(f"emotion{of_speaker}", []).append((segment.start, segment.end, segment.emotion or ""))
        if segment.text:
            tiers.setdefault(f"transcript{of_speaker}", []).append((segment.start, segment.end, segment.text))
    if timeline.phrases is not None:
        tiers["transcript"] = [(phrase.start, phrase.end, phrase.text) for phrase in timeline.phrases]
    grid = Textgrid(0.0, timeline.duration)
    for name, entries in tiers.items():
        grid.addTier(IntervalTier(name, entries, 0.0, timeline.duration))
    with written_whole(path) as temporary:
        # no interval is dropped for being short: the last step may be
        grid.save(str(temporary), "long_textgrid", includeBlankSpaces=True, minimumIntervalLength=None)
    return path


def write_srt(timeline: Timeline, path: str | os.PathLike) -> Path:
    """Write subtitles: of each segment the speaker, the emotion with its posterior, and the words."""

    def clock(seconds: float) -> str:
        minutes, thousandths = divmod(round(1000 * seconds), 60_000)
        return f"{minutes // 60:02}:{minutes % 60:02}:{thousandths // 1000:02},{thousandths % 1000:03}"

    blocks = []
    for number, segment in enumerate(timeline.segments, 1):
        emotion = SILENT if segment.emotion is None else f"{segment.emotion} {max(segment.posteriors.values()):.2f}"
        lines = [f"{segment.speaker}: {emotion}" if segment.speaker else emotion, timeline.text_of(segment)]
        said = "\n".join(" ".join(line.split()) for line in lines if line.strip())
        blocks.append(f"{number}\n{clock(segment.start)} --> {clock(segment.end)}\n{said}\n")
    return write_text("\n".join(blocks), Path(path))


# ------------------------------------------------------------------ files that later calls go on with


def origin_of(record: dict) -> str:
    """Return what results of one file have in common, in words.

    >>> origin_of({"model": "c0ffee", "window": 4.0, "step": 2.0, "phrases": []})
    'c0ffee, windows of 4 s every 2 s, with transcripts'
    """
    windows = f", windows of {record['window']:g} s every {record['step']:g} s" if "window" in record else ""
    windows += f", segments by {record['segments_by']}" if "segments_by" in record else ""
    speech = f", speech by {record['speech_by']}" if "speech_by" in record else ""
    spoken = "with" if {"transcript", "phrases", "segments_by"} & record.keys() else "without"
    return record.get("made_by") or f"{record['model']}{windows}{speech}, {spoken} transcripts"


class ResultsFile:
    """Records of one origin as JSON lines, by path, in a file that any number of calls go on with.

    ``done`` has the paths of the recordings that had a record when it was opened.
    """

    def __init__(self, path: Path, file: BinaryIO, origin: str):
        self.path, self.file, self.origin = path, file, origin
        self.done = {record["path"] for record in self.records()}
        file.truncate(self.end)  # a line that a killed process had not finished

    def add(self, record: dict) -> None:
        """Append a record, which is in the system's hands when this returns."""
        try:
            self.file.write(json_text(record).encode(**TEXT))
            self.file.flush()
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def records(self) -> Iterator[dict]:
        """Read what the file holds, a record at a time."""
        self.file.seek(0)
        self.end = 0
        for number, line in enumerate(self.file, 1):
            if not line.endswith(b"\n"):
                if line[: len(BEGINNING)] != BEGINNING[: len(line)]:  # a stranger's file stays as it is
                    raise self._refusal("results", number, repr(line[:100]))
                return
            try:
                record = json.loads(line.decode(**TEXT))
                path, origin = record["path"], origin_of(record)
            except (ValueError, KeyError, TypeError) as error:
                raise self._refusal("results", number, repr(line[:100])) from error
            if origin != self.origin or not isinstance(path, str):
                raise self._refusal(f"results of this model ({self.origin})", number, f"those of another ({origin})")
            self.end += len(line)
            yield record

    def _refusal(self, expected: str, number: int, found: str) -> UserError:
        return UserError(
            f"--out: expected {expected} in line {number} of {self.path}, found {found}: give another file"
        )


@contextlib.contextmanager
def results_file(path: str | os.PathLike, origin: str) -> Iterator[ResultsFile]:
    """Open a file of results, locked against other processes; its folder is made where there is none.

    One that holds other things, or records of another origin (:func:`origin_of`), is a UserError and stays as it is.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path))
            file = stack.enter_context(path.open("a+b"))
        except OSError as error:
            raise UserError(f"--out: expected a file that can be written, found {path} ({error.strerror})") from error
        yield ResultsFile(path, file, origin)


class ResultsFolder:
    """A file a recording, named after it and made by `write`, in the folder of an index that says whose each is.

    A name is taken in the index before its file is written, and `write` gives it whole or not at all. Recordings of one
    name in several folders get a file each (``a.png``, ``a-2.png``), and a file that somebody else has put there is
    never overwritten. ``done`` has the paths of the recordings that have a file.
    """

    def __init__(self, index: ResultsFile, suffix: str, write: Callable[[Timeline, Path], object]):
        self.index, self.suffix, self.write = index, suffix, write
        self.folder = index.path.parent
        self.names = {record["path"]: record["file"] for record in index.records()}
        self.done = {path for path, name in self.names.items() if (self.folder / name).is_file()}

    def add(self, found: Timeline) -> None:
        path = self.folder / (self.names.get(found.path) or self._take_name(found.path))
        self.write(found, path)

    def _take_name(self, path: str) -> str:
        stem, taken = file_stem(Path(path).stem), set(self.names.values())
        names = (f"{stem}{f'-{n}' if n > 1 else ''}{self.suffix}" for n in count(1))
        name = next(n for n in names if n not in taken and not os.path.lexists(self.folder / n))
        self.index.add({"path": path, "file": name, "made_by": self.index.origin})
        self.names[path] = name
        return name
