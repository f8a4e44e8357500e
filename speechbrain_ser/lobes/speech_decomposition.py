"""Speech taken apart into content, pitch, rhythm and timbre, and put together again.

The content, pitch and rhythm encoders and the decoder are those of SpeechSplit's released program (Qian et al. 2020,
"Unsupervised speech decomposition via triple information bottleneck"); the timbre encoder is what Hsu et al. 2023
("Speech Emotion Recognition using Decomposed Speech via Multi-task Learning", section 2.2, figure 2) put in the place
of its speaker label. Their paper does not give its shape; the one here is ours.

Each module works on its own, for utterances of any length; what it gives an utterance does not depend on the batch.
Randomness (initial weights, resampling) comes from torch's global generator.
"""

from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_ser.nnet.augment import Draws, RandomResampling
from speechbrain_ser.nnet.masked import MaskedGroupNorm
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.nnet.recurrent import BLSTM
from speechbrain_ser.processing.lengths import check_frame_counts, frame_mask
from speechbrain_ser.processing.pitch import UNVOICED, quantize


def check_frames(x: torch.Tensor, frame_counts: torch.Tensor | None) -> torch.Tensor | None:
    """Own frames, checked: on the device of `x`, and None where nothing is padded, which is fastest.

    Arguments
    ---------
    x : torch.Tensor
        [batch, frames, channels].
    frame_counts : torch.LongTensor, optional
        Own frames of each utterance [batch], 1 to frames; None when there is no padding.

    Returns
    -------
    torch.LongTensor, optional
        [batch].

    Raises
    ------
    ValueError
        When the shapes do not match, or an utterance has no frame or more than the batch.

    Example
    -------
    >>> x = torch.zeros(2, 5, 80)
    >>> check_frames(x, torch.tensor([5, 3])), check_frames(x, torch.tensor([5, 5]))
    (tensor([5, 3]), None)
    """
    if x.dim() != 3:
        raise ValueError(f"expected [batch, frames, channels], found {list(x.shape)}")
    if frame_counts is None:
        return None
    if frame_counts.shape != x.shape[:1]:
        raise ValueError(f"expected frame_counts [{len(x)}], one an utterance, found {list(frame_counts.shape)}")
    lowest = check_frame_counts(frame_counts, x.shape[1])
    return None if lowest == x.shape[1] else frame_counts.to(x.device)


def zero_padding(x: torch.Tensor, frame_counts: torch.Tensor | None) -> torch.Tensor:
    """Zero what stands past an utterance's end, whatever it is.

    Arguments
    ---------
    x : torch.Tensor
        [batch, frames, channels].
    frame_counts : torch.LongTensor, optional
        Own frames of each utterance [batch]; None when there is no padding.

    Returns
    -------
    torch.Tensor
        Like `x`.

    Example
    -------
    >>> zero_padding(torch.tensor([[[1.0], [float("nan")]]]), torch.tensor([1])).flatten()
    tensor([1., 0.])
    """
    if frame_counts is None:
        return x
    return x.masked_fill(~frame_mask(frame_counts, x.shape[1])[:, :, None], 0.0)


def code_counts(frame_counts: torch.Tensor, hop: int = 8) -> torch.Tensor:
    """Codes of utterances of so many frames, one for every `hop` frames begun.

    Arguments
    ---------
    frame_counts : torch.LongTensor
        Frames, of any shape.
    hop : int
        Frames a code stands for.

    Returns
    -------
    torch.LongTensor
        Of the same shape.

    Example
    -------
    >>> code_counts(torch.tensor([1, 8, 9, 251]))
    tensor([ 1,  1,  2, 32])
    """
    return (frame_counts + hop - 1) // hop


