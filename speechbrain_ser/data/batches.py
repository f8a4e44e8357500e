"""From a manifest to batches: audio at 16 kHz mono, labels as indices, and optimiser steps of exactly N utterances."""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import soundfile
import soxr
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.distributed import infer_device

from speechbrain_ser.data.audio import SAMPLE_RATE, opened
from speechbrain_ser.data.labels import UNKNOWN
from speechbrain_ser.data.text import normalise_transcript
from speechbrain_ser.errors import UserError, counted, followed, nearest
from speechbrain_ser.files import written_whole

logger = logging.getLogger(__name__)

QUALITY = "HQ"  # of soxr: 20 bits, linear phase
RESAMPLER = f"soxr {QUALITY}"  # by which waveforms at other rates are made: part of what keys their copies and features
MEMORY = 1 << 30  # bytes of waveforms that a process keeps: four and a half hours


# ------------------------------------------------------------------ audio


def checked_device(device: str | None) -> str:
    """Return a device that this machine and this build of torch have; None: the one that SpeechBrain would take."""
    device = device or infer_device()
    try:
        wanted = torch.device(device)
        n = torch.get_device_module(wanted).device_count()
    except RuntimeError as error:
        raise UserError(f"device: {error}") from error
    if (wanted.index or 0) >= n:
        found = counted(n, f"{wanted.type} device")
        raise UserError(f"device: {device}, but this machine, or its torch {torch.__version__}, has {found}")
    return device


def load_audio(path: str | os.PathLike) -> torch.Tensor:
    """Return a recording of any rate and format as a waveform [time], 16 kHz, float32, its channels averaged."""
    with opened(path) as recording:
        wav, rate = torch.cat([mono(block) for block in recording.samples()]), recording.samplerate
        if rate == SAMPLE_RATE:
            return wav
        return torch.from_numpy(soxr.resample(wav.numpy(), rate, SAMPLE_RATE, QUALITY))


def mono(block: np.ndarray) -> torch.Tensor:
    """Return the mean [time] of the channels of samples [time, channels]."""
    return torch.from_numpy(block).T.mean(0)


def samples_of(durations: pd.Series) -> torch.LongTensor:
    """Return the samples at 16 kHz of durations in seconds."""
    return torch.tensor((durations * SAMPLE_RATE).round().to_numpy(), dtype=torch.long)


class AudioCache:
    """Waveforms by recording: 16 kHz mono is read where it lies, anything else resampled once and kept as a copy.

    A copy is named by the recording's path, size and time of change and by what resampled it, and appears in one step.
    Waveforms are decoded once, as long as there is room for them in memory.

    Arguments
    ---------
    folder : path
        Where the copies go.
    memory : int
        Bytes of waveforms to keep. What was read first stays: an epoch finds the same share each time.
    """

    def __init__(self, folder: str | os.PathLike, memory: int = MEMORY):
        self.folder, self.memory = Path(folder), memory
        self.paths: dict[str, str] = {}
        self._kept: dict[str, torch.Tensor] = {}
        self._room = memory

    def __getstate__(self) -> dict:
        # a loading process that is spawned reads for itself what it needs
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
        """Resample what needs it, on all cores; return how many recordings have a copy."""
        # once each: two threads must not write one copy
        todo = [p for p in dict.fromkeys(paths) if p not in self.paths and _needs_copy(p)]
        if todo:
            pool = ThreadPoolExecutor(os.cpu_count())
            try:
                copies = followed(pool.map(self._copy, todo), "resampling recordings", len(todo), progress)
                self.paths.update(zip(todo, copies, strict=True))
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


def _needs_copy(path: str) -> bool:
    with opened(path) as recording:
        return recording.samplerate != SAMPLE_RATE or recording.channels != 1


# ------------------------------------------------------------------ datasets and batches


