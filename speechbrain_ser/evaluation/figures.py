"""Pictures of runs: confusion matrices, learning curves, reconstructions, reliability."""

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import ConfusionMatrixDisplay

from speechbrain_ser.evaluation.calibration import Bins
from speechbrain_ser.files import written_whole

matplotlib.rcParams["svg.hashsalt"] = "speechbrain-ser"


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure in one step (a temporary file, then a rename); the suffix names the format."""
    path = Path(path)
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same figure gives the same file
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120, bbox_inches="tight", metadata=dates.get(path.suffix))
    return path


def plot_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """A confusion matrix: counts in the cells, recall as colour.

    Arguments
    ---------
    confusion : sequence of sequence of int
        Rows = true class, columns = predicted.
    classes : sequence of str
        Names, in that order.
    title : str
        Says protocol and selection.

    Returns
    -------
    matplotlib.figure.Figure
    """
    counts = np.asarray(confusion)
    size = 2.2 + 0.75 * len(classes)
    figure = Figure(figsize=(size + 0.8, size))
    axes = figure.subplots()
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    labels = [f"{c}\n({n})" for c, n in zip(classes, totals[:, 0], strict=True)]
    display = ConfusionMatrixDisplay(shares, display_labels=classes)
    display.plot(ax=axes, cmap="Blues", values_format=".0%", im_kw={"vmin": 0, "vmax": 1}, colorbar=False)
    for (row, column), text in np.ndenumerate(display.text_):
        text.set_text(f"{counts[row, column]}\n{shares[row, column]:.0%}")
    axes.set_yticklabels(labels)
    axes.tick_params(axis="x", rotation=45)
    axes.set(title=title, xlabel="predicted", ylabel="true (utterances)")
    return figure


CURVES = {
    "loss": "loss",
    "WA": "emotion accuracy (WA)",
    "WER": "word error rate",
    "MSE": "spectrogram error (MSE)",
}


def plot_learning_curves(epochs: pd.DataFrame, title: str) -> Figure:
    """Loss, accuracy, WER and MSE against the epoch, one line a part (Cai et al. 2021, figure 2, for one run).

    Arguments
    ---------
    epochs : pandas.DataFrame
        ``epochs.csv``: columns epoch, train_loss, valid_WA, test_WER, …
    title : str
        Says protocol and fold.

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = [m for m in CURVES if any(f"{p}_{m}" in epochs for p in ("train", "valid", "test"))]
    figure = Figure(figsize=(4.2 * len(panels), 3.4))
    for axes, metric in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        for part, colour in (("train", "C0"), ("valid", "C2"), ("test", "C3")):
            if f"{part}_{metric}" in epochs:
                label = f"{part} (not for choosing)" if part == "test" else part
                axes.plot(epochs["epoch"], epochs[f"{part}_{metric}"], colour, label=label, marker=".")
        axes.set(xlabel="epoch", ylabel=CURVES[metric])
        axes.set_ylim(bottom=0, top=1.02 if metric == "WA" else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def plot_variant_curves(curves: Mapping[str, pd.DataFrame], metric: str, part: str, title: str) -> Figure:
    """A metric against the epoch, one line a variant (Cai et al. 2021, figure 2; Ha 2023, figures 2 and 3).

    Arguments
    ---------
    curves : mapping of str to pandas.DataFrame
        By variant: index epoch, columns WA and, with the heads for them, WER and MSE; means over folds and seeds.
    metric : str
        ``WA``, ``WER`` or ``MSE``; variants without it have no line.
    part : str
        ``test`` or ``valid``: where it was measured.
    title : str
        Says corpus and protocol.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(5.4, 3.9))
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), variant_colours(curves), strict=True):
        if metric in curve:
            axes.plot(curve.index, curve[metric], color=colour, label=fill(name, 40), marker=".", markersize=4)
    axes.set(xlabel="epoch", ylabel=f"{part}: {CURVES[metric]}", title=title)
    axes.set_ylim(bottom=0, top=1.02 if metric == "WA" else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    variant_legend(axes, curves)
    return figure


def variant_colours(names: Collection[str]) -> list:
    """A colour a variant, the same in all figures of a report."""
    return list(islice(cycle(matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"].colors), len(names)))


def variant_legend(axes, names: Collection[str]) -> None:
    """The variants' lines, below the axes."""
    columns = min(3, len(axes.lines)) if max(map(len, names)) <= 20 else 1
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize="small")


matplotlib.rcParams["svg.hashsalt"] = "speechbrain-ser"


HOP = 0.025  # s, Fu et al. 2021, section 3.2: 400 samples at 16 kHz


