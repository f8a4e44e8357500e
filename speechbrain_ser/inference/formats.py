"""How results are written: tables, CSV, JSON lines, TextGrids; files and folders that resume."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import ClassVar

from praatio.data_classes.interval_tier import IntervalTier
from praatio.data_classes.textgrid import Textgrid

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import replacing
from speechbrain_ser.inference.recognizer import Recognition
from speechbrain_ser.inference.timeline import Segment, Timeline

MODEL = "model"  # the key, and the column, that names the model


SILENT = "-"  # in place of an emotion whose posterior is below the threshold; empty in CSV, null in JSON


class Table:
    """Columns for people to read.

    Arguments
    ---------
    paths : sequence of str
        Of all recordings: they make the first column's width.
    classes : sequence of str
        Emotion classes.
    has_transcripts : bool
        Whether there is a column of transcripts.

    Example
    -------
    >>> table = Table(["a.wav", "long.wav"], ["sad", "happy"], True)
    >>> print(table.header + table.line(Recognition("a.wav", "sad", {"sad": 0.751, "happy": 0.249}, "NO")), end="")
    recording  emotion  posterior  transcript
    a.wav      sad          0.751  NO
    """

    extra: ClassVar[dict[str, str]] = {}  # columns after the recording's, and how they are aligned

    def __init__(self, paths: Sequence[str], classes: Sequence[str], has_transcripts: bool):
        wide, narrow = max(map(len, ["recording", *paths])), max(map(len, ["emotion", *classes]))
        self.columns = {"recording": f"{wide}", **self.extra, "emotion": f"{narrow}", "posterior": ">9"}
        self.columns |= {"transcript": ""} if has_transcripts else {}
        self.header = self._row(*self.columns)

    def _row(self, *cells: str) -> str:
        aligned = (f"{cell:{how}}" for cell, how in zip(cells, self.columns.values(), strict=False))
        return "  ".join(aligned).rstrip() + "\n"

    def line(self, found: Recognition) -> str:
        """The line of a result."""
        return self._row(
            found.path, found.emotion or SILENT, f"{max(found.posteriors.values()):.3f}", found.transcript or ""
        )


class Csv:
    """Comma-separated values, columns as in a run's predictions.csv, and the model's name.

    Arguments
    ---------
    model_id : str
        By which the model's results are known.
    classes : sequence of str
        Emotion classes.
    has_transcripts : bool
        Whether there is a column of transcripts.

    Example
    -------
    >>> table = Csv("c0ffee", ["happy", "sad"], False)
    >>> print(table.header + table.line(Recognition("a.wav", "sad", {"happy": 0.249, "sad": 0.751})), end="")
    path,emotion,posterior_happy,posterior_sad,model
    a.wav,sad,0.249,0.751,c0ffee
    """

    def __init__(self, model_id: str, classes: Sequence[str], has_transcripts: bool):
        self.model_id, self.has_transcripts = model_id, has_transcripts
        columns = ["path", "emotion", *(f"posterior_{c}" for c in classes)]
        self.columns = [*columns, *(["transcript"] if has_transcripts else []), MODEL]
        self.header = csv_line(self.columns)

    def line(self, found: Recognition) -> str:
        """The line of a result."""
        said = [found.transcript] if self.has_transcripts else []
        posteriors = (round(p, 6) for p in found.posteriors.values())
        return csv_line([found.path, found.emotion, *posteriors, *said, self.model_id])

    @property
    def origin(self) -> str:
        """What results of one file have in common."""
        return self.model_id

    def is_whole(self, text: str) -> bool:
        """Whether lines of a file make a whole row: a quoted field may have lines of its own."""
        return text.endswith("\n") and text.count('"') % 2 == 0

    def is_last(self, row: str) -> bool:
        """Whether a row is its record's last: a result has one row."""
        return True

    def parse(self, text: str) -> tuple[str, str]:
        """Path and origin of a record.

        Raises
        ------
        UserError
            When it is none of these columns.
        """
        (fields,) = csv.reader([text])
        if len(fields) != len(self.columns):
            raise UserError(f"expected {len(self.columns)} columns, found {len(fields)}")
        return fields[0], fields[-1]


