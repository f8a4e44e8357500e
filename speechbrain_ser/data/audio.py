"""Recordings: the one reader of them, which believes no header, and the look at all of them before a training."""

import contextlib
import hashlib
import logging
import math
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from speechbrain_ser.errors import Offenders, UserError, followed

SAMPLE_RATE = 16_000  # of every waveform that a model reads
BLOCK = 1 << 18  # samples decoded at a time, of all channels
RATES = (1_000, 768_000)  # Hz
PART = 64  # recordings that a process looks at before it asks for more
MANY, SHORT = 5_000, 50_000  # recordings, and their mean bytes, from which on and up to which processes are quicker
LONGEST = 24 * 3600  # seconds
MOST_PER_BYTE = 1_000  # samples, of all channels: three times what FLAC makes of pure silence
UNKNOWN_BYTES = 1 << 30  # a length from here on that a file is not half of stands for an unknown one (0x7FFFFFFF, …)
UNKNOWN_FRAMES = (1 << 63) - 1  # libsndfile's
MOST_CHUNKS = 10_000  # of a file
MPEG_MARGIN = 1152  # frames: some encoders count that of the header, too
LOUD = 100  # a sample beyond it is no float from -1 to 1

MISSING = "no such recording"
EMPTY = "empty recording (expected at least one sample)"
UNREADABLE = "unreadable recording (expected a format that soundfile reads)"
TRUNCATED = "truncated recording (shorter than its header says)"
NOT_CLOSED = "recording that was never closed (its header says 0 bytes; mend it: sox --ignore-length IN OUT)"
LONGER = "recording that holds more than its header says (mend it: sox --ignore-length IN OUT, or ffmpeg -i IN OUT)"
IMPOSSIBLE = f"recording longer than its file can hold, or than {LONGEST // 3600} hours"
WRONG_RATE = f"recording of an impossible sample rate (expected {RATES[0]:,} to {RATES[1]:,} Hz)"
NOT_FINITE = "recording with NaN or infinite samples"
SILENT = "silent: all samples are the same (expected speech)"  # of which a model would say anything
CANCELLING = (
    "silent once its channels are averaged: they cancel each other (expected channels in phase, or one of them)"
)

logger = logging.getLogger(__name__)


class BadAudioError(UserError):
    """One recording's defect: ``kind`` is the same for all recordings with that defect."""

    def __init__(self, kind: str, found: str = "", path: Path | None = None):
        super().__init__(kind, found, path)
        self.kind, self.found, self.path = kind, found, path

    @property
    def words(self) -> str:
        """The defect and what was found."""
        return f"{self.kind}: {self.found}" if self.found else self.kind

    def __str__(self) -> str:
        return self.words if self.path is None else f"{self.path}: {self.words}"


# ------------------------------------------------------------------ reading


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator["Recording"]:
    """Open a recording whose header fits its file; whatever goes wrong until it is closed is its BadAudioError."""
    path = Path(path)
    try:
        if not path.is_file():
            raise BadAudioError(MISSING)
        with path.open("rb") as file:  # not by its name, which may be in any encoding
            _check_header(file, os.fstat(file.fileno()).st_size)
            file.seek(0)
            with Recording(file) as recording:
                yield recording
    except BadAudioError as defect:
        raise BadAudioError(defect.kind, defect.found, path) from None
    except Exception as error:  # soundfile and its decoders raise more than they say
        raise BadAudioError(UNREADABLE, _why(path, error), path) from error


