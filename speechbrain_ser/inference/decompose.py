"""`speechbrain-ser decompose` and `convert`: a recording's parts and codes, exchanged, drawn and heard."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from speechbrain_ser.data.batches import SAMPLE_RATE, load_audio
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.figures import save_figure
from speechbrain_ser.files import file_stem, written_whole
from speechbrain_ser.inference.recognizer import TrainedModel, load_model
from speechbrain_ser.lobes.speech_decomposition import SpeechDecomposition
from speechbrain_ser.nnet.losses import masked_mse
from speechbrain_ser.processing.pitch import PitchTrack, normalize
from speechbrain_ser.processing.speech_split import HOP, LEVEL, N_FFT, N_MELS, RANGE_DB, REFERENCE_DB, mel_filters
from speechbrain_ser.processing.split_mel import SplitMel

SILENT = 0.01  # of the range of the mel spectrogram: -83 dB, where only the dither is

# ------------------------------------------------------------------ parts and codes


@dataclass(frozen=True)
class Parts:
    """A recording as encoders read it, and a name for pictures and files."""

    name: str
    mel: np.ndarray  # SpeechSplit's mel spectrogram, float32 [frames, bands], 0 to 1
    f0_hz: np.ndarray | None  # float32 [frames], 0 where unvoiced; None where no encoder reads F0
    f0: np.ndarray | None  # normalised, float32 [frames]
    hop_seconds: float

    @property
    def title(self) -> str:
        """The name, and what a reader of a picture should know: `silent` or `entirely unvoiced`."""
        if self.mel.max() < SILENT:
            return f"{self.name} (silent)"
        is_unvoiced = self.f0_hz is not None and not self.f0_hz.any()
        return f"{self.name} (entirely unvoiced)" if is_unvoiced else self.name


def read_parts(path: str | os.PathLike, mel: SplitMel, f0: PitchTrack | None = None, name: str | None = None) -> Parts:
    """Return the parts of a recording, called after its file by default; without `f0`, F0 is left out."""
    path = Path(path)
    wav = load_audio(path)
    if len(wav) < mel.min_samples:
        least = f"at least {mel.min_samples} samples at 16 kHz, which make a frame"
        raise UserError(f"{path}: expected a recording of {least}, found {len(wav)}")
    return parts_of(wav, name or path.stem, mel, f0)


def parts_of(wav: torch.Tensor, name: str, mel: SplitMel, f0: PitchTrack | None = None) -> Parts:
    """Return the parts of a waveform [time], 16 kHz."""
    hz = None if f0 is None else f0.extract_hz(wav).numpy()
    return Parts(name, mel.extract(wav).numpy(), hz, None if hz is None else normalize(hz), mel.hop_seconds)


@dataclass(frozen=True)
class Analysis:
    """What a decomposition makes of a recording."""

    parts: Parts
    codes: dict[str, np.ndarray]  # in the decoder's order: [codes, size], or [size], one for the utterance (timbre)
    hops: dict[str, int]  # frames that a code stands for, of the encoders that give more than one
    reconstruction: np.ndarray | None  # [frames, bands]; None without a decoder
    mse: float | None  # of the reconstruction, over frames and bands


@torch.no_grad()
def analyse(decomposition: SpeechDecomposition, parts: Parts) -> Analysis:
    """Encode and decode a recording as it is: in evaluation mode, so that nothing is resampled."""
    reconstruction = mse = None
    codes = _encode(decomposition.eval(), parts)
    if decomposition.decoder is not None:
        decoded = decomposition.decode(codes, len(parts.mel))
        mel = torch.from_numpy(parts.mel)[None].to(decoded)
        mse = masked_mse(decoded, mel, torch.tensor([len(parts.mel)])).item()
        reconstruction = _to_array(decoded)
    hops = {name: encoder.hop for name, encoder in decomposition.encoders.items() if hasattr(encoder, "hop")}
    return Analysis(parts, {name: _to_array(code) for name, code in codes.items()}, hops, reconstruction, mse)


def _encode(decomposition: SpeechDecomposition, parts: Parts) -> dict[str, torch.Tensor]:
    """Codes of one recording, a batch of one, where the model is."""
    like = next(decomposition.parameters())
    f0 = None if parts.f0 is None else torch.from_numpy(parts.f0)[None].to(like.device)
    return decomposition.encode(torch.from_numpy(parts.mel)[None].to(like), f0)


def _to_array(batch: torch.Tensor) -> np.ndarray:
    return batch[0].float().cpu().numpy()


# ------------------------------------------------------------------ conversion


@dataclass(frozen=True)
class Conversion:
    """An utterance with some of another's codes."""

    source: Parts
    target: Parts
    swap: tuple[str, ...]  # the encoders whose codes are the target's
    kept: tuple[str, ...]  # the other encoders
    codes: dict[str, np.ndarray]  # what was decoded, as in Analysis
    mel: np.ndarray  # the decoder's [frames, bands]
    f0_hz: np.ndarray | None  # [frames], the contour asked for, laid on the output as its code is; it is not measured