def plot_attention(
    features: np.ndarray, attention: tuple[np.ndarray, np.ndarray], title: str | None = None, hop: float = HOP
) -> Figure:
    """The spectrogram, the local attention curve and the self-attention (averaged over heads) on one time axis.

    Valid convolutions take as many frames from either end; the attention is drawn where it belongs in between.
    A frame's time is its middle: frame t stands at t x hop, as with centred windows.

    Arguments
    ---------
    features : numpy.ndarray
        Log-mel spectrogram of one utterance, without padding [frames, bands].
    attention : tuple of numpy.ndarray
        Its self-attention [heads, frames', frames'] and its local attention [frames'], with frames' at most frames
        (what :meth:`speechbrain_ser.lobes.cnn_blstm_attention.AttentionWeights.utterance` gives).
    title : str, optional
        Says which utterance, and what was recognised.
    hop : float
        Seconds from frame to frame.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        When the shapes do not fit.

    Example
    -------
    >>> features = np.random.default_rng(0).normal(size=(40, 128))
    >>> figure = plot_attention(features, (np.full((16, 36, 36), 1 / 36), np.full(36, 1 / 36)), "a01")
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['mel band', 'local attention', 'attending (s)', '']
    """
    features = np.asarray(features)
    self_attention, local_attention = map(np.asarray, attention)
    _check(features, self_attention, local_attention)
    shift = (len(features) - len(local_attention)) / 2  # frames that the convolutions took from either end
    times = (shift + np.arange(len(local_attention))) * hop
    edges = (times[0] - hop / 2, times[-1] + hop / 2)

    figure = Figure(figsize=(6.4, 7.6), layout="constrained")
    rows = figure.subplots(3, sharex=True, height_ratios=(2, 1, 4))
    whole = (-hop / 2, (len(features) - 0.5) * hop, -0.5, features.shape[1] - 0.5)
    rows[0].imshow(features.T, origin="lower", aspect="auto", extent=whole, cmap="magma", interpolation="nearest")
    rows[0].set(ylabel="mel band")
    rows[1].plot(times, local_attention, "C3")
    rows[1].fill_between(times, local_attention, color="C3", alpha=0.25, linewidth=0)
    rows[1].axhline(1 / len(times), color="grey", linestyle=":", linewidth=1, label="every frame alike")
    rows[1].legend(fontsize="small", frameon=False)
    rows[1].set(ylabel="local attention")
    rows[1].set_ylim(bottom=0)
    image = rows[2].imshow(
        self_attention.mean(axis=0),
        origin="lower",
        aspect="auto",
        extent=(*edges, *edges),
        cmap="Blues",
        interpolation="nearest",
    )
    rows[2].set(xlabel="time, attended to (s)", ylabel="attending (s)", xlim=whole[:2])
    figure.colorbar(image, ax=rows[2], location="bottom", shrink=0.6, label="self-attention, mean over heads")
    if title is not None:
        figure.suptitle(title)
    return figure


def _check(features: np.ndarray, self_attention: np.ndarray, local_attention: np.ndarray) -> None:
    frames = local_attention.shape[-1] if local_attention.ndim else 0
    square = self_attention.ndim == 3 and self_attention.shape[1:] == (frames, frames)
    if features.ndim != 2 or local_attention.ndim != 1 or not square or not 0 < frames <= len(features):
        raise ValueError(
            "expected features [frames, bands], self-attention [heads, frames', frames'] and local attention "
            "[frames'] with frames' at most frames, "
            f"found {list(features.shape)}, {list(self_attention.shape)} and {list(local_attention.shape)}"
        )


matplotlib.rcParams["svg.hashsalt"] = "speechbrain-ser"


HOP_PRETRAINING_FIGURES = 256 / 16_000  # s, of SpeechSplit's mel spectrogram


def plot_reconstructions(pairs: Mapping[str, Sequence], title: str, hop: float = HOP_PRETRAINING_FIGURES) -> Figure:
    """Original and reconstructed spectrograms, one above the other, a column an utterance.

    Arguments
    ---------
    pairs : mapping of str to sequence
        By utterance: original and reconstruction, arrays [frames, bands], 0 to 1.
    title : str
        Says of which epoch they are.
    hop : float
        Seconds from frame to frame.

    Returns
    -------
    matplotlib.figure.Figure

    Example
    -------
    >>> mel = np.random.default_rng(0).random((50, 80))
    >>> figure = plot_reconstructions({"03a01Fa": (mel, mel)}, "epoch 1")
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['original: mel band', 'reconstruction: mel band', 'level (0: -84 dB, 1: 16 dB)']
    """
    figure = Figure(figsize=(1.2 + 3.6 * len(pairs), 4.4), layout="constrained")
    grid = figure.subplots(2, len(pairs), squeeze=False, sharey=True, sharex="col")
    for column, (utterance, pair) in zip(grid.T, pairs.items(), strict=True):
        original, reconstruction = (np.asarray(each, dtype=np.float32) for each in pair)
        error = np.square(original - reconstruction).mean()
        column[0].set(title=f"{utterance}, MSE {error:.1e}")
        column[1].set(xlabel="time (s)")
        for axes, mel in zip(column, (original, reconstruction), strict=True):
            whole = (-hop / 2, (len(mel) - 0.5) * hop, -0.5, mel.shape[1] - 0.5)
            image = axes.imshow(mel.T, origin="lower", aspect="auto", extent=whole, cmap="magma", vmin=0, vmax=1)
    for axes, name in zip(grid[:, 0], ("original", "reconstruction"), strict=True):
        axes.set_ylabel(f"{name}: mel band")
    figure.colorbar(image, ax=grid, label="level (0: -84 dB, 1: 16 dB)")
    figure.suptitle(title)
    return figure


