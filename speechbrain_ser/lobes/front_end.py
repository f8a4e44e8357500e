"""A frozen convolutional front end as features of a waveform: computed once, kept on disk."""

import hashlib

import torch


class FrontEnd:
    """What the convolutions of :class:`speechbrain_ser.lobes.wav2vec2.Wav2Vec2` give, for a feature cache.

    About a third of a forward pass through wav2vec2-base is spent in convolutions that a frozen front end repeats
    every epoch with the same result.

    Arguments
    ---------
    encoder : Wav2Vec2
        Whose convolutions these are; they are not trained.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
    >>> folder = build_tiny_wav2vec2(getfixture("tmp_path") / "tiny", hidden_size=16, num_layers=1, conv_dim=8)
    >>> lobe = Wav2Vec2(str(folder), freeze_feature_extractor=True, cache_front_end=True).eval()
    >>> wav = torch.randn(16000)
    >>> features = lobe.features.extract(wav)
    >>> features.shape, torch.allclose(lobe(features[None]), lobe(wav[None]))
    (torch.Size([49, 8]), True)
    """

    def __init__(self, encoder):
        self.encoder = encoder

    @property
    def min_samples(self) -> int:
        """Samples of the shortest utterance that gives a frame."""
        return self.encoder.min_samples

    @property
    def settings(self) -> dict:
        """Everything that identifies the output, for a cache's key."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.encoder.model.feature_extractor.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        config = self.encoder.model.config
        shape = {k: getattr(config, k) for k in ("conv_kernel", "conv_stride", "feat_extract_norm", "conv_bias")}
        shape = {k: list(v) if isinstance(v, tuple) else v for k, v in shape.items()}
        normalized = bool(self.encoder.normalize_wav)
        return {"features": "front_end", "weights": digest.hexdigest(), "normalize_wav": normalized, **shape}

    def extract(self, wav: torch.Tensor) -> torch.Tensor:
        """A waveform [time], 16 kHz, to features [frames, conv channels], on the CPU."""
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            features, _ = self.encoder.convolve(wav[None].to(device))
        return features[0].cpu()
