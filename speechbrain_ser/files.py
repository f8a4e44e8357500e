"""Files that appear whole or not at all, what is read of them, and the lock of a folder that one process writes."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from speechbrain_ser.errors import UserError

if TYPE_CHECKING:
    import pandas as pd  # a second, for what only writes text

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a used-up quota, a limit on a file's size
FULL = 1 << 16  # bytes that are left on a full disk, at the most
HALF = ".*.tmp"  # names of files that are being written
PATIENCE = 1.0  # seconds for a lock that someone else only looks at
_PACKAGE = Path(__file__).parent
# train.py, hparams/ and recipes/: beside the package in a checkout, in it where a wheel was installed
SHIPPED = next((place for place in (_PACKAGE / "shipped", _PACKAGE.parent) if (place / "hparams").is_dir()), _PACKAGE)
READABLE = re.compile(r"[A-Za-z0-9_+=,-][A-Za-z0-9._+=,-]*(?<!\.)")
DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?", re.IGNORECASE)  # no files to Windows
LONGEST = 200  # bytes: file systems take 255, and endings follow


def path_component(name: str) -> str:
    """Return a name from data (a speaker, a fold) as one component of a path; different names give different ones.

    One that every file system takes stays as it is; of others a hash tells which is meant.

    Example
    -------
    >>> path_component("01F"), path_component("alpha=0,lr=0.002"), path_component("../../up")
    ('01F', 'alpha=0,lr=0.002', 'up~29b18949100a')
    """
    if READABLE.fullmatch(name) and not DEVICES.fullmatch(name) and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    words = re.sub(r"[^A-Za-z0-9_+]+", "-", name).strip("-")[:40] or "name"
    return f"{words}~{digest}"  # a readable one has no ~


def file_stem(name: str) -> str:
    """Return the name of a file without its ending for another file's, which may have a longer ending."""
    return name if len(os.fsencode(name)) <= LONGEST else path_component(name)


def below(folder: str | os.PathLike, *names: str) -> Path:
    """Return the path of names from data below a folder, each a component of its own."""
    return Path(folder, *map(path_component, names))


def cannot_be_written(path: str | os.PathLike, error: Exception) -> UserError:
    """Return the error that names the file, why, and how much room there is."""
    path = Path(path)
    folder = next(place for place in [path, *path.absolute().parents] if place.is_dir())
    free = shutil.disk_usage(folder).free
    why = getattr(error, "strerror", None) or (os.strerror(errno.ENOSPC) if free < FULL else str(error).splitlines()[0])
    return UserError(f"{path} cannot be written: {why} ({free / 1e6:,.1f} MB free there)")


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`; what is written there takes its place when all went well, else vanishes.

    The folder is made where there is none.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex}.tmp")  # one a writer, on any machine
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def folder_written_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """As :func:`written_whole` a folder, which is not there yet or empty."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name[:50]}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):  # safetensors' files are the owner's alone
            path.chmod(temporary.stat().st_mode & (0o777 if path.is_dir() else 0o666))
        if folder.is_dir():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: str | os.PathLike, place: str | os.PathLike) -> None:
    """Let a file appear at another place too, whole: a hard link, or a copy where the file system has none."""
    with written_whole(place) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_text(text: str, path: str | os.PathLike) -> Path:
    """Write UTF-8 text, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(content, path: str | os.PathLike) -> Path:
    """Write indented JSON, whole or not at all; NaN is refused."""
    return write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_csv(frame: "pd.DataFrame", path: str | os.PathLike) -> Path:
    """Write a table, whole or not at all, floats in full."""
    return write_text(frame.to_csv(index=False, lineterminator="\n"), path)


#: what to do about a damaged file of a run
AGAIN = ". Delete it, and the run's own command with --test_only writes it anew"


def read_json(path: str | os.PathLike, kind: type = object, way_out: str = "") -> Any:
    """Read a JSON file; one that cannot be read, or is no JSON of a kind, is an error that names it and a way out."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, kind):
            raise ValueError(f"a {kind.__name__}, found {found!r:.80}")
        return found
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON: {error}{way_out}") from error


def read_csv(path: str | os.PathLike, columns: Iterable[str] = (), **options) -> "pd.DataFrame":
    """Read a table as pandas does; one that is cut off, or lacks some of the `columns`, is an error that names it."""
    import pandas as pd

    try:
        text = Path(path).read_bytes().decode("utf-8")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a table that can be read: {error}{AGAIN}") from error
    wrong = [k for k, row in enumerate(rows, 1) if len(row) != len(rows[0])]
    if wrong or not text.endswith("\n"):
        which = wrong[0] if wrong else len(rows)
        raise UserError(f"{path}: expected a whole table, found row {which} cut off or damaged{AGAIN}")
    frame = pd.read_csv(io.StringIO(text), **options)
    if lacking := [column for column in columns if column not in frame]:
        raise UserError(f"{path} lacks the columns {', '.join(lacking)}{AGAIN}")
    return frame


def sha256(*paths: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, or of several one after the other: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with Path(path).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"{path}: expected a file that can be read: {error.strerror}") from error
    return digest.hexdigest()


class FolderInUse(UserError):
    """Another process works in a run folder."""


def lock_path(folder: str | os.PathLike) -> Path:
    """Return the lock file of a folder, beside it; that it is there says nothing, a killed process may have left it."""
    folder = Path(folder)
    return folder.with_name(f"{folder.name}.lock")


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder, which need not exist; the system frees it when this process ends, however it does."""
    path = lock_path(folder)
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise FolderInUse(f"{folder} is in use by another process: wait for it or stop it") from None
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # some systems do not remove a file that is open
            path.unlink()  # before it is free: whoever waits for it sees that it is gone, and makes another
        lock.release()


def is_locked(folder: str | os.PathLike) -> bool:
    """Whether a process works in a folder."""
    path = lock_path(folder)
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
