"""What the lobes of pretrained encoders do alike with their transformer's layers, and what frozen ones keep."""

import hashlib
from functools import cached_property

import numpy as np
import torch
from torch import nn

from speechbrain_ser.nnet.augment import span_mask
from speechbrain_ser.nnet.masked import normalize_own
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask

OUTPUT_NORM_EPS = 1e-5  # of SpeechBrain's output_norm


def combine(states: list[torch.Tensor], layer_weights: torch.Tensor | None) -> torch.Tensor:
    """Sum states by softmax weights [states], as SUPERB does; without weights return the last one."""
    if layer_weights is None:
        return states[-1]
    weights = layer_weights.softmax(dim=0)
    return sum(weight * state for weight, state in zip(weights, states, strict=True))


def finish(out: torch.Tensor, counts: torch.LongTensor, output_norm: bool) -> torch.Tensor:
    """Set [batch, frames, channels] to 0 past each end; with `output_norm` normalise over an utterance's own values."""
    own = frame_mask(counts.to(out.device), out.shape[1])  # [batch, frames]
    if output_norm:
        return normalize_own(out, own, OUTPUT_NORM_EPS)
    return out.masked_fill(~own[:, :, None], 0.0)


def keep_lowest(layers: nn.ModuleList, n_layers: int | None) -> nn.ModuleList:
    """Return the first `n_layers` of a transformer's layers; None: all.

    Raises
    ------
    ValueError
        When it has not so many.

    Example
    -------
    >>> len(keep_lowest(nn.ModuleList(nn.Identity() for _ in range(6)), 4))
    4
    """
    if n_layers is None:
        return layers
    if not isinstance(n_layers, int) or not 1 <= n_layers <= len(layers):
        raise ValueError(f"n_layers is {n_layers!r}, expected 1 to {len(layers)}, the encoder's layers (null: all)")
    return layers[:n_layers]


def freeze_lowest(model: nn.Module, layers: nn.ModuleList, below: list[nn.Module], n_frozen: int) -> None:
    """Take the lowest layers, and all that lies `below` them, out of training.

    Arguments
    ---------
    model : torch.nn.Module
        The encoder, for its embedding of masked frames, which lies below as well.
    layers : torch.nn.ModuleList
        The transformer's.
    below : list of torch.nn.Module
        Convolutions, projection, positions.
    n_frozen : int
        How many layers; 0: nothing is frozen.

    Raises
    ------
    ValueError
        When all or more would be frozen (`freeze` says that).
    """
    if not isinstance(n_frozen, int) or not 0 <= n_frozen < len(layers):
        raise ValueError(f"freeze_layers is {n_frozen!r}, expected 0 to {len(layers) - 1} (freeze: all of them)")
    if not n_frozen:
        return
    for module in [*below, *layers[:n_frozen]]:
        module.requires_grad_(False)
    if (masked := getattr(model, "masked_spec_embed", None)) is not None:
        masked.requires_grad = False


def check_shares(**shares: float | None) -> None:
    """Refuse what is no share.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, expected 0 to 1")


def check_spans(**lengths: int) -> None:
    """Refuse what is no length of a span.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    for name, value in lengths.items():
        if value != int(value) or value < 1:
            raise ValueError(f"{name} is {value}, expected a whole number above 0")


@torch.compiler.disable  # --compile would trace NumPy's draws, and cannot
def drawn_spans(counts: np.ndarray, size: int, settings: dict) -> torch.BoolTensor:
    """Draw SpecAugment's spans [batch, size], on the CPU."""
    return torch.from_numpy(span_mask(counts, size, **settings))


def mask_channels(hidden: torch.Tensor, settings: dict) -> torch.Tensor:
    """Set SpecAugment's spans of channels of [batch, frames, channels] to 0."""
    if settings["prob"] == 0:
        return hidden
    batch, _, channels = hidden.shape
    masked = drawn_spans(np.full(batch, channels), channels, settings).to(hidden.device)
    return hidden.masked_fill(masked[:, None, :], 0.0)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Switch it on after SpeechBrain, which switches it off when it has loaded a model."""
    # the older name is deprecated, the newer absent from the first transformers 5 releases
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    # the non-reentrant kind works with a frozen front end and with DistributedDataParallel
    enable({"use_reentrant": False})


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
