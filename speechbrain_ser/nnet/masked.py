"""Layers and normalisations that take an utterance's own frames alone, whatever the padding."""

from collections.abc import Iterable

import torch
from torch import nn


def normalize_own(x: torch.Tensor, mask: torch.Tensor, eps: float) -> torch.Tensor:
    """Zero mean and unit variance over each utterance's own values; padding becomes 0.

    Arguments
    ---------
    x : torch.Tensor
        [batch, time] or [batch, time, channels] (then over both axes). Statistics are taken in float32.
    mask : torch.BoolTensor
        True on own samples or frames [batch, time].
    eps : float
        Added to the variance, so that silence stays silence.

    Returns
    -------
    torch.Tensor
        Like `x`, float32 at least.

    Example
    -------
    >>> x = torch.tensor([[1.0, 3.0, 7.0]])
    >>> normalize_own(x, torch.tensor([[True, True, False]]), eps=0.0)
    tensor([[-1.,  1.,  0.]])
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = tuple(range(1, x.dim()))
    padding = ~mask.view(*mask.shape, *([1] * (x.dim() - 2)))
    size = (~padding).sum(dim=axes, keepdim=True) * x[0, 0].numel()
    mean = x.masked_fill(padding, 0.0).sum(dim=axes, keepdim=True) / size
    centred = (x - mean).masked_fill(padding, 0.0)
    variance = centred.square().sum(dim=axes, keepdim=True) / size
    return centred * torch.rsqrt(variance + eps)


class MaskedPositionalConv(nn.Module):
    """Positional convolutions that keep padding at zero wherever the published ones let something leak into
    it.

    Two kinds leak: data2vec stacks several convolutions (from the second on, padding holds what the first
    wrote there), and some HuBERT checkpoints normalise with a BatchNorm first, which lifts zeros. One plain
    convolution (the others) reads the encoder's own zeros and needs nothing.

    The encoder sets padding to exactly zero just before it calls this module without a mask: a frame of zeros
    is padding. (A state set from outside would be neither thread-safe nor right under recomputation.)

    Arguments
    ---------
    embedding : torch.nn.Module
        transformers' module: `layers` (data2vec), or `batch_norm`, `conv`, `padding` and `activation`
        (HuBERT).
    """

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.stacked = hasattr(embedding, "layers")
        for name, child in embedding.named_children():
            self.add_module(name, child)

    @staticmethod
    def needed_by(embedding: nn.Module) -> bool:
        """Whether a published module lets something leak into the padding."""
        return len(getattr(embedding, "layers", ())) > 1 or getattr(embedding, "batch_norm", None) is not None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Embed positions.

        Arguments
        ---------
        hidden : torch.Tensor
            [batch, frames, channels], zero where padded.

        Returns
        -------
        torch.Tensor
            [batch, frames, channels].
        """
        own = (hidden != 0).any(dim=-1)  # [batch, frames]
        if self.stacked:
            padding = ~own[:, None, :]
            hidden = hidden.transpose(1, 2)  # [batch, channels, frames]
            for layer in self.layers:
                hidden = layer(hidden).masked_fill(padding, 0.0)
        else:
            normed = self.batch_norm(hidden[own])  # [own frames, channels]
            hidden = torch.zeros_like(hidden, dtype=normed.dtype).masked_scatter(own[:, :, None], normed)
            hidden = self.activation(self.padding(self.conv(hidden.transpose(1, 2))))
        return hidden.transpose(1, 2)


def constant_tail_start(features: torch.Tensor) -> torch.Tensor:
    """Where each utterance's last run of equal frames begins, such as the padding with one value.

    Arguments
    ---------
    features : torch.Tensor
        [batch, frames, bands].

    Returns
    -------
    torch.LongTensor
        [batch], from 0 (all frames are equal) to frames - 1 (the last frame differs from the one before).

    Example
    -------
    >>> constant_tail_start(torch.tensor([[[5.0], [2.0], [-1.0], [-1.0]], [[5.0], [-1.0], [-1.0], [2.0]]]))
    tensor([2, 3])
    """
    changes = (features[:, 1:] != features[:, :-1]).any(dim=-1)  # [batch, frames - 1], frame t to t + 1
    positions = torch.arange(1, features.shape[1], device=features.device)
    return torch.where(changes, positions, 0).amax(dim=1)


class StandardizeBands(nn.Module):
    """(x - mean) / standard deviation of each band, measured once and then fixed.

    SpeechBrain's InputNormalization measures while it trains, so that an epoch's first steps see other input than
    its last ones, and a result depends on the batches. Here training starts from the whole training part's figures,
    which are part of the model's checkpoint.

    Arguments
    ---------
    n_bands : int
        Bands of the features.
    eps : float
        Added to the variance: a band that never changes stays finite.

    Example
    -------
    >>> standardize = StandardizeBands(2)
    >>> utterances = [torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[5.0, 5.0]])]
    >>> standardize.fit(utterances)
    >>> standardize(torch.tensor([[[3.0, 5.0]]]))
    tensor([[[0., 0.]]])
    """

    def __init__(self, n_bands: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(n_bands))
        self.register_buffer("variance", torch.ones(n_bands))

    def fit(self, utterances: Iterable[torch.Tensor]) -> None:
        """Measure mean and variance over all frames.

        Arguments
        ---------
        utterances : iterable of torch.Tensor
            Features of one utterance each, [frames, bands].
        """
        n, total, squares = 0, 0.0, 0.0
        for x in utterances:
            x = x.double()
            n, total, squares = n + len(x), total + x.sum(0), squares + x.square().sum(0)
        mean = total / n
        self.mean.copy_(mean)
        self.variance.copy_((squares / n - mean.square()).clamp(min=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardise [batch, frames, bands]."""
        return (x - self.mean) * torch.rsqrt(self.variance + self.eps)


class MaskedGroupNorm(nn.GroupNorm):
    """PyTorch's GroupNorm, with the padding of a batch left out of mean and variance.

    Arguments
    ---------
    num_groups, num_channels, eps, affine
        Those of :class:`torch.nn.GroupNorm`.

    Example
    -------
    >>> norm = MaskedGroupNorm(2, 4)
    >>> x = torch.randn(1, 4, 6)
    >>> own = torch.tensor([[True, True, True, True, False, False]])
    >>> torch.allclose(norm(x, own)[:, :, :4], norm(x[:, :, :4]), atol=1e-5)
    True
    """

    def forward(self, x: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise.

        Arguments
        ---------
        x : torch.Tensor
            [batch, channels, frames]; what stands past an utterance's end is ignored, whatever it is.
        own : torch.BoolTensor, optional
            True on own frames [batch, frames]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            [batch, channels, frames], 0 on padding.
        """
        if own is None:
            return super().forward(x)
        padding = ~own[:, None, :]
        values = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(padding, 0.0)
        grouped = values.unflatten(1, (self.num_groups, -1))  # [batch, groups, channels of one, frames]
        size = (own.sum(dim=1) * grouped.shape[2])[:, None, None, None]
        mean = grouped.sum(dim=(2, 3), keepdim=True) / size
        centred = (grouped - mean).masked_fill(padding[:, None], 0.0)
        variance = centred.square().sum(dim=(2, 3), keepdim=True) / size
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)  # [batch, channels, frames]
        if self.affine:
            normed = torch.addcmul(self.bias[:, None], normed, self.weight[:, None]).masked_fill(padding, 0.0)
        return normed.to(x.dtype)