def downsample(states: torch.Tensor, frame_counts: torch.Tensor | None = None, hop: int = 8) -> torch.Tensor:
    """One code for every `hop` frames: what each direction knows once it has read all of them.

    That is the forward state at their last frame (an utterance's own last, if they are fewer) beside the backward
    state at their first.

    Arguments
    ---------
    states : torch.Tensor
        Of a bidirectional recurrent network [batch, frames, 2 * size], forward first.
    frame_counts : torch.LongTensor, optional
        Own frames of each utterance [batch]; None when there is no padding.
    hop : int
        Frames a code stands for.

    Returns
    -------
    torch.Tensor
        [batch, codes, 2 * size], 0 past an utterance's end.

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
    forward = states[:, :, : channels // 2].take_along_dim(lasts[:, :, None], dim=1)
    backward = states[:, ::hop, channels // 2 :]
    own = firsts < frame_counts[:, None]
    return torch.cat([forward, backward], dim=-1).masked_fill(~own[:, :, None], 0.0)


class ConvBlock(nn.Sequential):
    """Convolution over time, GroupNorm over own frames, ReLU: zero on padding if its input is.

    Arguments
    ---------
    in_channels, channels : int
        Of input and output.
    groups : int
        Of the GroupNorm.
    kernel_size : int
        Frames, odd.

    Example
    -------
    >>> ConvBlock(80, 32, groups=4)(torch.randn(2, 80, 50)).shape
    torch.Size([2, 32, 50])
    """

    def __init__(self, in_channels: int, channels: int, groups: int, kernel_size: int = 5):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number")
        conv = nn.Conv1d(in_channels, channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain("relu"))
        super().__init__(conv, MaskedGroupNorm(groups, channels))

    def forward(self, x: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """Run the block.

        Arguments
        ---------
        x : torch.Tensor
            [batch, in_channels, frames], 0 on padding.
        own : torch.BoolTensor, optional
            True on own frames [batch, frames]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            [batch, channels, frames], 0 on padding.
        """
        conv, norm = self
        return norm(conv(x), own).relu()


class Encoder(nn.Module):
    """Convolution blocks and a BLSTM: what the four encoders have in common.

    Arguments
    ---------
    input_size : int
        Channels of the input.
    channels : int
        Of each convolution.
    groups : int
        Of each GroupNorm.
    blocks : int
        Convolution blocks.
    kernel_size : int
        Frames a convolution sees, odd.
    units : int
        Of the BLSTM, each direction.
    layers : int
        Of the BLSTM.

    Attributes
    ----------
    reads : str
        `mel` or `f0`.
    output_size : int
        Channels of the code.
    """

    reads = "mel"

    def __init__(
        self, input_size: int, channels: int, groups: int, blocks: int, kernel_size: int, units: int, layers: int
    ):
        super().__init__()
        sizes = [input_size] + [channels] * blocks
        self.blocks = nn.ModuleList(ConvBlock(sizes[i], channels, groups, kernel_size) for i in range(blocks))
        self.blstm = BLSTM(sizes[-1], units, layers)
        self.output_size = 2 * units

    def encode(
        self,
        x: torch.Tensor,
        frame_counts: torch.Tensor | None,
        resampling: RandomResampling | None = None,
        draws: list[Draws] | None = None,
    ) -> torch.Tensor:
        """States of the BLSTM.

        Arguments
        ---------
        x : torch.Tensor
            [batch, frames, input_size], 0 on padding.
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.
        resampling : RandomResampling, optional
            What follows each block.
        draws : list of Draws, optional
            Its draws, one a block.

        Returns
        -------
        torch.Tensor
            [batch, frames, 2 * units], 0 on padding.
        """
        own = None if frame_counts is None else frame_mask(frame_counts, x.shape[1])
        for i, block in enumerate(self.blocks):
            x = block(x.transpose(1, 2), own).transpose(1, 2)  # [batch, frames, channels]
            if draws is not None:
                x = resampling(x, frame_counts, draws[i])
        return self.blstm(x, frame_counts)


class FrameEncoder(Encoder):
    """An encoder that gives a code for every `hop` frames.

    Arguments
    ---------
    hop : int
        Frames a code stands for.
    **sizes
        Those of :class:`Encoder`.
    """

    def __init__(self, hop: int, **sizes: int):
        super().__init__(**sizes)
        self.hop = hop

    def expand(self, codes: torch.Tensor, frames: int) -> torch.Tensor:
        """Codes [batch, codes, size], each repeated for its frames: [batch, frames, size]."""
        return codes.repeat_interleave(self.hop, dim=1)[:, :frames]

    def pool(self, codes: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """The mean of an utterance's own codes: [batch, size]."""
        if frame_counts is None:
            return codes.mean(dim=1)
        return MaskedPooling("mean")(codes, code_counts(frame_counts, self.hop))


