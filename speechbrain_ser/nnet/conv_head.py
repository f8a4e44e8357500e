"""A head that looks at a few neighbouring frames: what a frozen encoder's single frame does not tell of a letter."""

import torch
from torch import nn


class ConvHead(nn.Module):
    """Two convolutions over frames, with GELU between them and dropout before each.

    Frames past an utterance's end must be 0, as encoders leave them: then it gets in any batch what it gets alone.

    Arguments
    ---------
    in_features : int
        Channels of a frame.
    out_features : int
        Outputs a frame.
    hidden : int
        Channels between them.
    kernel : int
        Frames that each looks at, an odd number.
    dropout : float
        In training.

    Raises
    ------
    ValueError
        For an even kernel.

    Example
    -------
    >>> ConvHead(512, 30)(torch.randn(2, 50, 512)).shape
    torch.Size([2, 50, 30])
    """

    def __init__(self, in_features: int, out_features: int, hidden: int = 128, kernel: int = 5, dropout: float = 0.3):
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number of frames, found {kernel}")
        self.out_features = out_features
        self.dropout = nn.Dropout(dropout)
        self.first = nn.Conv1d(in_features, hidden, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(hidden, out_features, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [batch, frames, in_features] to logits [batch, frames, out_features]."""
        own = (x != 0).any(2)[:, None]  # (batch, 1, frames)
        x = nn.functional.gelu(self.first(self.dropout(x).transpose(1, 2)))  # (batch, hidden, frames)
        return self.second(self.dropout(x * own)).transpose(1, 2)
