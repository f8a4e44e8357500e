"""Pictures of runs: confusion matrices, learning curves, reconstructions, reliability."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import ConfusionMatrixDisplay

from speechbrain_ser.evaluation.calibration import Bins
from speechbrain_ser.evaluation.metrics import CCC, FIGURES
from speechbrain_ser.files import written_whole

matplotlib.rcParams["svg.hashsalt"] = "speechbrain-ser"  # the same figure gives the same file
matplotlib.rcParams["text.parse_math"] = False  # names of folds, classes and recordings are no formulas
HOP = 256 / 16_000  # s, of SpeechSplit's mel spectrogram
CURVES = {"loss": "loss", **{name: FIGURES[name].words for name in ("WA", "UA", "WER", "MSE", *CCC)}}
FLOORS = {"WA": "majority class", "UA": "majority class, and chance"}
RELIABILITY = {  # what a diagram's bars say, and how they look
    "right": {"facecolor": "C0", "edgecolor": "white", "linewidth": 0.5},
    "too sure: so far below the mean posterior": {"facecolor": "none", "edgecolor": "C3", "hatch": "///"},
    "not sure enough: so far above it": {"facecolor": "none", "edgecolor": "C1", "hatch": "xxx"},
}
PARTS = {"train": "C0", "seen": "C1", "valid": "C2", "test": "C3"}  # colours


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure in one step; the suffix names the format."""
    path = Path(path)
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120, bbox_inches="tight", metadata=dates.get(path.suffix))
    return path


def plot_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, rows = true class, columns = predicted: counts in the cells, recall as colour."""
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


def floors(confusions: Sequence[str]) -> dict[str, float]:
    """Return WA and UA of whoever always says the commonest class of the utterances of some confusion matrices (JSON).

    Example
    -------
    >>> floors(["[[3, 1, 0], [2, 2, 0], [0, 0, 0]]", "[[2, 0, 0], [2, 0, 0], [0, 0, 0]]"])
    {'WA': 0.5, 'UA': 0.5}
    """
    counts = sum(np.asarray(json.loads(confusion)).sum(1) for confusion in confusions)
    return {"WA": float(counts.max() / counts.sum()), "UA": 1 / int((counts > 0).sum())}


def _draw_floor(axes, metric: str, share: float | None, of: str = "") -> None:
    if share is not None:
        axes.axhline(share, color="0.5", linestyle=":", linewidth=1.2, label=f"{FLOORS[metric]}{of}")


def _over_epochs(axes, ylabel: str, is_share: bool) -> None:
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.set_ylim(bottom=0, top=1.02 if is_share else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _panels(epochs: pd.DataFrame, panels: Mapping[str, Mapping[str, str]], title: str) -> Figure:
    """Panels by their y label, each with columns of ``epochs.csv`` and what they are called; those that there are."""
    panels = {name: {c: label for c, label in lines.items() if c in epochs} for name, lines in panels.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    for axes, (name, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for column, label in lines.items():
            colour = PARTS[column.partition("_")[0]]
            axes.plot(epochs["epoch"], epochs[column], colour, label=label, marker=".", markersize=4)
        part = "test" if "test_confusion" in epochs else "valid"
        if (metric := {CURVES[m]: m for m in FLOORS}.get(name)) and f"{part}_confusion" in epochs:
            _draw_floor(axes, metric, floors(epochs[f"{part}_confusion"].dropna()[:1])[metric], f" ({part})")
        _over_epochs(axes, name, "accuracy" in name or name in (CURVES["WA"], CURVES["UA"]))
        axes.legend(fontsize="small")
    figure.suptitle(title)
    return figure


def plot_learning_curves(epochs: pd.DataFrame, title: str) -> Figure:
    """Draw loss, WA, UA, WER, MSE, CCC against the epoch, one line a part (Cai et al. 2021, figure 2, for one run).

    The table is that of ``epochs.csv``: columns epoch, train_loss, valid_WA, test_WER, …
    """
    parts = {"train": "train", "valid": "valid", "test": "test (not for choosing)"}
    panels = {words: {f"{part}_{m}": label for part, label in parts.items()} for m, words in CURVES.items()}
    return _panels(epochs, panels, title)


def plot_pretraining_curves(epochs: pd.DataFrame, title: str) -> Figure:
    """Draw both losses of a pre-training against the epoch, and how well known speakers are told."""
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
    return _panels(epochs, panels, title)


def plot_variant_curves(
    curves: Mapping[str, pd.DataFrame], metric: str, part: str, title: str, floor: float | None = None
) -> Figure:
    """Draw a metric against the epoch, one line a variant (Cai et al. 2021, figure 2; Ha 2023, figures 2 and 3).

    Curves are by variant: index epoch, columns WA and, with the heads for them, WER and MSE; a variant without the
    metric has no line. The part, ``test`` or ``valid``, is where it was measured; `floor` what :func:`floors` gives.
    """
    figure = Figure(figsize=(5.4, 3.9))
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), _variant_colours(curves), strict=True):
        if metric in curve:
            axes.plot(curve.index, curve[metric], color=colour, label=fill(name, 40), marker=".", markersize=4)
    axes.set_title(title)
    _draw_floor(axes, metric, floor)
    _over_epochs(axes, f"{part}: {CURVES[metric]}", metric in FLOORS)
    _variant_legend(axes, curves)
    return figure


def _variant_colours(names: Collection[str]) -> list:
    """A colour a variant, the same in all figures of a report."""
    return list(islice(cycle(matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"].colors), len(names)))


def _variant_legend(axes, names: Collection[str]) -> None:
    columns = min(3, len(axes.lines)) if max(map(len, names)) <= 20 else 1
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False, fontsize="small")


def plot_reconstructions(pairs: Mapping[str, Sequence], title: str, hop: float = HOP) -> Figure:
    """Draw spectrograms, original above reconstruction, a column an utterance.

    Both are arrays [frames, bands], 0 to 1; `hop` is the time from frame to frame in s.
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


