"""A convolutional front end over one utterance, piece by piece: how it runs on a CPU when nothing is learned."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_ser.nnet.masked import MaskedGroupNormConvLayer

#: frames of a piece, 1.5 s: its activations (10 MB each in wav2vec2-base) stay in the processor's cache and in memory
#: that the allocator keeps (above 32 MB, every allocation is a new mapping whose pages are cleared first)
PIECE = 75


def convolve_in_pieces(layers: Sequence[nn.Module], wav: torch.Tensor, piece: int = PIECE) -> torch.Tensor:
    """What the layers give of an utterance, in memory that does not grow with its length.

    A group norm in the first layer takes its statistics over the whole utterance, from the waveform: the convolution
    is linear, so that they follow from mean and covariance of the samples that one of its frames sees.

    Arguments
    ---------
    layers : sequence of torch.nn.Module
        Of a speech encoder, without padding: each has ``conv`` and ``activation``; one with another norm than the
        group norm of :class:`~speechbrain_ser.nnet.masked.MaskedGroupNormConvLayer` norms each frame by itself.
    wav : torch.Tensor
        An utterance's own samples [time], at least what makes a frame.
    piece : int
        Frames of the output that are computed at a time.

    Returns
    -------
    torch.Tensor
        [frames, channels].

    Example
    -------
    >>> from transformers import Wav2Vec2Config
    >>> from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder
    >>> layers = Wav2Vec2FeatureEncoder(Wav2Vec2Config(conv_dim=(8,) * 7)).conv_layers
    >>> layers[0] = MaskedGroupNormConvLayer(layers[0])
    >>> wav = torch.randn(16000)
    >>> whole = wav[None, None]
    >>> with torch.no_grad():
    ...     found = convolve_in_pieces(layers, wav, piece=20)
    ...     for layer in layers:
    ...         whole = layer(whole)
    >>> found.shape, torch.allclose(found, whole[0].T, atol=1e-4)
    (torch.Size([49, 8]), True)
    """
    steps = list(_steps(layers, wav))
    hop = math.prod(layer.conv.stride[0] for layer in layers)
    seen = 1  # samples that a frame of the output sees
    for layer in reversed(layers):
        seen = (seen - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
    frames = (len(wav) - seen) // hop + 1
    found = []
    for start in range(0, frames, piece):
        last = min(start + piece, frames) - 1
        hidden = wav[None, None, start * hop : last * hop + seen]  # [1, 1, time]
        for step in steps:
            hidden = step(hidden)  # [1, channels, frames]
        found.append(hidden[0].T)
    return torch.cat(found)


def _steps(layers: Sequence[nn.Module], wav: torch.Tensor) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """The layers as functions: [1, channels_in, time] -> [1, channels, frames]."""
    half = _half_precision(layers[0].conv.weight)
    for layer in layers:
        weight, bias, norm = layer.conv.weight, layer.conv.bias, getattr(layer, "layer_norm", None)
        if isinstance(layer, MaskedGroupNormConvLayer):
            weight, bias = _folded(layer.conv, norm, wav)
            norm = None
        if half is not None:
            yield _channels_innermost(layer, weight.to(half), bias, norm)
        elif weight is not layer.conv.weight:
            yield _with_weight(layer, weight, bias)
        else:
            yield layer


def _half_precision(weight: torch.Tensor) -> torch.dtype | None:
    """The type in which a convolution is computed, where that has 16 bits."""
    on = torch.is_autocast_enabled(weight.device.type)
    dtype = torch.get_autocast_dtype(weight.device.type) if on else weight.dtype
    return dtype if dtype.itemsize < 4 else None


def _folded(conv: nn.Conv1d, norm: nn.GroupNorm, wav: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [channels, 1, kernel] and bias [channels] of convolution and group norm in one."""
    with torch.autocast(wav.device.type, enabled=False):
        windows = wav.double().unfold(0, conv.kernel_size[0], conv.stride[0])  # [frames, kernel]
        mean = windows.mean(0)
        centred = windows - mean
        covariance = centred.T @ centred / len(windows)  # [kernel, kernel]
        weight = conv.weight[:, 0].double()  # [channels, kernel]
        scale = torch.rsqrt(((weight @ covariance) * weight).sum(1) + norm.eps) * norm.weight.double()
        # the convolution's own bias is taken off again with the mean
        bias = norm.bias.double() - (weight @ mean) * scale
        return (weight * scale[:, None])[:, None].float(), bias.float()


def _with_weight(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor):
    """Convolution and activation of a layer with another weight."""
    stride = layer.conv.stride
    return lambda piece: layer.activation(F.conv1d(piece, weight, bias, stride))


def _channels_innermost(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None, norm: nn.Module | None):
    """Convolution, norm and activation of a layer in the memory order that half precision's kernels want.

    Given channels first, they copy input and output, which costs more than the convolution.
    """
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    image = channels_last(weight)

    def step(piece: torch.Tensor) -> torch.Tensor:
        if piece.shape[1] == 1:
            windows = piece[:, 0].to(weight.dtype).unfold(-1, kernel, stride)  # [1, frames, kernel]
            hidden = F.linear(windows, weight[:, 0], bias)  # [1, frames, channels]
        else:
            hidden = F.conv2d(piece[:, :, None], image, bias, stride=(1, stride))[:, :, 0].transpose(1, 2)
        return layer.activation(hidden if norm is None else norm(hidden)).transpose(1, 2)

    return step


def channels_last(weight: torch.Tensor) -> torch.Tensor:
    """A convolution's weight [out, in, kernel] as [out, in, 1, kernel] with `in` innermost in memory, an order that
    only two-dimensional kernels have."""
    return weight[:, :, None].contiguous(memory_format=torch.channels_last)