def plot_pretraining_curves(epochs: pd.DataFrame, title: str) -> Figure:
    """Both losses against the epoch (figure 3), and how well known speakers are told.

    Arguments
    ---------
    epochs : pandas.DataFrame
        ``epochs.csv``: epoch, train_loss_reconstruction, train_loss_speaker, seen_MSE, valid_MSE, …
    title : str
        Says protocol and fold.

    Returns
    -------
    matplotlib.figure.Figure
    """
    train_mse = "train_loss_reconstruction" if "train_loss_reconstruction" in epochs else "train_loss"
    panels = {
        "reconstruction (MSE)": {
            train_mse: "train (pieces, resampled)",
            "seen_MSE": "known speakers, held out",
            "valid_MSE": "validation speakers",
            "test_MSE": "test speakers (not for choosing)",
        },
        "speaker (cross-entropy)": {"train_loss_speaker": "train"},
        "speaker accuracy": {"train_speaker_accuracy": "train", "seen_speaker_accuracy": "known speakers, held out"},
    }
    panels = {name: {c: label for c, label in lines.items() if c in epochs} for name, lines in panels.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    for axes, (name, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for column, label in lines.items():
            axes.plot(epochs["epoch"], epochs[column], label=label, marker=".", markersize=3)
        axes.set(xlabel="epoch", ylabel=name)
        axes.set_ylim(bottom=0, top=1.02 if "accuracy" in name else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    return figure


def plot_reliability(ways: Mapping[str, Bins], title: str) -> Figure:
    """A reliability diagram (Guo et al. 2017, figure 1) for each way of getting posteriors, their counts below.

    Arguments
    ---------
    ways : mapping of str to Bins
        Such as as trained, and with a temperature; side by side, in their order.
    title : str
        Says protocol and selection.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(3.3 * len(ways) + 0.5, 4.6))
    rows = figure.subplots(2, len(ways), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    for k, ((way, bins), axes, counts) in enumerate(zip(ways.items(), *rows, strict=True)):
        _diagram(axes, bins)
        axes.set_title(f"{way}: ECE {bins.error:.1%}", fontsize="medium")
        _counts(counts, bins)
        if k == 0:
            axes.set_ylabel("share that is right")
            counts.set_ylabel("utterances")
            axes.legend(loc="upper left", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout()
    return figure


def _diagram(axes, bins: Bins) -> None:
    """Bars of accuracy, and from their tops to the mean posterior of their bin."""
    edges, holds = np.linspace(0, 1, len(bins.counts) + 1), bins.counts > 0
    left, width = edges[:-1][holds], edges[1]
    accuracy, confidence = bins.accuracy[holds], bins.confidence[holds]
    axes.bar(left, accuracy, width, align="edge", color="C0", edgecolor="white", linewidth=0.5, label="right")
    gap = {"align": "edge", "linewidth": 0.8, "color": "none"}
    sure = confidence > accuracy
    ways = (sure, "too sure", "C3", "///"), (~sure, "not sure enough", "C1", "xxx")
    for which, label, colour, hatch in ways:
        bottom, height = accuracy[which], (confidence - accuracy)[which]
        axes.bar(left[which], height, width, bottom=bottom, label=label, edgecolor=colour, hatch=hatch, **gap)
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)


def _counts(axes, bins: Bins) -> None:
    width = 1 / len(bins.counts)
    left = np.arange(len(bins.counts)) * width
    bars = axes.bar(left, bins.counts, width, align="edge", color="0.6", edgecolor="white", linewidth=0.5)
    axes.bar_label(bars, [str(n) if n else "" for n in bins.counts], fontsize="xx-small", padding=1)
    axes.margins(y=0.25)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_xlabel("largest posterior")
    axes.xaxis.set_major_formatter(PercentFormatter(1))


def plot_coverage(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """Accuracy of the surest utterances against their share, one line a variant.

    Arguments
    ---------
    curves : mapping of str to tuple of numpy.ndarray
        Coverage and accuracy, both [points].
    title : str
        Says corpus, protocol and selection.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = Figure(figsize=(5.4, 3.9))
    axes = figure.subplots()
    for (name, (coverage, accuracy)), colour in zip(curves.items(), variant_colours(curves), strict=True):
        axes.step(coverage, accuracy, where="pre", color=colour, label=fill(name, 40), linewidth=1.5)
    axes.set(xlabel="utterances that get an answer", ylabel="of which right (WA)", title=title, xlim=(0, 1))
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    variant_legend(axes, curves)
    return figure