class Recording(soundfile.SoundFile):
    """A recording of any rate, format and number of channels, read once, from its beginning to its end.

    It is not sought in: soundfile seeks after each reading, which costs an MP3 samples, and which GSM forbids.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.bytes = file, os.fstat(file.fileno()).st_size
        counted = _is_counted(file)
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # of the file itself, which has been read ahead of
        super().__init__(file.fileno(), closefd=False)
        #: frames that its header claims; None where it has no such number, and the decoder's is an estimate
        self.claimed = self.frames if self.frames != UNKNOWN_FRAMES and (self.format != "MP3" or counted) else None
        if not RATES[0] <= self.samplerate <= RATES[1]:
            raise BadAudioError(WRONG_RATE, f"{self.samplerate:,} Hz")
        self._check_length(self.claimed or 0)  # before anything of it is decoded

    def seekable(self) -> bool:
        return False

    def _check_length(self, frames: int) -> None:
        if frames > LONGEST * self.samplerate or frames * self.channels > MOST_PER_BYTE * self.bytes:
            raise BadAudioError(IMPOSSIBLE, f"{frames / self.samplerate:,.0f} s in {self.bytes:,} bytes")

    def samples(self, frames: int = BLOCK) -> Iterator[np.ndarray]:
        """Decode all of it, in blocks [frames, channels], float32; a defect is raised where it is met.

        That it is silent, shorter or longer than its header says is known at the end.
        """
        frames, done = max(1, min(frames, BLOCK // self.channels)), 0
        low, high = np.inf, -np.inf  # of each channel, and of their mean
        while done < self.frames:
            asked = min(frames, self.frames - done)
            block = self.read(asked, dtype="float32", always_2d=True)
            if len(block):
                ends = np.column_stack([block, block.mean(1)]) if self.channels > 1 else block
                low, high = np.minimum(low, ends.min(0)), np.maximum(high, ends.max(0))
                if not np.isfinite([low, high])[:, : self.channels].all():
                    first = done + np.flatnonzero(~np.isfinite(block).all(axis=1))[0]
                    raise BadAudioError(NOT_FINITE, f"first at {first / self.samplerate:.3f} s")
                yield block
            done += len(block)
            self._check_length(done)
            if len(block) < asked:
                break
        self._check_end(done)
        if (widths := high - low).max() == 0:
            raise BadAudioError(SILENT)
        if widths[-1] < 0.01 * widths.max():
            raise BadAudioError(CANCELLING)
        if (peak := float(np.maximum(high, -low).max())) > LOUD:
            _warn(f"{self.file.name}: samples up to {peak:,.0f}, expected -1 to 1: integers written as floats?")

    def _check_end(self, done: int) -> None:
        margin = MPEG_MARGIN if self.format == "MP3" else 0
        if done + margin < (self.claimed or 0):
            header, file = (f"{n} samples ({n / self.samplerate:.3f} s)" for n in (self.frames, done))
            raise BadAudioError(TRUNCATED, f"header: {header}, file: {file}")
        if not done:
            raise BadAudioError(EMPTY, "a header, 0 samples")
        if self.format not in ("MP3", "OGG", "FLAC"):  # _check_header knows
            return
        rest = self.bytes - os.lseek(self.file.fileno(), 0, os.SEEK_CUR)
        if rest > max(1 << 12, min(self.bytes // 10, 1 << 17)):  # a player's tags are less
            raise BadAudioError(LONGER, f"{done / self.samplerate:.3f} s, then {rest} of {self.bytes} bytes")


_warn = cache(logger.warning)  # once each: a training reads a recording every epoch


def _why(path: Path, error: Exception) -> str:
    said = getattr(error, "error_string", None) or f"{type(error).__name__}: {error}"
    try:
        with path.open("rb") as file:
            return f"{said.rstrip('.')}. The file begins with {file.read(16)!r}"
    except OSError as failure:
        return str(failure)


def claimed_seconds(path: str | os.PathLike) -> float:
    """Return the duration that a recording's header claims, or, where it claims none, its duration."""
    with opened(path) as recording:
        if recording.claimed is not None:
            return recording.claimed / recording.samplerate
    return duration_of(path)


def duration_of(path: str | os.PathLike) -> float:
    """Return the duration of one recording in seconds, decoded to its end, or raise its :class:`BadAudioError`."""
    return look_at(path).seconds


# ------------------------------------------------------------------ headers


LAYOUTS = {  # of files made of chunks, by their first bytes: where chunks begin, the bytes of a chunk's name and of its
    # length, their order, what its end is rounded up to, and how the name of the samples' chunk begins
    b"RIFF": (12, 4, 4, "little", 2, (b"data",)),
    b"RIFX": (12, 4, 4, "big", 2, (b"data",)),
    b"RF64": (12, 4, 4, "little", 2, (b"data",)),
    b"FORM": (12, 4, 4, "big", 2, (b"SSND", b"BODY")),  # AIFF, SVX
    b"riff": (40, 16, 8, "little", 8, (b"data",)),  # W64
    b"caff": (8, 4, 8, "big", 1, (b"data",)),
    b"Crea": (26, 1, 3, "little", 1, (b"\1", b"\t")),  # VOC
}


def _check_header(file: BinaryIO, size: int) -> None:
    """Compare what a header says with the file: libsndfile reads silently what is there, or what is said."""
    head = file.read(1024)
    magic, found = head[:4], None
    if not size:
        raise BadAudioError(EMPTY, "0 bytes")
    if magic in LAYOUTS:
        found = _samples_of_chunks(file, size, *LAYOUTS[magic])
    elif magic in (b".snd", b"dns."):  # AU
        begin, length = (int.from_bytes(head[k : k + 4], "big" if magic == b".snd" else "little") for k in (4, 8))
        found = begin, length, begin + length
    elif magic == b"NIST":
        numbers = dict(re.findall(rb"^(\w+) -\w+ (\d+)\s*$", head, re.M))
        fields = [int(numbers[n]) for n in (b"sample_count", b"sample_n_bytes", b"channel_count") if n in numbers]
        begin, length = int(head[8:16]), math.prod(fields)
        found = (begin, length, begin + length) if len(fields) == 3 else None
    elif magic == b"OggS":
        _check_last_page(file, size)
    if found:
        _compare(*found, file, size)


