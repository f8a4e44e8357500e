"""Fu et al. 2021: a CNN-BLSTM with two kinds of attention, an emotion head and a speaker head on its vector."""

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from speechbrain.dataio.batch import PaddedData
from torch import nn

from speechbrain_ser.errors import UserError
from speechbrain_ser.models.heads import active_tasks, build_heads, keep_heads
from speechbrain_ser.nnet.masked import StandardizeBands
from speechbrain_ser.processing.lengths import PARTS, fix_length, own_frames


class FuModel(nn.Module):
    """vector = f(log-mel), emotion = h(vector), speaker = i(vector) (Fu et al. 2021, figure 1).

    Arguments
    ---------
    features : torch.nn.Module
        Waveforms to log-mel spectrograms (:class:`speechbrain_ser.processing.log_mel.LogMel`).
    encoder : torch.nn.Module
        f (:class:`speechbrain_ser.lobes.cnn_blstm_attention.CNNBLSTMAttention`).
    heads : mapping of str to callable
        ``emotion`` and ``speaker``, constructors that still lack ``in_features``.
    loss_weights : mapping of str to float
        gamma and theta; a head of weight 0 is not built.
    fixed_length : int
        Cut and pad every spectrogram to so many frames, padding being part of the input (256 in the paper); 0 takes
        utterances as they are, and nothing depends on padding.
    cut : str
        Which part of a longer utterance is kept: ``start``, ``centre``, or ``random`` in training and the centre
        otherwise.
    standardize : bool
        Standardise each band by the training utterances' mean and deviation.
    feature_augment : torch.nn.Module, optional
        Acts on spectrograms [batch, frames, bands] in training, e.g.
        ``speechbrain.augment.freq_domain.SpectrogramDrop``.
    cached : bool
        Whether the data loader gives spectrograms (``feats``) instead of waveforms (``sig``).
    seed : int
        Seed of the heads' initial weights.
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
        self.heads = build_heads(heads, encoder.output_size, active_tasks(loss_weights, self.tasks), seed)

    @property
    def min_samples(self) -> int:
        """Samples of the shortest utterance that gives an output."""
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

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove what only other tasks need, for a model that is used and not trained any more; the emotion stays.

        Arguments
        ---------
        tasks : collection of str
            Whose outputs are still wanted; those that the model does not have are passed over.
        """
        keep_heads(self.heads, tasks)

    def forward(self, feats: PaddedData | None = None, sig: PaddedData | None = None) -> dict[str, torch.Tensor]:
        """Spectrograms, or waveforms where there are none, to the logits of every task.

        Arguments
        ---------
        feats : PaddedData, optional
            Spectrograms [batch, frames, bands], right-padded, and relative lengths [batch]; any pair of these.
        sig : PaddedData, optional
            Waveforms [batch, time], 16 kHz, right-padded, and relative lengths [batch].

        Returns
        -------
        dict of str to torch.Tensor
            ``emotion`` [batch, classes] and, where there is a speaker head, ``speaker`` [batch, speakers] logits;
            ``embedding`` [batch, channels] the utterance's vector.
        """
        embedding = self.encoder(*self.spectrogram(*(sig if feats is None else feats)))
        return {"embedding": embedding, **{task: head(embedding) for task, head in self.heads.items()}}

    def spectrogram(self, x: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the encoder reads: features [batch, frames, bands], and lengths [batch] unless they are fixed."""
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
