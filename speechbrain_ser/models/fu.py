"""Fu et al. 2021: a CNN-BLSTM with two kinds of attention, an emotion head and a speaker head on its vector."""

from collections.abc import Callable, Iterable, Mapping

import torch
from speechbrain.dataio.batch import PaddedData
from torch import nn

from speechbrain_ser.errors import UserError
from speechbrain_ser.models.heads import MultitaskModel
from speechbrain_ser.nnet.masked import StandardizeBands
from speechbrain_ser.processing.lengths import PARTS, fix_length, own_frames


class FuModel(MultitaskModel):
    """vector = f(log-mel), emotion = h(vector), speaker = i(vector) (Fu et al. 2021, figure 1).

    Arguments
    ---------
    features, encoder : torch.nn.Module
        Waveforms to log-mel spectrograms (:class:`speechbrain_ser.processing.log_mel.LogMel`), and f
        (:class:`speechbrain_ser.lobes.cnn_blstm_attention.CNNBLSTMAttention`).
    fixed_length : int
        Cut and pad every spectrogram to so many frames, padding being part of the input (256 in the paper); 0 takes
        utterances as they are, and nothing depends on padding.
    cut : str
        Which part of a longer utterance is kept: ``start``, ``centre``, or ``random`` in training and the centre
        otherwise.
    standardize : bool
        Standardise each band by the training utterances' mean and deviation.
    feature_augment : torch.nn.Module, optional
        Acts on spectrograms [batch, frames, bands] in training, e.g. SpeechBrain's ``SpectrogramDrop``.
    cached : bool
        Whether the data loader gives spectrograms (``feats``) instead of waveforms (``sig``).
    heads, loss_weights, seed
        As :class:`MultitaskModel` says: ``emotion`` (gamma), ``speaker`` (theta) and any other.
    """

    tasks = ("emotion", "speaker")

    def __init__(
        self,
        features: nn.Module,
        encoder: nn.Module,
        heads: Mapping[str, Callable[..., nn.Module]],
        loss_weights: Mapping[str, float],
        fixed_length: int = 256,
        cut: str = "start",
        standardize: bool = True,
        feature_augment: nn.Module | None = None,
        cached: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if cut not in PARTS:
            raise UserError(f"cut is {cut!r}, expected one of {', '.join(PARTS)}")
        if 0 != fixed_length < encoder.min_frames:
            raise UserError(f"fixed_length is {fixed_length}: the encoder needs {encoder.min_frames} frames")
        self.features, self.encoder = features, encoder
        self.fixed_length, self.cut = fixed_length, cut
        self.standardize = StandardizeBands(features.output_size) if standardize else None
        self.feature_augment = feature_augment
        self.inputs = {"feats": features} if cached else {"sig": None}
        self.build_heads(heads, loss_weights, encoder.output_size, seed)

    @property
    def min_samples(self) -> int:
        frames = 1 if self.fixed_length else self.encoder.min_frames
        samples = self.features.min_samples
        while self.features.frame_counts(samples) < frames:
            samples += self.features.hop_length
        return samples

    def measure(self, items: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Measure the bands' mean and deviation, where they are standardised, on the training part's items."""
        if self.standardize is not None:
            (name,) = self.inputs
            signals = (item[name] for item in items)
            self.standardize.fit(signals if name == "feats" else (self.features(x[None])[0].cpu() for x in signals))

    def frame_counts(self, n_samples: torch.Tensor) -> torch.Tensor:
        return self.encoder.frame_counts(self.features.frame_counts(n_samples))

    def forward(self, feats: PaddedData | None = None, sig: PaddedData | None = None) -> dict[str, torch.Tensor]:
        """Bring spectrograms, or waveforms where there are none, to the logits of every task."""
        embedding = self.encoder(*self.spectrogram(*(sig if feats is None else feats)))
        return {"embedding": embedding, **self.logits(embedding)}

    def spectrogram(self, x: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what the encoder reads: features [batch, frames, bands], and lengths [batch] unless they are fixed."""
        counts = own_frames(x, lens, self.features.frame_counts)  # [batch]
        if x.dim() == 2:
            x = self.features(x, lens)
        if self.fixed_length:
            where = "centre" if self.cut == "random" and not self.training else self.cut
            x = fix_length(x, counts, self.fixed_length, where, self.features.padding_value)
        if self.standardize is not None:
            x = self.standardize(x)
        if self.training and self.feature_augment is not None:
            x = self.feature_augment(x)
        return x, None if self.fixed_length else counts