def _samples_of_chunks(
    file: BinaryIO, size: int, position: int, name_bytes: int, length_bytes: int, order: str, even: int, samples: tuple
) -> tuple[int, int, int] | None:
    """Where the samples begin, how many bytes of them there should be, and where the last chunk ends."""
    found, long = None, None
    for _ in range(MOST_CHUNKS):
        if position > size:
            break
        file.seek(position)
        name, length = file.read(name_bytes), int.from_bytes(file.read(length_bytes), order)
        begin = position + name_bytes + length_bytes
        if name_bytes == 16:  # W64's lengths count their chunk's head
            length = max(0, length - 24)
        if name == b"ds64":  # RF64's length of more than four bytes
            long = int.from_bytes(file.read(16)[8:], order)
        is_named = name_bytes == 1 or name[:4].decode("latin-1").isprintable()
        if begin > size or not is_named or (found and begin + length > size):
            break  # no chunk, but perhaps samples that no header counts
        if not found and name.startswith(samples):
            length = long if long is not None and length == 0xFFFFFFFF else length
            found = begin, length
        position = -(-(begin + length) // even) * even
    return (*found, position) if found else None


def _compare(begin: int, length: int, end: int, file: BinaryIO, size: int) -> None:
    """Refuse samples of another `length` than their header says; `end` is that of all that the header knows of."""
    there, rest = size - begin, size - end
    if length > there:
        if length < UNKNOWN_BYTES or length <= 2 * there:
            raise BadAudioError(TRUNCATED, f"header: {length} bytes of samples, file: {there}")
    elif rest > min(length // 20, 1 << 16):
        file.seek(end)
        if rest > 1 << 16 or file.read(rest).strip(b"\0"):  # zeros fill up a file
            kind = LONGER if length else NOT_CLOSED
            raise BadAudioError(kind, f"header: {length} bytes of samples; {rest} bytes follow that it does not count")


def _check_last_page(file: BinaryIO, size: int) -> None:
    """An Ogg file that was cut ends within a page."""
    file.seek(max(0, size - (1 << 17)))  # a page has less than half of that
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    missing = 27 + sum(page[27:][: page[26]]) + page[26] - len(page) if len(page) > 26 else 27 - len(page)
    if missing > 0:
        raise BadAudioError(TRUNCATED, f"its last page lacks at least {missing} bytes")


def _is_counted(file: BinaryIO) -> bool:
    """Whether an MP3 says how many frames it has: Xing's, LAME's or Fraunhofer's header in its first frame."""
    head = file.read(10)
    tag = 10 + sum(byte << 7 * k for k, byte in enumerate(head[:5:-1])) if head.startswith(b"ID3") else 0
    file.seek(tag)
    first = file.read(4096)
    file.seek(0)
    return any(name in first for name in (b"Xing", b"Info", b"VBRI"))


# ------------------------------------------------------------------ all of a corpus


class Look(NamedTuple):
    """What a look at a recording tells."""

    seconds: float
    digest: str  # of its samples, whatever their format: recordings with the same one are the same


def look_at(path: str | os.PathLike) -> Look:
    """Decode a recording to its end; raise its :class:`BadAudioError`."""
    with opened(path) as recording:
        digest, frames = hashlib.sha256(str(recording.samplerate).encode()), 0
        for block in recording.samples():
            # a sum of one sample: it makes 0.0 of -0.0, as the mean does, which takes 30 times as long
            digest.update(block.mean(1) if recording.channels > 1 else block + np.float32(0))
            frames += len(block)
        return Look(frames / recording.samplerate, digest.hexdigest())


def check_audio(paths: Sequence[str | os.PathLike], where: str = "audio") -> list[Look]:
    """Look at recordings on all cores; one error names all that are bad.

    Any sample rate, number of channels and format that soundfile reads is fine.
    """
    offenders, looks = Offenders(where), []
    with _pool(paths) as pool:
        found = pool.map(_look_or_defect, paths, chunksize=PART)
        for path, result in zip(paths, followed(found, "checking recordings", len(paths)), strict=True):
            if isinstance(result, BadAudioError):
                offenders.add(result.kind, f"{path}: {result.found}" if result.found else path)
            looks.append(result)
    offenders.raise_any()
    return looks


def _pool(paths: Sequence[str | os.PathLike]) -> Executor:
    """Threads, as libsndfile and the file system work without the GIL; processes where most of the work is Python's.

    They are forked, as a DataLoader's are: they import nothing anew, and touch neither torch nor its threads.
    """
    sizes = [os.path.getsize(path) for path in paths[:PART] if os.path.exists(path)]
    if len(paths) < MANY or sum(sizes) > SHORT * len(sizes) or sys.platform != "linux":
        return ThreadPoolExecutor(cores())
    # Ctrl-C ends the process that asked
    ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    return ProcessPoolExecutor(cores(), multiprocessing.get_context("fork"), **ignore)


def _look_or_defect(path: str | os.PathLike) -> Look | BadAudioError:
    try:
        return look_at(path)
    except BadAudioError as defect:
        return defect


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