class ResamplingEncoder(FrameEncoder):
    """An encoder whose input and whose every block's output are randomly resampled in training.

    Arguments
    ---------
    resampling : callable, optional
        Builds the :class:`RandomResampling`; in a YAML, ``!name:`` with its settings. None: rhythm stays.
    **sizes
        Those of :class:`FrameEncoder`.
    """

    def __init__(self, resampling: Callable[[], RandomResampling] | None, **sizes: int):
        super().__init__(**sizes)
        self.resampling = None if resampling is None else resampling()

    def draw(self, batch: int, frames: int) -> list[Draws] | None:
        """What is random in a forward pass; None where nothing is.

        Arguments
        ---------
        batch : int
            Utterances.
        frames : int
            Of the longest.

        Returns
        -------
        list of Draws, optional
            One for the input, one for each block.
        """
        if self.resampling is None or not self.training:
            return None
        return [self.resampling.draw(batch, frames) for _ in range(1 + len(self.blocks))]


class ContentEncoder(ResamplingEncoder):
    """E_C: what is said, from the resampled spectrogram through a narrow code.

    Arguments
    ---------
    mel_size : int
        Bands of the spectrogram.
    channels, groups, blocks, kernel_size : int
        Of the convolution blocks.
    units, layers : int
        Of the BLSTM; the code has 2 * units channels.
    hop : int
        Frames a code stands for.
    resampling : callable, optional
        Builds the :class:`RandomResampling`; in a YAML, ``!name:`` with its settings. None: rhythm stays.

    Example
    -------
    >>> encoder = ContentEncoder(channels=64, groups=4)
    >>> mel = torch.rand(2, 100, 80)
    >>> encoder(mel, torch.tensor([100, 40])).shape
    torch.Size([2, 13, 16])
    """

    def __init__(
        self,
        mel_size: int = 80,
        channels: int = 512,
        groups: int = 32,
        blocks: int = 3,
        kernel_size: int = 5,
        units: int = 8,
        layers: int = 2,
        hop: int = 8,
        resampling: Callable[[], RandomResampling] | None = RandomResampling,
    ):
        super().__init__(
            resampling,
            hop=hop,
            input_size=mel_size,
            channels=channels,
            groups=groups,
            blocks=blocks,
            kernel_size=kernel_size,
            units=units,
            layers=layers,
        )

    def forward(
        self, mel: torch.Tensor, frame_counts: torch.Tensor | None = None, draws: list[Draws] | None = None
    ) -> torch.Tensor:
        """Encode a padded batch.

        Arguments
        ---------
        mel : torch.Tensor
            [batch, frames, mel_size]; what stands past an utterance's end is ignored, whatever it is.
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.
        draws : list of Draws, optional
            What :meth:`draw` gave, shared with the pitch encoder; None draws anew in training.

        Returns
        -------
        torch.Tensor
            Z_C [batch, ceil(frames / hop), 2 * units], 0 past an utterance's end.
        """
        frame_counts = check_frames(mel, frame_counts)
        mel = zero_padding(mel, frame_counts)
        draws = draws or self.draw(*mel.shape[:2])
        if draws is not None:
            mel = self.resampling(mel, frame_counts, draws[0])
            draws = draws[1:]
        return downsample(self.encode(mel, frame_counts, self.resampling, draws), frame_counts, self.hop)


