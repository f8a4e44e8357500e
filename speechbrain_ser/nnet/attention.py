"""Attention over an utterance's own frames: local (Mirsamadi et al. 2017) and multi-head (Vaswani et al. 2017)."""

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_ser.errors import UserError


class LocalAttentionPooling(nn.Module):
    """alpha = softmax over own frames of U.h; the utterance is the sum of alpha h (Fu et al., equations 3 and 4).

    `size` is that of a frame and of U. Computed in float32 under mixed precision too.

    Example
    -------
    >>> pooling = LocalAttentionPooling(1)
    >>> pooling.score.weight.data[:] = 0.0  # a U of zeros is the mean
    >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])  # one utterance of two frames, one frame of padding
    >>> pooled, weights = pooling(x, torch.tensor([[True, True, False]]))
    >>> pooled.tolist(), weights.tolist()
    ([[2.0]], [[0.5, 0.5, 0.0]])
    """

    def __init__(self, size: int):
        super().__init__()
        self.score = nn.Linear(size, 1, bias=False)  # U; a bias would cancel in the softmax

    def forward(self, x: torch.Tensor, own: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Pool [batch, frames, size], finite on padding, to [batch, size] and give the weights [batch, frames].

        `own` is True on own frames [batch, frames], at least one an utterance; None: all are.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            scores = self.score(x).squeeze(-1)  # [batch, frames]
            if own is not None:
                scores = scores.masked_fill(~own, -torch.inf)
            weights = scores.softmax(dim=-1)
            return (weights[:, None, :] @ x).squeeze(1), weights


class SelfAttention(nn.Module):
    """Every frame becomes a weighted sum of all frames, in several heads, mixed by an output projection.

    `size` is the channels of input and output, which the heads divide among themselves. The scores' softmax is taken in
    float32 under mixed precision too.

    Example
    -------
    >>> attention = SelfAttention(size=8, heads=2)
    >>> own = torch.tensor([[True, True, True], [True, True, False]])
    >>> attention(torch.randn(2, 3, 8), own).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, size: int, heads: int):
        super().__init__()
        if size % heads:
            raise UserError(f"heads: expected a divisor of the {size} channels, found {heads}")
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)

    def forward(self, x: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Attend within [batch, frames, size], finite on padding; what the result has on padding means nothing.

        `own` is True on own frames [batch, frames], at least one an utterance; None: all are.
        """
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        attended_to = None if own is None else own[:, None, None, :]  # [batch, 1, 1, frames]
        with torch.autocast(x.device.type, enabled=False):
            heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attended_to)
        return self.output(heads.transpose(1, 2).flatten(2))  # [batch, frames, size]

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, frames, size] -> [batch, heads, frames, size / heads], float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
