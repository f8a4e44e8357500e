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

    `size` is the channels of input and output, `head_size` those of a head: None divides `size` among the heads. The
    scores' softmax is taken in float32 under mixed precision too.

    Example
    -------
    >>> attention = SelfAttention(size=8, heads=2)
    >>> own = torch.tensor([[True, True, True], [True, True, False]])
    >>> attention(torch.randn(2, 3, 8), own).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, size: int, heads: int, head_size: int | None = None):
        super().__init__()
        if head_size is None and size % heads:
            raise UserError(f"heads: expected a divisor of the {size} channels (or a head_size), found {heads}")
        self.heads = heads
        self.head_size = head_size or size // heads
        inner = self.heads * self.head_size
        self.query = nn.Linear(size, inner)
        self.key = nn.Linear(size, inner)
        self.value = nn.Linear(size, inner)
        self.output = nn.Linear(inner, size)

    def forward(
        self, x: torch.Tensor, own: torch.Tensor | None = None, return_weights: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attend within [batch, frames, size], finite on padding; what the result has on padding means nothing.

        `own` is True on own frames [batch, frames], at least one an utterance; None: all are. `return_weights` also
        gives the weights [batch, heads, frames (attending), frames (attended)], 0 on padding either way, which are
        otherwise never held in memory.
        """
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        attended_to = None if own is None else own[:, None, None, :]  # [batch, 1, 1, frames]
        with torch.autocast(x.device.type, enabled=False):
            if return_weights:
                scores = query @ key.transpose(-2, -1) / self.head_size**0.5  # [batch, heads, frames, frames]
                if own is not None:
                    scores = scores.masked_fill(~attended_to, -torch.inf)
                weights = scores.softmax(dim=-1)
                heads = weights @ value
            else:
                heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attended_to)
        attended = self.output(heads.transpose(1, 2).flatten(2))  # [batch, frames, size]
        if not return_weights:
            return attended
        return attended, weights if own is None else weights * own[:, None, :, None]

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, frames, heads * head_size] -> [batch, heads, frames, head_size], float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)
