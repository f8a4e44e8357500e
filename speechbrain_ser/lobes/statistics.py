"""Mean and deviation over time of everything that an encoder's layers give: an utterance in a few thousand numbers."""

import hashlib
from functools import cached_property

import torch

from speechbrain_ser.nnet.pooling import MaskedPooling

VERSION = 1  # of the numbers that come out: raise it with every change of them, and caches start afresh


class LayerStatistics:
    """Mean and deviation over an utterance's own frames of every state of a frozen encoder, for a feature cache.

    Arguments
    ---------
    encoder : torch.nn.Module
        Has ``states(wavs, wav_lens)``, ``min_samples`` and ``input_settings`` (such as
        :class:`speechbrain_ser.lobes.wav2vec2.Wav2Vec2`); it is not trained.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
    >>> folder = build_tiny_wav2vec2(getfixture("tmp_path") / "tiny", hidden_size=16, num_layers=3, conv_dim=8)
    >>> statistics = LayerStatistics(Wav2Vec2(str(folder), freeze=True).eval())
    >>> statistics.extract(torch.randn(16000)).shape  # the transformer's input and three layers' outputs
    torch.Size([4, 32])
    """

    def __init__(self, encoder):
        self.encoder, self.pooling = encoder, MaskedPooling("mean_std")

    @property
    def min_samples(self) -> int:
        """Samples of the shortest utterance that gives a frame."""
        return self.encoder.min_samples

    @cached_property
    def weights(self) -> str:
        """By which the encoder's parameters are known."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def settings(self) -> dict:
        """Everything that identifies the output, for a cache's key."""
        lobe = type(self.encoder).__name__
        known = {"features": "layer_statistics", "version": VERSION, "lobe": lobe, "weights": self.weights}
        return {**known, **self.encoder.input_settings}

    def stop_after(self, state: int) -> None:
        """Take away for good the layers above a state, but the one that reads it (a last output may be normalised)."""
        transformer = getattr(self.encoder.model, "encoder", self.encoder.model)  # Whisper's is the model itself
        transformer.layers = transformer.layers[: state + 1]

    def of_batch(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """Statistics [batch, states, 2 * channels] of waveforms [batch, time] and their relative lengths [batch]."""
        with torch.no_grad():
            states, counts = self.encoder.states(wavs, wav_lens)
            return torch.stack([self.pooling(state, counts) for state in states], dim=1)

    def extract(self, wav: torch.Tensor) -> torch.Tensor:
        """A waveform [time], 16 kHz, to statistics [states, 2 * channels], on the CPU."""
        device = next(self.encoder.parameters()).device
        return self.of_batch(wav[None].to(device))[0].cpu()
