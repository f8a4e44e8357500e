"""Features that are computed once, kept on disk and shared by all folds, runs and processes."""

import contextlib
import hashlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch
from tqdm import tqdm

from speechbrain_ser.data.audio import cores
from speechbrain_ser.data.batches import RESAMPLER, load_audio
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import replacing

logger = logging.getLogger(__name__)


Features = torch.Tensor | dict[str, torch.Tensor]


BARE = "_"  # the name of a tensor that came without one


CHECKSUM = "_sha256"  # the tensor that holds the checksum of the others


class DamagedEntry(Exception):
    """What was read is not what was written, or was written for something else."""


def pack(features: Features, key: str) -> bytes:
    """Features as the content of a safetensors file.

    Arguments
    ---------
    features : torch.Tensor or dict of torch.Tensor
        One array, or several by name.
    key : str
        What they are the features of: part of the checksum, so that a file under another's name is noticed.

    Returns
    -------
    bytes
        The same for the same features and key.

    Example
    -------
    >>> data = pack({"mel": torch.zeros(3, 2), "f0": torch.ones(3)}, "a recording")
    >>> unpack(data, "a recording")["f0"]
    tensor([1., 1., 1.])
    >>> unpack(data, "another recording")
    Traceback (most recent call last):
    speechbrain_ser.processing.cache.DamagedEntry: its checksum is wrong
    """
    named = {BARE: features} if isinstance(features, torch.Tensor) else features
    named = {name: tensor.contiguous() for name, tensor in sorted(named.items())}
    checksum = torch.frombuffer(bytearray(_digest(named, key)), dtype=torch.uint8)
    return safetensors.torch.save({**named, CHECKSUM: checksum})


def unpack(data: bytes, key: str) -> Features:
    """The features of :func:`pack`, or an error: never something else.

    Arguments
    ---------
    data : bytes
        Content of the file.
    key : str
        Whose features are expected.

    Returns
    -------
    torch.Tensor or dict of torch.Tensor
        As they were packed.

    Raises
    ------
    DamagedEntry
        When the content is truncated, altered, or another's.
    """
    try:
        named = safetensors.torch.load(data)
        checksum = bytes(named.pop(CHECKSUM).numpy())
    except Exception as error:  # the reader of an altered header may fail in any way
        raise DamagedEntry(f"it cannot be read: {error}") from error
    if checksum != _digest(named, key):
        raise DamagedEntry("its checksum is wrong")
    return named[BARE] if set(named) == {BARE} else named


