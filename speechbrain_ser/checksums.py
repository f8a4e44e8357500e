"""What files were when they were written, so that damage is found before anything of them is loaded."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

FILE = "checksums.json"
PIECE = 1 << 20  # bytes read at a time


def write_checksums(folder: str | os.PathLike, names: dict[str, str] | None = None) -> None:
    """Note size and CRC-32 of a folder's files, in a file beside them.

    What torch saves is a zip archive that holds a CRC-32 of each of its parts already: those are taken, and nothing
    large is read again. :func:`damage` reads everything.

    Arguments
    ---------
    folder : str or os.PathLike
        The folder.
    names : dict of str to str, optional
        Files that will have another name.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a.txt").write_text("hello"), (folder / "b.txt").write_text("world")
    >>> write_checksums(folder)
    >>> damage(folder)
    []
    >>> _ = (folder / "a.txt").write_text("hallo"), (folder / "b.txt").write_text("wor")
    >>> damage(folder)
    ['a.txt has another content than was written', 'b.txt has 3 of 5 bytes']
    """
    files = sorted(file for file in Path(folder).iterdir() if file.is_file())
    noted = {(names or {}).get(file.name, file.name): [file.stat().st_size, _checksum(file)] for file in files}
    (Path(folder) / FILE).write_text(json.dumps(noted, indent=0, sort_keys=True), encoding="utf-8")


def damage(folder: str | os.PathLike, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with a folder's files.

    Arguments
    ---------
    folder : str or os.PathLike
        Where :func:`write_checksums` has been.
    names : iterable of str, optional
        The files that matter; default: all.

    Returns
    -------
    list of str
        A sentence for each damaged or missing file.
    """
    try:
        noted = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        wanted = {name: noted[name] for name in (sorted(noted) if names is None else names)}
        return [wrong for name, (size, crc) in wanted.items() if (wrong := _damage(Path(folder) / name, size, crc))]
    except FileNotFoundError:
        return [f"{FILE} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{FILE} is damaged ({type(error).__name__}: {error})"]


def _damage(file: Path, size: int, crc: str) -> str | None:
    try:
        found = file.stat().st_size
        if found != size:
            return f"{file.name} has {found:,} of {size:,} bytes" if found else f"{file.name} is empty"
        if _checksum(file) != crc or not _parts_are_whole(file):
            return f"{file.name} has another content than was written"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read: {error}"
    return None


def _checksum(file: Path) -> str:
    """CRC-32 of a file; of a zip archive, of the list of its parts at its end, in which their own CRC-32 stand."""
    start = _list_of_parts(file)
    crc = 0
    with file.open("rb") as opened:
        opened.seek(start or 0)
        while piece := opened.read(PIECE):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}" if start is None else f"{crc:08x} and parts"


def _list_of_parts(file: Path) -> int | None:
    """Where a zip archive's list of its parts begins; None where it is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.start_dir
    except zipfile.BadZipFile:
        return None


def _parts_are_whole(file: Path) -> bool:
    """Whether a zip archive's parts agree with its list; any other file has none."""
    if _list_of_parts(file) is None:
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # the reader of an altered header may fail in any way
        return False