@torch.no_grad()
def convert(decomposition: SpeechDecomposition, source: Parts, target: Parts, swap: Collection[str]) -> Conversion:
    """Decode the source with some of the target's codes.

    The output is as long as the recording whose rhythm it has; other codes are laid on it from the start, cut or 0 past
    their end. `swap` names the encoders whose codes come from the target, of those that the model has (pitch, rhythm,
    timbre, content): nothing swapped is the source's reconstruction, everything the target's.
    """
    names, encoders = list(decomposition.encoders), decomposition.encoders
    if unknown := [name for name in swap if name not in encoders]:
        hint, known = nearest(unknown[0], names), ", ".join(names)
        raise UserError(f"swap: the model has no encoder {unknown[0]!r}{hint}; it has: {known}")
    if decomposition.decoder is None:
        raise UserError("swap: expected a model with a decoder, found encoders only: nothing can be reconstructed")
    swap = tuple(name for name in names if name in swap)  # in the decoder's order, once each
    varying = [name for name in names if hasattr(encoders[name], "hop")]
    leader = "rhythm" if "rhythm" in names else (varying or names)[0]
    frames = len((target if leader in swap else source).mel)
    own, other = (_encode(decomposition.eval(), parts) for parts in (source, target))
    codes = {n: _lay(encoder, (other if n in swap else own)[n], frames) for n, encoder in encoders.items()}
    mel = decomposition.decode(codes, frames)
    f0 = None
    if reader := next((name for name in names if encoders[name].reads == "f0"), None):
        f0 = (target if reader in swap else source).f0_hz[:frames]
        f0 = np.pad(f0, (0, frames - len(f0)))
    kept = tuple(name for name in names if name not in swap)
    arrays = {name: _to_array(code) for name, code in codes.items()}
    return Conversion(source, target, swap, kept, arrays, _to_array(mel), f0)


