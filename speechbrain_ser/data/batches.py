"""Manifest -> SpeechBrain datasets and batches: audio at 16 kHz mono, and steps of exactly N utterances."""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import soundfile
import soxr
import torch
from speechbrain.dataio import audio_io
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from tqdm import tqdm

from speechbrain_ser.data.audio import sound_name
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.files import written_whole
from speechbrain_ser.nnet.losses import UNKNOWN_SPEAKER
from speechbrain_ser.training.signals import leave_signals_to_parent

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
QUALITY = "HQ"  # of soxr: 20 bits, linear phase
RESAMPLER = f"soxr {QUALITY}"  # by which waveforms at other rates are made: part of what keys their copies and features
MEMORY = 1 << 30  # bytes of waveforms that a process keeps: four and a half hours
LABELS = ("emotion_index", "speaker_index", "token_list")  # items that are no inputs


# ------------------------------------------------------------------ audio


def load_audio(path: str | os.PathLike) -> torch.Tensor:
    """A recording of any rate, format and channel count as a 16 kHz mono waveform.

    Arguments
    ---------
    path : str or os.PathLike
        Anything soundfile reads.

    Returns
    -------
    torch.Tensor
        [time] float32; channels are averaged.
    """
    wav, rate = audio_io.load(sound_name(path))  # (channels, time)
    wav = wav.float().mean(0)
    if rate == SAMPLE_RATE:
        return wav
    return torch.from_numpy(soxr.resample(wav.numpy(), rate, SAMPLE_RATE, QUALITY))


def samples_of(durations: pd.Series) -> torch.LongTensor:
    """Samples at 16 kHz of durations in seconds.

    Example
    -------
    >>> samples_of(pd.Series([0.5, 1.0]))
    tensor([ 8000, 16000])
    """
    return torch.tensor((durations * SAMPLE_RATE).round().to_numpy(), dtype=torch.long)


class AudioCache:
    """16 kHz mono copies of recordings that are not: resampled once, then read.

    A recording that is 16 kHz mono already is read where it lies. Copies are named by the recording's path, size and
    time of change and by what resampled them, and appear in one step, so that a killed process leaves none
    half-written. Waveforms are decoded once, as long as there is room for them in memory.

    Arguments
    ---------
    folder : str or os.PathLike
        Where the copies go.
    memory : int
        Bytes of waveforms to keep in memory. What was read first stays: an epoch finds the same share each time.
    """

    def __init__(self, folder: str | os.PathLike, memory: int = MEMORY):
        self.folder, self.memory = Path(folder), memory
        self.paths: dict[str, str] = {}
        self._kept: dict[str, torch.Tensor] = {}
        self._room = memory

    def __getstate__(self) -> dict:
        """A loading process that is spawned reads for itself what it needs."""
        return self.__dict__ | {"_kept": {}, "_room": self.memory}

    def __getitem__(self, path: str) -> torch.Tensor:
        """The waveform of a recording [time], the caller's own to change."""
        if path in self._kept:
            return self._kept[path].clone()
        wav = load_audio(self.paths.get(path, path))
        if wav.nbytes <= self._room:
            self._room -= wav.nbytes
            self._kept[path] = wav.clone()
        return wav

    def fill(self, paths: Sequence[str], progress: bool = True) -> int:
        """Resample what needs it, on all cores; returns how many recordings have a copy."""
        # once each: two threads must not write one copy
        todo = [p for p in dict.fromkeys(paths) if p not in self.paths and not _is_plain(p)]
        if todo:
            self.folder.mkdir(parents=True, exist_ok=True)
            pool = ThreadPoolExecutor(os.cpu_count())
            try:
                bar = tqdm(pool.map(self._copy, todo), "resampling", len(todo), disable=not progress)
                self.paths.update(zip(todo, bar, strict=True))
            finally:
                pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest of the corpus
        return len(self.paths)

    def _copy(self, path: str) -> str:
        stat = os.stat(path)
        identity = f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns} {RESAMPLER}"
        key = hashlib.sha256(identity.encode()).hexdigest()
        copy = self.folder / f"{key[:24]}.wav"
        if not copy.exists():
            wav = io.BytesIO()  # libsndfile tells no full disk
            soundfile.write(wav, load_audio(path).numpy(), SAMPLE_RATE, "FLOAT", format="WAV")
            with written_whole(copy) as temporary:
                temporary.write_bytes(wav.getbuffer())
        return str(copy)


