"""`speechbrain-ser decompose` and `convert`: a recording's parts and codes, exchanged, drawn and heard."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from speechbrain_ser.data.audio import BadAudioError, duration_of
from speechbrain_ser.data.batches import SAMPLE_RATE, load_audio
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.figures import save_figure
from speechbrain_ser.files import written_whole
from speechbrain_ser.lobes.speech_decomposition import SpeechDecomposition
from speechbrain_ser.nnet.losses import masked_mse
from speechbrain_ser.processing.pitch import PitchTrack, normalize
from speechbrain_ser.processing.split_mel import (
    HOP,
    LEVEL,
    N_FFT,
    N_MELS,
    RANGE_DB,
    REFERENCE_DB,
    SplitMel,
    mel_filters,
)

SILENT = 0.01  # of the range of the mel spectrogram: -83 dB, where only the dither is


@dataclass(frozen=True)
class Parts:
    """A recording as encoders read it, and a name for pictures and files.

    Arguments
    ---------
    name : str
        Of the recording.
    mel : np.ndarray
        SpeechSplit's mel spectrogram, float32 [frames, bands], 0 to 1.
    f0_hz : np.ndarray, optional
        float32 [frames], in Hz, 0 where unvoiced; None where no encoder reads F0.
    f0 : np.ndarray, optional
        Normalised, float32 [frames]; None where no encoder reads F0.
    hop_seconds : float
        From frame to frame.
    """

    name: str
    mel: np.ndarray
    f0_hz: np.ndarray | None
    f0: np.ndarray | None
    hop_seconds: float

    @property
    def remark(self) -> str:
        """What a reader of a picture should know: `silent`, `entirely unvoiced`, or nothing.

        Example
        -------
        >>> Parts("a01", np.ones((3, 80)), np.zeros(3), np.full(3, -1e10), 0.016).remark
        'entirely unvoiced'
        """
        if self.mel.max() < SILENT:
            return "silent"
        return "entirely unvoiced" if self.f0_hz is not None and not self.f0_hz.any() else ""

    @property
    def title(self) -> str:
        """Name and remark."""
        return f"{self.name} ({self.remark})" if self.remark else self.name


def read_parts(path: str | os.PathLike, mel: SplitMel, f0: PitchTrack | None = None, name: str | None = None) -> Parts:
    """The parts of a recording; one without any voice, or silent, has them too.

    Arguments
    ---------
    path : str or os.PathLike
        Anything soundfile reads.
    mel : SplitMel
        The extractor of the run.
    f0 : PitchTrack, optional
        That of the run; None leaves F0 out.
    name : str, optional
        Of the recording; its file's without the suffix by default.

    Returns
    -------
    Parts

    Raises
    ------
    UserError
        When the file is missing, unreadable, empty, truncated, not finite, or too short for a frame.
    """
    path = Path(path)
    return parts_of(_load(path, mel), name or path.stem, mel, f0)


def parts_of(wav: torch.Tensor, name: str, mel: SplitMel, f0: PitchTrack | None = None) -> Parts:
    """The parts of a waveform.

    Arguments
    ---------
    wav : torch.Tensor
        [time], 16 kHz.
    name : str
        Of the recording.
    mel : SplitMel
        The extractor of the run.
    f0 : PitchTrack, optional
        That of the run; None leaves F0 out.

    Returns
    -------
    Parts

    Example
    -------
    >>> parts = parts_of(torch.zeros(16000), "silence", SplitMel())
    >>> parts.mel.shape, parts.f0, parts.title
    ((63, 80), None, 'silence (silent)')
    """
    hz = None if f0 is None else f0.extract_hz(wav).numpy()
    return Parts(
        name=name,
        mel=mel.extract(wav).numpy(),
        f0_hz=hz,
        f0=None if hz is None else normalize(hz),
        hop_seconds=mel.hop_seconds,
    )


def _load(path: Path, mel: SplitMel) -> torch.Tensor:
    try:
        duration_of(path)
    except BadAudioError as defect:
        raise UserError(f"{path}: {defect.words}") from defect
    wav = load_audio(path)
    if len(wav) < mel.min_samples:
        raise UserError(
            f"{path}: expected a recording of at least {mel.min_samples} samples at 16 kHz, which make a frame, "
            f"found {len(wav)}"
        )
    return wav


@dataclass(frozen=True)
class Analysis:
    """What a decomposition makes of a recording.

    Arguments
    ---------
    parts : Parts
        What it read.
    codes : dict of str to np.ndarray
        By encoder, in the decoder's order: [codes, size], or [size] where an utterance has one vector (timbre).
    hops : dict of str to int
        Frames that a code stands for, of the encoders that give more than one.
    reconstruction : np.ndarray, optional
        [frames, bands]; None without a decoder.
    mse : float, optional
        Of the reconstruction, over frames and bands; None without a decoder.
    """

    parts: Parts
    codes: dict[str, np.ndarray]
    hops: dict[str, int]
    reconstruction: np.ndarray | None
    mse: float | None


def reads_f0(decomposition: SpeechDecomposition) -> bool:
    """Whether an encoder reads F0: tracking it takes longer than all the rest.

    Example
    -------
    >>> from speechbrain_ser.lobes.speech_decomposition import RhythmEncoder
    >>> reads_f0(SpeechDecomposition({"rhythm": RhythmEncoder()}, decoder=None))
    False
    """
    return any(encoder.reads == "f0" for encoder in decomposition.encoders.values())


def analyse(decomposition: SpeechDecomposition, parts: Parts) -> Analysis:
    """Encode and decode a recording as it is: in evaluation mode, so that nothing is resampled.

    Arguments
    ---------
    decomposition : SpeechDecomposition
        On any device; it is left in the mode it was in.
    parts : Parts
        Of the recording, with F0 if an encoder reads it.

    Returns
    -------
    Analysis

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_ser.inference.decompose import parts_of
    >>> from speechbrain_ser.lobes.speech_decomposition import Decoder, RhythmEncoder, TimbreEncoder
    >>> from speechbrain_ser.processing.split_mel import SplitMel
    >>> encoders = {"rhythm": RhythmEncoder(), "timbre": TimbreEncoder(channels=64, groups=4)}
    >>> decomposition = SpeechDecomposition(encoders, partial(Decoder, units=8))
    >>> analysis = analyse(decomposition, parts_of(torch.randn(16000), "noise", SplitMel()))
    >>> {name: code.shape for name, code in analysis.codes.items()}, analysis.hops
    ({'rhythm': (8, 2), 'timbre': (64,)}, {'rhythm': 8})
    >>> analysis.reconstruction.shape
    (63, 80)
    """
    with evaluating(decomposition):
        codes = encode(decomposition, parts)
        reconstruction = mse = None
        if decomposition.decoder is not None:
            decoded = decomposition.decode(codes, len(parts.mel))
            mel = torch.from_numpy(parts.mel)[None].to(decoded)
            mse = masked_mse(decoded, mel, torch.tensor([len(parts.mel)])).item()
            reconstruction = to_array(decoded)
    return Analysis(
        parts=parts,
        codes={name: to_array(code) for name, code in codes.items()},
        hops={name: encoder.hop for name, encoder in decomposition.encoders.items() if hasattr(encoder, "hop")},
        reconstruction=reconstruction,
        mse=mse,
    )


def encode(decomposition: SpeechDecomposition, parts: Parts) -> dict[str, torch.Tensor]:
    """Codes of one recording, a batch of one, where the model is."""
    like = next(decomposition.parameters())
    mel = torch.from_numpy(parts.mel)[None].to(like)
    f0 = None if parts.f0 is None else torch.from_numpy(parts.f0)[None].to(like.device)
    return decomposition.encode(mel, f0)


def to_array(batch: torch.Tensor) -> np.ndarray:
    """The one utterance of a batch."""
    return batch[0].float().cpu().numpy()


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module is left in the mode it was in.

    Example
    -------
    >>> model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    >>> with evaluating(model):
    ...     model[0].training
    False
    >>> model.training, model[0].training, model[1].training
    (True, True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class Conversion:
    """An utterance with some of another's codes.

    Arguments
    ---------
    source, target : Parts
        Whose codes are kept, and whose replace some.
    swap : tuple of str
        The encoders whose codes are the target's.
    kept : tuple of str
        The other encoders.
    codes : dict of str to np.ndarray
        What was decoded: [codes, size], or [size] where an utterance has one vector (timbre).
    mel : np.ndarray
        The decoder's [frames, bands].
    f0_hz : np.ndarray, optional
        The contour asked for, laid on the output as its code is [frames], in Hz, 0 where unvoiced; None where no
        encoder reads F0. It is not measured on the output.
    """

    source: Parts
    target: Parts
    swap: tuple[str, ...]
    kept: tuple[str, ...]
    codes: dict[str, np.ndarray]
    mel: np.ndarray
    f0_hz: np.ndarray | None


def check_swap(decomposition: SpeechDecomposition, swap: Collection[str]) -> None:
    """Whether these codes can be swapped.

    Arguments
    ---------
    decomposition : SpeechDecomposition
        That would decode them.
    swap : collection of str
        Names of encoders.

    Raises
    ------
    UserError
        When there is no decoder, or no such encoder.

    Example
    -------
    >>> from speechbrain_ser.lobes.speech_decomposition import RhythmEncoder
    >>> check_swap(SpeechDecomposition({"rhythm": RhythmEncoder()}), ["rythm"])
    Traceback (most recent call last):
    speechbrain_ser.errors.UserError: swap: the model has no encoder 'rythm' (did you mean 'rhythm'?); it has: rhythm
    """
    for name in swap:
        if name not in decomposition.encoders:
            raise UserError(
                f"swap: the model has no encoder {name!r}{nearest(name, decomposition.encoders)}; "
                f"it has: {', '.join(decomposition.encoders)}"
            )
    if decomposition.decoder is None:
        raise UserError("swap: expected a model with a decoder, found encoders only: nothing can be reconstructed")


def convert(decomposition: SpeechDecomposition, source: Parts, target: Parts, swap: Collection[str]) -> Conversion:
    """The source with some of the target's codes, decoded; see this module's text for different lengths.

    Arguments
    ---------
    decomposition : SpeechDecomposition
        With a decoder, on any device; it is left in the mode it was in.
    source, target : Parts
        Two recordings, with F0 if an encoder reads it.
    swap : collection of str
        Encoders whose codes come from the target, of those that the model has: pitch, rhythm, timbre, content.
        Nothing swapped is the source's reconstruction, everything the target's.

    Returns
    -------
    Conversion

    Raises
    ------
    UserError
        When there is no decoder, or no such encoder.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_ser.inference.decompose import parts_of
    >>> from speechbrain_ser.lobes.speech_decomposition import Decoder, RhythmEncoder, TimbreEncoder
    >>> from speechbrain_ser.processing.split_mel import SplitMel
    >>> encoders = {"rhythm": RhythmEncoder(), "timbre": TimbreEncoder(channels=64, groups=4)}
    >>> decomposition = SpeechDecomposition(encoders, partial(Decoder, units=8))
    >>> source, target = (parts_of(torch.randn(n), f"{n}", SplitMel()) for n in (16000, 8000))
    >>> convert(decomposition, source, target, ["timbre"]).mel.shape
    (63, 80)
    >>> convert(decomposition, source, target, ["rhythm"]).mel.shape
    (32, 80)
    """
    check_swap(decomposition, swap)
    swap = tuple(name for name in decomposition.encoders if name in swap)  # in the decoder's order, once each
    frames = len((target if _leader(decomposition) in swap else source).mel)
    with evaluating(decomposition):
        own, other = encode(decomposition, source), encode(decomposition, target)
        codes = {
            name: _lay(encoder, (other if name in swap else own)[name], frames)
            for name, encoder in decomposition.encoders.items()
        }
        mel = decomposition.decode(codes, frames)
    return Conversion(
        source=source,
        target=target,
        swap=swap,
        kept=tuple(name for name in decomposition.encoders if name not in swap),
        codes={name: to_array(code) for name, code in codes.items()},
        mel=to_array(mel),
        f0_hz=_f0_asked_for(decomposition, source, target, swap, frames),
    )


def _leader(decomposition: SpeechDecomposition) -> str:
    """The encoder that decides the output's length."""
    names = list(decomposition.encoders)
    varying = [name for name in names if hasattr(decomposition.encoders[name], "hop")]
    return "rhythm" if "rhythm" in names else (varying or names)[0]


