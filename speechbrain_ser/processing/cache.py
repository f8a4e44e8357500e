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
from tqdm import tqdm

from speechbrain_ser.data.audio import cores
from speechbrain_ser.data.batches import RESAMPLER, load_audio
from speechbrain_ser.errors import UserError, shown
from speechbrain_ser.files import cannot_be_written, write_json, written_whole

logger = logging.getLogger(__name__)

FORMAT = 2  # of the entries: raise it with every change, and caches start afresh
MEMORY = 1 << 30  # bytes

_computing = threading.Lock()  # torch's number of threads belongs to the process


class FeatureCache:
    """Features by recording: from memory, else from disk, else computed and kept.

    An entry is found by the settings and by the recording's bytes: under another path it is the same recording, with
    other samples under the same path it is another one, and with other settings nothing old is found. Entries are
    written whole, and one that safetensors cannot read is computed again, with a warning. Any number of processes may
    use and fill a folder at once.

    Within one cache object a recording is looked at once (and again by :meth:`fill`), so that a training reads the
    same features in every epoch.

    Arguments
    ---------
    folder : str or os.PathLike
        Where the entries go; one folder serves any number of settings.
    settings : dict
        Everything that identifies what `extract` gives, as plain values, such as `LogMel.settings`.
    extract : callable
        Waveform [time] -> tensor [frames, …] of finite values. A function of the waveform alone (a dither must have a
        seed of its own) that several threads may call at once.
    load : callable
        Path -> waveform [time].
    memory : int
        Bytes of features to keep in memory. What was read first stays: an epoch that reads more than fits still
        finds the same share in memory each time, where keeping the latest would find none.
    workers : int, optional
        Threads that compute; None takes all cores. The features do not depend on it.

    Example
    -------
    >>> from speechbrain_ser.processing.log_mel import LogMel
    >>> folder, log_mel = getfixture("tmp_path"), LogMel()
    >>> paths = [folder / "a.wav", folder / "b.wav"]
    >>> for path in paths:
    ...     _ = path.write_bytes(path.name.encode())
    >>> cache = FeatureCache(folder / "features", log_mel.settings, log_mel.extract, lambda path: torch.randn(8000))
    >>> cache.fill(paths, progress=False)  # how many had to be computed
    2
    >>> cache[folder / "b.wav"].shape
    torch.Size([21, 128])
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
        """Compute what is missing, on all cores, and read into memory what it has room for.

        Processes that fill the same folder at the same time share the work.

        Arguments
        ---------
        paths : iterable of path
            The recordings.
        progress : bool
            Show a bar, when it takes more than a second and there is a terminal.

        Returns
        -------
        int
            How many recordings had to be computed.

        Raises
        ------
        UserError
            Listing the recordings whose features cannot be computed; those of the others are kept.
        """
        paths = list(dict.fromkeys(map(os.fspath, paths)))
        order = random.Random().sample(paths, len(paths))  # processes that started together meet each other's entries
        with _one_thread_each():
            pool = ThreadPoolExecutor(self.workers)  # threads: torch, NumPy and SciPy release the interpreter
            try:
                work = pool.map(self._fill_one, order)
                bar = tqdm(work, "features", len(paths), disable=None if progress else True, delay=1)
                found = dict(zip(order, bar, strict=True))
            finally:
                pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest of the corpus
        failures = [f"{path}: {found[path]}" for path in paths if isinstance(found[path], _Failure)]
        if failures:
            raise _no_features(failures, len(paths))
        return sum(found.values())

    def _fill_one(self, path: str) -> "bool | _Failure":
        """Whether the features had to be computed, or why there are none."""
        try:
            digest, computed = _digest(path), False
            entry = self._entry(digest)
            is_too_big = entry.exists() and entry.stat().st_size > self._room  # it is read when it is asked for
            if not is_too_big and self._find(digest) is None:
                self._add(path, digest)
                computed = True
        except _Failure as failure:
            return failure
        self._digest_of[path] = digest
        return computed

    def _find(self, digest: str) -> torch.Tensor | None:
        """Features from memory or disk."""
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
        except Exception as error:  # whatever it is, the user wants to know of which recording
            raise _Failure(error) from error
        # a copy: a view would keep all of its tensor in memory
        features = features.clone(memory_format=torch.contiguous_format)
        self._make_folder()
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

    def _make_folder(self) -> None:
        """The folder of these settings, with a note for the human reader on what they are."""
        note = self.folder / "settings.json"
        if not note.exists():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_be_written(self.folder, error) from error
            write_json(self.settings, note)


class _Failure(Exception):
    """A recording has no features."""

    def __init__(self, error: Exception):
        super().__init__(f"{type(error).__name__}: {error}")


def _no_features(failures: list[str], total: int) -> UserError:
    return UserError("\n  ".join([f"no features for {len(failures)} of {total} recordings:", *shown(failures)]))


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise _Failure(error) from error


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
    """Features by recording, extracted in the way of its speaker's gender.

    Arguments
    ---------
    caches : mapping of str to FeatureCache
        By gender.
    gender_of : mapping of str to str
        By path.
    """

    def __init__(self, caches: Mapping[str, FeatureCache], gender_of: Mapping[str, str]):
        self.caches, self.gender_of = caches, gender_of

    def __getitem__(self, path: str) -> torch.Tensor:
        """Return the features of a recording, the caller's own to change."""
        return self.caches[self.gender_of[path]][path]

    def fill(self, paths: Iterable[str], progress: bool = True) -> int:
        """Compute what is missing; return how many recordings had to be computed."""
        paths = list(paths)
        return sum(
            cache.fill([path for path in paths if self.gender_of[path] == gender], progress)
            for gender, cache in self.caches.items()
        )


def feature_source(features, folder: str | os.PathLike, frame: pd.DataFrame) -> FeatureCache | ByGender:
    """Return a cache of features for the utterances of a manifest.

    Arguments
    ---------
    features : object
        Has ``settings`` and ``extract``; where it has ``by_gender``, such objects by gender, they are asked instead.
    folder : str or os.PathLike
        Of the cache.
    frame : pandas.DataFrame
        Rows of a manifest: wav, gender, speaker.

    Raises
    ------
    UserError
        Where features depend on the gender and some speakers have none.
    """
    by_gender = getattr(features, "by_gender", None)
    if not by_gender:
        return FeatureCache(folder, features.settings, features.extract)
    unknown = frame.loc[~frame["gender"].isin(by_gender), "speaker"]
    if len(unknown):
        raise UserError(
            f"a range of F0 for each gender needs the gender of every speaker ({' or '.join(by_gender)}); "
            f"{len(unknown)} utterances have none, of speakers {', '.join(sorted(set(unknown))[:20])}"
        )
    caches = {gender: feature_source(each, folder, frame) for gender, each in by_gender.items()}
    return ByGender(caches, dict(zip(frame["wav"], frame["gender"], strict=True)))