def write_whole(data: bytes, path: Path) -> None:
    """Write a file that appears whole or not at all, whoever else writes the same one at the same time.

    Example
    -------
    >>> path = getfixture("tmp_path") / "entry"
    >>> write_whole(b"whole", path)
    >>> path.read_bytes()
    b'whole'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _digest(named: dict[str, torch.Tensor], key: str) -> bytes:
    """Over the key and every tensor's name, type, shape and values; the rest of a file carries no meaning."""
    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(named.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()


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


FORMAT = 1  # of the entries: raise it with every change, and caches start afresh


DIGESTS = "recordings.json"


SETTINGS = "settings.json"


MEMORY = 1 << 30  # bytes


_computing = threading.RLock()  # torch's number of threads belongs to the process


class FeatureCache:
    """Features by recording: from memory, else from disk, else computed and kept.

    An entry is found by the settings and by what the recording's bytes are: under another path it is the same
    recording, with other samples under the same path it is another one, and with other settings nothing old is
    found. Entries are written in one step and carry a checksum: one that is truncated, altered or half-written is
    computed again, with a warning. Any number of processes may use and fill a folder at once.

    Within one cache object a recording is looked at once (and again by :meth:`fill`), so that a training reads the
    same features in every epoch.

    Arguments
    ---------
    folder : str or os.PathLike
        Where the entries go; one folder serves any number of settings.
    settings : dict
        Everything that identifies what `extract` (and `load`, if it is not the usual one) gives: plain values that
        JSON can hold, such as `LogMel.settings`.
    extract : callable
        Waveform [time] -> tensor, or dict of tensors by name. A function of the waveform alone (a dither must have
        a seed of its own), whose values are all finite; must be callable from several threads at once.
    load : callable
        Path -> waveform [time]; normally :func:`speechbrain_ser.data.batches.load_audio`, which gives 16 kHz mono.
    memory : int
        Bytes of features to keep in memory. What was read first stays: an epoch that reads more than fits still
        finds the same share in memory each time, where keeping the latest would find none.
    workers : int, optional
        Threads that compute; None takes all cores. The features do not depend on it.

    Raises
    ------
    ValueError
        When the settings are not plain values.

    Example
    -------
    >>> from speechbrain_ser.processing.log_mel import LogMel
    >>> log_mel = LogMel()
    >>> wavs = {"a.wav": torch.randn(16000), "b.wav": torch.randn(8000)}
    >>> folder = getfixture("tmp_path")
    >>> for name in wavs:
    ...     _ = (folder / name).write_bytes(name.encode())
    >>> cache = FeatureCache(folder / "features", log_mel.settings, log_mel.extract, lambda path: wavs[path[-5:]])
    >>> cache.fill([folder / name for name in wavs], progress=False)  # how many had to be computed
    2
    >>> cache[folder / "b.wav"].shape
    torch.Size([21, 128])
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: dict,
        extract: Callable[[torch.Tensor], Features],
        load: Callable[[str], torch.Tensor],
        memory: int = MEMORY,
        workers: int | None = None,
    ):
        self.settings = _plain(settings)
        self.key = hashlib.sha256(json.dumps([FORMAT, self.settings], sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / self.key[:16]
        self.extract, self.load = extract, load
        self.memory, self.workers = memory, workers or cores()
        self._digests = ContentDigests(Path(folder) / DIGESTS)
        self._digest_of: dict[str, str] = {}  # path -> content, as far as this object has looked
        self._kept: dict[str, Features] = {}  # content -> features in memory
        self._kept_bytes = 0
        self._is_full = False

    def __getstate__(self) -> dict:
        """A loading process that is spawned reads for itself what it needs."""
        return self.__dict__ | {"_kept": {}, "_kept_bytes": 0, "_is_full": False}

    # --- use -----------------------------------------------------------------------------------------------

    def __getitem__(self, path: str | os.PathLike) -> Features:
        """The features of a recording, the caller's own to change.

        Raises
        ------
        UserError
            When they have to be computed and cannot be.
        """
        path = os.fspath(path)
        try:
            if path not in self._digest_of:
                self._digest_of[path] = self._digests(path)
            features = self._find(path)
            if features is None:
                with _computing, _one_thread_each():
                    features = self._add(path)
        except _Failure as failure:
            raise _offenders({path: str(failure)}, 1) from failure
        except OSError as error:
            raise _offenders({path: _words(error)}, 1) from error
        return _copy(features)

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
            Listing all recordings whose features cannot be computed; those of the others are kept.
        """
        paths = list(dict.fromkeys(map(os.fspath, paths)))
        failures: dict[str, str] = {}
        with _computing, _one_thread_each():
            for path, (digest, failure) in self._each(self._identify, paths, "reading", progress):
                self._digest_of[path] = digest
                failures |= {path: failure} if failure else {}
            self._make_folder()
            self._digests.save()
            # one path a content; not in order, so that processes that started together meet each other's entries
            todo = list({self._digest_of[path]: path for path in paths if path not in failures}.values())
            random.Random().shuffle(todo)
            computed = 0
            for path, (new, failure) in self._each(self._fill_one, todo, "features", progress):
                computed += new
                failures |= {path: failure} if failure else {}
        for path in failures:
            self._digest_of.pop(path, None)
        if failures:
            raise _offenders({path: failures[path] for path in paths if path in failures}, len(paths))
        return computed

    # --- work ----------------------------------------------------------------------------------------------

    def _each(self, work: Callable, paths: list[str], label: str, progress: bool) -> Iterator[tuple]:
        """Each path with what the work on it gave, in order; threads, for libraries release the interpreter."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            done = pool.map(work, paths)
            bar = tqdm(done, label, len(paths), disable=None if progress else True, delay=1)
            yield from zip(paths, bar, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest of the corpus

    def _identify(self, path: str) -> tuple[str, str]:
        """A recording's digest and what went wrong."""
        try:
            return self._digests(path), ""
        except OSError as error:
            return "", _words(error)

    def _fill_one(self, path: str) -> tuple[bool, str]:
        """Whether features were computed and what went wrong."""
        if self._is_full and self._entry(self._digest_of[path]).exists():
            return False, ""  # it is checked when it is read
        if self._find(path) is not None:
            return False, ""
        try:
            self._add(path)
        except _Failure as failure:
            return False, str(failure)
        return True, ""

    def _find(self, path: str) -> Features | None:
        """Features from memory or disk."""
        digest = self._digest_of[path]
        if digest in self._kept:
            return self._kept[digest]
        features = self._read(digest)
        if features is not None:
            self._keep(features, digest)
        return features

    def _add(self, path: str) -> Features:
        """Features from the recording, from now on in memory and on disk."""
        digest = self._digest_of[path]
        features = self._compute(path)
        self._write(features, digest)
        self._keep(features, digest)
        return features

    def _compute(self, path: str) -> Features:
        try:
            with torch.no_grad():
                return _checked(self.extract(self.load(path)))
        except Exception as error:  # whatever it is, the user wants to know of which recording
            raise _Failure(_words(error)) from error

    # --- places --------------------------------------------------------------------------------------------

    def _entry(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    def _read(self, digest: str) -> Features | None:
        entry = self._entry(digest)
        try:
            return unpack(entry.read_bytes(), f"{self.key}/{digest}")
        except FileNotFoundError:
            return None
        except (DamagedEntry, OSError) as damage:
            logger.warning("cached features %s are computed again: %s", entry, damage)
            return None

    def _write(self, features: Features, digest: str) -> None:
        self._make_folder()
        entry = self._entry(digest)
        try:
            write_whole(pack(features, f"{self.key}/{digest}"), entry)
        except OSError as error:
            raise _not_writable(self.folder, error) from error

    def _make_folder(self) -> None:
        """The folder of these settings, with a note for the human reader on what they are."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / SETTINGS).exists():
                text = json.dumps(self.settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
                write_whole(text.encode(), self.folder / SETTINGS)
        except OSError as error:
            raise _not_writable(self.folder, error) from error

    def _keep(self, features: Features, digest: str) -> None:
        tensors = [features] if isinstance(features, torch.Tensor) else features.values()
        size = sum(tensor.nbytes for tensor in tensors)
        self._is_full = self._is_full or self._kept_bytes + size > self.memory
        if not self._is_full:
            self._kept[digest] = features
            self._kept_bytes += size


class _Failure(Exception):
    """A recording has no features; the message says why."""


def _plain(settings: dict) -> dict:
    try:
        plain = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings must be plain values that JSON can hold ({error}): {settings}") from error
    if not isinstance(plain, dict):
        raise ValueError(f"settings must be a dict, found {settings!r}")
    return plain


def _checked(features: Features) -> Features:
    """Features as an entry can hold them: finite, on the CPU, without a graph."""
    named = {BARE: features} if isinstance(features, torch.Tensor) else features
    if not isinstance(named, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in named.values()):
        raise TypeError(f"features must be a tensor or a dict of tensors, found {type(features).__name__}")
    if not named or (named is features and {BARE, CHECKSUM} & set(named)):
        raise ValueError(f"features must have names, other than {BARE} and {CHECKSUM}: found {list(named)}")
    for name, tensor in named.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"NaN or infinite values in its features{'' if name == BARE else f' {name}'}")
    # copies: two names may be views of one tensor, and a view would keep all of it in memory
    named = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}
    return named[BARE] if isinstance(features, torch.Tensor) else named


def _copy(features: Features) -> Features:
    if isinstance(features, torch.Tensor):
        return features.clone()
    return {name: tensor.clone() for name, tensor in features.items()}


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Threads over recordings, not within one: as fast as it gets, and the same bits with any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _offenders(failures: dict[str, str], total: int) -> UserError:
    listed = "\n".join(f"  {path}: {failure}" for path, failure in failures.items())
    return UserError(f"no features for {len(failures)} of {total} recordings:\n{listed}")


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"features cannot be kept in {folder}, expected a folder that can be written: {error}")


def feature_source(features, folder: str | os.PathLike, frame: pd.DataFrame):
    """A cache of features for the utterances of a manifest.

    Arguments
    ---------
    features : object
        Has ``settings`` and ``extract``; where it has ``by_gender``, such objects by gender, they are asked instead.
    folder : str or os.PathLike
        Of the cache.
    frame : pandas.DataFrame
        Rows of a manifest: wav, gender, speaker.

    Returns
    -------
    FeatureCache or ByGender
        Gives the features of a recording's path.

    Raises
    ------
    UserError
        Where features depend on the gender and some speakers have none.
    """
    by_gender = getattr(features, "by_gender", None)
    if not by_gender:
        settings = {**features.settings, "resampler": RESAMPLER}
        return FeatureCache(folder, settings, features.extract, load_audio)
    unknown = frame.loc[~frame["gender"].isin(by_gender), "speaker"]
    if len(unknown):
        raise UserError(
            f"a range of F0 for each gender needs the gender of every speaker ({' or '.join(by_gender)}); "
            f"{len(unknown)} utterances have none, of speakers {', '.join(sorted(set(unknown))[:20])}"
        )
    caches = {gender: feature_source(each, folder, frame) for gender, each in by_gender.items()}
    return ByGender(caches, dict(zip(frame["wav"], frame["gender"], strict=True)))


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

    def __getitem__(self, path: str | Path) -> torch.Tensor:
        """The features of a recording, the caller's own to change."""
        path = os.fspath(path)
        return self.caches[self.gender_of[path]][path]

    def fill(self, paths: Sequence[str], progress: bool = True) -> int:
        """Compute what is missing; returns how many recordings had to be computed."""
        return sum(
            cache.fill([p for p in paths if self.gender_of[os.fspath(p)] == gender], progress)
            for gender, cache in self.caches.items()
        )