def _is_plain(path: str) -> bool:
    info = soundfile.info(path)
    return info.samplerate == SAMPLE_RATE and info.channels == 1


# ------------------------------------------------------------------ datasets


class SupportsGetItem(Protocol):
    """Gives a tensor [time, …] for a recording's path."""

    def __getitem__(self, path: str) -> torch.Tensor: ...


def make_dataset(
    frame: pd.DataFrame,
    inputs: Mapping[str, SupportsGetItem],
    classes: Sequence[str],
    encode: Callable | None = None,
    speakers: Sequence[str] = (),
):
    """The utterances of a manifest as a SpeechBrain dataset.

    Arguments
    ---------
    frame : pandas.DataFrame
        Rows of a manifest.
    inputs : mapping of str to object
        What the model reads, by name: something that gives a tensor [time, …] for a recording's path, such as
        :class:`AudioCache` for ``sig``.
    classes : sequence of str
        Emotion classes, in the order of the logits.
    encode : callable, optional
        Transcript to token indices, where there is an ASR head.
    speakers : sequence of str
        The training speakers, in the order of the speaker logits.

    Returns
    -------
    speechbrain.dataio.dataset.DynamicItemDataset
        Items ``id``, each input, ``emotion_index``, ``speaker_index`` (:data:`UNKNOWN_SPEAKER` for others),
        ``token_list``.
    """
    # a dictionary, not from_csv: its replacements would also touch braces in transcripts
    data = frame.set_index("ID")[["wav", "emotion", "speaker", "transcript"]].to_dict("index")
    dataset = DynamicItemDataset(data)
    for name, source in inputs.items():
        dataset.add_dynamic_item(source.__getitem__, takes="wav", provides=name)
    index = {c: i for i, c in enumerate(classes)}
    dataset.add_dynamic_item(index.__getitem__, takes="emotion", provides="emotion_index")
    known = {s: i for i, s in enumerate(speakers)}
    dataset.add_dynamic_item(lambda s: known.get(s, UNKNOWN_SPEAKER), takes="speaker", provides="speaker_index")
    dataset.add_dynamic_item(encode or (lambda transcript: []), takes="transcript", provides="token_list")
    dataset.set_output_keys(["id", *inputs, *LABELS])
    return dataset


class Batch(PaddedBatch):
    """A padded batch: lists ``id``, ``tokens``; each input (data, lengths); ``emotion``, ``speaker`` [batch].

    Tokens stay a list of tensors, because an utterance may have none (laughter) and CTC needs no padding.
    """

    def __init__(self, examples: list[dict]):
        super().__init__([{k: v for k, v in e.items() if k not in LABELS} for e in examples])
        self.emotion = torch.tensor([e["emotion_index"] for e in examples])
        self.speaker = torch.tensor([e["speaker_index"] for e in examples])
        self.tokens = [torch.tensor(e["token_list"], dtype=torch.long) for e in examples]

    def to(self, *args, **kwargs):
        """In-place move of everything a device computes with."""
        super().to(*args, **kwargs)
        self.emotion = self.emotion.to(*args, **kwargs)
        self.speaker = self.speaker.to(*args, **kwargs)
        return self

    def pin_memory(self):
        """In-place pinning."""
        super().pin_memory()
        self.emotion = self.emotion.pin_memory()
        self.speaker = self.speaker.pin_memory()
        return self


def _collate(examples: list[dict]) -> Batch | None:
    """None for no utterances: what a process gets of a step that has fewer than there are processes."""
    return Batch(examples) if examples else None


