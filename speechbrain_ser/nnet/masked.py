"""Layers and normalisations that take an utterance's own frames alone, whatever the padding."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def normalize_own(x: torch.Tensor, mask: torch.Tensor, eps: float) -> torch.Tensor:
    """Return zero mean and unit variance over each utterance's own values, in float32 at least; padding becomes 0.

    `x` is [batch, time] or [batch, time, channels] (then over both axes), `mask` True on own samples or frames
    [batch, time]; `eps` is added to the variance, so that silence stays silence.

    Example
    -------
    >>> normalize_own(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[True, True, False]]), eps=0.0)
    tensor([[-1.,  1.,  0.]])
    """
    padding = ~mask.view(*mask.shape, *([1] * (x.dim() - 2)))
    return _standardized(x, padding, tuple(range(1, x.dim())), x[0, 0].numel(), eps)


def _standardized(x: torch.Tensor, padding: torch.Tensor, axes: tuple, width: int, eps: float) -> torch.Tensor:
    """Over `axes` of what is no padding, where every frame has `width` values."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    size = (~padding).sum(dim=axes, keepdim=True) * width
    mean = x.masked_fill(padding, 0.0).sum(dim=axes, keepdim=True) / size
    centred = (x - mean).masked_fill(padding, 0.0)
    variance = centred.square().sum(dim=axes, keepdim=True) / size
    return centred * torch.rsqrt(variance + eps)


class MaskedGroupNorm(nn.GroupNorm):
    """PyTorch's GroupNorm, with the padding of a batch left out of mean and variance."""

    def forward(self, x: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise [batch, channels, frames]; padding, whatever it is, becomes 0.

        `own` is True on own frames [batch, frames]; None when there is no padding.
        """
        if own is None:
            return super().forward(x)
        padding = ~own[:, None, :]
        grouped = x.unflatten(1, (self.num_groups, -1))  # [batch, groups, channels of one, frames]
        normed = _standardized(grouped, padding[:, None], (2, 3), grouped.shape[2], self.eps).flatten(1, 2)
        if self.affine:
            normed = torch.addcmul(self.bias[:, None], normed, self.weight[:, None]).masked_fill(padding, 0.0)
        return normed.to(x.dtype)


class StandardizeBands(nn.Module):
    """(x - mean) / standard deviation of each band, measured once and then fixed.

    SpeechBrain's InputNormalization measures while it trains: a result depends on the batches. Here training starts
    from the whole training part's figures, which are part of the checkpoint; `eps` is added to the variance.

    Example
    -------
    >>> standardize = StandardizeBands(1)
    >>> standardize.fit([torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])])
    >>> standardize(torch.tensor([[[3.0]]]))
    tensor([[[0.]]])
    """

    def __init__(self, n_bands: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(n_bands))
        self.register_buffer("variance", torch.ones(n_bands))

    def fit(self, utterances: Iterable[torch.Tensor]) -> None:
        """Measure mean and variance over all frames of utterances [frames, bands]."""
        n, total, squares = 0, 0.0, 0.0
        for x in utterances:
            x = x.double()
            n, total, squares = n + len(x), total + x.sum(0), squares + x.square().sum(0)
        mean = total / n
        self.mean.copy_(mean)
        self.variance.copy_((squares / n - mean.square()).clamp(min=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) * torch.rsqrt(self.variance + self.eps)


class MaskedPositionalConv(nn.Module):
    """Positional convolutions that keep padding at zero wherever the published ones let something leak into it.

    Two kinds leak: data2vec stacks several convolutions (from the second on, padding holds what the first wrote
    there), and some HuBERT checkpoints normalise with a BatchNorm first, which lifts zeros. One plain convolution (the
    others) reads the encoder's own zeros and needs nothing.

    The encoder sets padding to exactly zero just before it calls this module without a mask: a frame of zeros is
    padding. `embedding` is transformers' module: its `layers` (data2vec) or `batch_norm`, `conv`, `padding`,
    `activation` are used.
    """

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.stacked = hasattr(embedding, "layers")
        for name, child in embedding.named_children():
            self.add_module(name, child)

    @staticmethod
    def needed_by(embedding: nn.Module) -> bool:
        return len(getattr(embedding, "layers", ())) > 1 or getattr(embedding, "batch_norm", None) is not None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Embed positions of [batch, frames, channels], zero where padded."""
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


def constant_tail_start(features: torch.Tensor) -> torch.LongTensor:
    """Return the frame at which each last run of equal frames begins [batch], such as padding with one value.

    Example
    -------
    >>> constant_tail_start(torch.tensor([[[5.0], [2.0], [-1.0], [-1.0]], [[5.0], [-1.0], [-1.0], [2.0]]]))
    tensor([2, 3])
    """
    changes = (features[:, 1:] != features[:, :-1]).any(dim=-1)  # [batch, frames - 1], frame t to t + 1
    positions = torch.arange(1, features.shape[1], device=features.device)
    return torch.where(changes, positions, 0).amax(dim=1)


