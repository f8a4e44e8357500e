"""The folder of what is sent to the page: private, and emptied as requests are answered."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from speechbrain_ser.errors import UserError

KEEP = 900.0  # seconds that an upload waits for its request: those that nobody asks about are removed then
SWEEP = 30.0  # seconds from look to look
SPACE = 10  # uploads of full size that wait at a time, together


class Uploads:
    """A private folder, used as a context: at its end nothing of it is left.

    Arguments
    ---------
    max_bytes : int
        Of one upload.

    Example
    -------
    >>> with Uploads(1000) as uploads:
    ...     path = uploads.folder / "hash" / "a.wav"
    ...     path.parent.mkdir()
    ...     _ = path.write_bytes(b"RIFF")
    ...     uploads.received([str(path)])
    ...     uploads.find(str(path)) == path, uploads.is_full()
    ...     uploads.remove(path)
    ...     list(uploads.folder.iterdir())
    (True, False)
    []
    >>> uploads.folder.exists()
    False
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.waiting = Counter()  # requests that an upload waits for: equal recordings share a file
        self.lock = threading.Lock()
        self.ended = threading.Event()

    def __enter__(self) -> "Uploads":
        self.folder = Path(tempfile.mkdtemp(prefix="speechbrain-ser-serve-")).resolve()  # mode 700
        threading.Thread(target=self._sweep_on, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def received(self, paths: Iterable[str]) -> None:
        """Uploads that are whole, a request for each of which follows."""
        with self.lock:
            self.waiting.update(map(Path, paths))

    def find(self, name: object) -> Path:
        """The upload that a request names.

        Arguments
        ---------
        name : object
            What the request has in the place of a path.

        Returns
        -------
        pathlib.Path
            Of a file in the folder, for sure.

        Raises
        ------
        UserError
            For everything else, whether or not there is such a file.
        """
        with contextlib.suppress(OSError, TypeError, ValueError):
            path = Path(name).resolve()
            if path.is_relative_to(self.folder) and path.is_file():
                return path
        raise UserError("expected a recording that was sent, found none: send it (again), each is deleted when used")

    def remove(self, path: Path) -> None:
        """Delete an upload that was used, unless somebody who sent the same is waiting."""
        with self.lock:
            self.waiting[path] -= 1
            if self.waiting[path] > 0:
                return
            self._delete(path)

    def is_full(self) -> bool:
        """Whether so much is waiting that no more is taken."""
        return sum(size for _, size, _ in self._files()) > SPACE * self.max_bytes

    def sweep(self, age: float = KEEP) -> None:
        """Delete what nobody asked about for `age` seconds."""
        for path, _, modified in self._files():
            if time.time() - modified > age:
                with self.lock:
                    self._delete(path)

    def _delete(self, path: Path) -> None:
        self.waiting.pop(path, None)
        path.unlink(missing_ok=True)
        if path.parent != self.folder:
            with contextlib.suppress(OSError):  # others are in it
                path.parent.rmdir()

    def _sweep_on(self) -> None:
        while not self.ended.wait(SWEEP):
            self.sweep()

    def _files(self) -> list[tuple[Path, int, float]]:
        """Path, size and time of each file."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.lstat()
                    found.append((path, stat.st_size, stat.st_mtime))
        return found
