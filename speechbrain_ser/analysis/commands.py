"""The commands `decompose` and `convert`: from a run's folder and recordings to pictures, numbers and sound."""

import io
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_ser.analysis.codes import Analysis, analyse, reads_f0
from speechbrain_ser.analysis.conversion import check_swap, convert
from speechbrain_ser.analysis.parts import Parts, read_parts
from speechbrain_ser.dataio import SAMPLE_RATE
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.decomposition_figure import plot_analysis, plot_conversion
from speechbrain_ser.evaluation.figures import save_figure
from speechbrain_ser.processing.entries import write_whole
from speechbrain_ser.processing.invert_mel import invert_mel


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
    trained = _load(run)
    decomposition = trained.model.decomposition
    for path, name in zip(recordings, names, strict=True):
        analysis = analyse(decomposition, _read(path, name, trained))
        folder = _make(out)
        save_figure(plot_analysis(analysis), folder / f"{name}.png")
        write_whole(_npz(analysis), folder / f"{name}.npz")
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
    trained = _load(run)
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
            write_whole(_wav(mel), path)
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


def _load(run):
    from speechbrain_ser.trained import load_model

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
