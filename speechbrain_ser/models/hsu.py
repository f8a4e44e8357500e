"""Hsu et al. 2023: speech taken apart by an autoencoder (stage 1), and beside wav2vec2 for four tasks (stage 2)."""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from speechbrain.dataio.batch import PaddedData
from torch import nn

from speechbrain_ser.data.labels import DIMENSIONS
from speechbrain_ser.errors import UserError, nearest, shown
from speechbrain_ser.files import read_json
from speechbrain_ser.lobes.speech_decomposition import (
    ContentEncoder,
    Decoder,
    PitchEncoder,
    RhythmEncoder,
    SpeechDecomposition,
    TimbreEncoder,
)
from speechbrain_ser.models.checkpoints import CheckpointReader, find_epoch
from speechbrain_ser.models.heads import MultitaskModel, active_tasks
from speechbrain_ser.nnet.augment import RandomResampling, random_crop
from speechbrain_ser.nnet.initialization import build_seeded
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask, own_frames
from speechbrain_ser.processing.pitch import PitchTrack
from speechbrain_ser.processing.split_mel import SplitMel

logger = logging.getLogger(__name__)

# `single` is the one encoder of a plain autoencoder: rhythm's kind, which reads the spectrogram as it is
ENCODERS = {
    "content": ContentEncoder,
    "pitch": PitchEncoder,
    "rhythm": RhythmEncoder,
    "timbre": TimbreEncoder,
    "single": RhythmEncoder,
}
RESAMPLED = ("content", "pitch")
Heads = Mapping[str, Callable[..., nn.Module]]
Sizes = Mapping[str, Mapping[str, int]]


def _build_decomposition(
    parts: Sequence[str], sizes: Sizes, resampling: Mapping[str, float] | None, seed: int, with_decoder: bool = True
) -> SpeechDecomposition | None:
    """Encoders by name, and a decoder that fits them; each part's initial weights depend on its name alone."""
    _check_names("sizes", sizes, [*ENCODERS, "decoder"])
    if not parts:
        return None
    makers = {name: partial(ENCODERS[name], **sizes.get(name, {})) for name in parts}
    for name in set(RESAMPLED) & set(parts):
        kind = None if resampling is None else partial(_make, "resampling", RandomResampling, **resampling)
        makers[name] = partial(makers[name], resampling=kind)
    encoders = {name: _make(f"sizes: {name}", build_seeded, make, name, seed) for name, make in makers.items()}
    decoder = partial(build_seeded, partial(Decoder, **sizes.get("decoder", {})), "decoder", seed)
    return _make("sizes: decoder", SpeechDecomposition, encoders, decoder if with_decoder else None)


