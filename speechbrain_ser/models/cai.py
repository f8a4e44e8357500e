"""Cai et al. 2021: one wav2vec2, an emotion head on its pooled output and a CTC head on its frames."""

from collections.abc import Callable, Mapping

import torch
from speechbrain.dataio.batch import PaddedData
from torch import nn

from speechbrain_ser.models.heads import MultitaskModel
from speechbrain_ser.nnet.initialization import build_seeded
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.lengths import own_frames


class CaiModel(MultitaskModel):
    """z = f(x), emotion = h(pool(z)), characters = g(z) (Cai et al. 2021, section 3.1, figure 1).

    `encoder` is f (:class:`speechbrain_ser.lobes.encoder.Encoder`), `pooling` goes over an utterance's own frames; all
    heads but ``asr`` (g) read its vector. `heads`, `loss_weights` and `seed` are :class:`MultitaskModel`'s.
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
        self.encoder, self.pooling = encoder, pooling
        self.inputs = {"sig": getattr(encoder, "features", None)}
        width = build_seeded(pooling.set_up, "pooling", seed, channels=encoder.output_size)
        self.build_heads(heads, loss_weights, width, seed, asr=encoder.output_size)

    def forward(self, sig: PaddedData) -> dict[str, torch.Tensor]:
        """Bring waveforms to the logits of every task."""
        wavs, wav_lens = sig
        z = self.encoder(wavs, wav_lens)  # (batch, frames, channels)
        frames = own_frames(wavs, wav_lens, self.encoder.frame_counts)
        embedding = self.pooling(z, frames)  # (batch, channels)
        return {"frames": frames, "embedding": embedding, **self.logits(embedding, asr=z)}