class JsonLines:
    """JSON, one object a line.

    Arguments
    ---------
    model_id : str
        By which the model's results are known.
    classes : sequence of str
        Emotion classes.
    has_transcripts : bool
        Whether there are transcripts.

    Example
    -------
    >>> lines = JsonLines("c0ffee", ["happy", "sad"], True)
    >>> print(lines.line(Recognition("a.wav", "sad", {"happy": 0.249, "sad": 0.751}, "NEIN")), end="")
    {"path": "a.wav", "emotion": "sad", "posteriors": {"happy": 0.249, "sad": 0.751}, "transcript": "NEIN",
     "model": "c0ffee"}
    """

    header, record = "", "result"

    def __init__(self, model_id: str, classes: Sequence[str], has_transcripts: bool):
        self.model_id, self.classes, self.has_transcripts = model_id, list(classes), has_transcripts

    def line(self, found: Recognition) -> str:
        """The line of a result."""
        content = {"path": found.path, "emotion": found.emotion}
        content["posteriors"] = {c: round(p, 6) for c, p in found.posteriors.items()}
        if self.has_transcripts:
            content["transcript"] = found.transcript
        return json.dumps({**content, MODEL: self.model_id}, ensure_ascii=False) + "\n"

    @property
    def origin(self) -> str:
        """What results of one file have in common."""
        return self.model_id

    def is_whole(self, text: str) -> bool:
        """Whether lines of a file make a whole row."""
        return text.endswith("\n")

    def is_last(self, row: str) -> bool:
        """Whether a row is its record's last: a result has one row."""
        return True

    def parse(self, text: str) -> tuple[str, str]:
        """Path and origin of a record.

        Raises
        ------
        UserError
            When it is no such record, or not with these classes.
        """
        try:
            content = json.loads(text)
            found, origin = self._about(content), self._origin_of(content)
            path, model = content["path"], content[MODEL]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"expected a {self.record} as JSON") from error
        if model == self.model_id and found != (self.classes, self.has_transcripts):
            raise UserError(f"expected {self.record}s {'with' if self.has_transcripts else 'without'} transcripts")
        return path, origin

    def _about(self, content: dict) -> tuple[list[str], bool]:
        """Its classes, and whether it has a transcript."""
        return list(content["posteriors"]), "transcript" in content

    def _origin_of(self, content: dict) -> str:
        return content[MODEL]