def plot_reliability(ways: Mapping[str, Bins], title: str) -> Figure:
    """Draw a reliability diagram (Guo et al. 2017, figure 1) for each way of getting posteriors, their counts below."""
    figure = Figure(figsize=(3.3 * len(ways) + 0.5, 4.6))
    rows = figure.subplots(2, len(ways), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    for k, ((way, bins), axes, counts) in enumerate(zip(ways.items(), *rows, strict=True)):
        _diagram(axes, bins)
        axes.set_title(f"{way}: ECE {bins.error:.1%}", fontsize="medium")
        _counts(counts, bins)
        if k == 0:
            axes.set_ylabel("share that is right")
            counts.set_ylabel("utterances")
    figure.suptitle(title, fontsize="medium")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    # whichever bars there are; below, where none is
    handles = [Patch(label=label, **style) for label, style in RELIABILITY.items()]
    columns = 3 if len(ways) > 1 else 1
    at = {"loc": "lower center" if columns > 1 else "upper center", "bbox_to_anchor": (0.5, 0 if columns > 1 else 0.06)}
    figure.legend(handles=handles, ncols=columns, fontsize="small", frameon=False, **at)
    return figure


def _diagram(axes, bins: Bins) -> None:
    """Bars of accuracy, and from their tops to the mean posterior of their bin."""
    edges, holds = np.linspace(0, 1, len(bins.counts) + 1), bins.counts > 0
    left, width = edges[:-1][holds], edges[1]
    accuracy, confidence = bins.accuracy[holds], bins.confidence[holds]
    right, *gaps = RELIABILITY.values()
    axes.bar(left, accuracy, width, align="edge", **right)
    sure = confidence > accuracy
    for which, style in zip((sure, ~sure), gaps, strict=True):
        height = (confidence - accuracy)[which]
        axes.bar(left[which], height, width, bottom=accuracy[which], align="edge", linewidth=0.8, **style)
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


def plot_protocols(figures: pd.DataFrame, title: str) -> Figure:
    """Draw UA under several protocols: a group of bars a variant, a bar a protocol, with 95 % intervals.

    `figures` has a row a variant and protocol: ``variant``, ``protocol``, ``UA``, ``UA_low``, ``UA_high`` (shares).
    """
    variants, protocols = (list(dict.fromkeys(figures[column])) for column in ("variant", "protocol"))
    figure = Figure(figsize=(1.8 + 1.7 * len(variants), 4.2))
    axes, width = figure.subplots(), 0.8 / len(protocols)
    for k, protocol in enumerate(protocols):
        rows = figures[figures["protocol"] == protocol].set_index("variant").reindex(variants)
        ua, low, high = (rows[column].astype(float) for column in ("UA", "UA_low", "UA_high"))
        ends = np.clip([ua - low, high - ua], 0, None)  # one without an interval has none
        places = np.arange(len(variants)) + (k - (len(protocols) - 1) / 2) * width
        bars = axes.bar(places, ua, 0.92 * width, yerr=ends, capsize=2, error_kw={"linewidth": 1}, label=protocol)
        axes.bar_label(bars, [f"{100 * v:.0f}" for v in ua], label_type="center", color="white", fontsize=9)
    axes.set(title=title, ylabel=FIGURES["UA"].words, ylim=(0, 1.02))
    axes.set_xticks(range(len(variants)), [fill(name, 18) for name in variants])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, frameon=False
    )
    return figure


