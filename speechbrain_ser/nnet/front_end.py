"""The layers of a speech encoder's convolutional front end: blind to padding, and fast on a CPU."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from speechbrain_ser.nnet.convolution import as_matrix_product, frame_conv
from speechbrain_ser.processing.lengths import frame_mask

#: frames of a piece, 1.5 s: its activations (10 MB each in wav2vec2-base) stay in the processor's cache and in memory
#: that the allocator keeps (above 32 MB, every allocation is a new mapping whose pages are cleared first)
PIECE = 75

Step = Callable[[torch.Tensor], torch.Tensor]  # [batch, time, channels_in] -> [batch, frames, channels]


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
        del hidden, lengths
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