def csv_line(fields: Sequence) -> str:
    """A row of CSV, its end included."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def write_textgrid(timeline: Timeline, path: str | os.PathLike) -> Path:
    """Write tiers ``emotion`` and, where the model transcribes, ``transcript``, in one step.

    Arguments
    ---------
    timeline : Timeline
        Of a recording without an error. Where the recogniser abstained, the emotion's label is empty.
    path : str or os.PathLike
        The file.

    Returns
    -------
    pathlib.Path

    Example
    -------
    >>> from praatio.textgrid import openTextgrid
    >>> from speechbrain_ser.inference.timeline import Phrase, Segment
    >>> timeline = Timeline("a.wav", 5.5, segments=[Segment(0.0, 5.5, "sad", {})], phrases=[Phrase(0.2, 1.5, "NEIN")])
    >>> path = write_textgrid(timeline, getfixture("tmp_path") / "a.TextGrid")
    >>> openTextgrid(str(path), includeEmptyIntervals=False).getTier("transcript").entries
    (Interval(start=0.2, end=1.5, label='NEIN'),)
    """
    path = Path(path)
    tiers = {"emotion": [(segment.start, segment.end, segment.emotion or "") for segment in timeline.segments]}
    if timeline.phrases is not None:
        tiers["transcript"] = [(phrase.start, phrase.end, phrase.text) for phrase in timeline.phrases]
    grid = Textgrid(0.0, timeline.duration)
    for name, entries in tiers.items():
        grid.addTier(IntervalTier(name, entries, 0.0, timeline.duration))
    with replacing(path) as temporary:
        # no interval is dropped for being short: the last step may be
        grid.save(str(temporary), "long_textgrid", includeBlankSpaces=True, minimumIntervalLength=None)
    return path


class SegmentTable(Table):
    """Columns for people to read, a row a segment, times in seconds; ``-`` where the recogniser abstained.

    Arguments
    ---------
    paths, classes, has_transcripts
        See :class:`speechbrain_ser.inference.formats.Table`.

    Example
    -------
    >>> from speechbrain_ser.inference.timeline import Phrase, Segment
    >>> segments = [Segment(0.0, 4.0, "sad", {"sad": 0.751}), Segment(4.0, 5.5, "happy", {"happy": 0.5})]
    >>> table = SegmentTable(["a.wav"], ["sad", "happy"], True)
    >>> found = Timeline("a.wav", 5.5, segments=segments, phrases=[Phrase(0.2, 1.5, "NEIN")])
    >>> print(table.header + table.line(found), end="")
    recording    start      end  emotion  posterior  transcript
    a.wav         0.00     4.00  sad          0.751  NEIN
    a.wav         4.00     5.50  happy        0.500
    """

    extra: ClassVar[dict[str, str]] = {"start": ">7", "end": ">7"}

    def line(self, found: Timeline) -> str:
        """The rows of a recording."""
        return "".join(self._row(*self._cells(found, segment)) for segment in found.segments)

    def _cells(self, found: Timeline, segment: Segment) -> list[str]:
        times = f"{segment.start:.2f}", f"{segment.end:.2f}"
        posterior = f"{max(segment.posteriors.values()):.3f}"
        return [found.path, *times, segment.emotion or SILENT, posterior, found.text_of(segment)]


class _Windowed:
    """A form of results that also have windows in common."""

    def __init__(self, model_id: str, classes: Sequence[str], has_transcripts: bool, window: float, step: float):
        super().__init__(model_id, classes, has_transcripts)
        self.window, self.step = window, step

    @property
    def origin(self) -> str:
        """What results of one file have in common: the model and its windows."""
        return origin_of(self.model_id, self.window, self.step)


class SegmentCsv(_Windowed, Csv):
    """Comma-separated values, a row a segment, and the recording's duration: its last row ends there.

    Arguments
    ---------
    model_id, classes, has_transcripts
        See :class:`speechbrain_ser.inference.formats.Csv`.
    window, step : float
        Seconds, as the timelines have them.

    Example
    -------
    >>> from speechbrain_ser.inference.timeline import Segment
    >>> table = SegmentCsv("c0ffee", ["sad"], False, 4.0, 2.0)
    >>> segments = [Segment(0.0, 4.0, "sad", {"sad": 0.9}), Segment(4.0, 5.5, None, {"sad": 0.2})]
    >>> found = Timeline("a.wav", 5.5, segments=segments)
    >>> print(table.header + table.line(found), end="")
    path,start,end,duration,emotion,posterior_sad,window,step,model
    a.wav,0.0,4.0,5.5,sad,0.9,4.0,2.0,c0ffee
    a.wav,4.0,5.5,5.5,,0.2,4.0,2.0,c0ffee
    """

    def __init__(self, model_id: str, classes: Sequence[str], has_transcripts: bool, window: float, step: float):
        super().__init__(model_id, classes, has_transcripts, window, step)
        path, emotion, *others, model = self.columns
        self.columns = [path, "start", "end", "duration", emotion, *others, "window", "step", model]
        self.header = csv_line(self.columns)

    def line(self, found: Timeline) -> str:
        """The rows of a recording."""
        return "".join(csv_line(self._fields(found, segment)) for segment in found.segments)

    def _fields(self, found: Timeline, segment: Segment) -> list:
        times = (round(t, 6) for t in (segment.start, segment.end, found.duration))
        posteriors = (round(p, 6) for p in segment.posteriors.values())
        said = [found.text_of(segment)] if self.has_transcripts else []
        emotion = segment.emotion or ""
        return [found.path, *times, emotion, *posteriors, *said, self.window, self.step, self.model_id]

    def is_last(self, row: str) -> bool:
        """Whether a row is its record's last: it ends where the recording does."""
        (fields,) = csv.reader([row])
        return len(fields) != len(self.columns) or row == self.header or fields[2] == fields[3]

    def parse(self, text: str) -> tuple[str, str]:
        """Path and origin of a record.

        Raises
        ------
        UserError
            When it is none of these columns, or not one recording's.
        """
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if widths := {len(row) for row in rows} - {len(self.columns)}:
            raise UserError(f"expected {len(self.columns)} columns, found {min(widths)}")
        (path, *origin), *others = {(row[0], *row[-3:]) for row in rows}
        if others:
            raise UserError("expected the segments of one recording")
        window, step, model = origin
        return path, origin_of(model, window, step)