def plot_corpora(figures: pd.DataFrame, title: str) -> Figure:
    """Draw UA by the corpus trained on (rows) and tested on (columns), a panel a variant, as numbers and colours.

    `figures` has a row a cell: ``variant``, ``trained_on``, ``tested_on``, ``UA``, ``UA_low``, ``UA_high`` (shares).
    """
    variants, corpora = (list(dict.fromkeys(figures[column])) for column in ("variant", "tested_on"))
    size = 1.3 + 1.15 * len(corpora)
    figure = Figure(figsize=(size * len(variants) + 0.8, size), layout="constrained")
    panels = figure.subplots(1, len(variants), squeeze=False)[0]
    for axes, variant in zip(panels, variants, strict=True):
        rows = figures[figures["variant"] == variant].set_index(["trained_on", "tested_on"])
        shares = rows["UA"].unstack().reindex(index=corpora, columns=corpora).astype(float)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (train, test), row in rows.iterrows():
            ends = "" if pd.isna(row["UA_low"]) else f"\n[{100 * row['UA_low']:.0f}, {100 * row['UA_high']:.0f}]"
            colour = "white" if row["UA"] > 0.6 else "black"
            place = corpora.index(test), corpora.index(train)
            axes.text(*place, f"{100 * row['UA']:.0f}{ends}", color=colour, ha="center", va="center", fontsize="small")
        axes.set(title=fill(variant, 30), xlabel="tested on", ylabel="trained on")
        axes.set_xticks(range(len(corpora)), corpora, rotation=45)
        axes.set_yticks(range(len(corpora)), corpora)
    figure.colorbar(image, ax=panels, label=FIGURES["UA"].words, format=PercentFormatter(1))
    figure.suptitle(fill(title, 60), fontsize="medium")
    return figure


def plot_coverage(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """Draw the accuracy of the surest utterances against their share; coverage and accuracy by variant, [points]."""
    figure = Figure(figsize=(5.4, 3.9))
    axes = figure.subplots()
    for (name, (coverage, accuracy)), colour in zip(curves.items(), _variant_colours(curves), strict=True):
        axes.step(coverage, accuracy, where="pre", color=colour, label=fill(name, 40), linewidth=1.5)
    axes.set(xlabel="utterances that get an answer", ylabel="of which right (WA)", title=title, xlim=(0, 1))
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    _variant_legend(axes, curves)
    return figure


def plot_changes(changes: pd.DataFrame, title: str) -> Figure:
    """Draw what some changes of the recordings do: decisions that stay, and the change in UA, beside their limits.

    The table is that of :func:`~speechbrain_ser.inference.stress.check_changes`, by severity.
    """
    figure = Figure(figsize=(7.4, 1.6 + 0.24 * len(changes)), layout="constrained")
    panels, places = figure.subplots(1, 2, sharey=True), np.arange(len(changes))
    for axes, name in zip(panels, ("unchanged", "UA_change"), strict=True):
        values, limits, passed = (changes[f"{name}{end}"].to_numpy() for end in ("", "_limit", "_passed"))
        colours = np.where(passed.astype(bool), "C0", "C3")
        if name == "UA_change":
            ends = np.abs(changes[["UA_low", "UA_high"]].to_numpy(float).T - values) * 100
            axes.errorbar(100 * values, places, xerr=ends, fmt="none", ecolor="0.75", elinewidth=2)
            axes.axvline(0, color="0.6", linewidth=0.8)
        axes.scatter(100 * values, places, c=colours, s=22, zorder=3)
        axes.scatter(100 * limits, places, c="0.3", marker="|", s=70, zorder=2)
        axes.grid(alpha=0.3, axis="x")
    starts = np.flatnonzero(changes["severity"].to_numpy()[1:] != changes["severity"].to_numpy()[:-1]) + 0.5
    for axes, start in ((axes, start) for axes in panels for start in starts):
        axes.axhline(start, color="0.6", linewidth=0.8, linestyle=":")
    panels[0].set(xlabel="decisions that stay (%)", yticks=places, yticklabels=changes["change"])
    panels[0].set_ylim(len(changes) - 0.5, -0.5)
    panels[1].set(xlabel="change in UA (points), 95 % interval")
    marks = {"passes": ("o", "C0"), "FAILS": ("o", "C3"), "limit": ("|", "0.3")}
    handles = [Line2D([], [], marker=m, color=c, linestyle="none", label=label) for label, (m, c) in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    figure.suptitle(title)
    return figure


def plot_answers(shares: pd.DataFrame, title: str) -> Figure:
    """Draw how often each class is answered: a row a change of the recordings (index), a column a class, 0 to 1."""
    figure = Figure(figsize=(2.6 + 0.75 * shares.shape[1], 1.8 + 0.24 * len(shares)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", aspect="auto", vmin=0)
    axes.set(title=title, xticks=range(shares.shape[1]), yticks=range(len(shares)), yticklabels=shares.index)
    axes.set_xticklabels(shares.columns, rotation=45, ha="right")
    figure.colorbar(image, ax=axes, format=PercentFormatter(1, 0), shrink=0.4)
    return figure
