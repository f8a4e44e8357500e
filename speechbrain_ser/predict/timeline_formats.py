"""How a timeline is written: a row a segment of a table for people or of CSV, or JSON (one recording a line)."""

import csv
import io
import json
from collections.abc import Sequence
from typing import ClassVar

from speechbrain_ser.errors import UserError
from speechbrain_ser.predict.formats import MODEL, SILENT, Csv, JsonLines, Table, csv_line
from speechbrain_ser.timeline import Segment, Timeline


class SegmentTable(Table):
    """Columns for people to read, a row a segment, times in seconds; ``-`` where the recogniser abstained.

    Arguments
    ---------
    paths, classes, has_transcripts
        See :class:`speechbrain_ser.predict.formats.Table`.

    Example
    -------
    >>> from speechbrain_ser.timeline import Phrase, Segment
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
        See :class:`speechbrain_ser.predict.formats.Csv`.
    window, step : float
        Seconds, as the timelines have them.

    Example
    -------
    >>> from speechbrain_ser.timeline import Segment
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
        See :class:`speechbrain_ser.predict.formats.JsonLines`.
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
