"""Pictures of a run: confusion matrix and learning curves."""

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay

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
