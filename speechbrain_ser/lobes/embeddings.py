"""What the frozen part of an encoder gives of a waveform: computed once, kept on disk, read every epoch."""

import hashlib

import torch

from speechbrain_ser.nnet.lengths import absolute_lengths

VERSION = 1  # of the numbers that come out: raise it with every change of them, and caches start afresh


class Embeddings:
    """The states at which a lobe's training begins, for a feature cache.

    The output of an encoder that is frozen as a whole; else, where its lowest layers are frozen, the input of the first
    layer that is trained. In float16, which holds a state to 5e-4 of its size in half the room.

    Arguments
    ---------
    lobe : torch.nn.Module
        Has ``frozen_states(wavs)``, or ``states(wavs)`` where all of it is frozen, and ``layer_weights``.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
    >>> folder = build_tiny_wav2vec2(getfixture("tmp_path") / "tiny", hidden_size=16, num_layers=1, conv_dim=8)
    >>> lobe = Wav2Vec2(str(folder), freeze=True, cache_embeddings=True).eval()
    >>> wav = torch.randn(16000)
    >>> features = lobe.features.extract(wav)
    >>> features.dtype, features.shape, torch.allclose(lobe(features[None]), lobe(wav[None]), atol=1e-2)
    (torch.float16, torch.Size([49, 16]), True)
    """

    def __init__(self, lobe):
        self.lobe = lobe

    @property
    def min_samples(self) -> int:
        """Samples of the shortest utterance that gives a frame."""
        return self.lobe.min_samples

    @property
    def settings(self) -> dict:
        """Everything that identifies the output, for a cache's key."""
        lobe, digest = self.lobe, hashlib.sha256()
        frozen = {id(p): name for name, p in lobe.model.named_parameters() if not p.requires_grad}
        for name, tensor in sorted(lobe.model.state_dict(keep_vars=True).items()):
            if id(tensor) in frozen or not isinstance(tensor, torch.nn.Parameter):
                digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        return {
            "features": "embeddings",
            "version": VERSION,
            "lobe": type(lobe).__name__,
            "weights": digest.hexdigest(),
            "freeze_layers": lobe.freeze_layers,
            "all_states": lobe.layer_weights is not None,
            **lobe.input_settings,
        }

    def extract(self, wav: torch.Tensor) -> torch.Tensor:
        """Return float16 [frames, channels] on the CPU, or [frames, states, channels] where states are summed by
        weights, of a waveform [time] at 16 kHz."""
        lobe = self.lobe
        device = next(lobe.parameters()).device
        with torch.no_grad():
            states = getattr(lobe, "frozen_states", lobe.states)(wav[None].to(device))[0]
        found = states[-1] if lobe.layer_weights is None else torch.stack(states, dim=2)
        return found[0].half().cpu()

    def unpack(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Return the states [batch, frames, channels] that a padded batch of :meth:`extract` holds, in float32."""
        return [features.float()] if self.lobe.layer_weights is None else list(features.float().unbind(dim=2))


def frames_of(features: torch.Tensor, lens: torch.Tensor | None) -> torch.LongTensor:
    """Frames [batch], on the CPU, of features [batch, frames, …] and relative lengths [batch]."""
    return absolute_lengths(features.flatten(2)[:, :, 0], lens).cpu()
