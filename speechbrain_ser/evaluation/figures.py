"""Pictures of a run: confusion matrix and learning curves."""

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay

matplotlib.rcParams["svg.hashsalt"] = "speechbrain-ser"


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure in one step (a temporary file, then a rename); the suffix names the format."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}")
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same figure gives the same file
    figure.savefig(temporary, format=path.suffix[1:], dpi=120, bbox_inches="tight", metadata=dates.get(path.suffix))
    os.replace(temporary, path)
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


CURVES = {"loss": "loss", "WA": "emotion accuracy (WA)", "WER": "word error rate"}


def plot_learning_curves(epochs: pd.DataFrame, title: str) -> Figure:
    """Loss, accuracy and WER against the epoch, one line a part (Cai et al. 2021, figure 2, for one run).

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


def plot_variant_curves(curves: Mapping[str, pd.DataFrame], part: str, title: str) -> Figure:
    """Accuracy and WER against the epoch, one line a variant (Cai et al. 2021, figure 2; Ha 2023, figures 2 and 3).

    Arguments
    ---------
    curves : mapping of str to pandas.DataFrame
        By variant: index epoch, columns WA and, with an ASR head, WER; means over folds and seeds.
    part : str
        ``test`` or ``valid``: where they were measured.
    title : str
        Says corpus and protocol.

    Returns
    -------
    matplotlib.figure.Figure
    """
    panels = [m for m in ("WA", "WER") if any(m in c for c in curves.values())]
    figure = Figure(figsize=(4.6 * len(panels), 3.8))
    colours = matplotlib.colormaps["tab10" if len(curves) <= 10 else "tab20"].colors
    all_axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, metric in zip(all_axes, panels, strict=True):
        for (name, curve), colour in zip(curves.items(), cycle(colours)):
            if metric in curve:
                axes.plot(curve.index, curve[metric], color=colour, label=name, marker=".", markersize=4)
        axes.set(xlabel="epoch", ylabel=f"{part}: {CURVES[metric]}")
        axes.set_ylim(bottom=0, top=1.02 if metric == "WA" else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.suptitle(title)
    figure.tight_layout()
    figure.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=min(3, len(names)), frameon=False)
    return figure
