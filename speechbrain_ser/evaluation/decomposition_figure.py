"""Pictures of decomposed speech: a recording's parts and codes, and a conversion beside what it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:  # evaluation imports no torch
    from speechbrain_ser.analysis.codes import Analysis
    from speechbrain_ser.analysis.conversion import Conversion

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
        From :func:`speechbrain_ser.analysis.codes.analyse`.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> from speechbrain_ser.analysis.codes import Analysis
    >>> from speechbrain_ser.analysis.parts import Parts
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
        From :func:`speechbrain_ser.analysis.conversion.convert`.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> from speechbrain_ser.analysis.conversion import Conversion
    >>> from speechbrain_ser.analysis.parts import Parts
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
