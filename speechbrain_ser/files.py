"""Files that appear whole or not at all, and the lock of a folder that one process writes."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechbrain_ser.errors import UserError

if TYPE_CHECKING:
    import pandas as pd  # a second, for what only writes text

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


def write_csv(frame: "pd.DataFrame", path: str | os.PathLike) -> Path:
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


try:
    import fcntl
except ImportError:  # not a POSIX system: locks are kept, without protection against a simultaneous start
    fcntl = None


# exit status (sysexits' EX_TEMPFAIL): another process works in the run's folder, or a signal asked us to end
TRY_LATER = 75


PARENT = "SPEECHBRAIN_SER_PARENT"  # the environment's word for who started us and whom we shall not survive


class FolderInUse(UserError):
    """Another living process works in a run folder."""


@dataclass(frozen=True)
class Owner:
    """A process by name: its number is used again later, its number and start together are not.

    Arguments
    ---------
    host : str
        Where it runs.
    pid : int
        Its number there.
    started : str
        When it began, in the system's own words.
    job : str, optional
        Its Slurm job.
    """

    host: str
    pid: int
    started: str
    job: str | None = None

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        return cls(socket.gethostname(), os.getpid(), started(os.getpid()) or "", os.environ.get("SLURM_JOB_ID"))

    def is_alive(self) -> bool:
        """Whether it still runs; of another machine's process only Slurm can tell, else it is taken to run."""
        if self.host == socket.gethostname():
            return started(self.pid) == self.started
        if self.job is None:
            return True
        # a job that runs again on another machine has left the first one
        return self.job != os.environ.get("SLURM_JOB_ID") and not _job_is_over(self.job)


def started(pid: int) -> str | None:
    """When a process began; None where it has ended (one that is dead but not yet collected has).

    Example
    -------
    >>> started(os.getpid()) == started(os.getpid()), started(2**22 + 1)
    (True, None)
    """
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout.strip() or None


def lock_path(folder: str | os.PathLike) -> Path:
    """The lock file of a run folder, beside it."""
    folder = Path(folder)
    return folder.with_name(f"{folder.name}.lock")


def holder(folder: str | os.PathLike) -> Owner | None:
    """The living process that works in a run folder, if there is one."""
    try:
        owner = _read(lock_path(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return owner if owner and owner.is_alive() else None


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a run folder; the lock of a process that was killed counts for nothing.

    Arguments
    ---------
    folder : path
        The run folder; need not exist.

    Raises
    ------
    FolderInUse
        Naming the process that has it.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "run"
    >>> with locked(folder):
    ...     holder(folder).pid == os.getpid()
    True
    >>> holder(folder) is None
    True
    """
    path = lock_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    me = Owner.me()
    with _alone(path) as file:
        if (owner := _read(file.read())) and owner.is_alive():
            raise FolderInUse(
                f"{folder} is being worked on by process {owner.pid} on {owner.host}: wait for it or stop it "
                f"(if you know that it is gone, remove {path})"
            )
        file.seek(0)
        file.truncate()
        json.dump(asdict(me), file)
    try:
        yield
    finally:
        with _alone(path) as file:
            if _read(file.read()) == me:
                path.unlink()


@contextlib.contextmanager
def _alone(path: Path):
    """The lock file, open while nobody else reads or writes it."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            with contextlib.suppress(OSError):  # file systems without flock: only a simultaneous start is unguarded
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # its holder removed it while we waited
            file.seek(0)
            yield file
            return


def _read(text: str) -> Owner | None:
    """An empty or half-written lock is nobody's."""
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _job_is_over(job: str) -> bool:
    """Whether Slurm knows nothing more of a job; False where Slurm cannot be asked."""
    try:
        found = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    known = found.returncode == 0 or "Invalid job id" in found.stderr
    return known and not found.stdout.strip()


def end_with_parent(poll: float = 0.5) -> None:
    """Where another program started this process to work for it, end when it has ended, and end tidily on SIGTERM.

    torchrun is such a program as well; its processes end on SIGTERM at once, whatever they wait for.

    Arguments
    ---------
    poll : float
        Seconds between two looks.
    """
    of_torchrun = "LOCAL_RANK" in os.environ
    if PARENT not in os.environ and not of_torchrun:
        return
    parent = int(os.environ.pop(PARENT, 0))  # not for our own children
    parent = os.getppid() if of_torchrun else parent

    def watch():
        while os.getppid() == parent:
            time.sleep(poll)
        os.kill(os.getpid(), signal.SIGKILL if ignored else signal.SIGTERM)

    ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # our parent's decision
    if not ignored and not of_torchrun:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=watch, daemon=True).start()
