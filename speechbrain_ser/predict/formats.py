"""How a result is written: a line of a table for people, of CSV, or of JSON (one object a line)."""

import csv
import io
import json
from collections.abc import Sequence
from typing import ClassVar

from speechbrain_ser.errors import UserError
from speechbrain_ser.inference import Recognition

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
