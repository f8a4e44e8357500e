"""Pictures of pre-training: spectrograms beside their reconstructions, and both losses (Hsu et al. 2023, figure 3)."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

matplotlib.rcParams["svg.hashsalt"] = "speechbrain-ser"

HOP = 256 / 16_000  # s, of SpeechSplit's mel spectrogram


def plot_reconstructions(pairs: Mapping[str, Sequence], title: str, hop: float = HOP) -> Figure:
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
