"""Speech taken apart into content, pitch, rhythm and timbre, and put together again.

By SpeechSplit's released program (Qian et al. 2020), but for the timbre encoder, which Hsu et al. 2023 (section 2.2,
figure 2) put in the place of its speaker label, and whose shape is ours. Everywhere `frame_counts` are own frames of
each utterance [batch], None without padding; what stands past them is ignored, whatever it is, and comes out as 0.
"""

from collections.abc import Callable, Collection, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ser.nnet.augment import Draws, RandomResampling
from speechbrain_ser.nnet.masked import BLSTM, MaskedGroupNorm
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.lengths import check_frame_counts, frame_mask
from speechbrain_ser.processing.pitch import quantize
from speechbrain_ser.processing.speech_split import UNVOICED


def downsample(states: torch.Tensor, frame_counts: torch.Tensor | None = None, hop: int = 8) -> torch.Tensor:
    """Take one code for every `hop` frames: [batch, frames, 2 * size] to [batch, codes, 2 * size].

    Of a bidirectional network's states it is the forward one at their last frame (an utterance's own last, if they are
    fewer) beside the backward one at their first: what each direction knows once it has read all of them.

    Example
    -------
    >>> states = torch.arange(1.0, 11.0)[None, :, None].repeat(1, 1, 2)  # both directions of ten frames
    >>> downsample(states, hop=8)
    tensor([[[ 8.,  1.],
             [10.,  9.]]])
    """
    batch, frames, channels = states.shape
    if frame_counts is None:
        frame_counts = torch.full((batch,), frames)
    frame_counts = frame_counts.to(states.device)
    firsts = torch.arange(0, frames, hop, device=states.device)  # [codes]
    lasts = torch.minimum(firsts + hop, frame_counts[:, None]) - 1  # [batch, codes]
    size = channels // 2
    forward = states[:, :, :size].gather(1, lasts[:, :, None].expand(-1, -1, size))
    backward = states[:, ::hop, size:]
    own = firsts < frame_counts[:, None]
    return torch.cat([forward, backward], dim=-1).masked_fill(~own[:, :, None], 0.0)


