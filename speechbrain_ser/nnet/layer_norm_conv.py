"""Convolution, layer norm and activation of a layer-norm front end, in memory order."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

#: above it, oneDNN's one-dimensional kernels win over its channels-last ones
#: (benchmarks/conv_front_end.py; wav2vec2-large has 512)
WIDEST_CHANNELS_LAST = 256


class LayerNormConvLayer(GradientCheckpointingLayer):
    """The published layer's arithmetic in 0.46 (64 channels) to 0.80 (512) of its time on a CPU.

    The published layer transposes by strides alone: its activation then reads one memory order forward and
    two at once backward, and costs more than its convolution. Here everything runs along memory: narrow
    layers keep channels last throughout, wide ones transpose by copying.

    Arguments
    ---------
    layer : torch.nn.Module
        transformers' layer with `conv`, `layer_norm` (a LayerNorm over channels) and `activation`; parameters
        are shared and keep their names.

    Example
    -------
    >>> from transformers import Wav2Vec2Config
    >>> from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2LayerNormConvLayer
    >>> published = Wav2Vec2LayerNormConvLayer(Wav2Vec2Config(conv_dim=(8,) * 7))
    >>> waveform = torch.randn(2, 1, 400)
    >>> hidden = LayerNormConvLayer(published)(waveform)
    >>> hidden.shape, torch.allclose(hidden, published(waveform), atol=1e-5)
    (torch.Size([2, 8, 79]), True)
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.conv = layer.conv
        self.layer_norm = layer.layer_norm
        self.activation = layer.activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Convolve, normalise, activate.

        Arguments
        ---------
        hidden : torch.Tensor
            [batch, channels_in, time].

        Returns
        -------
        torch.Tensor
            [batch, channels, frames].
        """
        wide = self.conv.out_channels > WIDEST_CHANNELS_LAST
        # of one channel, first and last are the same order, and the kernel would take the wrong one
        one = self.conv.in_channels == 1
        hidden = _Transposed.apply(self.conv(hidden)) if wide or one else self._channels_last(hidden)
        hidden = self.activation(self.layer_norm(hidden))  # [batch, frames, channels]
        return _Transposed.apply(hidden) if wide else hidden.transpose(-2, -1)

    def _channels_last(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, time] -> [batch, frames, channels]; only two-dimensional kernels have this
        order."""
        image = hidden[:, :, None].contiguous(memory_format=torch.channels_last)  # [batch, channels_in, 1, time]
        weight = self.conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
        hidden = F.conv2d(image, weight, self.conv.bias, stride=(1, *self.conv.stride))
        return hidden[:, :, 0].transpose(-2, -1)


class _Transposed(torch.autograd.Function):
    """Swap the last two axes in memory, of the gradient as well (`.contiguous()` leaves that one strided)."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-2, -1).contiguous()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad.transpose(-2, -1).contiguous()
