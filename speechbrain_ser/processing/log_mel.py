"""Log-mel spectrograms as Fu et al. 2021 take them from librosa, for padded batches and on any device."""

import math

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank

from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask

SCALES = ("peak_db", "db", "log")
PAD_MODES = ("reflect", "constant")
MEL_SCALES = ("slaney", "htk")
VERSION = 2  # of the numbers that come out: raise it with every change of them, and caches start afresh


class LogMel(nn.Module):
    """Waveform -> log-mel spectrogram, each utterance as it would be alone.

    The defaults are the paper's (section 3.2) and, where it is silent, those of the librosa of its day: a periodic
    Hann window, power, Slaney's mel scale with bands of equal area, frames centred on multiples of the hop over a
    waveform reflected at its ends. The paper's padding of -1 fits `peak_db`, where silence is -1 as well.

    Frames, lengths and the ends' reflection are an utterance's own; what stands past its end is never read. An
    utterance in a batch, or under another number of threads, differs by rounding alone: less than 1e-5 in
    `peak_db` units, and the same call gives the same bits.

    Arguments
    ---------
    sample_rate : int
        Of the waveforms, Hz.
    n_fft : int
        Samples of a Fourier transform (50 ms).
    hop_length : int
        Samples from frame to frame (25 ms).
    win_length : int, optional
        Samples of the Hann window; None is `n_fft`.
    n_mels : int
        Mel bands.
    f_min : float
        Lower edge of the lowest band, Hz.
    f_max : float
        Upper edge of the highest band, Hz; at most half the sample rate.
    mel_scale : str
        `slaney` (linear below 1 kHz) or `htk`.
    mel_norm : str, optional
        `slaney` gives every filter the area 1, None the peak 1.
    power : float
        2 sums power over a band, 1 magnitude.
    pad_mode : str
        What stands beyond an utterance's ends: `reflect` (the utterance mirrored, as often as it takes) or
        `constant` (zeros).
    scale : str
        `peak_db`: dB below the utterance's own peak, floored at `-top_db` and divided by `top_db`, thus -1 to 0;
        a recording without any sound is all -1.
        `db`: dB over 1, the value of a band when a waveform has full scale 1 (neither window nor transform are
        normalised). `log`: the natural logarithm of the same value.
    top_db : float
        Range of `peak_db`, dB.
    floor : float
        Smallest value of a band that `db` and `log` tell from silence.

    Attributes
    ----------
    output_size : int
        Bands.
    min_samples : int
        Samples of the shortest utterance that gives a frame.
    hop_seconds : float
        From frame to frame.
    padding_value : float
        What silence gives and what fills frames past an utterance's end: -1 for `peak_db`.
    settings : dict
        Everything that identifies the output, for a cache's key.

    Raises
    ------
    ValueError
        When an argument is out of range.

    Example
    -------
    >>> log_mel = LogMel()
    >>> wavs = torch.randn(2, 16000)  # the second utterance is half a second
    >>> log_mel(wavs, torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 41, 128])
    >>> log_mel.frame_counts(torch.tensor([16000, 8000]))
    tensor([41, 21])
    >>> log_mel(torch.zeros(1, 400)).unique()
    tensor([-1.])
    """

    def __init__(
        self,
        sample_rate: int = 16_000,
        n_fft: int = 800,
        hop_length: int = 400,
        win_length: int | None = None,
        n_mels: int = 128,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        mel_scale: str = "slaney",
        mel_norm: str | None = "slaney",
        power: float = 2.0,
        pad_mode: str = "reflect",
        scale: str = "peak_db",
        top_db: float = 80.0,
        floor: float = 1e-10,
    ):
        super().__init__()
        win_length = n_fft if win_length is None else win_length
        _check_choices(scale=(scale, SCALES), pad_mode=(pad_mode, PAD_MODES), mel_scale=(mel_scale, MEL_SCALES))
        _check_choices(mel_norm=(mel_norm, ("slaney", None)))
        _check_positive(n_fft=n_fft, hop_length=hop_length, win_length=win_length, n_mels=n_mels)
        _check_positive(sample_rate=sample_rate, power=power, top_db=top_db, floor=floor)
        if win_length > n_fft:
            raise ValueError(f"win_length is {win_length}, expected at most n_fft ({n_fft})")
        if not 0 <= f_min < f_max <= sample_rate / 2:
            raise ValueError(
                f"f_min and f_max are {f_min} and {f_max} Hz, expected 0 <= f_min < f_max <= {sample_rate / 2}"
            )
        self.settings = {
            "features": "log_mel",
            "version": VERSION,
            "sample_rate": sample_rate,
            "n_fft": n_fft,
            "hop_length": hop_length,
            "win_length": win_length,
            "n_mels": n_mels,
            "f_min": float(f_min),
            "f_max": float(f_max),
            "mel_scale": mel_scale,
            "mel_norm": mel_norm,
            "power": float(power),
            "pad_mode": pad_mode,
            "scale": scale,
            # only what the scale reads
            **({"top_db": float(top_db)} if scale == "peak_db" else {"floor": float(floor)}),
        }
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.power, self.pad_mode, self.scale = float(power), pad_mode, scale
        self.top_db, self.floor = float(top_db), float(floor)
        self.output_size = n_mels
        self.hop_seconds = hop_length / sample_rate
        self.reach = n_fft // 2  # samples that the first frame reads before the utterance
        self.min_samples = max(1, n_fft - 2 * self.reach)
        self.padding_value = {
            "peak_db": -1.0,
            "db": 20 / self.power * math.log10(floor),
            "log": math.log(floor),
        }[scale]
        filters = mel_filter_bank(n_fft // 2 + 1, n_mels, f_min, f_max, sample_rate, norm=mel_norm, mel_scale=mel_scale)
        # neither is learned: checkpoints do without them
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)  # float64 [bins, bands]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())

    def frame_counts(self, n_samples: torch.LongTensor | int) -> torch.LongTensor:
        """Frames of so many samples: one at each multiple of the hop, the end included.

        Arguments
        ---------
        n_samples : torch.LongTensor or int
            Samples, of any shape.

        Returns
        -------
        torch.LongTensor
            Frames, of the same shape; 0 below `min_samples`.
        """
        n_samples = torch.as_tensor(n_samples).long()
        frames = (n_samples + 2 * self.reach - self.n_fft) // self.hop_length + 1
        return frames.masked_fill(n_samples < self.min_samples, 0)

    def extract(self, wav: torch.Tensor) -> torch.Tensor:
        """Features of one utterance, as a feature cache asks for them.

        Arguments
        ---------
        wav : torch.Tensor
            Waveform [time].

        Returns
        -------
        torch.Tensor
            [frames, bands].
        """
        return self(wav[None])[0]

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """Log-mel spectrograms of a padded batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at `sample_rate`, right-padded [batch, time].
        wav_lens : torch.Tensor, optional
            Relative lengths [batch]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            float32 [batch, frames, bands], `padding_value` past an utterance's end.

        Raises
        ------
        ValueError
            When the shapes do not match or an utterance is shorter than `min_samples`.
        """
        lengths = absolute_lengths(wavs, wav_lens)  # [batch]
        self._check_lengths(lengths)
        with torch.autocast(wavs.device.type, enabled=False):  # half precision holds neither power nor its sums
            bands = self._bands(extend(wavs.float(), lengths, self.reach, self.pad_mode))  # [batch, frames, bands]
            padding = ~frame_mask(self.frame_counts(lengths), bands.shape[1])[:, :, None]
            bands = bands.masked_fill(padding, 0.0)
            return self._compress(bands).masked_fill(padding, self.padding_value)

    def _check_lengths(self, lengths: torch.LongTensor) -> None:
        short = (lengths < self.min_samples).nonzero().flatten().tolist()
        if short:
            listed = ", ".join(f"utterance {index} has {lengths[index]}" for index in short)
            raise ValueError(f"expected at least {self.min_samples} samples an utterance: {listed}")

    def _bands(self, wavs: torch.Tensor) -> torch.Tensor:
        """Mel bands [batch, frames, bands] of waveforms that reach beyond the first and the last frame."""
        spectrum = torch.stft(
            wavs, self.n_fft, self.hop_length, self.win_length, self.window, center=False, return_complex=True
        )  # [batch, bins, frames]
        spectrum = spectrum.abs().pow(self.power).transpose(1, 2)  # [batch, frames, bins]
        # sums in float64: they depend neither on the batch's shape nor on the matrix unit (TF32)
        return (spectrum.double() @ self.filters.double()).float()

    def _compress(self, bands: torch.Tensor) -> torch.Tensor:
        if self.scale == "log":
            return bands.clamp(min=self.floor).log()
        if self.scale == "db":
            return 20 / self.power * bands.clamp(min=self.floor).log10()
        smallest = torch.finfo(bands.dtype).tiny  # silence stays 0 when divided by its peak
        peak = bands.amax(dim=(1, 2), keepdim=True).clamp(min=smallest)  # [batch, 1, 1]
        decibels = 20 / self.power * (bands / peak).clamp(min=smallest).log10()
        return decibels.clamp(min=-self.top_db) / self.top_db