# ------------------------------------------------------------------ batches


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: which utterances (or none), how many its step has in all, and whether it ends the step."""

    indices: tuple[int, ...]
    step_size: int
    ends_step: bool


class StepSampler:
    """Batches of an epoch: every optimiser step takes exactly ``step_size`` utterances, the last one the rest.

    A step's utterances are drawn at random (as in the papers), then sorted by length and cut into micro-batches, so
    that little is padded and the micro-batch changes nothing but memory and speed. The order is a function of
    (seed, epoch) alone: seeds do not overlap and a resumed epoch goes on where it was. SpeechBrain's
    DynamicBatchSampler can do neither this nor a fixed number of utterances a step.

    On a device that wants many utterances at a time, steps drawn at random waste half of it on padding (50 % at 8
    utterances of IEMOCAP's lengths, benchmarks/padding.py). `bucket_steps` deals the utterances of so many steps to
    these by length, anew every epoch. It changes who is in a step together, and so the results, unlike the micro-batch.

    Arguments
    ---------
    durations : sequence of float
        Of the dataset's utterances, seconds.
    step_size : int
        Utterances an optimiser step (the effective batch).
    micro_batch_size : int
        Utterances a forward pass.
    seed : int
        The run's seed.
    weights : sequence of float, optional
        How often each utterance is drawn, relative to the others: an epoch then draws as many utterances as there
        are, with replacement, instead of each once.
    epoch_steps : int
        Optimiser steps of an epoch, all of `step_size`: the utterances are gone through as often as that takes.
        0: each once.
    bucket_steps : int
        Steps whose utterances are drawn together and then dealt by length. 1: every step at random.
    rank, world_size : int
        Which of how many processes this is. The plan of steps is the same in all; each takes its share of every step,
        in as many micro-batches as the others, of which some may be empty.

    Example
    -------
    >>> sampler = StepSampler([1.0, 3.0, 2.0, 5.0, 4.0], step_size=4, micro_batch_size=2, seed=0)
    >>> sampler.set_epoch(1)
    >>> [len(batch) for batch in sampler], [m.ends_step for m in sampler.plan]
    ([2, 2, 1], [False, True, True])
    >>> sorted(i for batch in sampler for i in batch)
    [0, 1, 2, 3, 4]
    >>> second = StepSampler([1.0, 3.0, 2.0, 5.0, 4.0], 4, 2, seed=0, rank=1, world_size=2)
    >>> second.set_epoch(1)
    >>> [len(batch) for batch in second], [m.step_size for m in second.plan]
    ([2, 0], [4, 1])
    """

    def __init__(
        self,
        durations: Sequence[float],
        step_size: int,
        micro_batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        epoch_steps: int = 0,
        bucket_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        numbers = {"batch_size": step_size, "micro_batch_size": micro_batch_size, "bucket_steps": bucket_steps}
        numbers |= {"epoch_steps": epoch_steps} if epoch_steps else {}
        for name, value in numbers.items():
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number >= 1, found {value!r}")
        self.durations = np.asarray(durations)
        self.step_size = step_size
        self.micro_batch_size = min(micro_batch_size, step_size)
        self.seed = seed
        self.epoch_steps = epoch_steps
        self.bucket_steps = bucket_steps
        self.rank, self.world_size = rank, world_size
        self.probabilities = None if weights is None else np.asarray(weights, float) / np.sum(weights)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch
        self.__dict__.pop("plan", None)

    @cached_property
    def plan(self) -> list[MicroBatch]:
        """The epoch's micro-batches."""
        rng, n = np.random.default_rng([self.seed, self.epoch]), len(self.durations)
        wanted = self.epoch_steps * self.step_size or n
        rounds = [
            rng.permutation(n) if self.probabilities is None else rng.choice(n, n, p=self.probabilities)
            for _ in range(-(-wanted // n))
        ]
        order = np.concatenate(rounds)[:wanted]
        return [micro for step in self._steps(order, rng) for micro in self._cut(step)]

    def _steps(self, order: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
        whole, size = len(order) - len(order) % self.step_size, self.bucket_steps * self.step_size
        for i in range(0, whole, size):
            bucket = order[i : min(i + size, whole)]
            if self.bucket_steps == 1:
                yield bucket
            else:
                by_length = bucket[np.argsort(self.durations[bucket], kind="stable")]
                yield from rng.permutation(by_length.reshape(-1, self.step_size))
        if whole < len(order):  # the last, smaller step: whom chance has left over
            yield order[whole:]

    def _cut(self, step: np.ndarray) -> Iterator[MicroBatch]:
        step = step[np.argsort(self.durations[step], kind="stable")[::-1]]
        mine = step[self.rank :: self.world_size]  # short and long ones for everybody
        largest = -(-len(step) // self.world_size)
        for i in range(0, largest, self.micro_batch_size):
            part = tuple(int(k) for k in mine[i : i + self.micro_batch_size])
            yield MicroBatch(part, len(step), i + self.micro_batch_size >= largest)

    def batches_of(self, steps: int) -> int:
        """Micro-batches of the epoch's first so many optimiser steps."""
        ends = [k for k, micro in enumerate(self.plan, 1) if micro.ends_step]
        return ends[steps - 1] if steps else 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return self.epoch_steps or -(-len(self.durations) // self.step_size)

    def padding_share(self) -> float:
        """Share of the epoch's samples that are padding."""
        lengths = [self.durations[list(m.indices)] for m in self.plan if m.indices]
        return float(1 - sum(x.sum() for x in lengths) / sum(x.max() * len(x) for x in lengths))

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(m.indices) for m in self.plan])

    def __len__(self) -> int:
        return len(self.plan)


def balanced_weights(
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    second_corpus: str | None = None,
    second_share: float | None = None,
) -> np.ndarray | None:
    """How often each training utterance is drawn, for :class:`StepSampler`.

    Arguments
    ---------
    frame : pandas.DataFrame
        The training rows of a manifest.
    columns : sequence of str, optional
        Groups that are drawn equally often: ``[emotion]``, ``[corpus, emotion]``, …
    second_corpus : str, optional
        Name of a joined corpus.
    second_share : float, optional
        Share of it among the utterances drawn, 0 to 1.

    Returns
    -------
    numpy.ndarray or None
        [utterances]; None where each utterance is to be drawn once an epoch.

    Raises
    ------
    UserError
        For a column that is not there, or a share that cannot be.

    Example
    -------
    >>> frame = pd.DataFrame({"emotion": ["sad", "sad", "angry"], "corpus": ["savee", "savee", "emodb"]})
    >>> balanced_weights(frame, ["emotion"]).tolist()
    [0.5, 0.5, 1.0]
    >>> balanced_weights(frame, None, "emodb", 0.2).round(3).tolist()
    [0.4, 0.4, 0.2]
    """
    if columns is None and second_share is None:
        return None
    weights = np.ones(len(frame))
    if columns is not None:
        columns = [columns] if isinstance(columns, str) else list(columns)
        if unknown := [f"{c}{nearest(c, frame.columns)}" for c in columns if c not in frame]:
            raise UserError(f"balance: no column {', '.join(unknown)}; there are: {', '.join(frame.columns)}")
        weights = 1 / frame.groupby(columns)["emotion"].transform("size").to_numpy(float)
    if second_share is not None:
        is_second = (frame["corpus"] == second_corpus).to_numpy()
        if second_corpus is None or not 0 <= second_share <= 1 or not is_second.any():
            raise UserError(f"second_share: expected a second_corpus and a share of 0 to 1, found {second_share!r}")
        shares = {True: second_share, False: 1 - second_share}
        weights = sum(
            np.where(is_second == s, share * weights / weights[is_second == s].sum(), 0) for s, share in shares.items()
        )
    return weights


def length_sorted_batches(durations: Sequence[float], batch_size: int) -> list[list[int]]:
    """Batches for evaluation: longest first, so that little is padded and too little memory shows at once.

    Example
    -------
    >>> length_sorted_batches([1.0, 3.0, 2.0], 2)
    [[1, 2], [0]]
    """
    order = np.argsort(np.asarray(durations), kind="stable")[::-1].tolist()
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def make_loader(dataset, batch_sampler, num_workers: int = 0, pin_memory: bool = False) -> SaveableDataLoader:
    """A SpeechBrain loader over planned batches that draws nothing from the global random state.

    Arguments
    ---------
    dataset : speechbrain.dataio.dataset.DynamicItemDataset
        From :func:`make_dataset`.
    batch_sampler : iterable of list of int
        :class:`StepSampler` or :func:`length_sorted_batches`.
    num_workers : int
        Loading processes.
    pin_memory : bool
        Whether batches go to page-locked memory, from which a GPU fetches them faster.

    Returns
    -------
    speechbrain.dataio.dataloader.SaveableDataLoader
    """
    return SaveableDataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_parent,
        # PyTorch draws a seed for the workers at every epoch: from here, not from training's random state
        generator=torch.Generator().manual_seed(0),
    )