class PitchEncoder(ResamplingEncoder):
    """E_F: the melody, from resampled F0, quantised after it.

    Arguments
    ---------
    bins : int
        Values of F0 on voiced frames; one more stands for unvoiced.
    channels, groups, blocks, kernel_size : int
        Of the convolution blocks.
    units, layers : int
        Of the BLSTM; the code has 2 * units channels.
    hop : int
        Frames a code stands for.
    resampling : callable, optional
        Builds the :class:`RandomResampling`; in a YAML, ``!name:`` with its settings. None: rhythm stays.

    Example
    -------
    >>> encoder = PitchEncoder(channels=64, groups=4)
    >>> f0 = torch.rand(2, 100)
    >>> encoder(f0, torch.tensor([100, 40])).shape
    torch.Size([2, 13, 64])
    """

    reads = "f0"

    def __init__(
        self,
        bins: int = 256,
        channels: int = 256,
        groups: int = 16,
        blocks: int = 3,
        kernel_size: int = 5,
        units: int = 32,
        layers: int = 1,
        hop: int = 8,
        resampling: Callable[[], RandomResampling] | None = RandomResampling,
    ):
        super().__init__(
            resampling,
            hop=hop,
            input_size=bins + 1,
            channels=channels,
            groups=groups,
            blocks=blocks,
            kernel_size=kernel_size,
            units=units,
            layers=layers,
        )
        self.bins = bins

    def forward(
        self, f0: torch.Tensor, frame_counts: torch.Tensor | None = None, draws: list[Draws] | None = None
    ) -> torch.Tensor:
        """Encode a padded batch.

        Arguments
        ---------
        f0 : torch.Tensor
            Normalised log F0 [batch, frames], 0 to 1, and 0 or less where unvoiced; what stands past an utterance's
            end is ignored, whatever it is.
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.
        draws : list of Draws, optional
            What :meth:`draw` gave, shared with the content encoder; None draws anew in training.

        Returns
        -------
        torch.Tensor
            Z_F [batch, ceil(frames / hop), 2 * units], 0 past an utterance's end.

        Raises
        ------
        ValueError
            When F0 exceeds 1, as it does in Hz.
        """
        frame_counts = check_frames(f0[:, :, None], frame_counts)
        f0 = zero_padding(f0[:, :, None].float(), frame_counts)  # [batch, frames, 1]
        if (highest := f0.max().item()) > 1:
            raise ValueError(f"expected F0 normalised to 0 to 1 (unvoiced: 0 or less), found {highest:g}")
        draws = draws or self.draw(*f0.shape[:2])
        if draws is not None:
            f0 = self.resampling(f0.masked_fill(f0 <= 0, UNVOICED), frame_counts, draws[0])
            draws = draws[1:]
        # rounding may lift an interpolated 1 a little
        onehot = F.one_hot(quantize(f0[:, :, 0].clamp(max=1), self.bins), self.bins + 1)
        onehot = zero_padding(onehot.to(self.blocks[0][0].weight.dtype), frame_counts)
        return downsample(self.encode(onehot, frame_counts, self.resampling, draws), frame_counts, self.hop)