class BLSTM(nn.Module):
    """Stacked bidirectional LSTM over a padded batch.

    Packing is what PyTorch offers for utterances of different lengths; on a CPU it takes 1.6 (128 frames) to 2.4 times
    (256) as long as the fused LSTM (benchmarks/cnn_blstm_attention.py). There each direction runs fused instead, the
    backward one over utterances turned round within their own frames. Utterances of one length need neither.

    `size` is the units of a direction; `dropout` the share of a layer's outputs set to zero before the next layer.

    Example
    -------
    >>> blstm = BLSTM(input_size=3, size=4, layers=2)
    >>> x = torch.randn(2, 6, 3)
    >>> y = blstm(x, torch.tensor([6, 2]))
    >>> y.shape, torch.allclose(y[1:, :2], blstm(x[1:, :2]), atol=1e-6), y[1, 2:].abs().max().item()
    (torch.Size([2, 6, 8]), True, 0.0)
    """

    def __init__(self, input_size: int, size: int, layers: int = 1, dropout: float = 0.0):
        super().__init__()
        between = dropout if layers > 1 else 0.0  # PyTorch warns of a dropout that has no place
        self.lstm = nn.LSTM(input_size, size, layers, batch_first=True, dropout=between, bidirectional=True)

    def forward(self, x: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """Run both directions over [batch, frames, input_size], finite on padding: [batch, frames, 2 * size], 0 there.

        `frame_counts` are own frames [batch], the longest of all; None: all utterances have all, which is fastest.
        """
        if torch.compiler.is_exporting():
            return self._as_onnx(x, frame_counts)
        if frame_counts is None:
            return self.lstm(x)[0]
        return (self._packed if x.is_cuda else self._turned)(x, frame_counts)  # packed is cuDNN's own way

    def prepare_graph(self) -> None:
        """Keep the weights as in ONNX: of both directions [2, 4 size, …], gates in the order i, o, f, c."""
        for layer in range(self.lstm.num_layers):
            both = zip(*self.lstm.all_weights[2 * layer : 2 * layer + 2], strict=True)
            inner, outer, *biases = (torch.stack([_in_onnx_order(each) for each in pair]).detach() for pair in both)
            for name, value in (("inner", inner), ("outer", outer), ("biases", torch.cat(biases, dim=1))):
                self.register_buffer(f"onnx_{name}_{layer}", value, persistent=False)

    def _as_onnx(self, x: torch.Tensor, frame_counts: torch.Tensor | None) -> torch.Tensor:
        """One operator a layer, in a graph that is exported: torch's exporter would write out every frame."""
        size, hidden = self.lstm.hidden_size, x.transpose(0, 1)  # [frames, batch, inputs]
        counts = None if frame_counts is None else frame_counts.int()
        for layer in range(self.lstm.num_layers):
            weights = [getattr(self, f"onnx_{name}_{layer}") for name in ("inner", "outer", "biases")]
            hidden = torch.onnx.ops.symbolic(
                "LSTM",
                (hidden, *weights, counts),
                {"direction": "bidirectional", "hidden_size": size},
                dtype=x.dtype,
                shape=(x.shape[1], 2, x.shape[0], size),
                version=18,
            )
            hidden = hidden.transpose(1, 2).flatten(2)  # [frames, batch, 2 size]
        return hidden.transpose(0, 1)

    def _packed(self, x: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, frame_counts.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]

    def _turned(self, x: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        own = positions < frame_counts[:, None]  # [batch, frames]
        turned = torch.where(own, frame_counts[:, None] - 1 - positions, positions)[:, :, None]
        weights = self.lstm.all_weights  # layer by layer, forward then backward
        for layer in range(self.lstm.num_layers):
            if layer:
                x = nn.functional.dropout(x, self.lstm.dropout, self.training)
            forward = _one_direction(x, weights[2 * layer])
            backward = _one_direction(x.take_along_dim(turned, dim=1), weights[2 * layer + 1])
            x = torch.cat([forward, backward.take_along_dim(turned, dim=1)], dim=-1)  # [batch, frames, 2 size]
        return x.masked_fill(~own[:, :, None], 0.0)


def _in_onnx_order(weight: torch.Tensor) -> torch.Tensor:
    """Of torch's gates i, f, c, o [4 size, …]."""
    i, f, c, o = weight.chunk(4)
    return torch.cat([i, o, f, c])


def _one_direction(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """One layer, left to right: [batch, frames, inputs] -> [batch, frames, size]."""
    start = x.new_zeros(1, len(x), weights[1].shape[1])
    # has biases, one layer, no dropout, never training (that concerns dropout alone), one direction, batch first
    return torch.lstm(x, (start, start), weights, True, 1, 0.0, False, False, True)[0]
