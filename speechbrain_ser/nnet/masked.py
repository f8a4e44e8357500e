"""Layers of speech encoders made blind to padding, with the parameter names of the layers they replace."""

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
