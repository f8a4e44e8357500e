"""Mean squared error of each utterance over its own frames."""

import torch

from speechbrain_ser.nnet.pooling import MaskedPooling, frame_mask

_MEAN = MaskedPooling("mean")


def masked_mse(prediction: torch.Tensor, target: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
    """Squared error averaged over an utterance's own frames and all bands (Hsu et al. 2023, eq. 3).

    Long and short utterances count alike, and padding not at all, whatever it holds.

    Arguments
    ---------
    prediction, target : torch.Tensor
        Spectrograms [batch, frames, bands].
    frame_counts : torch.LongTensor
        Own frames of each utterance [batch], 1 to frames.

    Returns
    -------
    torch.Tensor
        [batch], in float32 at least.

    Raises
    ------
    ValueError
        When the shapes do not match, or an utterance has no frame or more than the batch.

    Example
    -------
    >>> target = torch.zeros(2, 3, 1)
    >>> prediction = torch.tensor([[1.0, 1.0, 4.0], [3.0, 99.0, 99.0]])[:, :, None]
    >>> masked_mse(prediction, target, torch.tensor([3, 1]))
    tensor([6., 9.])
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"expected a prediction of the target's shape {list(target.shape)}, found {list(prediction.shape)}"
        )
    wide = torch.promote_types(prediction.dtype, torch.float32)
    padding = ~frame_mask(frame_counts.to(prediction.device), prediction.shape[1])[:, :, None]
    # before squaring: the gradient of a square is its argument, and 0 * nan is nan
    error = (prediction.to(wide) - target.to(wide)).masked_fill(padding, 0.0)
    return _MEAN(error.square(), frame_counts).mean(dim=1)


def mean_spectrum_mse(target: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
    """Error of the best reconstruction that does not move: an utterance's own mean spectrum on every frame.

    What a decoder that knows who speaks, but not what, can reach: an oracle to be well below.

    Arguments
    ---------
    target : torch.Tensor
        Spectrograms [batch, frames, bands].
    frame_counts : torch.LongTensor
        Own frames of each utterance [batch], 1 to frames.

    Returns
    -------
    torch.Tensor
        [batch].

    Example
    -------
    >>> mean_spectrum_mse(torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([2]))
    tensor([1.])
    """
    mean = _MEAN(target, frame_counts)[:, None, :]  # (batch, 1, bands)
    return masked_mse(mean.expand_as(target), target, frame_counts)
