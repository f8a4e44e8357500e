"""Strided convolutions of frames as matrix products, and a head of convolutions."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


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
