"""A picture of what a CNN-BLSTM with attention listened to in an utterance."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

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