def _lay(encoder: torch.nn.Module, code: torch.Tensor, frames: int) -> torch.Tensor:
    """A code of any length for so many frames: cut, or 0 past its end."""
    if code.dim() == 2:  # one vector an utterance
        return code
    codes = -(-frames // encoder.hop)
    return F.pad(code, (0, 0, 0, codes - code.shape[1]))  # a negative padding cuts


# ------------------------------------------------------------------ sound

ITERATIONS = 60  # 200 bring speech 0.05 dB nearer
MOMENTUM = 0.99 / 1.99  # of the fast variant (Perraudin, Balazs and Sondergaard 2013), as librosa has it
MIN_FRAMES = 4  # the Fourier transform reflects half a window at either end


def invert_mel(mel: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return the waveform whose mel spectrogram is close to this one: the inverse of :class:`SplitMel`.

    Decibels become the magnitudes of the bands, these the magnitudes of the spectrum (the smallest that have such
    bands; what is then below 0 is 0), and Griffin and Lim's iteration finds phases that fit them. Nothing is random:
    all phases are 0 at first. What SplitMel removes (below 30 Hz) or never sees (below 90 and above 7600 Hz) stays
    away. Four recordings of EMO-DB came back to 1.5 to 2.4 dB (root mean square over bands and frames).

    `mel` is [frames, bands], 0 (-84 dB) to 1 (16 dB); values beyond, as a decoder may give, count as 0 and 1. The
    waveform is float32 [frames * 256 - 128], 16 kHz: within half a hop of any recording of so many frames; beyond -1 to
    1 where it is loud.
    """
    mel = np.asarray(mel, dtype=np.float64)
    if mel.ndim != 2 or not len(mel) or mel.shape[1] != N_MELS:
        raise ValueError(f"expected a spectrogram [frames, {N_MELS}], found {list(mel.shape)}")
    if not np.isfinite(mel).all():
        raise ValueError("expected a spectrogram of finite values, found nan or inf")
    bands = 10 ** ((mel.clip(0.0, 1.0) * RANGE_DB - RANGE_DB + REFERENCE_DB) / 20)  # SplitMel's compression undone
    magnitudes = np.maximum(bands @ np.linalg.pinv(mel_filters()), 0.0) / LEVEL  # [frames, bins]
    magnitudes = np.pad(magnitudes, [(0, max(0, MIN_FRAMES - len(mel))), (0, 0)])
    wav = _griffin_lim(torch.from_numpy(np.ascontiguousarray(magnitudes.T)))
    return wav[: HOP * len(mel) - HOP // 2].float()


def _griffin_lim(magnitudes: torch.Tensor) -> torch.Tensor:
    """The waveform of magnitudes [bins, frames] and of the phases that waveforms near it have."""
    window = torch.hann_window(N_FFT, dtype=magnitudes.dtype)
    length = HOP * magnitudes.shape[1] - HOP // 2  # the middle of all lengths that have so many frames
    phases, previous = torch.ones_like(magnitudes, dtype=torch.complex128), 0.0
    for _ in range(ITERATIONS):
        wav = torch.istft(magnitudes * phases, N_FFT, HOP, window=window, length=length)
        rebuilt = torch.stft(wav, N_FFT, HOP, window=window, return_complex=True)
        phases = rebuilt - MOMENTUM * previous
        phases, previous = phases / (phases.abs() + 1e-16), rebuilt
    return torch.istft(magnitudes * phases, N_FFT, HOP, window=window, length=length)


# ------------------------------------------------------------------ pictures

MEL = {"cmap": "magma", "vmin": 0, "vmax": 1}  # SplitMel's range
F0_COLOUR = "#35d0e0"  # seen on all of magma
SECONDS = 4.0  # of a figure of normal width; longer ones are wider


def plot_analysis(analysis: Analysis) -> Figure:
    """Draw the mel spectrogram, F0, codes and reconstruction of a recording on one time axis; frame t is at t x hop.

    Codes are drawn over the frames that they stand for, a row of pixels a channel; one that is the same for a whole
    utterance (timbre) stands in a column of its own. What the model does not have is left out.
    """
    parts, hop, hops = analysis.parts, analysis.parts.hop_seconds, analysis.hops
    rows = [("mel band", 2.0, parts.mel, MEL)]  # label, height, image, its colours
    if parts.f0_hz is not None:
        rows.append(("F0 (Hz)\n(grey: unvoiced)", 1.2, None, {}))
    for name in [name for name in analysis.codes if name in hops]:
        image = np.repeat(analysis.codes[name], hops[name], axis=0)[: len(parts.mel)]
        rows.append((f"{name}\n(channel)", 1.0, image, _diverging(image)))
    if analysis.reconstruction is not None:
        rows.append(("reconstruction\n(mel band)", 2.0, analysis.reconstruction, MEL))
    columns = [name for name in analysis.codes if name not in hops]

    heights = [height for _, height, _, _ in rows]
    figure = _figure(len(parts.mel) * hop, 1.0 + 1.05 * sum(heights), len(columns))
    widths = [1.0] + [0.06] * len(columns)
    grid = figure.add_gridspec(len(rows), len(widths), height_ratios=heights, width_ratios=widths)
    axes = None
    for i, (label, _, image, colours) in enumerate(rows):
        axes = figure.add_subplot(grid[i, 0], sharex=axes)
        if image is None:
            _draw_f0(axes, parts.f0_hz, hop)
        else:
            figure.colorbar(_draw(axes, image, hop, colours), ax=axes, pad=0.01, label="level" * (colours is MEL))
        axes.set_ylabel(label)
        axes.label_outer()
    axes.set_xlabel("time (s)")
    figure.align_ylabels()
    for i, name in enumerate(columns):
        code = analysis.codes[name]
        side = figure.add_subplot(grid[:, 1 + i])
        image = side.imshow(code[:, None], origin="lower", aspect="auto", interpolation="nearest", **_diverging(code))
        side.set(xticks=[], ylabel=f"{name} (channel)")
        figure.colorbar(image, ax=side, pad=0.6, aspect=40, shrink=0.4)
    mse = "" if analysis.mse is None else f": MSE of the reconstruction {analysis.mse:.2g}"
    figure.suptitle(parts.title + mse)
    return figure


def plot_conversion(conversion: Conversion) -> Figure:
    """Draw source, target and what was made of them on one time axis, each with its F0.

    The curve over the converted spectrogram is the contour that was asked for; it is not measured.
    """
    source, target = conversion.source, conversion.target
    of = ((conversion.swap, target.name), (conversion.kept, source.name))
    made_of = "; ".join(f"{', '.join(names)} of {who}" for names, who in of if names)
    rows = [
        (f"source: {source.title}", source.mel, source.f0_hz, "F0 (Hz)"),
        (f"target: {target.title}", target.mel, target.f0_hz, "F0 (Hz)"),
        (f"converted: {made_of}", conversion.mel, conversion.f0_hz, "F0 asked for (Hz)"),
    ]
    frames, hop = max(len(mel) for _, mel, _, _ in rows), source.hop_seconds
    highest = max((f0.max() for _, _, f0, _ in rows if f0 is not None), default=0.0)
    figure = _figure(frames * hop, 7.5)
    all_axes = figure.subplots(3, sharex=True)
    for axes, (title, mel, f0, label) in zip(all_axes, rows, strict=True):
        image = _draw(axes, mel, hop, MEL)
        axes.set(ylabel="mel band")
        axes.set_title(title, fontsize="medium", loc="left")
        if f0 is not None:
            over = axes.twinx()  # a scale of its own, the same in all rows
            _plot_f0(over, f0, hop, color=F0_COLOUR)
            over.set(ylabel=label, ylim=(0, 1.25 * highest or 1.0))
    all_axes[-1].set(xlabel="time (s)", xlim=(-hop / 2, (frames - 0.5) * hop))
    label = "level (0: -84 dB, 1: 16 dB)"
    figure.colorbar(image, ax=all_axes, location="bottom", shrink=0.6, aspect=40, pad=0.02, label=label)
    return figure


def _figure(seconds: float, height: float, columns: int = 0) -> Figure:
    width = 7.2 * min(max(seconds / SECONDS, 1.0), 3.0) + 1.1 * columns
    return Figure(figsize=(width, height), layout="constrained")


def _draw(axes, frames: np.ndarray, hop: float, colours: dict):
    """An image of [frames, channels], time to the right."""
    extent = (-hop / 2, (len(frames) - 0.5) * hop, -0.5, frames.shape[1] - 0.5)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return axes.imshow(frames.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **colours)


def _diverging(code: np.ndarray) -> dict:
    """Colours of a code: white is 0."""
    largest = np.abs(code).max() or 1.0
    return {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}


def _draw_f0(axes, f0: np.ndarray, hop: float) -> None:
    edges = (np.arange(len(f0) + 1) - 0.5) * hop
    unvoiced = np.append(f0 == 0, False)  # an edge more than frames
    shade = {"step": "post", "transform": axes.get_xaxis_transform(), "color": "0.9", "linewidth": 0}
    axes.fill_between(edges, 0, unvoiced, **shade)
    _plot_f0(axes, f0, hop)
    axes.set_xlim(edges[0], edges[-1])


def _plot_f0(axes, f0: np.ndarray, hop: float, color: str = "C0") -> None:
    voiced = np.where(f0 > 0, f0, np.nan)
    axes.plot(np.arange(len(f0)) * hop, voiced, ".-", color=color, markersize=3, linewidth=1.2)
    if not f0.any():
        axes.set_yticks([])


# ------------------------------------------------------------------ the commands


def decompose(
    run: str | os.PathLike, recordings: Sequence[str | os.PathLike], out: str | os.PathLike, trust_run: bool = True
) -> None:
    """Write `NAME.png` and `NAME.npz` of each recording into the folder `out`, and print where."""
    names = _recording_names(recordings)
    trained = _load(run, trust_run)
    for path, name in zip(recordings, names, strict=True):
        analysis = analyse(trained.model.decomposition, _read(path, name, trained))
        save_figure(plot_analysis(analysis), Path(out, f"{name}.png"))
        with written_whole(Path(out, f"{name}.npz")) as temporary, temporary.open("wb") as file:
            parts = analysis.parts
            arrays = {"mel": parts.mel, "f0_hz": parts.f0_hz, "f0": parts.f0, "reconstruction": analysis.reconstruction}
            arrays |= {f"code_{name}": code for name, code in analysis.codes.items()}
            there = {name: array for name, array in arrays.items() if array is not None}
            np.savez_compressed(file, **there, hop_seconds=np.float64(parts.hop_seconds))
        print(f"{Path(out, name)}.png, .npz" + ("" if analysis.mse is None else f"  MSE {analysis.mse:.3g}"))


def convert_recording(
    run: str | os.PathLike,
    source: str | os.PathLike,
    target: str | os.PathLike,
    swap: str,
    out: str | os.PathLike,
    audio: bool = False,
    trust_run: bool = True,
) -> None:
    """Write `SOURCE-TARGET-SWAP.png` into the folder `out`, and print where.

    With `audio` also `SOURCE-reconstruction.wav` and `SOURCE-TARGET-SWAP.wav`: what the decoder makes of the source as
    it is and with the target's codes (`swap`: names of encoders separated by commas), by Griffin and Lim's algorithm.
    """
    swapped = [name.strip() for name in swap.split(",") if name.strip()]
    if not swapped:
        raise UserError(f"swap: expected names of encoders separated by commas, found {swap!r}")
    names = _recording_names([source, target])
    trained = _load(run, trust_run)
    decomposition = trained.model.decomposition
    parts = [_read(path, name, trained) for path, name in zip((source, target), names, strict=True)]
    conversion = convert(decomposition, *parts, swapped)

    folder = Path(out)
    name = file_stem("-".join([*names, "+".join(conversion.swap)]))
    print(save_figure(plot_conversion(conversion), folder / f"{name}.png"))
    if audio:
        reconstruction = analyse(decomposition, parts[0]).reconstruction
        for mel, stem in ((reconstruction, f"{names[0]}-reconstruction"), (conversion.mel, name)):
            wav = invert_mel(mel).numpy()
            wav /= max(1.0, np.abs(wav).max())  # what exceeds full scale makes the whole recording quieter
            with written_whole(folder / f"{stem}.wav") as temporary:
                soundfile.write(temporary, wav, SAMPLE_RATE, "PCM_16", format="WAV")
            print(folder / f"{stem}.wav")


def _recording_names(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Names for what is written, no two alike: the files' (a01), where need be with their folders' (DC_a01)."""
    absolute = [Path(os.path.abspath(path)) for path in paths]
    names = [file_stem(path.stem) for path in absolute]
    if len(set(names)) < len(names):
        names = [file_stem(f"{path.parent.name}_{path.stem}") for path in absolute]
    if twice := next((name for name in names if names.count(name) > 1), None):
        them = " and ".join(str(path) for path, name in zip(paths, names, strict=True) if name == twice)
        raise UserError(f"{them}: expected recordings of different names, found {twice} twice")
    return names


def _load(run: str | os.PathLike, trust_run: bool) -> TrainedModel:
    trained = load_model(run, trust_run)
    if getattr(trained.model, "decomposition", None) is None:
        raise UserError(f"{run}: expected a run of a model that decomposes speech, found one without such encoders")
    return trained


def _read(path: str | os.PathLike, name: str, trained: TrainedModel) -> Parts:
    """With F0 only where an encoder reads it: tracking takes longer than all the rest."""
    encoders = trained.model.decomposition.encoders.values()
    f0 = trained.model.inputs["f0"] if any(encoder.reads == "f0" for encoder in encoders) else None
    return read_parts(path, trained.model.inputs["mel"], f0, name)
