"""Group normalisation that takes its statistics over each utterance's own frames."""

import torch
from torch import nn

from speechbrain_ser.nnet.masked import normalize_own


class MaskedGroupNorm(nn.GroupNorm):
    """PyTorch's GroupNorm, with the padding of a batch left out of mean and variance.

    Arguments
    ---------
    num_groups, num_channels, eps, affine
        Those of :class:`torch.nn.GroupNorm`.

    Example
    -------
    >>> norm = MaskedGroupNorm(2, 4)
    >>> x = torch.randn(1, 4, 6)
    >>> own = torch.tensor([[True, True, True, True, False, False]])
    >>> torch.allclose(norm(x, own)[:, :, :4], norm(x[:, :, :4]), atol=1e-5)
    True
    """

    def forward(self, x: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise.

        Arguments
        ---------
        x : torch.Tensor
            [batch, channels, frames]; what stands past an utterance's end is ignored, whatever it is.
        own : torch.BoolTensor, optional
            True on own frames [batch, frames]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            [batch, channels, frames], 0 on padding.
        """
        if own is None:
            return super().forward(x)
        batch, channels, frames = x.shape
        groups = x.reshape(batch * self.num_groups, channels // self.num_groups, frames).transpose(1, 2)
        normed = normalize_own(groups, own.repeat_interleave(self.num_groups, dim=0), self.eps)
        normed = normed.transpose(1, 2).reshape(batch, channels, frames)
        if self.affine:
            normed = torch.addcmul(self.bias[:, None], normed, self.weight[:, None])
        return normed.masked_fill(~own[:, None, :], 0.0).to(x.dtype)