def extend(wavs: torch.Tensor, lengths: torch.LongTensor, reach: int, pad_mode: str) -> torch.Tensor:
    """Each utterance continued beyond its own ends, wherever its batch's padding begins.

    Arguments
    ---------
    wavs : torch.Tensor
        Waveforms [batch, time]; what stands past an utterance's end is not read.
    lengths : torch.LongTensor
        Samples of each utterance [batch], above 0.
    reach : int
        Samples to add at either end.
    pad_mode : str
        `reflect` (as NumPy does it: mirrored without repeating the end, as often as needed) or `constant` (zeros).

    Returns
    -------
    torch.Tensor
        [batch, reach + time + reach].

    Example
    -------
    >>> wavs = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 9]])
    >>> extend(wavs, torch.tensor([4, 2]), 2, "reflect")
    tensor([[3, 2, 1, 2, 3, 4, 3, 2],
            [1, 2, 1, 2, 1, 2, 1, 2]])
    """
    time = wavs.shape[1]
    if pad_mode == "constant":
        own = wavs.masked_fill(~frame_mask(lengths, time), 0)
        return nn.functional.pad(own, (reach, reach))
    last = lengths[:, None] - 1  # [batch, 1]
    period = (2 * last).clamp(min=1)  # a single sample is repeated
    positions = torch.arange(-reach, time + reach, device=wavs.device) % period  # [batch, reach + time + reach]
    return wavs.gather(1, torch.where(positions > last, period - positions, positions))


def _check_choices(**choices: tuple) -> None:
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, expected a finite number above 0")
