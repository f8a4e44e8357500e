"""Log-mel spectrograms as Fu et al. 2021 take them from librosa, for padded batches and on any device."""

import math

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank

from speechbrain_ser.data.audio import SAMPLE_RATE
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask

TOP_DB = 80.0  # range of `peak_db`
FLOOR = 1e-10  # the smallest value of a band that `db` and `log` tell from silence
SILENCE = {"peak_db": -1.0, "db": 10 * math.log10(FLOOR), "log": math.log(FLOOR)}
VERSION = 2  # of the numbers that come out: raise it with every change of them, and caches start afresh


class LogMel(nn.Module):
    """Waveforms at 16 kHz -> log-mel spectrograms, each utterance as it would be alone.

    The defaults are the paper's (section 3.2) and, where it is silent, those of the librosa of its day: a periodic
    Hann window, power, Slaney's mel scale from 0 to 8 kHz with bands of area 1, frames centred on multiples of the hop
    over a waveform reflected at its ends. The paper's padding of -1 fits `peak_db`, where silence is -1 as well.

    Frames, lengths and the ends' reflection are an utterance's own; what stands past its end is never read. An
    utterance in a batch, or under another number of threads, differs by rounding alone: less than 1e-5 in
    `peak_db` units, and the same call gives the same bits.

    Arguments
    ---------
    n_fft, hop_length, n_mels : int
        Samples of the window and of the Fourier transform (50 ms), samples from frame to frame (25 ms), mel bands.
    scale : str
        `peak_db`: dB below the utterance's own peak, floored at -80 and divided by 80, thus -1 to 0; a recording
        without any sound is all -1. `db`: dB over 1, the value of a band when a waveform has full scale 1 (neither
        window nor transform are normalised). `log`: the natural logarithm of the same value.

    Example
    -------
    >>> log_mel = LogMel()
    >>> log_mel(torch.randn(2, 16000), torch.tensor([1.0, 0.5])).shape, log_mel.frame_counts(8000)
    (torch.Size([2, 41, 128]), tensor(21))
    """

    min_samples = 1

    def __init__(self, n_fft: int = 800, hop_length: int = 400, n_mels: int = 128, scale: str = "peak_db"):
        super().__init__()
        if scale not in SILENCE:
            raise ValueError(f"scale is {scale!r}, expected one of {', '.join(SILENCE)}")
        sizes = {"n_fft": n_fft, "hop_length": hop_length, "n_mels": n_mels}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected a whole number above 0")
        self.settings = {"features": "log_mel", "version": VERSION, **sizes, "scale": scale}
        self.n_fft, self.hop_length, self.scale = n_fft, hop_length, scale
        self.output_size = n_mels
        self.hop_seconds = hop_length / SAMPLE_RATE
        self.padding_value = SILENCE[scale]  # what silence gives, and what fills frames past an utterance's end
        self.reach = n_fft // 2  # samples that the first frame reads before the utterance
        slaney = {"norm": "slaney", "mel_scale": "slaney"}
        filters = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, **slaney)
        # neither is learned: checkpoints do without them; values, even where parameters have a size and no memory
        self.register_buffer("window", torch.hann_window(n_fft, device="cpu"), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)  # float64 [bins, bands]

    def frame_counts(self, n_samples: torch.LongTensor | int) -> torch.LongTensor:
        """Return the frames of so many samples, of any shape: one at each multiple of the hop, the end included."""
        n_samples = torch.as_tensor(n_samples).long()
        frames = (n_samples + 2 * self.reach - self.n_fft) // self.hop_length + 1
        return frames.masked_fill(n_samples < self.min_samples, 0)

    def extract(self, wav: torch.Tensor) -> torch.Tensor:
        """Return the features [frames, bands] of one waveform [time], as a feature cache asks for them."""
        return self(wav[None])[0]

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """Return log-mel spectrograms, float32 [batch, frames, bands], `padding_value` past an utterance's end.

        `wavs` are right-padded [batch, time]; `wav_lens` relative lengths [batch], None when there is no padding. An
        utterance without a sample is a ValueError.
        """
        lengths = absolute_lengths(wavs, wav_lens)  # [batch]
        is_graph = torch.compiler.is_exporting()  # which has no errors to raise
        if not is_graph and (empty := (lengths < self.min_samples).nonzero().flatten().tolist()):
            raise ValueError(f"expected at least {self.min_samples} sample an utterance, found none in {empty}")
        with torch.autocast(wavs.device.type, enabled=False):  # half precision holds neither power nor its sums
            bands = self._bands(reflect(wavs.float(), lengths, self.reach))  # [batch, frames, bands]
            padding = ~frame_mask(self.frame_counts(lengths), bands.shape[1])[:, :, None]
            bands = bands.masked_fill(padding, 0.0)
            return self._compress(bands).masked_fill(padding, self.padding_value)

    def _bands(self, wavs: torch.Tensor) -> torch.Tensor:
        """Mel bands [batch, frames, bands] of waveforms that reach beyond the first and the last frame."""
        if torch.compiler.is_exporting():
            return self._bands_by_products(wavs)
        spectrum = torch.stft(
            wavs, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True
        )  # [batch, bins, frames]
        power = spectrum.abs().pow(2.0).transpose(1, 2)  # [batch, frames, bins]
        # sums in float64: they depend neither on the batch's shape nor on the matrix unit (TF32)
        return (power.double() @ self.filters.double()).float()

    def prepare_graph(self) -> None:
        """Keep the window's Fourier transform as a matrix, float64 [samples, 2 bins]: a graph multiplies by it.

        ONNX's own transform computes in float32 by detours where the samples are no power of 2, and quiet bands, whose
        logarithm counts as much as that of loud ones, are lost in its rounding.
        """
        transform = torch.fft.rfft(torch.eye(self.n_fft, dtype=torch.float64) * self.window)  # [samples, bins]
        self.register_buffer("transform", torch.cat([transform.real, transform.imag], dim=1), persistent=False)

    def _bands_by_products(self, wavs: torch.Tensor) -> torch.Tensor:
        frames = torch.arange(0, wavs.shape[1] - self.n_fft + 1, self.hop_length)[:, None]  # first samples
        windows = wavs[:, frames + torch.arange(self.n_fft)]  # [batch, frames, samples]
        real, imaginary = (windows.double() @ self.transform).square().chunk(2, dim=-1)
        return ((real + imaginary) @ self.filters).float()

    def _compress(self, bands: torch.Tensor) -> torch.Tensor:
        if self.scale == "log":
            return bands.clamp(min=FLOOR).log()
        if self.scale == "db":
            return 10 * bands.clamp(min=FLOOR).log10()
        smallest = torch.finfo(bands.dtype).tiny  # silence stays 0 when divided by its peak
        peak = bands.amax(dim=(1, 2), keepdim=True).clamp(min=smallest)  # [batch, 1, 1]
        decibels = 10 * (bands / peak).clamp(min=smallest).log10()
        return decibels.clamp(min=-TOP_DB) / TOP_DB


def reflect(wavs: torch.Tensor, lengths: torch.LongTensor, reach: int) -> torch.Tensor:
    """Mirror each utterance at its own ends, wherever its batch's padding begins, as NumPy's `reflect` does.

    `lengths` are own samples [batch], above 0; `reach` samples are added at either end of [batch, time].

    Example
    -------
    >>> reflect(torch.tensor([[1, 2, 3, 4], [1, 2, 9, 9]]), torch.tensor([4, 2]), 2)
    tensor([[3, 2, 1, 2, 3, 4, 3, 2],
            [1, 2, 1, 2, 1, 2, 1, 2]])
    """
    last = lengths[:, None] - 1  # [batch, 1]
    period = (2 * last).clamp(min=1)  # a single sample is repeated
    positions = torch.arange(-reach, wavs.shape[1] + reach, device=wavs.device) % period  # [batch, reach + … + reach]
    return wavs.gather(1, torch.where(positions > last, period - positions, positions))
