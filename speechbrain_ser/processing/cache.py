"""Features that are computed once, kept on disk and shared by all folds, runs and processes."""

import contextlib
import hashlib
import json
import logging
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch

from speechbrain_ser.data.audio import BadAudioError, cores
from speechbrain_ser.data.batches import RESAMPLER, load_audio
from speechbrain_ser.errors import UserError, followed, shown
from speechbrain_ser.files import write_json, written_whole

logger = logging.getLogger(__name__)

FORMAT = 2  # of the entries: raise it with every change, and caches start afresh
MEMORY = 1 << 30  # bytes

_computing = threading.Lock()  # torch's number of threads belongs to the process


class FeatureCache:
    """Features by recording: from memory, else from disk, else computed and kept.

    An entry is found by the settings and by the recording's bytes, whatever its path. It is written whole; one that
    safetensors cannot read is computed again, with a warning. Any number of processes may use and fill a folder at
    once. One cache object looks at a recording once (and again in :meth:`fill`), so that a training reads the same
    features in every epoch.

    Arguments
    ---------
    folder : str or os.PathLike
        One serves any number of settings.
    settings : dict
        Everything that identifies what `extract` gives, as plain values, such as `LogMel.settings`.
    extract : callable
        Waveform [time] -> tensor [frames, …] of finite values. A function of the waveform alone (a dither must have a
        seed of its own) that several threads may call at once.
    memory : int
        Bytes of features to keep in memory. What was read first stays: an epoch that reads more than fits still
        finds the same share in memory each time, where keeping the latest would find none.
    workers : int, optional
        Threads that compute; None takes all cores.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.wav"
    >>> _ = path.write_bytes(b"a recording")
    >>> cache = FeatureCache(path.parent / "features", {"factor": 2}, lambda wav: wav * 2, lambda path: torch.ones(3))
    >>> cache.fill([path], progress=False), cache[path]  # one had to be computed
    (1, tensor([2., 2., 2.]))
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: dict,
        extract: Callable[[torch.Tensor], torch.Tensor],
        load: Callable[[str], torch.Tensor] = load_audio,
        memory: int = MEMORY,
        workers: int | None = None,
    ):
        self.settings = {**settings, "resampler": RESAMPLER}
        key = json.dumps([FORMAT, self.settings], sort_keys=True, allow_nan=False)
        self.folder = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.extract, self.load = extract, load
        self.memory, self.workers = memory, workers or cores()
        self._digest_of: dict[str, str] = {}  # path -> content
        self._kept: dict[str, torch.Tensor] = {}  # content -> features
        self._room = memory

    def __getstate__(self) -> dict:
        """A loading process that is spawned reads for itself what it needs."""
        return self.__dict__ | {"_kept": {}, "_room": self.memory}

    def __getitem__(self, path: str | os.PathLike) -> torch.Tensor:
        """Return the features of a recording, the caller's own to change; a UserError says why there are none."""
        path = os.fspath(path)
        try:
            if path not in self._digest_of:
                self._digest_of[path] = _digest(path)
            digest = self._digest_of[path]
            features = self._find(digest)
            if features is None:
                with _one_thread_each():
                    features = self._add(path, digest)
        except _Failure as failure:
            self._digest_of.pop(path, None)
            raise _no_features([f"{path}: {failure}"], 1) from failure
        return features.clone()

    def fill(self, paths: Iterable[str | os.PathLike], progress: bool = True) -> int:
        """Compute what is missing, on all cores, and return how many were; read into memory what it has room for.

        Processes that fill the same folder at the same time share the work. A UserError lists the recordings whose
        features cannot be computed; those of the others are kept. A bar shows where there is a terminal.
        """
        paths = list(dict.fromkeys(map(os.fspath, paths)))
        order = random.Random().sample(paths, len(paths))  # processes that started together meet each other's entries
        with _one_thread_each():
            pool = ThreadPoolExecutor(self.workers)  # threads: torch, NumPy and SciPy release the interpreter
            try:
                work = pool.map(self._fill_one, order)
                found = dict(zip(order, followed(work, "features", len(paths), progress), strict=True))
            finally:
                pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest of the corpus
        failures = [f"{path}: {found[path]}" for path in paths if isinstance(found[path], _Failure)]
        if failures:
            raise _no_features(failures, len(paths))
        return sum(found.values())

    def _fill_one(self, path: str) -> "bool | _Failure":
        """Whether the features had to be computed, or why there are none."""
        try:
            digest = _digest(path)
            entry = self._entry(digest)
            is_too_big = entry.exists() and entry.stat().st_size > self._room  # it is read when it is asked for
            missing = not is_too_big and self._find(digest) is None
            if missing:
                self._add(path, digest)
        except _Failure as failure:
            return failure
        self._digest_of[path] = digest
        return missing

    def _find(self, digest: str) -> torch.Tensor | None:
        if digest in self._kept:
            return self._kept[digest]
        entry = self._entry(digest)
        try:
            features = safetensors.torch.load(entry.read_bytes())["features"]
        except FileNotFoundError:
            return None
        except Exception as error:  # the reader of an altered header may fail in any way
            logger.warning("cached features %s are computed again: %s", entry, error)
            return None
        return self._keep(features, digest)

    def _add(self, path: str, digest: str) -> torch.Tensor:
        """Features from the recording, from now on in memory and on disk."""
        try:
            with torch.no_grad():
                features = self.extract(self.load(path)).cpu()
            if not torch.isfinite(features).all():
                raise ValueError("NaN or infinite values in its features")
        except BadAudioError as defect:
            raise _Failure(defect.words) from defect
        except Exception as error:  # whatever it is, the user wants to know of which recording
            raise _Failure(f"{type(error).__name__}: {error}") from error
        # a copy: a view would keep all of its tensor in memory
        features = features.clone(memory_format=torch.contiguous_format)
        note = self.folder / "settings.json"  # for the human reader
        if not note.exists():
            write_json(self.settings, note)
        with written_whole(self._entry(digest)) as temporary:
            temporary.write_bytes(safetensors.torch.save({"features": features}))
        return self._keep(features, digest)

    def _keep(self, features: torch.Tensor, digest: str) -> torch.Tensor:
        if features.nbytes <= self._room:
            self._room -= features.nbytes
            self._kept[digest] = features
        return features

    def _entry(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


class _Failure(Exception):
    """A recording has no features."""


def _no_features(failures: list[str], total: int) -> UserError:
    return UserError("\n  ".join([f"no features for {len(failures)} of {total} recordings:", *shown(failures)]))


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise _Failure(f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Threads over recordings, not within one: as fast as it gets, and the same bits with any number of cores."""
    with _computing:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class ByGender:
    """Features by recording, extracted in the way of its speaker's gender: a cache by gender, a gender by path."""

    def __init__(self, caches: Mapping[str, FeatureCache], gender_of: Mapping[str, str]):
        self.caches, self.gender_of = caches, gender_of

    def __getitem__(self, path: str) -> torch.Tensor:
        return self.caches[self.gender_of[path]][path]

    def fill(self, paths: Iterable[str], progress: bool = True) -> int:
        paths = list(paths)
        return sum(
            cache.fill([path for path in paths if self.gender_of[path] == gender], progress)
            for gender, cache in self.caches.items()
        )


def feature_source(features, folder: str | os.PathLike, frame: pd.DataFrame) -> FeatureCache | ByGender:
    """Return a cache of features for the utterances of a manifest.

    `features` has ``settings`` and ``extract``; where it has ``by_gender``, such objects by gender, they are asked
    instead, and every speaker must have one. `frame` has a manifest's columns wav, gender and speaker.
    """
    by_gender = getattr(features, "by_gender", None)
    if not by_gender:
        return FeatureCache(folder, features.settings, features.extract)
    unknown = frame.loc[~frame["gender"].isin(by_gender), ["speaker", "gender"]].drop_duplicates()
    if len(unknown):
        found = ", ".join(f"{gender!r} of {who}" for who, gender in unknown.sort_values("speaker").to_numpy()[:20])
        expected = f"a range of F0 for each gender needs the gender of every speaker ({' or '.join(by_gender)})"
        raise UserError(f"{expected}; found {found}")
    caches = {gender: feature_source(each, folder, frame) for gender, each in by_gender.items()}
    return ByGender(caches, dict(zip(frame["wav"], frame["gender"], strict=True)))