def make_dataset(
    frame: pd.DataFrame,
    inputs: Mapping[str, Mapping[str, torch.Tensor]],
    labels: Mapping[str, Sequence[str]],
    encode: Callable[[str], list[int]] | None = None,
) -> DynamicItemDataset:
    """Return a dataset of ``id``, each input, each label as an index (or :data:`UNKNOWN`) and ``tokens``.

    Arguments
    ---------
    frame : pandas.DataFrame
        Rows of a manifest, by ID.
    inputs : mapping of str to mapping
        What the model reads, by name: tensors [time, …] by a recording's path, such as :class:`AudioCache` for ``sig``.
    labels : mapping of str to sequence of str
        By column of the manifest, the values that are trained on, in the order of the logits.
    encode : callable, optional
        Transcript to token indices, where there is an ASR head. An utterance without a transcript, or with no letter
        of the vocabulary, has the one token :data:`UNKNOWN`; laughter has none.
    """
    indices = {
        label: frame[label].map({value: k for k, value in enumerate(values)}).fillna(UNKNOWN).astype(int)
        for label, values in labels.items()
    }
    tokens = [_target(text, encode) if encode else [] for text in frame["transcript"]]
    # a dictionary, not from_csv: its replacements would also touch braces in transcripts
    columns = frame[["wav"]].assign(**indices, tokens=pd.Series(tokens, frame.index, dtype=object))
    dataset = DynamicItemDataset(columns.to_dict("index"))
    for name, source in inputs.items():
        dataset.add_dynamic_item(source.__getitem__, takes="wav", provides=name)
    dataset.set_output_keys(["id", *inputs, *labels, "tokens"])
    return dataset


def _target(text: str, encode: Callable[[str], list[int]]) -> list[int]:
    tokens, has_no_words = encode(text), bool(text.strip()) and not normalise_transcript(text)
    return tokens if tokens or has_no_words else [UNKNOWN]


class Batch(PaddedBatch):
    """SpeechBrain's: lists ``id`` and ``tokens``, each input padded (data, lengths), each label [batch].

    Tokens stay a list of tensors, because an utterance may have none (laughter) and CTC needs no padding.
    """

    def __init__(self, examples: list[dict]):
        super().__init__([{k: v for k, v in e.items() if k != "tokens"} for e in examples])
        self.tokens = [torch.tensor(e["tokens"], dtype=torch.long) for e in examples]


def make_loader(dataset, batch_sampler, collate_fn: Callable = Batch, **options) -> SaveableDataLoader:
    """Return a SpeechBrain loader over planned batches that draws nothing from the global random state.

    `batch_sampler` is a :class:`StepSampler`, whose ``micro_batches`` are then the `collate_fn`, or
    :func:`length_sorted_batches`; `options` are those of ``torch.utils.data.DataLoader``.
    """
    # PyTorch draws a seed for the workers at every epoch: from here, not from training's random state
    generator = torch.Generator().manual_seed(0)
    options |= {"batch_sampler": batch_sampler, "collate_fn": collate_fn, "generator": generator}
    return SaveableDataLoader(dataset, **options)


# ------------------------------------------------------------------ steps


class Step(NamedTuple):
    """An optimiser step: this process's utterances, longest first (or none), and how many the step has in all."""

    indices: list[int]
    size: int


