"""Local attention: a learned weighted mean over an utterance's own frames (Mirsamadi et al. 2017, section 3.3)."""

import torch
from torch import nn


class LocalAttentionPooling(nn.Module):
    """alpha = softmax over own frames of U.h; the utterance is the sum of alpha h (Fu et al., equations 3 and 4).

    Computed in float32 under mixed precision too.

    Arguments
    ---------
    size : int
        Channels of a frame, the length of U.

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
        """Pool a padded batch.

        Arguments
        ---------
        x : torch.Tensor
            [batch, frames, size]; padding must be finite.
        own : torch.BoolTensor, optional
            True on own frames [batch, frames], at least one an utterance; None: all are.

        Returns
        -------
        torch.Tensor
            [batch, size], float32 at least.
        torch.Tensor
            The weights [batch, frames], 0 on padding.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            scores = self.score(x).squeeze(-1)  # [batch, frames]
            if own is not None:
                scores = scores.masked_fill(~own, -torch.inf)
            weights = scores.softmax(dim=-1)
            return (weights[:, None, :] @ x).squeeze(1), weights
