"""A file of results that is written as they come, and gone on with after any kind of end."""

import os
from collections.abc import Iterator
from pathlib import Path

from speechbrain_ser.errors import UserError
from speechbrain_ser.inference import Recognition
from speechbrain_ser.predict.formats import Csv, JsonLines

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
