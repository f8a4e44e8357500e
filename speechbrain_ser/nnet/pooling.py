"""Pooling over time that sees an utterance's own frames only, never the padding of its batch."""

import torch
from torch import nn

MODES = ("mean", "sum")


def frame_mask(frame_counts: torch.Tensor, max_frames: int) -> torch.Tensor:
    """True on an utterance's own frames, False on padding.

    Arguments
    ---------
    frame_counts : torch.LongTensor
        Own frames of each utterance [batch].
    max_frames : int
        Frames of the padded batch.

    Returns
    -------
    torch.BoolTensor
        [batch, frames].

    Example
    -------
    >>> frame_mask(torch.tensor([1, 3]), 3)
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    positions = torch.arange(max_frames, device=frame_counts.device)
    return positions[None, :] < frame_counts[:, None]  # [batch, frames]


def check_frame_counts(frame_counts: torch.Tensor, max_frames: int) -> int:
    """Refuse an utterance without a frame, or with more than its batch has.

    Arguments
    ---------
    frame_counts : torch.LongTensor
        Own frames of each utterance [batch].
    max_frames : int
        Frames of the padded batch.

    Returns
    -------
    int
        Frames of the shortest utterance.

    Raises
    ------
    ValueError
        When a count is out of range.

    Example
    -------
    >>> check_frame_counts(torch.tensor([2, 3]), 3)
    2
    """
    lowest, highest = torch.stack(frame_counts.aminmax()).tolist()  # one look at the device for both bounds
    if lowest < 1 or highest > max_frames:
        raise ValueError(f"frame_counts must lie in 1 to {max_frames}, found {lowest} to {highest}")
    return lowest


class MaskedPooling(nn.Module):
    """Mean or sum over the frames of each utterance.

    Arguments
    ---------
    mode : str
        `mean` (what Cai et al.'s program does, there with the padding) or `sum` (what their paper writes).

    Example
    -------
    >>> x = torch.tensor([[[1.0], [3.0], [99.0]]])  # one utterance of two frames, one frame of padding
    >>> MaskedPooling("mean")(x, torch.tensor([2]))
    tensor([[2.]])
    >>> MaskedPooling("sum")(x, torch.tensor([2]))
    tensor([[4.]])
    """

    def __init__(self, mode: str = "mean"):
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"pooling mode is {mode!r}, expected one of {', '.join(MODES)}")
        self.mode = mode

    def extra_repr(self) -> str:
        return repr(self.mode)

    def forward(self, x: torch.Tensor, frame_counts: torch.Tensor) -> torch.Tensor:
        """Pool a padded batch.

        Arguments
        ---------
        x : torch.Tensor
            Frames [batch, frames, channels]; what stands past an utterance's end is ignored, whatever it is.
        frame_counts : torch.LongTensor
            Own frames of each utterance [batch], 1 to frames.

        Returns
        -------
        torch.Tensor
            [batch, channels] in float32 at least: a sum over hundreds of frames outgrows half precision.

        Raises
        ------
        ValueError
            When the shapes do not match, or an utterance has no frame or more than the batch.
        """
        _check(x, frame_counts)
        frame_counts = frame_counts.to(x.device)
        padding = ~frame_mask(frame_counts, x.shape[1])  # [batch, frames]
        total = x.masked_fill(padding[:, :, None], 0.0).sum(dim=1, dtype=_at_least_float32(x.dtype))
        if self.mode == "sum":
            return total  # [batch, channels]
        return total / frame_counts[:, None]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check(x: torch.Tensor, frame_counts: torch.Tensor) -> None:
    if x.dim() != 3 or frame_counts.shape != x.shape[:1]:
        raise ValueError(
            "expected frames [batch, frames, channels] and frame_counts [batch], "
            f"found {list(x.shape)} and {list(frame_counts.shape)}"
        )
    if not torch.compiler.is_exporting():  # a graph has no errors to raise
        check_frame_counts(frame_counts, x.shape[1])
