"""What recordings contain, told apart by a digest of their bytes that is computed once."""

import hashlib
import json
import logging
import os
import time
from pathlib import Path

from speechbrain_ser.processing.entries import write_whole

logger = logging.getLogger(__name__)

# a file may change again within one tick of its clock: what is younger is not remembered
SETTLED = 2.0  # seconds


class ContentDigests:
    """SHA-256 digests of files, remembered by path, size and time of change.

    Several processes may share the file that remembers: it is replaced as a whole, and what one of them misses is
    computed again. A file that is damaged counts as empty.

    Arguments
    ---------
    path : str or os.PathLike
        The file that remembers; need not exist.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a.wav").write_bytes(b"abc")
    >>> digests = ContentDigests(folder / "digests.json")
    >>> digests(folder / "a.wav")[:8]
    'ba7816bf'
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._known = _read(self.path)
        self._new: dict[str, list] = {}

    def __call__(self, path: str | os.PathLike) -> str:
        """The digest of a file as it is now.

        Arguments
        ---------
        path : str or os.PathLike
            The file.

        Returns
        -------
        str
            64 hexadecimal digits.

        Raises
        ------
        OSError
            When it cannot be read.
        """
        place = os.path.abspath(path)
        stat = os.stat(place)
        known = self._known.get(place)
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return known[2]
        digest = hashlib.sha256(Path(place).read_bytes()).hexdigest()
        if time.time() - stat.st_mtime > SETTLED:
            self._known[place] = self._new[place] = [stat.st_size, stat.st_mtime_ns, digest]
        return digest

    def save(self) -> None:
        """Remember what is new, beside what others have remembered meanwhile."""
        if not self._new:
            return
        self._known = _read(self.path) | self._known
        text = json.dumps(self._known, indent=0, sort_keys=True)
        try:
            write_whole(f"{_checksum(text)}\n{text}".encode(), self.path)
        except OSError as error:  # costs time only
            logger.warning("%s cannot be written, recordings will be read again: %s", self.path, error)
        self._new = {}


def _read(path: Path) -> dict[str, list]:
    """[size, time of change in ns, digest] by absolute path."""
    try:
        checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        checksum, text = "", ""
    if checksum != _checksum(text):
        logger.warning("%s is damaged: recordings are read again", path)
        return {}
    return json.loads(text)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
