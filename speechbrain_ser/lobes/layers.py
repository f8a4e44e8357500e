"""What the lobes of pretrained encoders do alike with their transformer's layers, and with what these give."""

import numpy as np
import torch
from torch import nn

from speechbrain_ser.nnet.masked import normalize_own
from speechbrain_ser.nnet.pooling import frame_mask
from speechbrain_ser.nnet.span_mask import span_mask

OUTPUT_NORM_EPS = 1e-5  # of SpeechBrain's output_norm


def combine(states: list[torch.Tensor], layer_weights: torch.Tensor | None) -> torch.Tensor:
    """Sum states by softmax weights [states], as SUPERB does; without weights return the last one."""
    if layer_weights is None:
        return states[-1]
    weights = layer_weights.softmax(dim=0)
    return sum(weight * state for weight, state in zip(weights, states, strict=True))


def finish(out: torch.Tensor, counts: torch.LongTensor, output_norm: bool) -> torch.Tensor:
    """Set [batch, frames, channels] to 0 past each end; with `output_norm` normalise over an utterance's own values."""
    own = frame_mask(counts.to(out.device), out.shape[1])  # [batch, frames]
    if output_norm:
        return normalize_own(out, own, OUTPUT_NORM_EPS)
    return out.masked_fill(~own[:, :, None], 0.0)


def keep_lowest(layers: nn.ModuleList, n_layers: int | None) -> nn.ModuleList:
    """Return the first `n_layers` of a transformer's layers; None: all.

    Raises
    ------
    ValueError
        When it has not so many.

    Example
    -------
    >>> len(keep_lowest(nn.ModuleList(nn.Identity() for _ in range(6)), 4))
    4
    """
    if n_layers is None:
        return layers
    if not isinstance(n_layers, int) or not 1 <= n_layers <= len(layers):
        raise ValueError(f"n_layers is {n_layers!r}, expected 1 to {len(layers)}, the encoder's layers (null: all)")
    return layers[:n_layers]


def freeze_lowest(model: nn.Module, layers: nn.ModuleList, below: list[nn.Module], n_frozen: int) -> None:
    """Take the lowest layers, and all that lies `below` them, out of training.

    Arguments
    ---------
    model : torch.nn.Module
        The encoder, for its embedding of masked frames, which lies below as well.
    layers : torch.nn.ModuleList
        The transformer's.
    below : list of torch.nn.Module
        Convolutions, projection, positions.
    n_frozen : int
        How many layers; 0: nothing is frozen.

    Raises
    ------
    ValueError
        When all or more would be frozen (`freeze` says that).
    """
    if not isinstance(n_frozen, int) or not 0 <= n_frozen < len(layers):
        raise ValueError(f"freeze_layers is {n_frozen!r}, expected 0 to {len(layers) - 1} (freeze: all of them)")
    if not n_frozen:
        return
    for module in [*below, *layers[:n_frozen]]:
        module.requires_grad_(False)
    if (masked := getattr(model, "masked_spec_embed", None)) is not None:
        masked.requires_grad = False


def check_shares(**shares: float | None) -> None:
    """Refuse what is no share.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected 0 to 1")


def check_spans(**lengths: int) -> None:
    """Refuse what is no length of a span.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    for name, value in lengths.items():
        if value != int(value) or value < 1:
            raise ValueError(f"{name} is {value}, expected a whole number above 0")


@torch.compiler.disable  # --compile would trace NumPy's draws, and cannot
def drawn_spans(counts: np.ndarray, size: int, settings: dict) -> torch.BoolTensor:
    """Draw SpecAugment's spans [batch, size], on the CPU."""
    return torch.from_numpy(span_mask(counts, size, **settings))


def mask_channels(hidden: torch.Tensor, settings: dict) -> torch.Tensor:
    """Set SpecAugment's spans of channels of [batch, frames, channels] to 0."""
    if settings["prob"] == 0:
        return hidden
    batch, _, channels = hidden.shape
    masked = drawn_spans(np.full(batch, channels), channels, settings).to(hidden.device)
    return hidden.masked_fill(masked[:, None, :], 0.0)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Switch it on after SpeechBrain, which switches it off when it has loaded a model."""
    # the older name is deprecated, the newer absent from the first transformers 5 releases
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    # the non-reentrant kind works with a frozen front end and with DistributedDataParallel
    enable({"use_reentrant": False})
