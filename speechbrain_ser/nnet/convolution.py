"""Strided convolutions of frames as matrix products; a speech encoder's front end of them, blind to padding; a head."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from speechbrain_ser.processing.lengths import frame_mask

#: frames of a piece, 1.5 s: its activations (10 MB each in wav2vec2-base) stay in the processor's cache and in memory
#: that the allocator keeps (above 32 MB, every allocation is a new mapping whose pages are cleared first)
PIECE = 75

Step = Callable[[torch.Tensor], torch.Tensor]  # [batch, time, channels_in] -> [batch, frames, channels]


def frame_conv(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: int = 1
) -> torch.Tensor:
    """Compute :func:`torch.nn.functional.conv1d` with channels innermost: [batch, frames, channels].

    On a CPU the samples that a frame sees lie side by side in memory, so that a matrix product gives all frames; a
    convolution's own kernels first bring input, output and gradients into an order of their own. Forward and backward,
    wav2vec2-base's front end takes 0.6 of transformers' time in bfloat16 and 0.8 in float32
    (benchmarks/conv_front_end.py). Elsewhere, and in a graph that is being captured, it is the convolution.

    `hidden` is [batch, time, channels_in], `weight` [channels, channels_in, kernel] as in the convolution.
    """
    if not as_matrix_product(hidden):
        return F.conv1d(hidden.transpose(1, 2), weight, bias, stride).transpose(1, 2)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        hidden, weight, bias = (x if x is None else x.to(dtype) for x in (hidden, weight, bias))
    return _FrameConv.apply(hidden, weight, bias, stride)


def as_matrix_product(hidden: torch.Tensor) -> bool:
    """Whether :func:`frame_conv` computes a matrix product of this."""
    return hidden.device.type == "cpu" and not torch.compiler.is_compiling()


def innermost(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight [channels, channels_in, kernel] in the memory order that :func:`frame_conv` reads."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


class _FrameConv(torch.autograd.Function):
    """The product, and its gradients as products (those of overlapping windows, which autograd adds up slowly)."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, stride):
        ctx.save_for_backward(hidden, weight)
        ctx.stride = stride
        return F.linear(_windows(hidden, weight.shape[2], stride), _matrix(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight = ctx.saved_tensors
        kernel, of_hidden, of_weight, of_bias = weight.shape[2], None, None, None
        grad = grad.contiguous()  # [batch, frames, channels]
        if ctx.needs_input_grad[0]:
            of_hidden = _added_up(grad @ _matrix(weight), hidden.shape, kernel, ctx.stride)
        if ctx.needs_input_grad[1]:
            windows = _windows(hidden, kernel, ctx.stride)
            of_weight = grad.flatten(0, 1).T @ windows.flatten(0, 1)  # [channels, kernel * channels_in]
            of_weight = of_weight.unflatten(1, (kernel, -1)).transpose(1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 1))
        return of_hidden, of_weight, of_bias, None


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    """[channels, kernel * channels_in]."""
    return weight.transpose(1, 2).flatten(1)


def _windows(hidden: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """What each frame sees [batch, frames, kernel * channels_in]: a view, where neighbours overlap."""
    batch, time, channels = hidden.shape
    frames = (time - kernel) // stride + 1
    size, steps = (batch, frames, kernel * channels), (time * channels, stride * channels, 1)
    return hidden.contiguous().as_strided(size, steps)


def _added_up(grad: torch.Tensor, shape: torch.Size, kernel: int, stride: int) -> torch.Tensor:
    """Gradients of windows [batch, frames, kernel * channels_in] as gradients of what they are windows of."""
    frames = grad.shape[1]
    taps = grad.unflatten(2, (kernel, -1))  # [batch, frames, kernel, channels_in]
    total = grad.new_empty(shape) if kernel >= stride else grad.new_zeros(shape)
    total[:, frames * stride :] = 0
    for tap in range(kernel):
        seen = total[:, tap : tap + stride * (frames - 1) + 1 : stride]
        seen.copy_(taps[:, :, tap]) if tap < stride else seen.add_(taps[:, :, tap])
    return total


class FrontEndLayer(GradientCheckpointingLayer):
    """Convolution, layer norm where there is one, and activation, with channels innermost throughout.

    `layer` is transformers' own, with ``conv``, ``activation`` and perhaps ``layer_norm``, a LayerNorm over channels;
    parameters are shared and keep their names.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.conv = layer.conv
        self.layer_norm = getattr(layer, "layer_norm", None)
        self.activation = layer.activation

    def forward(self, hidden: torch.Tensor, lengths: torch.LongTensor | None = None) -> torch.Tensor:
        """[batch, time, channels_in] -> [batch, frames, channels]; `lengths` is each utterance's own time [batch]."""
        return self.step(hidden, lengths)(hidden)

    def step(self, hidden: torch.Tensor, lengths: torch.LongTensor | None = None) -> Step:
        """Return the layer as a function of any piece of `hidden`, with the statistics of the whole."""
        return self._of_frames

    def _of_frames(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = frame_conv(hidden, self.conv.weight, self.conv.bias, self.conv.stride[0])
        return self.activation(hidden if self.layer_norm is None else self.layer_norm(hidden))


class GroupNormFrontEndLayer(FrontEndLayer):
    """The first layer, where it has a group norm: its statistics are those of each utterance's own frames.

    The published layer normalises every channel over the whole padded time axis. Its ``conv`` has one channel in, its
    ``layer_norm`` one a group, as all of transformers' encoders have them.
    """

    def forward(self, hidden: torch.Tensor, lengths: torch.LongTensor | None = None) -> torch.Tensor:
        if as_matrix_product(hidden):
            return super().forward(hidden, lengths)
        hidden = self.conv(hidden.transpose(1, 2))  # [batch, channels, frames]
        if lengths is None:
            hidden = self.layer_norm(hidden)
        else:
            hidden = self._norm(hidden, (lengths - self.conv.kernel_size[0]) // self.conv.stride[0] + 1)
        return self.activation(hidden).transpose(1, 2)

    def step(self, hidden: torch.Tensor, lengths: torch.LongTensor | None = None) -> Step:
        """Return convolution, norm and activation as one product: the norm scales and shifts channels.

        By how much follows from mean and covariance of the samples that a frame sees, for the convolution is linear.
        """
        lengths = [hidden.shape[1]] * len(hidden) if lengths is None else lengths.tolist()
        folded = [self._folded(row[:n, 0]) for row, n in zip(hidden, lengths, strict=True)]
        weight, bias = (torch.stack(each) for each in zip(*folded, strict=True))  # [batch, kernel, channels], [b, 1, c]
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]

        def step(piece: torch.Tensor) -> torch.Tensor:
            windows = piece[:, :, 0].unfold(1, kernel, stride)  # [batch, frames, kernel]
            return self.activation(torch.baddbmm(bias, windows, weight))

        return step

    def _folded(self, wav: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [kernel, channels] and bias [1, channels] of convolution and norm in one, for an utterance [time]."""
        with torch.autocast(wav.device.type, enabled=False):
            windows = wav.double().unfold(0, self.conv.kernel_size[0], self.conv.stride[0])  # [frames, kernel]
            mean = windows.mean(0)
            centred = windows - mean
            covariance = centred.T @ centred / len(windows)  # [kernel, kernel]
            weight, norm = self.conv.weight[:, 0].double(), self.layer_norm  # [channels, kernel]
            scale = torch.rsqrt(((weight @ covariance) * weight).sum(1) + norm.eps) * norm.weight.double()
            # the convolution's own bias is taken off again with the mean
            bias = norm.bias.double() - (weight @ mean) * scale
            dtype = self.conv.weight.dtype
            return (weight * scale[:, None]).T.to(dtype), bias[None].to(dtype)

    def _norm(self, hidden: torch.Tensor, frame_counts: torch.LongTensor) -> torch.Tensor:
        # written so that autograd keeps one tensor of this size (`centred`), as the unmasked kernel does
        frame_counts = frame_counts.to(hidden.device)
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


def front_end_layer(layer: nn.Module) -> FrontEndLayer:
    """Return ours in the place of one of transformers' layers."""
    is_group_norm = isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm)
    return (GroupNormFrontEndLayer if is_group_norm else FrontEndLayer)(layer)


def convolve_in_pieces(layers: Sequence[FrontEndLayer], wav: torch.Tensor, piece: int = PIECE) -> torch.Tensor:
    """Apply all layers of a front end to an utterance's own samples [time], in memory that does not grow with it.

    `piece` is how many frames of the output [frames, channels] are computed at a time.

    Example
    -------
    >>> from transformers import Wav2Vec2Config
    >>> from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2FeatureEncoder
    >>> layers, wav = Wav2Vec2FeatureEncoder(Wav2Vec2Config(conv_dim=(8,) * 7)).conv_layers, torch.randn(16000)
    >>> convolve_in_pieces([front_end_layer(layer) for layer in layers], wav, piece=20).shape
    torch.Size([49, 8])
    """
    hop = math.prod(layer.conv.stride[0] for layer in layers)
    seen = 1  # samples that a frame of the output sees
    for layer in reversed(layers):
        seen = (seen - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
    frames = (len(wav) - seen) // hop + 1
    first, *others = layers
    steps = [first.step(wav[None, :, None]), *others]
    found = []
    for start in range(0, frames, piece):
        last = min(start + piece, frames) - 1
        hidden = wav[None, start * hop : last * hop + seen, None]  # [1, time, 1]
        for step in steps:
            hidden = step(hidden)  # [1, frames, channels]
        found.append(hidden[0])
    return torch.cat(found)


class ConvHead(nn.Module):
    """Two convolutions over frames, with GELU between them and dropout before each.

    Frames past an utterance's end must be 0, as encoders leave them: then it gets in any batch what it gets alone.
    `hidden` is the channels between the convolutions, `kernel` the frames that each looks at, an odd number.
    """

    def __init__(self, in_features: int, out_features: int, hidden: int = 128, kernel: int = 5, dropout: float = 0.3):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number of frames, found {kernel}")
        self.out_features = out_features
        self.dropout = nn.Dropout(dropout)
        self.first = nn.Conv1d(in_features, hidden, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(hidden, out_features, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [batch, frames, in_features] to logits [batch, frames, out_features]."""
        own = (x != 0).any(2)[:, None]  # (batch, 1, frames)
        x = nn.functional.gelu(self.first(self.dropout(x).transpose(1, 2)))  # (batch, hidden, frames)
        return self.second(self.dropout(x * own)).transpose(1, 2)
