"""Pooling over time that sees an utterance's own frames only, never the padding of its batch."""

import torch
from speechbrain.lobes.models.ECAPA_TDNN import AttentiveStatisticsPooling
from torch import nn

from speechbrain_ser.processing.lengths import check_frame_counts, frame_mask

WIDTHS = {"mean": 1, "sum": 1, "mean_std": 2, "percentiles": 5, "attentive": 2}  # vectors of as many channels
MODES = tuple(WIDTHS)
PERCENTILES = (0.1, 0.5, 0.9)
LEAST_VARIANCE = 1e-12  # the square root has no gradient at 0


class MaskedPooling(nn.Module):
    """Each utterance's frames as one vector.

    Arguments
    ---------
    mode : str
        `mean` (what Cai et al.'s program does, there with the padding), `sum` (what their paper writes), `mean_std`
        (mean and standard deviation, side by side), `percentiles` (both, and each channel's 10th, 50th and 90th) or
        `attentive` (mean and deviation with learned weights for each frame and channel: Okabe et al. 2018, with
        ECAPA-TDNN's global context; needs :meth:`set_up`).

    Example
    -------
    >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])  # one utterance of two frames, one frame of padding
    >>> MaskedPooling("mean")(x, torch.tensor([2]))
    tensor([[2.]])
    >>> MaskedPooling("mean_std")(x, torch.tensor([2]))
    tensor([[2., 1.]])
    """

    def __init__(self, mode: str = "mean"):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"pooling mode is {mode!r}, expected one of {', '.join(MODES)}")
        self.mode = mode
        self.attention = None

    def set_up(self, channels: int) -> int:
        """Draw what attentive pooling of frames with so many channels learns; return the channels of their vector."""
        if self.mode == "attentive":
            self.attention = AttentiveStatisticsPooling(channels)
            # batch norm would mix utterances, and padding, of a micro-batch; of the rest only the layers are used: its
            # own forward rounds relative lengths, and fixes the batch's size in a graph that is exported
            self.attention.tdnn.norm = nn.Identity()
        return channels * WIDTHS[self.mode]

    def forward(self, x: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
        """Pool [batch, frames, channels], whatever stands on padding, to [batch, channels times 1, 2 or 5].

        In float32 at least: a sum over hundreds of frames outgrows half precision. An utterance has 1 to frames of its
        own, `frame_counts` [batch]; anything else is a ValueError.
        """
        if x.dim() != 3 or frame_counts.shape != x.shape[:1]:
            shapes = f"{list(x.shape)} and {list(frame_counts.shape)}"
            raise ValueError(f"expected frames [batch, frames, channels] and frame_counts [batch], found {shapes}")
        check_frame_counts(frame_counts, x.shape[1])
        frame_counts = frame_counts.to(x.device)
        own = frame_mask(frame_counts, x.shape[1])[:, :, None]  # [batch, frames, 1]
        x = x.masked_fill(~own, 0.0).to(torch.promote_types(x.dtype, torch.float32))
        if self.mode in ("mean", "sum"):
            total = x.sum(dim=1)  # [batch, channels]
            return total if self.mode == "sum" else total / frame_counts[:, None]
        weights = own / frame_counts[:, None, None]
        pooled = _mean_std(x, self._attend(x, own, weights) if self.mode == "attentive" else weights)
        return pooled if self.mode != "percentiles" else torch.cat([pooled, _percentiles(x, own, frame_counts)], dim=1)

    def _attend(self, x: torch.Tensor, own: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
        """Weights of frames, by channel [batch, frames, channels], from x and its mean and deviation."""
        if self.attention is None:
            raise ValueError("attentive pooling has no parameters yet: call set_up(channels) first")
        context = _mean_std(x, equal)[:, None].expand(-1, x.shape[1], -1)
        context = torch.cat([x, context], dim=2).transpose(1, 2)  # [batch, 3 * channels, frames]
        scores = self.attention.conv(self.attention.tanh(self.attention.tdnn(context))).transpose(1, 2)
        return scores.to(x.dtype).masked_fill(~own, -torch.inf).softmax(dim=1)


def _mean_std(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[batch, 2 * channels], of weights that are 0 on padding and sum to 1; one frame's deviation is 0, and not NaN."""
    mean = (weights * x).sum(dim=1)  # [batch, channels]
    variance = (weights * (x - mean[:, None]).square()).sum(dim=1)
    return torch.cat([mean, variance.clamp(min=LEAST_VARIANCE).sqrt()], dim=1)


def _percentiles(x: torch.Tensor, own: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Of own frames [batch, percentiles * channels], between two frames on the line that joins them."""
    ordered, found = x.masked_fill(~own, torch.inf).sort(dim=1).values, []
    for share in PERCENTILES:
        place = share * (counts - 1)[:, None, None].expand(-1, 1, x.shape[2])
        low = ordered.gather(1, place.floor().long())
        found.append(low + (place % 1) * (ordered.gather(1, place.ceil().long()) - low))
    return torch.cat(found, dim=2)[:, 0]
