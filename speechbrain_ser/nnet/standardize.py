"""Features brought to zero mean and unit variance, band by band, over the training utterances."""

from collections.abc import Iterable

import torch
from torch import nn


class StandardizeBands(nn.Module):
    """(x - mean) / standard deviation of each band, measured once and then fixed.

    SpeechBrain's InputNormalization measures while it trains, so that an epoch's first steps see other input than
    its last ones, and a result depends on the batches. Here training starts from the whole training part's figures,
    which are part of the model's checkpoint.

    Arguments
    ---------
    n_bands : int
        Bands of the features.
    eps : float
        Added to the variance: a band that never changes stays finite.

    Example
    -------
    >>> standardize = StandardizeBands(2)
    >>> utterances = [torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[5.0, 5.0]])]
    >>> standardize.fit(utterances)
    >>> standardize(torch.tensor([[[3.0, 5.0]]]))
    tensor([[[0., 0.]]])
    """

    def __init__(self, n_bands: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(n_bands))
        self.register_buffer("variance", torch.ones(n_bands))

    def fit(self, utterances: Iterable[torch.Tensor]) -> None:
        """Measure mean and variance over all frames.

        Arguments
        ---------
        utterances : iterable of torch.Tensor
            Features of one utterance each, [frames, bands].
        """
        n, total, squares = 0, 0.0, 0.0
        for x in utterances:
            x = x.double()
            n, total, squares = n + len(x), total + x.sum(0), squares + x.square().sum(0)
        mean = total / n
        self.mean.copy_(mean)
        self.variance.copy_((squares / n - mean.square()).clamp(min=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardise [batch, frames, bands]."""
        return (x - self.mean) * torch.rsqrt(self.variance + self.eps)
