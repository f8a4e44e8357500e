"""A bidirectional LSTM that is blind to padding."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


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
        if frame_counts is None:
            return self.lstm(x)[0]
        return (self._packed if x.is_cuda else self._turned)(x, frame_counts)  # packed is cuDNN's own way

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


def _one_direction(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """One layer, left to right: [batch, frames, inputs] -> [batch, frames, size]."""
    start = x.new_zeros(1, len(x), weights[1].shape[1])
    # has biases, one layer, no dropout, never training (that concerns dropout alone), one direction, batch first
    return torch.lstm(x, (start, start), weights, True, 1, 0.0, False, False, True)[0]