def _lay(encoder: torch.nn.Module, code: torch.Tensor, frames: int) -> torch.Tensor:
    """A code of any length for so many frames: cut, or 0 past its end."""
    if code.dim() == 2:  # one vector an utterance
        return code
    codes = -(-frames // encoder.hop)
    return F.pad(code, (0, 0, 0, codes - code.shape[1]))  # a negative padding cuts


def _f0_asked_for(decomposition, source: Parts, target: Parts, swap: tuple[str, ...], frames: int) -> np.ndarray | None:
    readers = [name for name, encoder in decomposition.encoders.items() if encoder.reads == "f0"]
    if not readers:
        return None
    f0 = (target if readers[0] in swap else source).f0_hz[:frames]
    return np.pad(f0, (0, frames - len(f0)))


ITERATIONS = 60  # 200 bring speech 0.05 dB nearer


MOMENTUM = 0.99 / 1.99  # of the fast variant (Perraudin, Balazs and Sondergaard 2013), as librosa has it


MIN_FRAMES = 4  # the Fourier transform reflects half a window at either end


def invert_mel(mel: torch.Tensor | np.ndarray, iterations: int = ITERATIONS) -> torch.Tensor:
    """The waveform whose mel spectrogram is close to this one: the inverse of :class:`SplitMel`.

    Decibels become the magnitudes of the bands, these the magnitudes of the spectrum (the smallest that have such
    bands; what is then below 0 is 0), and Griffin and Lim's iteration finds phases that fit them. Nothing is random:
    all phases are 0 at first. What SplitMel removes (below 30 Hz) or never sees (below 90 and above 7600 Hz) stays
    away. Four recordings of EMO-DB came back to 1.5 to 2.4 dB (root mean square over bands and frames).

    Arguments
    ---------
    mel : torch.Tensor or np.ndarray
        [frames, bands], 0 (-84 dB) to 1 (16 dB); values beyond, as a decoder may give, count as 0 and 1.
    iterations : int
        Of Griffin and Lim's.

    Returns
    -------
    torch.Tensor
        float32 [frames * 256 - 128], 16 kHz: within half a hop of any recording of so many frames. It may exceed
        -1 to 1.

    Raises
    ------
    ValueError
        When `mel` is not [frames, bands] or not finite.

    Example
    -------
    >>> from speechbrain_ser.processing.split_mel import SplitMel
    >>> split_mel = SplitMel()
    >>> wav = torch.sin(torch.arange(16000) * 2 * torch.pi * 440 / 16000)
    >>> mel = split_mel.extract(wav)
    >>> again = invert_mel(mel)
    >>> again.shape, bool((split_mel.extract(again) - mel).square().mean().sqrt() < 0.06)  # a pure tone is hardest
    (torch.Size([16000]), True)
    """
    mel = np.asarray(mel, dtype=np.float64)
    if mel.ndim != 2 or not len(mel) or mel.shape[1] != N_MELS:
        raise ValueError(f"expected a spectrogram [frames, {N_MELS}], found {list(mel.shape)}")
    if not np.isfinite(mel).all():
        raise ValueError("expected a spectrogram of finite values, found nan or inf")
    magnitudes = np.maximum(_expand(mel) @ np.linalg.pinv(mel_filters()), 0.0) / LEVEL  # [frames, bins]
    padding = max(0, MIN_FRAMES - len(mel))
    magnitudes = np.pad(magnitudes, [(0, padding), (0, 0)])
    wav = _griffin_lim(torch.from_numpy(np.ascontiguousarray(magnitudes.T)), iterations)
    return wav[: _samples(len(mel))].float()


def _griffin_lim(magnitudes: torch.Tensor, iterations: int) -> torch.Tensor:
    """The waveform of magnitudes [bins, frames] and of the phases that waveforms near it have."""
    window = torch.hann_window(N_FFT, dtype=magnitudes.dtype)
    length = _samples(magnitudes.shape[1])
    phases, previous = torch.ones_like(magnitudes, dtype=torch.complex128), 0.0
    for _ in range(iterations):
        wav = torch.istft(magnitudes * phases, N_FFT, HOP, window=window, length=length)
        rebuilt = torch.stft(wav, N_FFT, HOP, window=window, return_complex=True)
        phases = rebuilt - MOMENTUM * previous
        phases, previous = phases / (phases.abs() + 1e-16), rebuilt
    return torch.istft(magnitudes * phases, N_FFT, HOP, window=window, length=length)


def _samples(frames: int) -> int:
    """The middle of all lengths that have so many frames."""
    return frames * HOP - HOP // 2


def _expand(mel: np.ndarray) -> np.ndarray:
    """Magnitudes of the bands: SplitMel's compression undone."""
    return 10 ** ((mel.clip(0.0, 1.0) * RANGE_DB - RANGE_DB + REFERENCE_DB) / 20)


matplotlib.rcParams["svg.hashsalt"] = "speechbrain-ser"


MEL = {"cmap": "magma", "vmin": 0, "vmax": 1}  # SplitMel's range


UNVOICED = {"color": "0.9", "linewidth": 0}


F0_COLOUR = "#35d0e0"  # seen on all of magma


SECONDS = 4.0  # of a figure of normal width; longer ones are wider


def plot_analysis(analysis: Analysis) -> Figure:
    """The mel spectrogram, F0, codes and reconstruction of a recording on one time axis.

    Codes are drawn over the frames that they stand for, a row of pixels a channel; one that is the same for a whole
    utterance (timbre) stands in a column of its own. F0 is drawn where voiced; unvoiced frames are grey. What the model
    does not have is left out. Frame t stands at t x hop, as with centred windows.

    Arguments
    ---------
    analysis : Analysis
        From :func:`speechbrain_ser.inference.decompose.analyse`.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> from speechbrain_ser.inference.decompose import Analysis
    >>> from speechbrain_ser.inference.decompose import Parts
    >>> mel, hz = np.random.default_rng(0).random((20, 80)), np.full(20, 100.0)
    >>> codes = {"rhythm": np.zeros((3, 2)), "timbre": np.zeros(64)}
    >>> analysis = Analysis(Parts("a01", mel, hz, hz, 0.016), codes, {"rhythm": 8}, mel, 0.0)
    >>> figure = plot_analysis(analysis)
    >>> [axes.get_ylabel() for axes in figure.axes if axes.get_label() != "<colorbar>"]
    ['mel band', 'F0 (Hz)\\n(grey: unvoiced)', 'rhythm\\n(channel)', 'reconstruction\\n(mel band)', 'timbre (channel)']
    """
    parts = analysis.parts
    varying = [name for name in analysis.codes if name in analysis.hops]
    fixed = [name for name in analysis.codes if name not in analysis.hops]
    heights = {"mel": 2.0}
    if parts.f0_hz is not None:
        heights["f0"] = 1.2
    heights |= {f"code {name}": 1.0 for name in varying}
    if analysis.reconstruction is not None:
        heights["reconstruction"] = 2.0

    figure = _figure(len(parts.mel) * parts.hop_seconds, height=1.0 + 1.05 * sum(heights.values()), side=len(fixed))
    widths = [1.0] + [0.06] * len(fixed)
    grid = figure.add_gridspec(len(heights), len(widths), height_ratios=list(heights.values()), width_ratios=widths)
    rows = {}
    for i, name in enumerate(heights):
        rows[name] = figure.add_subplot(grid[i, 0], sharex=rows.get("mel"))
    _draw_mel(rows["mel"], parts.mel, parts.hop_seconds, colorbar=True)
    if "f0" in rows:
        _draw_f0(rows["f0"], parts.f0_hz, parts.hop_seconds)
    for name in varying:
        frames = np.repeat(analysis.codes[name], analysis.hops[name], axis=0)[: len(parts.mel)]
        _draw_code(rows[f"code {name}"], frames, parts.hop_seconds, name)
    if analysis.reconstruction is not None:
        _draw_mel(rows["reconstruction"], analysis.reconstruction, parts.hop_seconds, colorbar=True)
        rows["reconstruction"].set_ylabel("reconstruction\n(mel band)")
    for axes in rows.values():
        axes.label_outer()
    axes.set_xlabel("time (s)")
    figure.align_ylabels(list(rows.values()))
    for i, name in enumerate(fixed):
        _draw_vector(figure.add_subplot(grid[:, 1 + i]), analysis.codes[name], name)
    figure.suptitle(
        parts.title if analysis.mse is None else f"{parts.title}: MSE of the reconstruction {analysis.mse:.2g}"
    )
    return figure


def plot_conversion(conversion: Conversion) -> Figure:
    """Source, target and what was made of them on one time axis, each with its F0.

    The curve over the converted spectrogram is the contour that was asked for; it is not measured.

    Arguments
    ---------
    conversion : Conversion
        From :func:`speechbrain_ser.inference.decompose.convert`.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> from speechbrain_ser.inference.decompose import Conversion
    >>> from speechbrain_ser.inference.decompose import Parts
    >>> mel, hz = np.random.default_rng(0).random((20, 80)), np.full(20, 100.0)
    >>> source, target = (Parts(name, mel, hz, hz, 0.016) for name in ("a01", "b01"))
    >>> figure = plot_conversion(Conversion(source, target, ("rhythm",), ("content", "pitch"), {}, mel, hz))
    >>> [axes.get_title("left") for axes in figure.axes[:3]]
    ['source: a01', 'target: b01', 'converted: rhythm of b01; content, pitch of a01']
    """
    source, target = conversion.source, conversion.target
    rows = [
        (f"source: {source.title}", source.mel, source.f0_hz, "F0 (Hz)"),
        (f"target: {target.title}", target.mel, target.f0_hz, "F0 (Hz)"),
        (f"converted: {_ingredients(conversion)}", conversion.mel, conversion.f0_hz, "F0 asked for (Hz)"),
    ]
    frames, hop = max(len(mel) for _, mel, _, _ in rows), source.hop_seconds
    highest = max((f0.max() for _, _, f0, _ in rows if f0 is not None), default=0.0)
    figure = _figure(frames * hop, height=7.5)
    all_axes = figure.subplots(3, sharex=True)
    for axes, (title, mel, f0, label) in zip(all_axes, rows, strict=True):
        image = _draw_mel(axes, mel, hop)
        axes.set_title(title, fontsize="medium", loc="left")
        if f0 is not None:
            _draw_f0_over(axes, f0, hop, label, highest)
    all_axes[-1].set(xlabel="time (s)", xlim=(-hop / 2, (frames - 0.5) * hop))
    figure.colorbar(
        image, ax=all_axes, location="bottom", shrink=0.6, aspect=40, pad=0.02, label="level (0: -84 dB, 1: 16 dB)"
    )
    return figure


def _ingredients(conversion: Conversion) -> str:
    """Whose codes a conversion has."""
    of = [(conversion.swap, conversion.target.name), (conversion.kept, conversion.source.name)]
    return "; ".join(f"{', '.join(names)} of {who}" for names, who in of if names)


def _figure(seconds: float, height: float, side: int = 0) -> Figure:
    return Figure(figsize=(7.2 * min(max(seconds / SECONDS, 1.0), 3.0) + 1.1 * side, height), layout="constrained")


def _draw_mel(axes, mel: np.ndarray, hop: float, colorbar: bool = False):
    image = _image(axes, mel, hop, **MEL)
    axes.set_ylabel("mel band")
    if colorbar:
        axes.figure.colorbar(image, ax=axes, pad=0.01, label="level")
    return image


def _draw_code(axes, frames: np.ndarray, hop: float, name: str) -> None:
    image = _image(axes, frames, hop, **_diverging(frames))
    axes.set_ylabel(f"{name}\n(channel)")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.figure.colorbar(image, ax=axes, pad=0.01)


def _draw_vector(axes, code: np.ndarray, name: str) -> None:
    image = axes.imshow(code[:, None], origin="lower", aspect="auto", interpolation="nearest", **_diverging(code))
    axes.set_xticks([])
    axes.set_ylabel(f"{name} (channel)")
    axes.figure.colorbar(image, ax=axes, pad=0.6, aspect=40, shrink=0.4)


def _diverging(code: np.ndarray) -> dict:
    """Colours of a code: white is 0."""
    largest = np.abs(code).max() or 1.0
    return {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}


def _image(axes, frames: np.ndarray, hop: float, **colours):
    """An image of [frames, channels], time to the right."""
    extent = (-hop / 2, (len(frames) - 0.5) * hop, -0.5, frames.shape[1] - 0.5)
    return axes.imshow(frames.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **colours)


def _draw_f0(axes, f0: np.ndarray, hop: float) -> None:
    edges = (np.arange(len(f0) + 1) - 0.5) * hop
    unvoiced = np.append(f0 == 0, False)  # an edge more than frames
    axes.fill_between(edges, 0, unvoiced, step="post", transform=axes.get_xaxis_transform(), **UNVOICED)
    axes.plot(np.arange(len(f0)) * hop, _voiced(f0), "C0.-", markersize=3, linewidth=1)
    axes.set(ylabel="F0 (Hz)\n(grey: unvoiced)", xlim=(edges[0], edges[-1]))
    if not f0.any():
        axes.set_yticks([])


def _draw_f0_over(axes, f0: np.ndarray, hop: float, label: str, highest: float) -> None:
    """F0 on a scale of its own, the same in all rows."""
    over = axes.twinx()
    over.plot(np.arange(len(f0)) * hop, _voiced(f0), ".-", color=F0_COLOUR, markersize=3, linewidth=1.2)
    over.set_ylabel(label)
    over.set_ylim(0, 1.25 * highest if highest else 1.0)
    if not highest:
        over.set_yticks([])


def _voiced(f0: np.ndarray) -> np.ndarray:
    return np.where(f0 > 0, f0, np.nan)


def decompose(run: str | os.PathLike, recordings: Sequence[str | os.PathLike], out: str | os.PathLike) -> None:
    """Write `NAME.png` and `NAME.npz` of each recording, and print where.

    Arguments
    ---------
    run : str or os.PathLike
        The folder of a trained run.
    recordings : sequence of str or os.PathLike
        Anything soundfile reads.
    out : str or os.PathLike
        Where the files go; it is made if need be.

    Raises
    ------
    UserError
        When the run has no decomposition, or a recording is unusable, or called like another.
    """
    names = recording_names(recordings)
    trained = _load_commands(run)
    decomposition = trained.model.decomposition
    for path, name in zip(recordings, names, strict=True):
        analysis = analyse(decomposition, _read(path, name, trained))
        folder = _make(out)
        save_figure(plot_analysis(analysis), folder / f"{name}.png")
        with written_whole(folder / f"{name}.npz") as temporary:
            temporary.write_bytes(_npz(analysis))
        print(f"{folder / name}.png, .npz" + ("" if analysis.mse is None else f"  MSE {analysis.mse:.3g}"))


def convert_recording(
    run: str | os.PathLike,
    source: str | os.PathLike,
    target: str | os.PathLike,
    swap: str,
    out: str | os.PathLike,
    audio: bool = False,
) -> None:
    """Write `SOURCE-TARGET-SWAP.png` and, with `audio`, two WAVs, and print where.

    Arguments
    ---------
    run : str or os.PathLike
        The folder of a trained run.
    source, target : str or os.PathLike
        The recording to convert, and the one whose codes it gets; anything soundfile reads.
    swap : str
        Which: names of encoders separated by commas.
    out : str or os.PathLike
        Where the files go; it is made if need be.
    audio : bool
        Whether to write `SOURCE-reconstruction.wav` and `SOURCE-TARGET-SWAP.wav`: what the decoder makes of the source
        as it is and with the target's codes, both by Griffin and Lim's algorithm.

    Raises
    ------
    UserError
        When the run has no decomposition or no decoder, nothing or something unknown is to be swapped, or a recording
        is unusable or called like the other.
    """
    swapped = [name.strip() for name in swap.split(",") if name.strip()]
    if not swapped:
        raise UserError(f"swap: expected names of encoders separated by commas, found {swap!r}")
    names = recording_names([source, target])
    trained = _load_commands(run)
    decomposition = trained.model.decomposition
    check_swap(decomposition, swapped)
    parts = [_read(path, name, trained) for path, name in zip((source, target), names, strict=True)]
    conversion = convert(decomposition, *parts, swapped)

    folder = _make(out)
    name = "-".join([*names, "+".join(conversion.swap)])
    print(save_figure(plot_conversion(conversion), folder / f"{name}.png"))
    if audio:
        reconstruction = analyse(decomposition, parts[0]).reconstruction
        for mel, stem in ((reconstruction, f"{names[0]}-reconstruction"), (conversion.mel, name)):
            path = folder / f"{stem}.wav"
            with written_whole(path) as temporary:
                temporary.write_bytes(_wav(mel))
            print(path)


def recording_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Names for files and pictures, no two alike: those of the files, where need be with their folder's.

    Arguments
    ---------
    paths : sequence of str or os.PathLike
        The recordings.

    Returns
    -------
    list of str
        In the order of `paths`.

    Raises
    ------
    UserError
        When two recordings are called alike with their folder, too.

    Example
    -------
    >>> recording_names(["DC/a01.wav", "DC/a02.wav"])
    ['a01', 'a02']
    >>> recording_names(["DC/a01.wav", "JE/a01.wav"])
    ['DC_a01', 'JE_a01']
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    names = [path.stem for path in absolute]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}_{path.stem}" for path in absolute]
    for i, k in combinations(range(len(names)), 2):
        if names[i] == names[k]:
            raise UserError(
                f"{paths[i]} and {paths[k]}: expected recordings of different names, found {names[i]} twice"
            )
    return names


