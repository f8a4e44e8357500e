"""Layers of speech encoders made blind to padding, with the parameter names of the layers they replace."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from speechbrain_ser.nnet.pooling import frame_mask


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


class MaskedGroupNormConvLayer(GradientCheckpointingLayer):
    """First convolution of a group-norm front end, its statistics over each utterance's own frames.

    The published layer normalises every channel over the whole padded time axis: an utterance's features then
    depend on how much padding its batch gave it.

    Arguments
    ---------
    layer : torch.nn.Module
        transformers' layer with `conv`, `layer_norm` (a GroupNorm of one channel a group) and `activation`.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        norm = layer.layer_norm
        if norm.num_groups != norm.num_channels:
            raise ValueError(f"expected a GroupNorm of one channel a group, found {norm}")
        self.conv = layer.conv
        self.layer_norm = norm
        self.activation = layer.activation

    def forward(self, hidden: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve, normalise, activate.

        Arguments
        ---------
        hidden : torch.Tensor
            [batch, channels_in, time].
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance after this convolution [batch]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            [batch, channels, frames].
        """
        hidden = self.conv(hidden)  # [batch, channels, frames]
        if frame_counts is None:
            return self.activation(self.layer_norm(hidden))
        return self.activation(self._norm(hidden, frame_counts))

    def _norm(self, hidden: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
        # written so that autograd keeps one tensor of this size (`centred`), as the unmasked kernel does
        mask = frame_mask(frame_counts, hidden.shape[-1])[:, None, :]  # [batch, 1, frames]
        size = frame_counts[:, None, None]
        with torch.autocast(hidden.device.type, enabled=False):
            own = hidden.float()
            mean = (own * mask).sum(dim=-1, keepdim=True) / size  # [batch, channels, 1]
            centred = own - mean
            variance = (centred.square() * mask).sum(dim=-1, keepdim=True) / size
            scale = torch.rsqrt(variance + self.layer_norm.eps) * self.layer_norm.weight.float()[:, None]
            normed = torch.addcmul(self.layer_norm.bias.float()[:, None], centred, scale)
        return normed.to(hidden.dtype)


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