class TimelineLines(_Windowed, JsonLines):
    """JSON, a recording a line: all that a timeline has.

    Arguments
    ---------
    model_id, classes, has_transcripts
        See :class:`speechbrain_ser.inference.formats.JsonLines`.
    window, step : float
        Seconds, as the timelines have them.
    """

    record = "timeline"

    def line(self, found: Timeline) -> str:
        """The line of a recording."""
        return json.dumps({**found.to_dict(), MODEL: self.model_id}, ensure_ascii=False) + "\n"

    def _about(self, content: dict) -> tuple[list[str], bool]:
        return list(content["steps"]["posteriors"]), "phrases" in content

    def _origin_of(self, content: dict) -> str:
        return origin_of(content[MODEL], content["window"], content["step"])


class FileIndex:
    """Which recording has which file in a folder, as CSV.

    Arguments
    ---------
    origin : str
        What the files have in common (:func:`origin_of`).

    Example
    -------
    >>> index = FileIndex("c0ffee, windows of 4 s every 2 s")
    >>> print(index.header + index.line(("x/a.wav", "a.TextGrid")), end="")
    path,file,made_by
    x/a.wav,a.TextGrid,"c0ffee, windows of 4 s every 2 s"
    """

    columns = ("path", "file", "made_by")
    header = csv_line(columns)
    is_whole, is_last, parse = Csv.is_whole, Csv.is_last, Csv.parse

    def __init__(self, origin: str):
        self.origin = origin

    def line(self, entry: tuple[str, str]) -> str:
        """The line of a recording's path and its file's name."""
        return csv_line([*entry, self.origin])


def origin_of(model_id: str, window: float | str, step: float | str) -> str:
    """In words: a model and its windows.

    Example
    -------
    >>> origin_of("c0ffee", 4.0, "2.0")
    'c0ffee, windows of 4 s every 2 s'
    """
    try:
        return f"{model_id}, windows of {float(window):g} s every {float(step):g} s"
    except ValueError as error:
        raise UserError(f"expected seconds of window and step, found {window!r} and {step!r}") from error


TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # a file's name may be in any encoding


class ResultsFile:
    """Results of one model in one file, by path.

    Arguments
    ---------
    path : str or os.PathLike
        The file; what it holds already stays. Its folder is made where there is none.
    form : Csv or JsonLines
        How results are written.

    Attributes
    ----------
    done : set of str
        Paths of the recordings that have a result.

    Raises
    ------
    UserError
        When the file holds other things, another model's results, or cannot be written.

    Example
    -------
    >>> form, path = Csv("c0ffee", ["sad"], False), getfixture("tmp_path") / "results.csv"
    >>> with ResultsFile(path, form) as results:
    ...     results.add(Recognition("a.wav", "sad", {"sad": 1.0}))
    >>> _ = path.write_text(path.read_text() + "b.wav,sa")  # a process that was killed
    >>> with ResultsFile(path, form) as results:
    ...     results.done
    {'a.wav'}
    >>> print(path.read_text(), end="")
    path,emotion,posterior_sad,model
    a.wav,sad,1.0,c0ffee
    """

    def __init__(self, path: str | os.PathLike, form: Csv | JsonLines):
        self.path, self.form = Path(path), form
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+", **TEXT)
        except OSError as error:
            raise UserError(f"--out: expected a file that can be written, found {path} ({error.strerror})") from error
        try:
            self.done = self._resume()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()

    def add(self, found: Recognition) -> None:
        """Append a result; it is in the system's hands when this returns."""
        try:
            self.file.write(self.form.line(found))
            self.file.flush()
        except OSError as error:
            raise UserError(f"--out: {self.path} cannot be written any more ({error.strerror})") from error

    def _resume(self) -> set[str]:
        """What is done; a line that a killed process had not finished is cut off."""
        self.file.seek(0)
        end, done, begun = 0, set(), False
        for number, (record, is_whole) in enumerate(self._records(), 1):
            is_header = number == 1 and self.form.header
            if not is_whole:
                self._check_cut(record, is_header)
                break
            if is_header:
                if record != self.form.header:
                    columns = self.form.header.strip()
                    raise self._refusal(f"columns {columns} in its first line", record.strip()[:300])
            else:
                done.add(self._path_in(record, number))
            begun, end = True, end + len(record.encode("utf-8", "surrogateescape"))
        self.file.seek(0, os.SEEK_END)
        self.file.truncate(end)
        if not begun:
            self.file.write(self.form.header)
            self.file.flush()
        return done

    def _records(self) -> Iterator[tuple[str, bool]]:
        """Rows, those of one record together, and whether it is whole: only the last may not be."""
        record = row = ""
        for line in self.file:
            row += line
            if self.form.is_whole(row):
                record, is_last, row = record + row, self.form.is_last(row), ""
                if is_last:
                    yield record, True
                    record = ""
        if record or row:
            yield record + row, False

    def _path_in(self, record: str, number: int) -> str:
        try:
            path, origin = self.form.parse(record)
        except UserError as error:
            raise UserError(
                f"--out: record {number} of {self.path}: {error}, found {record.strip()[:100]!r}: give another file"
            ) from error
        if origin != self.form.origin:
            raise self._refusal(f"results of this model ({self.form.origin})", f"those of another ({origin})")
        return path

    def _check_cut(self, record: str, is_header: bool) -> None:
        """Only what looks like the beginning of our own line is cut off, never a stranger's file."""
        beginning = self.form.header if is_header else '{"path": ' if isinstance(self.form, JsonLines) else ""
        if not (record.startswith(beginning) or beginning.startswith(record)):
            raise self._refusal("results", repr(record[:100]))

    def _refusal(self, expected: str, found: str) -> UserError:
        return UserError(f"--out: expected {expected} in {self.path}, found {found}: give another file")