def _load_commands(run):
    from speechbrain_ser.inference.trained import load_model

    trained = load_model(run)
    if getattr(trained.model, "decomposition", None) is None:
        raise UserError(f"{run}: expected a run of a model that decomposes speech, found one without such encoders")
    return trained


def _read(path, name: str, trained) -> Parts:
    f0 = trained.inputs["f0"] if reads_f0(trained.model.decomposition) else None
    return read_parts(path, trained.inputs["mel"], f0, name)


def _make(out) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: expected a folder that can be made, found {out} ({error.strerror})") from error
    return folder


def _npz(analysis: Analysis) -> bytes:
    """The arrays of an analysis: mel, f0_hz, f0, code_NAME, reconstruction (those that there are), hop_seconds."""
    parts = analysis.parts
    arrays = {"mel": parts.mel, "f0_hz": parts.f0_hz, "f0": parts.f0}
    arrays |= {f"code_{name}": code for name, code in analysis.codes.items()}
    arrays |= {"reconstruction": analysis.reconstruction, "hop_seconds": np.float64(parts.hop_seconds)}
    file = io.BytesIO()
    np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})
    return file.getvalue()


def _wav(mel: np.ndarray) -> bytes:
    """16-bit PCM; what exceeds full scale makes the whole recording quieter."""
    wav = invert_mel(mel).numpy()
    file = io.BytesIO()
    soundfile.write(file, wav / max(1.0, np.abs(wav).max()), SAMPLE_RATE, "PCM_16", format="WAV")
    return file.getvalue()
