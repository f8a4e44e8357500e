"""Which recordings the words of a command line mean: files, folders, and a list on standard input."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from speechbrain_ser.errors import UserError

STDIN = "-"
# what soundfile reads, by the endings that such files have
SUFFIXES = frozenset(
    ".aif .aifc .aiff .au .caf .flac .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav .wave".split()
)


def find_recordings(paths: Iterable[str], recursive: bool = False) -> list[str]:
    """The recordings that paths name, each once.

    Arguments
    ---------
    paths : iterable of str
        A file, whatever its name; a folder: the audio files in it, by their names' endings, in alphabetical order;
        ``-``: paths on standard input, one a line.
    recursive : bool
        Also the audio files in a folder's subfolders.

    Returns
    -------
    list of str
        What is no folder is taken for a recording: reading it will tell.

    Raises
    ------
    UserError
        For a folder without audio files, or when nothing is named at all.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("b.wav", "a.FLAC", "notes.txt"):
    ...     _ = (folder / name).write_bytes(b"")
    >>> [os.path.basename(path) for path in find_recordings([str(folder), str(folder / "b.wav"), "c.raw"])]
    ['a.FLAC', 'b.wav', 'c.raw']
    """
    found = [recording for path in _listed(paths) for recording in _recordings_of(path, recursive)]
    if not found:
        raise UserError("expected recordings or folders, found an empty list on standard input")
    return list(dict.fromkeys(found))


def _listed(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path != STDIN:
            yield path
            continue
        lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)  # bytes: a file's name may be in any encoding
        yield from (os.fsdecode(line) for line in lines if line)


def _recordings_of(path: str, recursive: bool) -> list[str]:
    if not os.path.isdir(path):
        return [str(Path(path))]  # `./a.wav` and `a.wav` are one
    found = [str(Path(folder, name)) for folder, names in _files_in(path, recursive) for name in names]
    found = [f for f in found if Path(f).suffix.lower() in SUFFIXES and not Path(f).name.startswith(".")]
    if not found:
        hint = "" if recursive else " (--recursive looks into its subfolders)"
        raise UserError(f"{path}: expected a folder of audio files, found none there{hint}")
    return sorted(found)


def _files_in(path: str, recursive: bool) -> Iterator[tuple[str, list[str]]]:
    for folder, _, names in os.walk(path):
        yield folder, names
        if not recursive:
            return
