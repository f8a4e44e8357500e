"""Every recording is looked at before a training starts: there, readable, whole, not empty, finite."""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from speechbrain_ser.errors import Offenders

SAMPLE_RATE = 16_000  # of every waveform that a model reads
BLOCK = 1 << 18  # frames decoded at a time
STREAMED = {0x7FFFF000, 0x7FFFFFFF, 0xFFFFF000, 0xFFFFFFFF}  # data sizes of a WAV written into a pipe
MISSING = "no such recording"
EMPTY = "empty recording (expected at least one sample)"
UNREADABLE = "unreadable recording (expected a format that soundfile reads)"
TRUNCATED = "truncated recording (shorter than its header says)"
NOT_FINITE = "recording with NaN or infinite samples"
INTEGER = ("PCM_", "ULAW", "ALAW")  # sample formats that cannot hold NaN


class BadAudioError(Exception):
    """One recording's defect: ``kind`` is the same for all recordings with that defect."""

    def __init__(self, kind: str, found: str = ""):
        super().__init__(found)
        self.kind, self.found = kind, found

    @property
    def words(self) -> str:
        """The defect and what was found."""
        return f"{self.kind}: {self.found}" if self.found else self.kind


def check_audio(paths: Sequence[str | os.PathLike], where: str = "audio") -> list[float]:
    """Check recordings on all cores, and return their durations in seconds; one error names all that are bad.

    Any sample rate, number of channels and format that soundfile reads is fine. For WAV files with integer
    samples the header is enough; what may hold NaN or is compressed is decoded to its end.
    """

    def duration_or_defect(path):
        try:
            return duration_of(path)
        except BadAudioError as defect:
            return defect

    offenders, durations = Offenders(where), []
    # libsndfile and the file system work without the GIL, so threads are enough
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(duration_or_defect, paths)
        for path, result in zip(paths, tqdm(found, "audio", len(paths), disable=None), strict=True):
            if isinstance(result, BadAudioError):
                offenders.add(result.kind, f"{path}: {result.found}" if result.found else path)
            durations.append(result)
    offenders.raise_any()
    return durations


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sound_name(path: str | os.PathLike) -> str | bytes:
    """Return a recording's name as soundfile opens it: bytes where it is no text in the system's encoding."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name


def duration_of(path: str | os.PathLike) -> float:
    """Return the duration of one recording in seconds, or raise its :class:`BadAudioError`."""
    path = Path(path)
    if not path.is_file():
        raise BadAudioError(MISSING)
    if path.stat().st_size == 0:
        raise BadAudioError(EMPTY, "0 bytes")
    try:
        with soundfile.SoundFile(sound_name(path)) as sound:
            if sound.format in ("WAV", "WAVEX"):
                _check_wav_length(path)
            if sound.frames == 0:
                raise BadAudioError(EMPTY, "a header, 0 samples")
            if sound.format not in ("WAV", "WAVEX") or not sound.subtype.startswith(INTEGER):
                _decode(sound)
            return sound.frames / sound.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise BadAudioError(UNREADABLE, _why(path, error)) from error


def _why(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            return f"{getattr(error, 'error_string', error)} The file begins with {file.read(16)!r}"
    except OSError as failure:
        return str(failure)


def _check_wav_length(path: Path) -> None:
    """libsndfile silently reads what is there of a half-copied WAV: compare its header with its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        order = ">" if file.read(4) == b"RIFX" else "<"
        position = 12
        while position + 8 <= size:
            file.seek(position)
            name, length = struct.unpack(order + "4sI", file.read(8))
            if name == b"data":
                missing = position + 8 + length - size
                if missing > 0 and length not in STREAMED:
                    raise BadAudioError(TRUNCATED, f"header: {length} bytes of samples, file: {length - missing}")
                return
            position += 8 + length + length % 2  # chunks begin at even places


def _decode(sound: soundfile.SoundFile) -> None:
    frames = 0
    for block in sound.blocks(BLOCK, dtype="float64", always_2d=True):
        if (bad := np.flatnonzero(~np.isfinite(block).all(axis=1))).size:
            raise BadAudioError(NOT_FINITE, f"first at {(frames + bad[0]) / sound.samplerate:.3f} s")
        frames += len(block)
    if frames < sound.frames:
        raise BadAudioError(TRUNCATED, f"header: {sound.frames} samples, file: {frames}")
