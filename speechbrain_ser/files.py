"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from speechbrain_ser.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a used-up quota, a limit on a file's size
FULL = 1 << 16  # bytes that are left on a full disk, at the most


def cannot_be_written(path: str | os.PathLike, error: Exception) -> UserError:
    """The error that names the file, why, and how much room there is."""
    path = Path(path)
    folder = next(place for place in [path, *path.absolute().parents] if place.is_dir())
    free = shutil.disk_usage(folder).free
    why = getattr(error, "strerror", None) or (os.strerror(errno.ENOSPC) if free < FULL else str(error).splitlines()[0])
    return UserError(f"{path} cannot be written: {why} ({free / 1e6:,.1f} MB free there)")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """As :func:`written_whole`, with the system's own errors, for who tells them in words of its own."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # one a writer, on any machine
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`: what is written there takes its place when all went well, else vanishes.

    Arguments
    ---------
    path : str or os.PathLike
        The file.

    Yields
    ------
    pathlib.Path
        Where to write it.

    Raises
    ------
    UserError
        Where the disk does not take it.

    Example
    -------
    >>> note = getfixture("tmp_path") / "note.txt"
    >>> with written_whole(note) as temporary:
    ...     _ = temporary.write_text("hello")
    ...     note.exists()
    False
    >>> note.read_text()
    'hello'
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise cannot_be_written(path, error) from error


def write_text(text: str, path: str | os.PathLike) -> Path:
    """Write UTF-8 text to a temporary file beside `path`, then rename it.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> write_text("hello", folder / "note.txt").read_text()
    'hello'
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(content, path: str | os.PathLike) -> Path:
    """Write indented JSON in one step; NaN is refused."""
    return write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_csv(frame: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a table in one step, floats in full."""
    return write_text(frame.to_csv(index=False, lineterminator="\n"), path)


def sha256(path: Path) -> str:
    """Of a file, in 64 hexadecimal digits.

    Example
    -------
    >>> path = getfixture("tmp_path") / "empty"
    >>> path.touch()
    >>> sha256(path)[:16]
    'e3b0c44298fc1c14'
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read: {error.strerror}") from error
    return digest.hexdigest()
