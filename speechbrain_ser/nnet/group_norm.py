"""Group normalisation that takes its statistics over each utterance's own frames."""

import torch
from torch import nn


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
        padding = ~own[:, None, :]
        values = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(padding, 0.0)
        grouped = values.unflatten(1, (self.num_groups, -1))  # [batch, groups, channels of one, frames]
        size = (own.sum(dim=1) * grouped.shape[2])[:, None, None, None]
        mean = grouped.sum(dim=(2, 3), keepdim=True) / size
        centred = (grouped - mean).masked_fill(padding[:, None], 0.0)
        variance = centred.square().sum(dim=(2, 3), keepdim=True) / size
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)  # [batch, channels, frames]
        if self.affine:
            normed = torch.addcmul(self.bias[:, None], normed, self.weight[:, None]).masked_fill(padding, 0.0)
        return normed.to(x.dtype)