def _checked(x: torch.Tensor, frame_counts: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[batch, frames, channels], 0 on padding, and own frames on its device; None, the fastest, without padding."""
    if x.dim() != 3:
        raise ValueError(f"expected [batch, frames, channels], found {list(x.shape)}")
    if frame_counts is None:
        return x, None
    if frame_counts.shape != x.shape[:1]:
        raise ValueError(f"expected frame_counts [{len(x)}], one an utterance, found {list(frame_counts.shape)}")
    if check_frame_counts(frame_counts, x.shape[1]) == x.shape[1]:
        return x, None
    frame_counts = frame_counts.to(x.device)
    return _zero_padding(x, frame_counts), frame_counts


def _zero_padding(x: torch.Tensor, frame_counts: torch.Tensor | None) -> torch.Tensor:
    if frame_counts is None:
        return x
    return x.masked_fill(~frame_mask(frame_counts, x.shape[1])[:, :, None], 0.0)


class ConvBlock(nn.Sequential):
    """Convolution over time of an odd kernel, GroupNorm over own frames, ReLU: zero on padding if its input is."""

    def __init__(self, in_channels: int, channels: int, groups: int, kernel_size: int = 5):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number")
        conv = nn.Conv1d(in_channels, channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain("relu"))
        super().__init__(conv, MaskedGroupNorm(groups, channels))

    def forward(self, x: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Run the block on [batch, in_channels, frames], 0 on padding; `own` is True on own frames [batch, frames]."""
        conv, norm = self
        return norm(conv(x), own).relu()


class Encoder(nn.Module):
    """Convolution blocks and a BLSTM, of which every `hop` frames keep one code: what the encoders have in common.

    Arguments
    ---------
    channels, groups, blocks, kernel_size : int
        Of the convolution blocks.
    units, layers : int
        Of the BLSTM; the code has 2 * units channels (``output_size``).
    hop : int, optional
        Frames a code stands for; None: all of an utterance.
    resampling : callable, optional
        Builds the :class:`RandomResampling` of the input and of every block's output in training; in a YAML, ``!name:``
        with its settings. None: rhythm stays.
    """

    reads = "mel"  # or f0

    def __init__(
        self,
        input_size: int,
        channels: int,
        groups: int,
        blocks: int,
        units: int,
        layers: int,
        kernel_size: int = 5,
        hop: int | None = 8,
        resampling: Callable[[], RandomResampling] | None = None,
    ):
        super().__init__()
        sizes = [input_size] + [channels] * blocks
        self.blocks = nn.ModuleList(ConvBlock(sizes[i], channels, groups, kernel_size) for i in range(blocks))
        self.blstm = BLSTM(sizes[-1], units, layers)
        self.output_size = 2 * units
        if hop is not None:  # a code that varies in time has one
            self.hop = hop
        self.resampling = None if resampling is None else resampling()

    def forward(
        self, x: torch.Tensor, frame_counts: torch.Tensor | None = None, draws: list[Draws] | None = None
    ) -> torch.Tensor:
        """Encode [batch, frames, input_size] to [batch, ceil(frames / hop), 2 * units].

        `draws` are what :meth:`draw` gave, shared among encoders; None draws anew in training.
        """
        x, frame_counts = _checked(x, frame_counts)
        draws = None if self.resampling is None else draws or self.draw(*x.shape[:2])
        first, *others = draws or [None] * (1 + len(self.blocks))
        x = self._read(x, frame_counts, first)
        own = None if frame_counts is None else frame_mask(frame_counts, x.shape[1])
        for block, draw in zip(self.blocks, others, strict=False):  # draws may be those of an encoder of more blocks
            x = self._resampled(block(x.transpose(1, 2), own).transpose(1, 2), frame_counts, draw)
        return self._codes(self.blstm(x, frame_counts), frame_counts)

    def _read(self, x: torch.Tensor, frame_counts: torch.Tensor | None, draw: Draws | None) -> torch.Tensor:
        """What the first block reads [batch, frames, channels]."""
        return self._resampled(x, frame_counts, draw)

    def _resampled(self, x: torch.Tensor, frame_counts: torch.Tensor | None, draw: Draws | None) -> torch.Tensor:
        return x if draw is None else self.resampling(x, frame_counts, draw)

    def _codes(self, states: torch.Tensor, frame_counts: torch.Tensor | None) -> torch.Tensor:
        return downsample(states, frame_counts, self.hop)

    def draw(self, batch: int, frames: int) -> list[Draws] | None:
        """Draw what is random in a forward pass, for the input and for each block; None where nothing is."""
        if self.resampling is None or not self.training:
            return None
        return [self.resampling.draw(batch, frames) for _ in range(1 + len(self.blocks))]

    def expand(self, codes: torch.Tensor, frames: int) -> torch.Tensor:
        """Repeat each of the codes [batch, codes, size] for its frames: [batch, frames, size]."""
        return codes.repeat_interleave(self.hop, dim=1)[:, :frames]

    def pool(self, codes: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean of an utterance's own codes [batch, size]."""
        if frame_counts is None:
            return codes.mean(dim=1)
        return MaskedPooling("mean")(codes, -(-frame_counts // self.hop))


class ContentEncoder(Encoder):
    """E_C: what is said, from the resampled spectrogram of `mel_size` bands through a narrow code."""

    sizes: ClassVar = {"channels": 512, "groups": 32, "blocks": 3, "units": 8, "layers": 2}

    def __init__(self, mel_size: int = 80, resampling: Callable | None = RandomResampling, **sizes: int):
        super().__init__(mel_size, resampling=resampling, **{**self.sizes, **sizes})


class PitchEncoder(Encoder):
    """E_F: the melody, from resampled F0, quantised after it to `bins` values and one more for unvoiced."""

    reads = "f0"
    sizes: ClassVar = {"channels": 256, "groups": 16, "blocks": 3, "units": 32, "layers": 1}

    def __init__(self, bins: int = 256, resampling: Callable | None = RandomResampling, **sizes: int):
        super().__init__(bins + 1, resampling=resampling, **{**self.sizes, **sizes})
        self.bins = bins

    def forward(
        self, f0: torch.Tensor, frame_counts: torch.Tensor | None = None, draws: list[Draws] | None = None
    ) -> torch.Tensor:
        """Encode normalised log F0 [batch, frames], 0 to 1 (unvoiced: 0 or less) as :meth:`Encoder.forward` says."""
        return super().forward(f0[:, :, None].float(), frame_counts, draws)

    def _read(self, x: torch.Tensor, frame_counts: torch.Tensor | None, draw: Draws | None) -> torch.Tensor:
        if not torch.compiler.is_exporting() and (highest := x.max().item()) > 1:
            raise ValueError(f"expected F0 normalised to 0 to 1 (unvoiced: 0 or less), found {highest:g}")
        f0 = self._resampled(x.masked_fill(x <= 0, UNVOICED), frame_counts, draw)
        # rounding may lift an interpolated 1 a little
        onehot = F.one_hot(quantize(f0[:, :, 0].clamp(max=1), self.bins), self.bins + 1)
        return _zero_padding(onehot.to(self.blocks[0][0].weight.dtype), frame_counts)


class RhythmEncoder(Encoder):
    """E_R: the timing, from the spectrogram of `mel_size` bands as it is through the narrowest code.

    With more units it is the one encoder of a single autoencoder (M4 in Hsu et al.'s table 3).
    """

    sizes: ClassVar = {"channels": 128, "groups": 8, "blocks": 1, "units": 1, "layers": 1}

    def __init__(self, mel_size: int = 80, **sizes: int):
        super().__init__(mel_size, **{**self.sizes, **sizes})


class TimbreEncoder(Encoder):
    """E_T: the voice, from the spectrogram: the mean over own frames [batch, size] carries nothing that changes."""

    sizes: ClassVar = {"channels": 256, "groups": 16, "blocks": 3, "units": 32, "layers": 1}

    def __init__(self, mel_size: int = 80, **sizes: int):
        super().__init__(mel_size, hop=None, **{**self.sizes, **sizes})

    def _codes(self, states: torch.Tensor, frame_counts: torch.Tensor | None) -> torch.Tensor:
        return states.mean(dim=1) if frame_counts is None else MaskedPooling("mean")(states, frame_counts)

    def expand(self, codes: torch.Tensor, frames: int) -> torch.Tensor:
        return codes[:, None, :].expand(-1, frames, -1)

    def pool(self, codes: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        return codes


class Decoder(nn.Module):
    """BLSTM and linear layer: codes, frame by frame, to the spectrogram of `mel_size` bands."""

    def __init__(self, input_size: int, mel_size: int = 80, units: int = 512, layers: int = 3):
        super().__init__()
        self.blstm = BLSTM(input_size, units, layers)
        self.projection = nn.Linear(2 * units, mel_size)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, codes: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """Decode [batch, frames, input_size] to [batch, frames, mel_size]."""
        codes, frame_counts = _checked(codes, frame_counts)
        return _zero_padding(self.projection(self.blstm(codes, frame_counts)), frame_counts)


class SpeechDecomposition(nn.Module):
    """The encoders one wants and a decoder of the size they ask for (Hsu et al. 2023, figures 1 and 2).

    Random resampling draws once, with the settings of the encoder of most blocks, and is the same for all encoders that
    have it, as in SpeechSplit's program. `encoders` are by name, in the order in which the decoder reads them; None is
    left out. `decoder` builds it from `input_size`; in a YAML, ``!name:`` with the other settings. None: encoders only.

    Example
    -------
    >>> from functools import partial
    >>> encoders = {"rhythm": RhythmEncoder(), "pitch": None, "timbre": TimbreEncoder(channels=64, groups=4)}
    >>> model = SpeechDecomposition(encoders, partial(Decoder, units=32))
    >>> mel = torch.rand(2, 100, 80)
    >>> codes, reconstruction = model(mel, frame_counts=torch.tensor([100, 40]))
    >>> {name: list(code.shape) for name, code in codes.items()}
    {'rhythm': [2, 13, 2], 'timbre': [2, 64]}
    >>> reconstruction.shape
    torch.Size([2, 100, 80])
    """

    def __init__(self, encoders: Mapping[str, Encoder | None], decoder: Callable[..., nn.Module] | None = Decoder):
        super().__init__()
        self.encoders = nn.ModuleDict({name: encoder for name, encoder in encoders.items() if encoder is not None})
        if not self.encoders:
            raise ValueError("expected at least one encoder, found none")
        self.output_sizes = {name: encoder.output_size for name, encoder in self.encoders.items()}
        self.decoder = None if decoder is None else decoder(input_size=sum(self.output_sizes.values()))

    @property
    def reads(self) -> set[str]:
        """What the encoders read: `mel`, `f0`."""
        return {encoder.reads for encoder in self.encoders.values()}

    def keep_encoders(self, names: Collection[str]) -> None:
        """Remove the decoder, which reads all codes, and all encoders but these."""
        self.decoder = None
        for name in set(self.encoders) - set(names):
            del self.encoders[name], self.output_sizes[name]

    def forward(
        self,
        mel: torch.Tensor,
        f0: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
        draws: list[Draws] | None = None,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Return codes by encoder, and the reconstruction [batch, frames, bands], None without a decoder.

        A code is [batch, ceil(frames / 8), size], that of timbre [batch, size]. `mel` is SpeechSplit's mel spectrogram
        [batch, frames, bands], `f0`, which a pitch encoder needs, normalised log F0 [batch, frames], 0 to 1, and 0 or
        less where unvoiced. `draws` are the random resampling's (:meth:`draw`); None draws anew in training.
        """
        mel, frame_counts = _checked(mel, frame_counts)
        codes = self.encode(mel, f0, frame_counts, draws)
        return codes, None if self.decoder is None else self.decode(codes, mel.shape[1], frame_counts)

    def encode(
        self,
        mel: torch.Tensor,
        f0: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
        draws: list[Draws] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the codes alone; see :meth:`forward`."""
        draws = draws or self.draw(*mel.shape[:2])
        inputs = {"mel": mel, "f0": f0}
        for name, encoder in self.encoders.items():
            if inputs[encoder.reads] is None:
                raise ValueError(f"encoder '{name}' reads F0: expected f0 [batch, frames], found None")
        return {n: encoder(inputs[encoder.reads], frame_counts, draws) for n, encoder in self.encoders.items()}

    def decode(
        self, codes: Mapping[str, torch.Tensor], frames: int, frame_counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the spectrogram [batch, frames, bands] of codes as :meth:`encode` gives them."""
        expanded = [encoder.expand(codes[name], frames) for name, encoder in self.encoders.items()]
        return self.decoder(torch.cat(expanded, dim=-1), frame_counts)

    def pool(
        self, codes: Mapping[str, torch.Tensor], frame_counts: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the mean over own codes [batch, size] of each code, as the emotion head reads it."""
        return {name: self.encoders[name].pool(code, frame_counts) for name, code in codes.items()}

    def draw(self, batch: int, frames: int) -> list[Draws] | None:
        """Draw what is random in a forward pass; None in evaluation mode and where no encoder resamples."""
        resampling = [e for e in self.encoders.values() if e.resampling is not None and e.training]
        return max(resampling, key=lambda e: len(e.blocks)).draw(batch, frames) if resampling else None
