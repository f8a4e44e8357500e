"""Pictures of calibration: reliability diagrams, and accuracy against coverage."""

from collections.abc import Mapping
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from speechbrain_ser.evaluation.figures import variant_colours, variant_legend
from speechbrain_ser.evaluation.reliability import Bins


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