class RhythmEncoder(FrameEncoder):
    """E_R: the timing, from the spectrogram as it is through the narrowest code.

    With more units it is the one encoder of a single autoencoder (M4 in Hsu et al.'s table 3).

    Arguments
    ---------
    mel_size : int
        Bands of the spectrogram.
    channels, groups, blocks, kernel_size : int
        Of the convolution blocks.
    units, layers : int
        Of the BLSTM; the code has 2 * units channels.
    hop : int
        Frames a code stands for.

    Example
    -------
    >>> RhythmEncoder()(torch.rand(2, 100, 80), torch.tensor([100, 40])).shape
    torch.Size([2, 13, 2])
    """

    def __init__(
        self,
        mel_size: int = 80,
        channels: int = 128,
        groups: int = 8,
        blocks: int = 1,
        kernel_size: int = 5,
        units: int = 1,
        layers: int = 1,
        hop: int = 8,
    ):
        super().__init__(
            hop=hop,
            input_size=mel_size,
            channels=channels,
            groups=groups,
            blocks=blocks,
            kernel_size=kernel_size,
            units=units,
            layers=layers,
        )

    def forward(self, mel: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """Encode a padded batch.

        Arguments
        ---------
        mel : torch.Tensor
            [batch, frames, mel_size]; what stands past an utterance's end is ignored, whatever it is.
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            Z_R [batch, ceil(frames / hop), 2 * units], 0 past an utterance's end.
        """
        frame_counts = check_frames(mel, frame_counts)
        return downsample(self.encode(zero_padding(mel, frame_counts), frame_counts), frame_counts, self.hop)


class TimbreEncoder(Encoder):
    """E_T: the voice, one vector an utterance, so that it cannot carry what changes within it.

    Arguments
    ---------
    mel_size : int
        Bands of the spectrogram.
    channels, groups, blocks, kernel_size : int
        Of the convolution blocks.
    units, layers : int
        Of the BLSTM; the code has 2 * units channels.

    Example
    -------
    >>> TimbreEncoder(channels=64, groups=4)(torch.rand(2, 100, 80), torch.tensor([100, 40])).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        mel_size: int = 80,
        channels: int = 256,
        groups: int = 16,
        blocks: int = 3,
        kernel_size: int = 5,
        units: int = 32,
        layers: int = 1,
    ):
        super().__init__(mel_size, channels, groups, blocks, kernel_size, units, layers)

    def forward(self, mel: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """Encode a padded batch.

        Arguments
        ---------
        mel : torch.Tensor
            [batch, frames, mel_size]; what stands past an utterance's end is ignored, whatever it is.
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            Z_T [batch, 2 * units].
        """
        frame_counts = check_frames(mel, frame_counts)
        states = self.encode(zero_padding(mel, frame_counts), frame_counts)
        return states.mean(dim=1) if frame_counts is None else MaskedPooling("mean")(states, frame_counts)

    def expand(self, codes: torch.Tensor, frames: int) -> torch.Tensor:
        """The code [batch, size] on every frame: [batch, frames, size]."""
        return codes[:, None, :].expand(-1, frames, -1)

    def pool(self, codes: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """The code itself [batch, size]."""
        return codes


class Decoder(nn.Module):
    """BLSTM and linear layer: codes, frame by frame, to the spectrogram.

    Arguments
    ---------
    input_size : int
        Channels of all codes together.
    mel_size : int
        Bands of the spectrogram.
    units, layers : int
        Of the BLSTM.

    Example
    -------
    >>> Decoder(input_size=146, units=32, layers=1)(torch.randn(2, 100, 146), torch.tensor([100, 40])).shape
    torch.Size([2, 100, 80])
    """

    def __init__(self, input_size: int, mel_size: int = 80, units: int = 512, layers: int = 3):
        super().__init__()
        self.blstm = BLSTM(input_size, units, layers)
        self.projection = nn.Linear(2 * units, mel_size)
        nn.init.xavier_uniform_(self.projection.weight)

    def forward(self, codes: torch.Tensor, frame_counts: torch.Tensor | None = None) -> torch.Tensor:
        """Decode a padded batch.

        Arguments
        ---------
        codes : torch.Tensor
            [batch, frames, input_size].
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            [batch, frames, mel_size], 0 past an utterance's end.
        """
        frame_counts = check_frames(codes, frame_counts)
        mel = self.projection(self.blstm(zero_padding(codes, frame_counts), frame_counts))
        return zero_padding(mel, frame_counts)


class SpeechDecomposition(nn.Module):
    """The encoders one wants and a decoder of the size they ask for (Hsu et al. 2023, figures 1 and 2).

    Random resampling draws once and is the same for all encoders that have it, as in SpeechSplit's program.

    Arguments
    ---------
    encoders : mapping of str to Encoder
        By name, in the order in which the decoder reads them; None is left out, and with it its parameters and its
        computation. A single :class:`RhythmEncoder` of more units is a plain autoencoder.
    decoder : callable, optional
        Builds the decoder from `input_size`; in a YAML, ``!name:`` with the other settings. None: encoders only.

    Attributes
    ----------
    encoders : torch.nn.ModuleDict
        Those that are not None.
    output_sizes : dict of str to int
        Channels of each code.
    decoder : torch.nn.Module, optional
        What `decoder` built.

    Raises
    ------
    ValueError
        Without an encoder, or when encoders resample in different ways.

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
        self._check_resampling()
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
        """Take speech apart and put it together again.

        Arguments
        ---------
        mel : torch.Tensor
            SpeechSplit's mel spectrogram [batch, frames, bands]; what stands past an utterance's end is ignored.
        f0 : torch.Tensor, optional
            Normalised log F0 [batch, frames], 0 to 1, and 0 or less where unvoiced; needed by a pitch encoder.
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.
        draws : list of Draws, optional
            Of the random resampling, see :meth:`draw`; None draws anew in training.

        Returns
        -------
        codes : dict of str to torch.Tensor
            By encoder: [batch, ceil(frames / 8), size], for timbre [batch, size]; 0 past an utterance's end.
        reconstruction : torch.Tensor, optional
            [batch, frames, bands], 0 past an utterance's end; None without a decoder.
        """
        frame_counts = check_frames(mel, frame_counts)
        codes = self.encode(mel, f0, frame_counts, draws)
        return codes, None if self.decoder is None else self.decode(codes, mel.shape[1], frame_counts)

    def encode(
        self,
        mel: torch.Tensor,
        f0: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
        draws: list[Draws] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The codes alone; see :meth:`forward`."""
        frame_counts = check_frames(mel, frame_counts)
        draws = draws or self.draw(*mel.shape[:2])
        inputs = {"mel": mel, "f0": f0}
        codes = {}
        for name, encoder in self.encoders.items():
            if inputs[encoder.reads] is None:
                raise ValueError(f"encoder '{name}' reads F0: expected f0 [batch, frames], found None")
            arguments = {"draws": draws} if _resamples(encoder) else {}
            codes[name] = encoder(inputs[encoder.reads], frame_counts, **arguments)
        return codes

    def decode(
        self, codes: Mapping[str, torch.Tensor], frames: int, frame_counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The spectrogram of codes.

        Arguments
        ---------
        codes : mapping of str to torch.Tensor
            As :meth:`encode` gives them.
        frames : int
            Of the padded batch.
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            [batch, frames, bands], 0 past an utterance's end.
        """
        expanded = [encoder.expand(codes[name], frames) for name, encoder in self.encoders.items()]
        return self.decoder(torch.cat(expanded, dim=-1), frame_counts)

    def pool(
        self, codes: Mapping[str, torch.Tensor], frame_counts: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """One vector an utterance and code, the mean over its own codes, as the emotion head reads them.

        Arguments
        ---------
        codes : mapping of str to torch.Tensor
            As :meth:`encode` gives them.
        frame_counts : torch.LongTensor, optional
            Own frames of each utterance [batch]; None when there is no padding.

        Returns
        -------
        dict of str to torch.Tensor
            [batch, size] each.
        """
        return {name: self.encoders[name].pool(code, frame_counts) for name, code in codes.items()}

    def draw(self, batch: int, frames: int) -> list[Draws] | None:
        """What is random in a forward pass; None in evaluation mode and where no encoder resamples."""
        resampling = [encoder for encoder in self.encoders.values() if _resamples(encoder) and encoder.training]
        if not resampling:
            return None
        return max(resampling, key=lambda encoder: len(encoder.blocks)).draw(batch, frames)

    def _check_resampling(self) -> None:
        settings = {name: repr(e.resampling) for name, e in self.encoders.items() if _resamples(e)}
        if len(set(settings.values())) > 1:
            raise ValueError(f"expected encoders that share their draws to resample alike, found {settings}")


def _resamples(encoder: Encoder) -> bool:
    return getattr(encoder, "resampling", None) is not None


#: SpeechSplit's names for the parts of a SpeechDecomposition
PUBLISHED = {
    "encoder_1.convolutions_1": "encoders.content.blocks",
    "encoder_1.lstm_1": "encoders.content.blstm.lstm",
    "encoder_1.convolutions_2": "encoders.pitch.blocks",
    "encoder_1.lstm_2": "encoders.pitch.blstm.lstm",
    "encoder_2.convolutions": "encoders.rhythm.blocks",
    "encoder_2.lstm": "encoders.rhythm.blstm.lstm",
    "decoder.lstm": "decoder.blstm.lstm",
    "decoder.linear_projection.linear_layer": "decoder.projection",
}


def from_speechsplit(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters of SpeechSplit's program under the names of :class:`SpeechDecomposition`.

    They fit encoders named `content`, `pitch` and `rhythm`. SpeechSplit's decoder reads content, rhythm, pitch and a
    speaker label, in this order; it fits only what stacks the same.

    Arguments
    ---------
    state : mapping of str to torch.Tensor
        State of SpeechSplit's `Generator_3`, or a part of it.

    Returns
    -------
    dict of str to torch.Tensor
        What the names stand for; the rest (buffers that hold a length) is left out.

    Example
    -------
    >>> list(from_speechsplit({"encoder_1.convolutions_1.0.0.conv.bias": torch.zeros(1)}))
    ['encoders.content.blocks.0.0.bias']
    """
    renamed = {}
    for name, value in state.items():
        for published, own in PUBLISHED.items():
            if name.startswith(published + "."):
                renamed[own + name.removeprefix(published).replace(".conv.", ".")] = value
    return renamed
