"""A folder of files, one a recording, that is filled as they come, and gone on with after any kind of end."""

import csv
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

from speechbrain_ser.errors import UserError
from speechbrain_ser.predict.results_file import TEXT, ResultsFile
from speechbrain_ser.predict.timeline_formats import FileIndex
from speechbrain_ser.timeline import Timeline


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
        What the files have in common (:func:`speechbrain_ser.predict.timeline_formats.origin_of`).

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