def _check_names(line: str, names: Sequence[str] | Mapping, known: Iterable[str]) -> None:
    """Refuse a line of names that are not known, or given twice."""
    if isinstance(names, str) or not isinstance(names, Sequence | Mapping):
        raise UserError(f"{line}: expected names of {', '.join(known)}, found {names!r}")
    if unknown := [f"{n}{nearest(str(n), known)}" for n in names if n not in known]:
        raise UserError(f"{line}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    if len(set(names)) < len(names):
        raise UserError(f"{line}: a name is given twice: {', '.join(names)}")


def _make(where: str, make, *args, **kwargs):
    """Build; what a constructor says of its arguments is told with the line that has them."""
    try:
        return make(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


class _Decomposed(MultitaskModel):
    """What both stages have: the decomposition and its features, and the check that parts serve the tasks."""

    without_head = ("reconstruction",)

    def __init__(self, tasks, parts, sizes, resampling, seed, mel, pitch, used=None):
        super().__init__()
        _check_names("parts", parts, ENCODERS)
        if "reconstruction" in tasks and not parts:
            raise UserError("the reconstruction needs encoders: give parts, or its weight 0")
        if "speaker" in tasks and "timbre" not in parts:
            raise UserError(f"the speaker task reads the timbre, which is not among the parts ({', '.join(parts)})")
        used = parts if used is None else used
        self.decomposition = _build_decomposition(used, sizes, resampling, seed, "reconstruction" in tasks)
        read = set() if self.decomposition is None else self.decomposition.reads
        # the decoder's target is the spectrogram, whatever the encoders read
        self.inputs = ({"mel": mel} if read else {}) | ({"f0": pitch} if "f0" in read else {})

    @property
    def min_samples(self) -> int:
        return max((f.min_samples for f in self.inputs.values() if f is not None), default=1)

    def decompose(self, mel: torch.Tensor, f0: torch.Tensor | None, counts: torch.LongTensor) -> dict:
        """Take spectrograms [batch, frames, bands] and F0 [batch, frames] of own frames `counts` [batch] apart.

        Return ``codes`` by encoder; with a decoder ``reconstruction`` and ``target`` [batch, frames, bands] and
        ``mel_frames`` [batch].
        """
        codes, reconstruction = self.decomposition(mel, f0, counts)
        outputs = {"codes": codes}
        if reconstruction is not None:
            outputs |= {"reconstruction": reconstruction, "target": mel, "mel_frames": counts}
        return outputs


class HsuPretrainModel(_Decomposed):
    """Stage 1: codes = E(mel, F0), mel' = D(codes), speaker = g(Z_T) (Hsu et al. 2023, figure 2, eq. 7).

    Arguments
    ---------
    parts : sequence of str
        The encoders: content, pitch, rhythm, timbre, or single (a plain autoencoder).
    sizes : mapping
        Of the encoders and of the decoder.
    resample, resampling : bool, mapping
        Whether content and pitch are randomly resampled in training, and how.
    heads, loss_weights, seed
        :class:`MultitaskModel`'s; every head reads the timbre.
    crop : sequence of int, optional
        Frames of the shortest and longest random piece that is trained on; None: whole utterances.
    crop_padding : int
        Pieces are filled up with silence to so many frames, which count as theirs (the published program's 192);
        0: pieces as they are.
    """

    tasks = ("reconstruction", "speaker")

    def __init__(
        self,
        mel: SplitMel,
        pitch: PitchTrack,
        parts: Sequence[str],
        sizes: Sizes,
        resample: bool,
        resampling: Mapping[str, float],
        heads: Heads,
        loss_weights: Mapping[str, float],
        crop: Sequence[int] | None = (64, 128),
        crop_padding: int = 192,
        seed: int = 0,
    ):
        tasks = active_tasks(loss_weights, [*self.tasks, *heads])
        if "reconstruction" not in tasks:
            raise UserError("loss_weights: pre-training without the reconstruction (weight 0) would train no decoder")
        super().__init__(tasks, parts, sizes, resampling if resample else None, seed, mel, pitch)
        self.crop, self.crop_padding = _checked_crop(crop), crop_padding
        if crop_padding and (self.crop is None or crop_padding < self.crop[1]):
            raise UserError(f"crop_padding is {crop_padding}, expected 0 or at least the longest crop ({crop})")
        self.build_heads(heads, loss_weights, self.decomposition.output_sizes.get("timbre"), seed)

    def forward(self, mel: PaddedData, f0: PaddedData | None = None) -> dict:
        """Bring spectrograms and F0 to codes, reconstruction and logits; random pieces of them in training."""
        frames, lens = mel
        signals = {"mel": frames} | ({} if f0 is None else {"f0": f0[0]})
        counts = absolute_lengths(frames[:, :, 0], lens)
        if self.training and self.crop is not None:
            signals, counts = random_crop(signals, counts, *self.crop)
            if self.crop_padding:
                signals, counts = _with_silence(signals, counts, self.crop_padding)
        outputs = self.decompose(signals["mel"], signals.get("f0"), counts)
        return outputs | self.logits(outputs["codes"].get("timbre"))


class HsuModel(_Decomposed):
    """Stage 2: wav2vec2 and the decomposition, four tasks (Hsu et al. 2023, figure 1, eq. 5).

    emotion = h([mean z | mean Z_C | mean Z_F | mean Z_R | Z_T]), characters = g(z), mel' = D(Z), speaker = i(Z_T).

    What no task reads is not built: an encoder stays where the decoder, the emotion head or the speaker head reads it.

    Arguments
    ---------
    encoder, pooling
        wav2vec2: waveforms to frames z; over an utterance's own frames.
    mel, pitch, parts, sizes, resample, resampling
        As in :class:`HsuPretrainModel`; no parts: wav2vec2 alone (M1, M2 in the paper's table 3).
    emotion_reads : sequence of str
        Which codes reach the emotion head, and any other but those below (the paper's table 2).
    heads, loss_weights, seed
        :class:`MultitaskModel`'s.
    """

    tasks = ("emotion", "reconstruction", "asr", "speaker")

    def __init__(
        self,
        encoder: nn.Module,
        pooling: MaskedPooling,
        mel: SplitMel,
        pitch: PitchTrack,
        parts: Sequence[str],
        emotion_reads: Sequence[str],
        sizes: Sizes,
        resample: bool,
        resampling: Mapping[str, float],
        heads: Heads,
        loss_weights: Mapping[str, float],
        seed: int = 0,
    ):
        tasks = active_tasks(loss_weights, [*self.tasks, *heads, *DIMENSIONS])
        if unknown := [name for name in emotion_reads if name not in parts]:
            raise UserError(f"emotion_reads: {', '.join(unknown)} not among the parts ({', '.join(parts) or 'none'})")
        read = {*emotion_reads, *(["timbre"] if "speaker" in tasks else [])}
        used = [p for p in parts if p in read or "reconstruction" in tasks]
        super().__init__(tasks, parts, sizes, resampling if resample else None, seed, mel, pitch, used)
        self.inputs = {"sig": getattr(encoder, "features", None), **self.inputs}
        self.encoder, self.pooling = encoder, pooling
        self.emotion_reads = tuple(emotion_reads)
        codes = {} if self.decomposition is None else self.decomposition.output_sizes
        pooled = build_seeded(pooling.set_up, "pooling", seed, channels=encoder.output_size)
        width = pooled + sum(codes[name] for name in emotion_reads)
        self.build_heads(heads, loss_weights, width, seed, asr=encoder.output_size, speaker=codes.get("timbre"))

    @property
    def min_samples(self) -> int:
        return max(self.encoder.min_samples, super().min_samples)

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove what only other tasks need, encoders and F0 among it; see :meth:`MultitaskModel.keep_tasks`."""
        super().keep_tasks(tasks)
        if self.decomposition is None or "reconstruction" in tasks:
            return
        used = {*self.emotion_reads, *(["timbre"] if "speaker" in self.heads else [])}
        if used:
            self.decomposition.keep_encoders(used)
        else:
            self.decomposition = None
        read = {"mel", *self.decomposition.reads} if used else set()
        self.inputs = {name: features for name, features in self.inputs.items() if name == "sig" or name in read}

    def forward(self, sig: PaddedData, mel: PaddedData | None = None, f0: PaddedData | None = None) -> dict:
        """Bring waveforms, and the spectrograms and F0 that parts read, to the outputs of every task."""
        wavs, wav_lens = sig
        z = self.encoder(wavs, wav_lens)  # (batch, frames, channels)
        frames = own_frames(wavs, wav_lens, self.encoder.frame_counts)
        outputs, vectors, codes = {"frames": frames}, [self.pooling(z, frames)], {}
        if self.decomposition is not None:
            spectrograms, lens = mel
            counts = absolute_lengths(spectrograms[:, :, 0], lens)
            outputs |= self.decompose(spectrograms, None if f0 is None else f0[0], counts)
            codes = outputs["codes"]
            pooled = self.decomposition.pool(codes, counts)
            vectors += [pooled[name] for name in self.emotion_reads]
        outputs["embedding"] = torch.cat(vectors, dim=-1)
        return outputs | self.logits(outputs["embedding"], asr=z, speaker=codes.get("timbre"))


def _checked_crop(crop) -> tuple[int, int] | None:
    if crop is None:
        return None
    right = isinstance(crop, Sequence) and len(crop) == 2 and all(isinstance(c, int) for c in crop)
    if not right or not 1 <= crop[0] <= crop[1]:
        raise UserError(f"crop: expected [shortest, longest] in frames, or null, found {crop!r}")
    return tuple(crop)


def _with_silence(signals: dict, counts: torch.LongTensor, frames: int) -> tuple[dict, torch.LongTensor]:
    """Pieces filled up with 0, which is silence to the spectrogram and unvoiced to F0, as frames of their own."""
    filled = {}
    for name, signal in signals.items():
        own = frame_mask(counts.to(signal.device), signal.shape[1])
        own = own.reshape(*own.shape, *[1] * (signal.dim() - 2))
        missing = (*[0, 0] * (signal.dim() - 2), 0, frames - signal.shape[1])
        filled[name] = nn.functional.pad(signal.masked_fill(~own, 0.0), missing)
    return filled, torch.full_like(counts, frames)


DECOMPOSITION, SPEAKER = "decomposition.", "heads.speaker."


def load_stage_1(model: nn.Module, run_folder: str | os.PathLike, speakers: Sequence[str]) -> None:
    """Take over the parameters of `run_folder`, a run of hsu_pretrain.yaml.

    The model's decomposition may have fewer parts than stage 1's. Its speaker head, where it has one, is stage 1's as
    far as the speakers are; `speakers` are the model's, in the order of its logits.
    """
    save = Path(run_folder) / "save"
    checkpoint = find_epoch(CheckpointReader(save))  # the last one's
    if checkpoint is None:
        raise UserError(f"pretrained: {run_folder} holds no checkpoint of a finished epoch")
    path, theirs = checkpoint.paramfiles["model"], read_json(save / "speakers.json")
    state = torch.load(path, map_location="cpu", weights_only=True)
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith((DECOMPOSITION, SPEAKER))}
    taken = {name: state[name] for name in wanted if name in state}
    if strangers := sorted(set(speakers) - set(theirs)):
        if any(name.startswith(SPEAKER) for name in wanted):
            raise UserError(f"pretrained: {path} knows no speakers {', '.join(strangers)}, who are trained on here")
    else:
        rows = [theirs.index(speaker) for speaker in speakers]
        taken |= {name: value[rows] for name, value in taken.items() if name.startswith(SPEAKER)}
    other_sizes = [
        f"{name}: there {list(taken[name].shape) if name in taken else 'absent'}, here {list(value.shape)}"
        for name, value in wanted.items()
        if (name not in taken and not name.startswith(SPEAKER)) or (name in taken and taken[name].shape != value.shape)
    ]
    if other_sizes:
        raise UserError("\n  ".join([f"pretrained: {path} has other sizes:", *shown(other_sizes)]))
    model.load_state_dict(taken, strict=False)
    logger.info(f"started from {run_folder}, epoch {checkpoint.meta['epoch']}")