class StepSampler:
    """Steps of an epoch: each takes exactly ``step_size`` utterances, the last one the rest.

    A step's utterances are drawn at random (as in the papers), then sorted by length and cut into micro-batches, so
    that little is padded and the micro-batch changes nothing but memory and speed. The order is a function of
    (seed, epoch) alone: seeds do not overlap and a resumed epoch goes on where it was. SpeechBrain's
    DynamicBatchSampler can do neither this nor a fixed number of utterances a step.

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
        How often each utterance is drawn, relative to the others: with replacement, as many as there are.
        None: each once.
    epoch_steps : int
        Optimiser steps of an epoch, all of `step_size`, in as many rounds of the utterances as that takes.
        0: one round.
    bucket_steps : int
        Steps whose utterances are drawn together and dealt by length: less padding (benchmarks/padding.py), but
        unlike the micro-batch it changes results. 1: every step at random.
    rank, world_size : int
        Which of how many processes this is. The plan of steps is the same in all; each takes its share of every step.

    Example
    -------
    >>> sampler = StepSampler([1.0, 3.0, 2.0, 5.0, 4.0], step_size=4, micro_batch_size=2, seed=0)
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [[3, 4, 1, 0], [2]]
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
        for name, value in (numbers | ({"epoch_steps": epoch_steps} if epoch_steps else {})).items():
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number >= 1, found {value!r}")
        if step_size < world_size:
            raise UserError(f"batch_size: expected an utterance for each of {world_size} processes, found {step_size}")
        self.durations = np.asarray(durations)
        self.step_size, self.micro_batch_size = step_size, min(micro_batch_size, step_size)
        self.seed, self.epoch_steps, self.bucket_steps = seed, epoch_steps, bucket_steps
        self.rank, self.world_size = rank, world_size
        self.probabilities = None if weights is None else np.asarray(weights, float) / np.sum(weights)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch
        self.__dict__.pop("plan", None)

    @cached_property
    def plan(self) -> list[Step]:
        rng, n = np.random.default_rng([self.seed, self.epoch]), len(self.durations)
        wanted = self.epoch_steps * self.step_size or n
        rounds = [
            rng.permutation(n) if self.probabilities is None else rng.choice(n, n, p=self.probabilities)
            for _ in range(-(-wanted // n))
        ]
        return [self._share(step) for step in self._steps(np.concatenate(rounds)[:wanted], rng)]

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

    def _share(self, step: np.ndarray) -> Step:
        longest_first = step[np.argsort(self.durations[step], kind="stable")[::-1]]
        mine = longest_first[self.rank :: self.world_size]  # short and long ones for everybody
        return Step(mine.tolist(), len(step))

    def micro_batches(self, items: list) -> list[Batch]:
        """Collate a step's items into its micro-batches: none for a process that gets no utterance of it."""
        return [Batch(part) for part in self._cut(items)]

    def _cut(self, step: list) -> list[list]:
        return [step[i : i + self.micro_batch_size] for i in range(0, len(step), self.micro_batch_size)]

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return self.epoch_steps or -(-len(self.durations) // self.step_size)

    def padding_share(self) -> float:
        """Return the share of the epoch's samples that are padding."""
        lengths = [self.durations[part] for step in self.plan for part in self._cut(step.indices)]
        return float(1 - sum(x.sum() for x in lengths) / sum(x.max() * len(x) for x in lengths))

    def __iter__(self) -> Iterator[list[int]]:
        return (step.indices for step in self.plan)

    def __len__(self) -> int:
        return len(self.plan)


def balanced_weights(
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    second_corpus: str | Sequence[str] = (),
    second_share: float | None = None,
) -> np.ndarray | None:
    """Return how often each training utterance is drawn [utterances]; None where each is to be drawn once an epoch.

    Groups of equal `columns` (``[emotion]``, ``[corpus, emotion]``, …) are drawn equally often; what is joined, one
    corpus or several, has its `second_share`, 0 to 1, of all.

    Example
    -------
    >>> frame = pd.DataFrame({"emotion": ["sad", "sad", "angry"], "corpus": ["savee", "savee", "emodb"]})
    >>> balanced_weights(frame, ["emotion"]).tolist(), balanced_weights(frame, None, "emodb", 0.2).round(3).tolist()
    ([0.5, 0.5, 1.0], [0.4, 0.4, 0.2])
    """
    if columns is None and second_share is None:
        return None
    weights = np.ones(len(frame))
    if columns is not None:
        if isinstance(columns, int | float):
            raise UserError(f"balance: expected columns, such as [emotion], found {columns}")
        columns = [columns] if isinstance(columns, str) else list(columns)
        if unknown := [f"{c}{nearest(c, frame.columns)}" for c in columns if c not in frame]:
            raise UserError(f"balance: no column {', '.join(unknown)}; there are: {', '.join(frame.columns)}")
        weights = 1 / frame.groupby(columns)["emotion"].transform("size").to_numpy(float)
    if second_share is not None:
        names = [second_corpus] if isinstance(second_corpus, str) else second_corpus or ()
        is_second = frame["corpus"].isin(names).to_numpy()
        if not isinstance(second_share, int | float) or not 0 <= second_share <= 1 or not is_second.any():
            raise UserError(f"second_share: expected a second_corpus and a share of 0 to 1, found {second_share!r}")
        for whose, share in ((is_second, second_share), (~is_second, 1 - second_share)):
            weights[whose] = share * weights[whose] / weights[whose].sum()
    return weights


def length_sorted_batches(durations: Sequence[float], batch_size: int) -> list[list[int]]:
    """Return batches for evaluation: longest first, so that little is padded and too little memory shows at once."""
    order = np.argsort(np.asarray(durations), kind="stable")[::-1].tolist()
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