class ResultsFolder:
    """Timelines of one model, each in a file that is named after its recording.

    An index beside the files says whose each is. A name is taken there before its file is written: recordings of one
    name in several folders get a file each (``a.png``, ``a-2.png``), and a file that somebody else has put there is
    never overwritten.

    Arguments
    ---------
    folder : str or os.PathLike
        Made where there is none.
    suffix : str
        Of the files: ``.png``, ``.TextGrid``.
    write : callable
        Timeline and path to a file that appears whole or not at all.
    origin : str
        What the files have in common (:func:`speechbrain_ser.inference.formats.origin_of`).

    Attributes
    ----------
    done : set of str
        Paths of the recordings that have a file.

    Raises
    ------
    UserError
        When the index is another model's, or the folder cannot be written.

    Example
    -------
    >>> def write(timeline, path):
    ...     _ = path.write_text(timeline.path)
    >>> folder = getfixture("tmp_path")
    >>> with ResultsFolder(folder, ".txt", write, "c0ffee") as results:
    ...     for path in ("x/a.wav", "y/a.wav"):
    ...         results.add(Timeline(path))
    >>> sorted(path.name for path in folder.iterdir()), (folder / "a-2.txt").read_text()
    (['a-2.txt', 'a.txt', 'index.txt.csv'], 'y/a.wav')
    """

    def __init__(self, folder: str | os.PathLike, suffix: str, write: Callable[[Timeline, Path], object], origin: str):
        self.folder, self.suffix, self.write = Path(folder), suffix, write
        self.index = ResultsFile(index_path(folder, suffix), FileIndex(origin))
        with self.index.path.open(**TEXT) as file:
            self.names = {row["path"]: row["file"] for row in csv.DictReader(file)}
        self.done = {path for path, name in self.names.items() if (self.folder / name).is_file()}

    def __enter__(self) -> "ResultsFolder":
        return self

    def __exit__(self, *exception) -> None:
        self.index.__exit__(*exception)

    def add(self, found: Timeline) -> None:
        """Write a recording's file."""
        path = self.folder / (self.names.get(found.path) or self._take_name(found.path))
        try:
            self.write(found, path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from error

    def _take_name(self, path: str) -> str:
        stem, taken = Path(path).stem, set(self.names.values())
        names = (f"{stem}{f'-{n}' if n > 1 else ''}{self.suffix}" for n in count(1))
        name = next(n for n in names if n not in taken and not os.path.lexists(self.folder / n))
        self.index.add((path, name))
        self.names[path] = name
        return name


def index_path(folder: str | os.PathLike, suffix: str) -> Path:
    """The index of the files of a suffix."""
    return Path(folder) / f"index{suffix}.csv"
