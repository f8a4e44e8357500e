"""The CNN-BLSTM with self-attention and local attention of Fu et al. (figure 1, section 3.3, table 1).

"An End-to-End Multitask Learning Model to Improve Speech Emotion Recognition". From a log-mel spectrogram to one
vector an utterance; the output layers (emotion, speaker) are the reader's.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.nnet.initialization import keras_init_
from speechbrain_ser.nnet.masked import BLSTM, constant_tail_start
from speechbrain_ser.processing.lengths import frame_mask

INITIALIZATIONS = ("keras", "pytorch")


class CNNBLSTMAttention(nn.Module):
    """Convolutions, bottleneck, BLSTM, self-attention and local attention pooling; table 1's sizes are the defaults.

    The paper cuts and pads every spectrogram to 256 frames and lets the model see the padding: call it without
    ``lengths``. With ``lengths`` utterances of any lengths are batched, each gets what it would get alone, and
    padding costs next to nothing.

    Where the paper is silent: the bottleneck has no activation (Keras' default); heads divide the BLSTM's channels
    among themselves; self-attention has no residual connection; dropout stands before each BLSTM layer and on the
    utterance's vector, which the output layers read (attention weights always sum to 1).

    Arguments
    ---------
    input_size : int
        Mel bands.
    channels, kernels : sequence of int
        Filters of each convolution, and frames it looks at; none is padded ("valid").
    bottleneck : int
        Channels of the dense layer after the convolutions.
    lstm_size, lstm_layers : int
        Units of a direction of the BLSTM, and its layers.
    heads : int
        Of the self-attention: a divisor of 2 x ``lstm_size``.
    initialization : str
        ``keras``: of the paper's framework (:func:`speechbrain_ser.nnet.initialization.keras_init_`); ``pytorch``:
        PyTorch's defaults.

    Example
    -------
    >>> lobe = CNNBLSTMAttention(input_size=8, channels=(4, 6, 8), bottleneck=4, lstm_size=8, heads=4).eval()
    >>> features = torch.randn(2, 40, 8)  # the second utterance has 30 frames
    >>> lengths = torch.tensor([40, 30])
    >>> torch.allclose(lobe(features, lengths)[1:], lobe(features[1:, :30]), atol=1e-5)
    True
    """

    def __init__(
        self,
        input_size: int = 128,
        channels: Sequence[int] = (512, 1024, 2048),
        kernels: Sequence[int] = (3, 1, 3),
        bottleneck: int = 512,
        lstm_size: int = 128,
        lstm_layers: int = 2,
        heads: int = 16,
        dropout: float = 0.35,
        initialization: str = "keras",
    ):
        super().__init__()
        _check_arguments(channels, kernels, dropout, initialization)
        self.output_size = 2 * lstm_size  # channels of the utterance's vector
        self.min_frames = 1 + sum(kernel - 1 for kernel in kernels)  # of an utterance
        sizes = [input_size, *channels]
        self.convolutions = nn.ModuleList(map(nn.Conv1d, sizes[:-1], sizes[1:], kernels))
        self.bottleneck = nn.Linear(sizes[-1], bottleneck)
        self.blstm = BLSTM(bottleneck, lstm_size, lstm_layers, dropout)
        self.self_attention = SelfAttention(self.output_size, heads)
        self.local_attention = LocalAttentionPooling(self.output_size)
        self.dropout = nn.Dropout(dropout)
        if initialization == "keras":
            keras_init_(self)

    def frame_counts(self, frames: int | torch.Tensor) -> int | torch.Tensor:
        """Return the frames after the convolutions of so many of spectrograms (252 of 256); 0 where none is left."""
        left = frames - (self.min_frames - 1)
        return left.clamp(min=0) if isinstance(left, torch.Tensor) else max(left, 0)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Bring log-mel spectrograms [batch, frames, bands] to a vector an utterance [batch, output_size] in float32.

        `lengths` are own frames [batch], ``min_frames`` to frames; what stands past them is ignored, whatever it is.
        None: all frames count, as in the paper.
        """
        features, counts = self._checked(features, lengths)
        hidden = self.dropout(self._convolve(features, counts))  # [batch, frames, bottleneck]
        own = None
        if counts is not None:
            counts = self.frame_counts(counts)
            own = frame_mask(counts, hidden.shape[1])  # [batch, frames]
        hidden = self.blstm(hidden, counts)  # [batch, frames, 2 lstm_size]
        vectors, _ = self.local_attention(self.self_attention(hidden, own), own)  # [batch, 2 lstm_size]
        return self.dropout(vectors)

    def _convolve(self, features: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
        """[batch, frames, bands] -> [batch, frames', bottleneck], computing no frame twice and no padding.

        Utterances are laid end to end. Frames that mix two of them, where one ends, are never read.
        """
        kept = self._kept(features, counts)
        if kept is None:
            return self._cnn(features)
        rows = self._cnn(features[frame_mask(kept, features.shape[1])][None])[0]  # [all utterances' frames, bottleneck]
        starts = kept.cumsum(0) - kept
        last = kept - self.min_frames  # the last frame of an utterance stands for the rest of it
        positions = torch.arange(self.frame_counts(features.shape[1]), device=features.device)
        index = starts[:, None] + torch.minimum(positions, last[:, None])  # [batch, frames']
        return rows.index_select(0, index.flatten()).unflatten(0, index.shape)

    def _kept(self, features: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor | None:
        """Frames of each utterance whose convolutions are to be computed [batch]; None: all of all of them."""
        if torch.compiler.is_exporting() or (
            counts is None and (features.requires_grad or torch.compiler.is_compiling())
        ):
            return None  # each equal frame has a gradient of its own; an exported graph has fixed shapes
        kept = features.new_full(features.shape[:1], features.shape[1], dtype=torch.long) if counts is None else counts
        if not features.requires_grad:
            kept = torch.minimum(kept, constant_tail_start(features) + self.min_frames)
        return None if kept.sum() == features.shape[0] * features.shape[1] else kept

    def _cnn(self, features: torch.Tensor) -> torch.Tensor:
        """[batch, frames, bands] -> [batch, frames', bottleneck]."""
        hidden = features.transpose(1, 2)  # [batch, bands, frames]
        for convolution in self.convolutions:
            hidden = F.relu(convolution(hidden), inplace=True)  # [batch, channels, frames']
        return self.bottleneck(hidden.transpose(1, 2))

    def _checked(
        self, features: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The batch, cut to its longest utterance, and the lengths; None where all are the same."""
        bands = self.convolutions[0].in_channels
        if features.dim() != 3 or features.shape[2] != bands or features.shape[0] == 0:
            raise ValueError(f"expected spectrograms [batch, frames, {bands}], found {list(features.shape)}")
        if lengths is not None and torch.compiler.is_exporting():  # a graph has no errors to raise
            return features, lengths
        shortest = longest = features.shape[1]
        if lengths is not None:
            if lengths.shape != features.shape[:1] or lengths.is_floating_point():
                found = f"{str(lengths.dtype).removeprefix('torch.')} {list(lengths.shape)}"
                raise ValueError(f"expected lengths in frames, integers [{len(features)}], found {found}")
            shortest, longest = torch.stack(lengths.aminmax()).tolist()
        if shortest < self.min_frames or longest > features.shape[1]:
            expected = f"{self.min_frames} (the convolutions' reach) to {features.shape[1]} frames"
            raise ValueError(f"expected utterances of {expected}, found {shortest} to {longest}")
        return features[:, :longest], None if shortest == longest else lengths.to(features.device)


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

    `size` is the channels of input and output, which the heads divide among themselves. The scores' softmax is taken in
    float32 under mixed precision too.

    Example
    -------
    >>> attention = SelfAttention(size=8, heads=2)
    >>> own = torch.tensor([[True, True, True], [True, True, False]])
    >>> attention(torch.randn(2, 3, 8), own).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, size: int, heads: int):
        super().__init__()
        if size % heads:
            raise UserError(f"heads: expected a divisor of the {size} channels, found {heads}")
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)

    def forward(self, x: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Attend within [batch, frames, size], finite on padding; what the result has on padding means nothing.

        `own` is True on own frames [batch, frames], at least one an utterance; None: all are.
        """
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        attended_to = None if own is None else own[:, None, None, :]  # [batch, 1, 1, frames]
        with torch.autocast(x.device.type, enabled=False):
            heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attended_to)
        return self.output(heads.transpose(1, 2).flatten(2))  # [batch, frames, size]

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, frames, size] -> [batch, heads, frames, size / heads], float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _check_arguments(channels: Sequence[int], kernels: Sequence[int], dropout: float, initialization: str) -> None:
    if len(channels) != len(kernels) or not len(channels):
        found = f"{list(channels)} and {list(kernels)}"
        raise UserError(f"channels and kernels: expected one of each a convolution, found {found}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: expected a probability from 0 to below 1, found {dropout}")
    if initialization not in INITIALIZATIONS:
        hint = nearest(initialization, INITIALIZATIONS)
        raise UserError(f"initialization: expected one of {', '.join(INITIALIZATIONS)}, found {initialization!r}{hint}")
