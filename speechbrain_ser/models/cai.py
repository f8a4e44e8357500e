"""Cai et al. 2021: one wav2vec2, an emotion head on its pooled output and a CTC head on its frames."""

from collections.abc import Callable, Collection, Mapping

import torch
from speechbrain.dataio.batch import PaddedData
from torch import nn

from speechbrain_ser.models.heads import active_tasks, build_heads, keep_heads
from speechbrain_ser.nnet.initialization import build_seeded
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.lengths import own_frames


class CaiModel(nn.Module):
    """z = f(x), emotion = h(pool(z)), characters = g(z) (Cai et al. 2021, section 3.1, figure 1).

    Arguments
    ---------
    encoder : torch.nn.Module
        f: waveforms to frames; has ``output_size`` and ``frame_counts`` (see
        :class:`speechbrain_ser.lobes.wav2vec2.Wav2Vec2`).
    pooling : MaskedPooling
        Over an utterance's own frames; the heads but ``asr`` read its vector.
    heads : mapping of str to callable
        ``emotion`` (h) and ``asr`` (g), constructors that still lack ``in_features``.
    loss_weights : mapping of str to float
        A weight a task; a head of weight 0 is not built (the emotion head always is, and needs a weight).
    seed : int
        Seed of the initial weights of heads and pooling.
    """

    tasks = ("emotion", "asr")

    def __init__(
        self,
        encoder: nn.Module,
        pooling: MaskedPooling,
        heads: Mapping[str, Callable[..., nn.Module]],
        loss_weights: Mapping[str, float],
        seed: int = 0,
    ):
        super().__init__()
        self.encoder = encoder
        self.inputs = {"sig": getattr(encoder, "features", None)}  # what `forward` reads of a batch: waveforms
        self.pooling = pooling
        width = build_seeded(pooling.set_up, "pooling", seed, channels=encoder.output_size)
        sizes = {"asr": encoder.output_size}
        self.heads = build_heads(heads, width, active_tasks(loss_weights, self.tasks), seed, sizes)

    @property
    def min_samples(self) -> int:
        """Samples of the shortest utterance that gives a frame."""
        return self.encoder.min_samples

    def frame_counts(self, n_samples: torch.Tensor) -> torch.Tensor:
        """Frames that the encoder gives for so many samples."""
        return self.encoder.frame_counts(n_samples)

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove what only other tasks need, for a model that is used and not trained any more; the emotion stays.

        Arguments
        ---------
        tasks : collection of str
            Whose outputs are still wanted; those that the model does not have are passed over.
        """
        keep_heads(self.heads, tasks)

    def forward(self, sig: PaddedData) -> dict[str, torch.Tensor]:
        """Waveforms to the logits of every task.

        Arguments
        ---------
        sig : PaddedData
            Waveforms [batch, time], 16 kHz, right-padded, and relative lengths [batch]; any pair of these. Or what the
            encoder's front end gives of them [batch, frames, conv channels].

        Returns
        -------
        dict of str to torch.Tensor
            ``emotion`` [batch, classes] logits; ``asr`` [batch, frames, tokens] logits where there is an ASR head;
            ``frames`` [batch] valid frames; ``embedding`` [batch, channels] the pooled vector.
        """
        wavs, wav_lens = sig
        z = self.encoder(wavs, wav_lens)  # (batch, frames, channels)
        frames = own_frames(wavs, wav_lens, self.encoder.frame_counts)
        embedding = self.pooling(z, frames)  # (batch, channels)
        outputs = {"frames": frames, "embedding": embedding}
        outputs["emotion"] = self.heads["emotion"](embedding)
        if "asr" in self.heads:
            outputs["asr"] = self.heads["asr"](z)
        return outputs
