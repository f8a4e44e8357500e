"""Losses that give one value an utterance, so that weighting by utterance is left to the caller."""

import itertools

import torch
import torch.nn.functional as F

from speechbrain_ser.data.labels import UNKNOWN
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.lengths import frame_mask

_MEAN = MaskedPooling("mean")
STEEPEST, WIDEST = 0.9, 2.0  # of ccc_loss: the largest r and b


def masked_mse(prediction: torch.Tensor, target: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
    """Return the squared error [batch] averaged over an utterance's own frames and all bands (Hsu et al. 2023, eq. 3).

    Long and short utterances count alike, and padding not at all, whatever it holds: both spectrograms are
    [batch, frames, bands], of which `frame_counts` [batch] are an utterance's own.

    Example
    -------
    >>> target = torch.zeros(2, 3, 1)
    >>> prediction = torch.tensor([[1.0, 1.0, 4.0], [3.0, 99.0, 99.0]])[:, :, None]
    >>> masked_mse(prediction, target, torch.tensor([3, 1]))
    tensor([6., 9.])
    """
    if prediction.shape != target.shape:
        shapes = f"{list(target.shape)}, found {list(prediction.shape)}"
        raise ValueError(f"expected a prediction of the target's shape {shapes}")
    wide = torch.promote_types(prediction.dtype, torch.float32)
    padding = ~frame_mask(frame_counts.to(prediction.device), prediction.shape[1])[:, :, None]
    # before squaring: the gradient of a square is its argument, and 0 * nan is nan
    error = (prediction.to(wide) - target.to(wide)).masked_fill(padding, 0.0)
    return _MEAN(error.square(), frame_counts).mean(dim=1)


def mean_spectrum_mse(target: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
    """Return the error [batch] of an utterance's own mean spectrum on every frame of `target` [batch, frames, bands].

    That is what a decoder that knows who speaks, but not what, can reach: an oracle to be well below.
    """
    mean = _MEAN(target, frame_counts)[:, None, :]  # (batch, 1, bands)
    return masked_mse(mean.expand_as(target), target, frame_counts)


def cross_entropy(logits: torch.Tensor, label: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the cross-entropy [batch] of a label, in float32; 0 where nobody of the training part has that label.

    `logits` are [batch, classes], `label` class indices or :data:`speechbrain_ser.data.labels.UNKNOWN` [batch],
    `class_weights` [classes].

    Example
    -------
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([2, UNKNOWN])).exp()
    tensor([4., 1.])
    """
    return F.cross_entropy(logits.float(), label, class_weights, ignore_index=UNKNOWN, reduction="none")


def vote_cross_entropy(
    logits: torch.Tensor, shares: torch.Tensor, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the cross-entropy [batch] of raters' votes; less their own entropy, a constant, it is KL(votes | model).

    `logits` and `shares`, of the votes that each class has, are [batch, classes].

    Example
    -------
    >>> vote_cross_entropy(torch.zeros(1, 4), torch.tensor([[0.5, 0.25, 0.25, 0.0]])).exp()
    tensor([4.])
    """
    return F.cross_entropy(logits.float(), shares, class_weights, reduction="none")


def ccc_terms(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the two terms [batch, 2] of which 1 - CCC is the ratio of means, see :func:`ccc_loss`."""
    return torch.stack([(prediction - target) ** 2, prediction**2 + 1], dim=-1)


def ccc_loss(terms: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Return each utterance's part [batch] of 1 - CCC, Lin's concordance correlation coefficient (1989).

    CCC = 2 s_xy / (s_x^2 + s_y^2 + (m_x - m_y)^2) of predictions x and targets y. As E (x - y)^2 = s_x^2 + s_y^2 -
    2 s_xy + (m_x - m_y)^2, for targets of mean 0 and deviation 1

        1 - CCC = a / b,  a = E (x - y)^2,  b = E x^2 + 1.

    Usually both means are a batch's own (Atmaja and Akagi 2021, Wagner et al. 2023), so that the batch's size changes
    the loss, and one utterance has none. Here they run over the steps before (`means`, [a, b]), and an utterance's
    loss is its part of the tangent there, r + ((x - y)^2 - r (x^2 + 1)) / b with r = a / b: a mean over utterances
    like any other loss, however they are batched, whose gradient is that of the training part's CCC. Where the CCC is
    0, r is 1, the squares of x cancel, and nothing holds predictions near the targets; far off, b is so large that no
    gradient is left. So r is 0.9 at most, which leaves a tenth of the squared error's pull, and the divisor b 2, as for
    predictions that vary as targets do.

    Example
    -------
    >>> x, y = torch.tensor([0.5, -0.5], requires_grad=True), torch.tensor([1.0, -1.0])
    >>> terms = ccc_terms(x, y)
    >>> ccc_loss(terms, terms.detach().mean(0)).mean()  # CCC = 2 * 0.5 / (0.25 + 1) = 0.8
    tensor(0.2000, grad_fn=<MeanBackward0>)
    """
    ratio = (means[0] / means[1]).clamp(max=STEEPEST)
    return ratio + (terms[:, 0] - ratio * terms[:, 1]) / means[1].clamp(max=WIDEST)


def reconstruction_loss(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return :func:`masked_mse` [batch] of a model's outputs ``reconstruction``, ``target`` and ``mel_frames``."""
    return masked_mse(outputs["reconstruction"], outputs["target"], outputs["mel_frames"])


def ctc_loss(logits: torch.Tensor, frames: torch.Tensor, targets: list[torch.Tensor], blank: int = 0) -> torch.Tensor:
    """Return CTC summed over an utterance's tokens [batch] (Cai et al. 2021, eq. 1).

    It is 0 where no path exists (fewer frames than :func:`frames_needed`), which the caller reports beforehand, and
    where nobody knows what is said (the target [:data:`~speechbrain_ser.data.labels.UNKNOWN`]); an empty target is an
    utterance without words. `logits` are [batch, frames, tokens], `frames` an utterance's own [batch], `targets` its
    token indices.

    Example
    -------
    >>> logits = torch.zeros(2, 3, 2)
    >>> loss = ctc_loss(logits, torch.tensor([3, 2]), [torch.tensor([1]), torch.tensor([1])])
    >>> loss.exp().reciprocal()  # 6 of 8 and 3 of 4 paths spell the token
    tensor([0.7500, 0.7500])
    """
    known = torch.tensor([UNKNOWN not in t for t in targets], device=frames.device)
    targets = [t[t != UNKNOWN] for t in targets]
    lengths = torch.tensor([len(t) for t in targets], device=frames.device)
    loss = F.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),  # (frames, batch, tokens)
        torch.cat(targets).to(logits.device),
        frames,
        lengths,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return loss.where(known.to(loss.device), 0.0)


def frames_needed(tokens: list[int]) -> int:
    """Return the fewest frames on which CTC can spell tokens: one each, and a blank between equal neighbours.

    Example
    -------
    >>> frames_needed([5, 5, 7])
    4
    """
    return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))
