"""What all lobes of pretrained encoders share, and the features that a frozen one's output makes for a cache."""

import hashlib
import inspect
import os
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from speechbrain_ser.data.audio import SAMPLE_RATE
from speechbrain_ser.lobes.backbone import MODEL_TYPES, Backbone, UserError, build_model, resolve_backbone
from speechbrain_ser.nnet.augment import span_mask
from speechbrain_ser.nnet.lora import add_lora, merge_lora
from speechbrain_ser.nnet.masked import normalize_own
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.lengths import frame_mask, own_frames

OUTPUT_NORM_EPS = 1e-5  # of SpeechBrain's output_norm


class PretrainedEncoder(nn.Module):
    """A pretrained speech encoder, fine-tuned or frozen, that gives each utterance what it would get alone.

    :class:`~speechbrain_ser.lobes.wav2vec2.Wav2Vec2` and :class:`~speechbrain_ser.lobes.whisper.Whisper` have these
    arguments; what a family does not have is a UserError. Parameters keep transformers' names.

    Arguments
    ---------
    source, save_path : str
        Local folder (config.json and model.safetensors or pytorch_model.bin) or hub name; where hub models are kept.
    freeze : bool
        Use the encoder as a fixed feature extractor: no gradient, and no dropout or SpecAugment even in training.
    freeze_feature_extractor : bool
        Keep the convolutional front end fixed, fine-tune the rest.
    freeze_layers : int
        Keep the front end and the lowest so many transformer layers fixed, fine-tune the upper ones.
    n_layers : int, optional
        Keep the first so many transformer layers; None: all. An encoder's last layer norm stays.
    apply_spec_augment : bool
        Mask spans of frames (and channels) in training.
    mask_time_prob, mask_feature_prob : float
        Share of frames and of channels to mask, 0 to 1.
    mask_time_length, mask_feature_length : int
        Frames (20 ms) and channels of a span; utterances shorter than one stay unmasked.
    layerdrop, dropout : float, optional
        Probability of skipping a transformer layer; dropout wherever the model has it. None keeps the checkpoint's.
    gradient_checkpointing : bool
        Recompute activations in the backward pass: less memory, about a third slower, same gradients.
    attn_implementation : str, optional
        `eager`, `sdpa` or `flash_attention_2`, where the model has it (WavLM: eager only, Whisper: not the last); None
        takes the fastest that needs no further package.
    weighted_sum : bool
        Output a softmax-weighted sum of all layers, as SUPERB does; it is learned even when the encoder is frozen.
    output_norm : bool
        Normalise the output over each utterance's frames and channels (no parameters).
    normalize_wav : bool, optional
        Bring each utterance to zero mean and unit variance; None: as the checkpoint's preprocessor says. (Not Whisper.)
    cache_front_end, cache_embeddings : bool
        Let whoever loads data read ``features`` instead of waveforms: what the frozen front end gives (not Whisper), or
        all that is frozen (`freeze`; Whisper: `freeze_layers` too).
    pad_to_30s : bool
        Encode each utterance followed by silence up to 30 s, as published; the output keeps its own frames. (Whisper.)
    windows : bool
        Encode an utterance of more than 30 s in pieces, and join their frames; False: it is refused. (Whisper.)
    load_weights : bool
        False: `source` is a folder of plain settings (:func:`speechbrain_ser.lobes.backbone.check_settings`), and the
        parameters are drawn, for who fills them from a checkpoint of a whole model.
    lora : mapping, optional
        ``rank``, ``alpha``, ``layers`` (:func:`speechbrain_ser.nnet.lora.add_lora`): train thin matrices beside these
        layers' own from layer `freeze_layers` on, and nothing else; `seed` is of their initial weights.

    Attributes
    ----------
    output_size, min_samples, max_samples : int
        Channels of the output; samples of the shortest utterance that gives a frame, and of the longest (None: any).
    features : FrozenFeatures, optional
        What is frozen, where its output is to be cached.
    """

    # what a family says of itself, beside `input_settings`, `frame_counts`, `_set_up(folder)`, which changes the model
    # once it is built, and `_states(wavs, wav_lens, every)`: as `states`, or the last one alone if not `every`. That
    # calls `_check_lengths`, unpacks cached features (wavs of 3 axes), computes what is frozen without gradients
    absent: tuple[str, ...]  # settings that it does not have
    dropout_keys: tuple[str, ...]  # of config.json
    layerdrop_key: str
    front_end: tuple[str, ...]  # names of modules: the convolutions,
    below_layers: tuple[str, ...]  # what lies between them and the first layer,
    transformer_name: str  # and what has the layers
    model_class: type | None = None  # None: transformers' choice
    key_mapping: Mapping[str, str] | None = None  # patterns of names of a file to the model's
    attentions = ("eager", "sdpa", "flash_attention_2")
    starts_above_frozen = False  # whether encoding can begin with the first layer that is trained
    min_samples: int
    max_samples: int | None = None

    def __init__(
        self,
        source: str | os.PathLike | Backbone,
        save_path: str | os.PathLike = "pretrained",
        freeze: bool = False,
        freeze_feature_extractor: bool = False,
        freeze_layers: int = 0,
        n_layers: int | None = None,
        apply_spec_augment: bool = True,
        mask_time_prob: float = 0.05,
        mask_time_length: int = 10,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 10,
        layerdrop: float | None = None,
        dropout: float | None = None,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        weighted_sum: bool = False,
        output_norm: bool = False,
        normalize_wav: bool | None = None,
        cache_front_end: bool = False,
        cache_embeddings: bool = False,
        pad_to_30s: bool = False,
        windows: bool = False,
        load_weights: bool = True,
        lora: Mapping | None = None,
        seed: int = 0,
    ):
        given = dict(locals())
        super().__init__()
        _check_ranges(given)
        backbone = source if isinstance(source, Backbone) else resolve_backbone(source, save_path, load_weights)
        self._check_settings(given, backbone)
        self.freeze, self.freeze_layers, self.output_norm = freeze, freeze_layers, output_norm
        self.freeze_feature_extractor = freeze_feature_extractor or lora is not None
        self.normalize_wav, self.pad_to_30s, self.windows = normalize_wav, pad_to_30s, windows
        self._build(given, backbone)
        self.layer_weights = nn.Parameter(torch.zeros(len(self.transformer.layers) + 1)) if weighted_sum else None
        self._set_up(backbone.folder)
        self._set_up_spec_augment(given)
        self._freeze()
        if lora is not None:
            add_lora(self.model, self.transformer.layers[freeze_layers:], lora, seed)
        if gradient_checkpointing and not freeze:
            # the older name is deprecated, the newer absent from the first transformers 5 releases
            name = "activation_checkpointing_enable"
            enable = getattr(self.model, name, None) or self.model.gradient_checkpointing_enable
            enable({"use_reentrant": False})  # which works with a frozen front end and DistributedDataParallel
        self.features = FrontEnd(self) if cache_front_end else None
        if cache_embeddings:
            self.features = Embeddings(self)
        self.train()

    @property
    def transformer(self) -> nn.Module:
        """The part of the model that has the ``layers``."""
        return self.model.get_submodule(self.transformer_name)

    @property
    def input_settings(self) -> dict:
        """Return what decides the frozen states beside the parameters, for a cache's key."""
        raise NotImplementedError

    def frame_counts(self, n_samples: torch.LongTensor | int) -> torch.LongTensor:
        """Return the frames of so many samples at 16 kHz, of any shape; 0 below `min_samples`."""
        raise NotImplementedError

    # --- building ------------------------------------------------------------------------------------------

    def _check_settings(self, given: Mapping, backbone: Backbone) -> None:
        model_type = backbone.config["model_type"]
        names = {each.__name__ for each in type(self).__mro__}
        if model_type not in (mine := [kind for kind, lobe in MODEL_TYPES.items() if lobe.split(".")[1] in names]):
            raise UserError(f"backbone {backbone.folder} is of model type {model_type!r}: expected {', '.join(mine)}")
        for name in self.absent:
            if given[name] != (default := inspect.signature(type(self)).parameters[name].default):
                who = f"{model_type} ({backbone.folder})"
                raise UserError(f"{name} is {given[name]!r}: {who} has no such setting, leave it {default!r}")
        freeze, lora = given["freeze"], given["lora"]
        if given["cache_front_end"] and not (freeze or given["freeze_feature_extractor"] or lora is not None):
            ways = "freeze_feature_extractor, freeze or lora"
            raise ValueError(f"cache_front_end: expected a front end that is not trained ({ways})")
        if given["cache_embeddings"] and not (freeze or (self.starts_above_frozen and given["freeze_layers"])):
            also = ", or not all of it (freeze_layers)" if self.starts_above_frozen else ""
            raise ValueError(f"cache_embeddings: expected an encoder that is not trained (freeze){also}")

    def _build(self, given: Mapping, backbone: Backbone) -> None:
        config = AutoConfig.from_pretrained(str(backbone.folder))
        rates = dict.fromkeys(self.dropout_keys, given["dropout"]) | {self.layerdrop_key: given["layerdrop"]}
        config.update({key: rate for key, rate in rates.items() if rate is not None})
        # whatever the settings, `masked_spec_embed` exists: checkpoints with and without SpecAugment interchange
        config.mask_time_prob = 0.05
        model_class, attention = self.model_class or MODEL_MAPPING[type(config)], given["attn_implementation"]
        if attention not in (None, *self.attentions):
            raise UserError(f"attn_implementation is {attention!r}: expected one of {', '.join(self.attentions)}")
        loads, mapping = backbone.has_weights, self.key_mapping
        self.model = build_model(model_class, backbone.folder, config, attention, loads, mapping)
        layers, n = self.transformer.layers, given["n_layers"]
        if n is not None:
            if not isinstance(n, int) or not 1 <= n <= len(layers):
                raise ValueError(f"n_layers is {n!r}, expected 1 to {len(layers)}, the encoder's layers (null: all)")
            self.transformer.layers = layers[:n]
        self.model.config.num_hidden_layers = len(self.transformer.layers)
        self.output_size: int = self.model.config.hidden_size

    def _set_up_spec_augment(self, given: Mapping) -> None:
        config, self.apply_spec_augment = self.model.config, given["apply_spec_augment"]
        self.time_spans = {"prob": given["mask_time_prob"], "length": given["mask_time_length"]}
        self.time_spans["min_spans"] = getattr(config, "mask_time_min_masks", 2)
        self.feature_spans = {"prob": given["mask_feature_prob"], "length": given["mask_feature_length"]}
        self.feature_spans["min_spans"] = getattr(config, "mask_feature_min_masks", 0)
        if self.feature_spans["prob"] > 0 and self.feature_spans["length"] > self.output_size:
            length = self.feature_spans["length"]
            raise ValueError(f"mask_feature_length is {length}: the encoder has {self.output_size} channels")

    def _fixed(self) -> list[nn.Module]:
        if self.freeze:
            return [self.model]
        names = self.front_end if self.freeze_feature_extractor or self.freeze_layers else ()
        names += self.below_layers if self.freeze_layers else ()
        return [*map(self.model.get_submodule, names), *self.transformer.layers[: self.freeze_layers]]

    def _freeze(self) -> None:
        n, most = self.freeze_layers, len(self.transformer.layers) - 1
        if not self.freeze and not (isinstance(n, int) and 0 <= n <= most):
            raise ValueError(f"freeze_layers is {n!r}, expected 0 to {most} (freeze: all of them)")
        for module in self._fixed():
            module.requires_grad_(False)
        masked = getattr(self.model, "masked_spec_embed", None)  # stands for masked frames
        if masked is not None and (n or not self.apply_spec_augment or self.time_spans["prob"] == 0):
            # DistributedDataParallel waits for the gradient of every parameter that wants one
            masked.requires_grad = False

    def train(self, mode: bool = True):
        """Set the training mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._fixed():
            module.eval()
        return self

    def fix_weights(self, dtype: torch.dtype | None = None) -> None:
        """Turn LoRA and weight norm into plain weights, once nothing is learned any more; checkpoints no longer fit.

        Results stay as they are, bit for bit but for LoRA's rounding, under autocast to `dtype` (None: without).
        """
        merge_lora(self.model)

    # --- forward -------------------------------------------------------------------------------------------

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """Encode a padded batch to [batch, frames, channels], exactly 0 past an utterance's end.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, right-padded [batch, time]; or what `features` gives of them, right-padded [batch,
            frames, channels] ([batch, frames, states, channels] where states are summed by weights).
        wav_lens : torch.Tensor, optional
            Relative lengths [batch]; None when there is no padding.
        """
        states, counts = self._states(wavs, wav_lens, every=self.layer_weights is not None)
        out = states[-1]
        if self.layer_weights is not None:
            out = sum(w * state for w, state in zip(self.layer_weights.softmax(dim=0), states, strict=True))
        own = frame_mask(counts.to(out.device), out.shape[1])  # [batch, frames]
        if self.output_norm:
            return normalize_own(out, own, OUTPUT_NORM_EPS)
        return out.masked_fill(~own[:, :, None], 0.0)

    def states(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], torch.LongTensor]:
        """Return the transformer's input and each layer's output [batch, frames, channels], and own frames [batch].

        Frames are on the CPU; past them stands anything. Arguments are those of :meth:`forward`.
        """
        return self._states(wavs, wav_lens, every=True)

    def frozen_states(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], torch.LongTensor]:
        """As :meth:`states`, up to the input of the first layer that is trained."""
        return self.states(wavs, wav_lens)

    def _check_lengths(self, lengths: torch.LongTensor) -> None:
        if torch.compiler.is_exporting():  # a graph has no errors to raise
            return
        if short := [f"utterance {k} has {n} samples" for k, n in enumerate(lengths.tolist()) if n < self.min_samples]:
            least = f"at least {self.min_samples} samples ({self.min_samples / 16:.0f} ms at 16 kHz)"
            raise ValueError(f"{', '.join(short)}: the encoder needs {least}")
        if self.max_samples and int(lengths.max()) > self.max_samples:
            longest = f"utterance {int(lengths.argmax())} has {int(lengths.max()) / SAMPLE_RATE:.1f} s"
            most = f"{self.max_samples / SAMPLE_RATE:g} s (windows: True encodes it in pieces)"
            raise ValueError(f"{longest}: this encoder has positions for {most}")

    def _spec_augment(self, hidden: torch.Tensor, counts: torch.LongTensor, filler: torch.Tensor) -> torch.Tensor:
        """Mask spans of own frames of [batch, frames, channels] by `filler` [channels], spans of channels by 0."""
        batch, frames, channels = hidden.shape
        if self.time_spans["prob"] > 0:
            masked = _drawn_spans(counts.numpy(), frames, self.time_spans).to(hidden.device)
            # even when nothing is masked, so that the filler always has a gradient (DistributedDataParallel)
            hidden = torch.where(masked[:, :, None], filler.to(hidden.dtype), hidden)
        if self.feature_spans["prob"] > 0:
            masked = _drawn_spans(np.full(batch, channels), channels, self.feature_spans).to(hidden.device)
            hidden = hidden.masked_fill(masked[:, None, :], 0.0)
        return hidden


def _check_ranges(given: Mapping) -> None:
    for name in ("mask_time_prob", "mask_feature_prob", "layerdrop", "dropout"):
        if given[name] is not None and not 0 <= given[name] <= 1:
            raise ValueError(f"{name} is {given[name]}, expected 0 to 1")
    for name in ("mask_time_length", "mask_feature_length"):
        if given[name] != int(given[name]) or given[name] < 1:
            raise ValueError(f"{name} is {given[name]}, expected a whole number above 0")
    if given["freeze"] and given["lora"] is not None:
        raise ValueError("freeze and lora: a frozen encoder learns nothing; expected freeze: False or lora: null")
    if given["pad_to_30s"] and given["cache_embeddings"] and not given["freeze"]:
        raise ValueError("pad_to_30s: cached states have an utterance's own frames alone: expected freeze")
    if given["pad_to_30s"] and given["windows"]:
        raise ValueError("pad_to_30s and windows: expected one of them, found both")


@torch.compiler.disable  # --compile would trace NumPy's draws, and cannot
def _drawn_spans(counts: np.ndarray, size: int, settings: Mapping) -> torch.BoolTensor:
    return torch.from_numpy(span_mask(counts, size, **settings))


# --- features for a cache ----------------------------------------------------------------------------------


class FrozenFeatures:
    """What the frozen part of a lobe gives of a waveform, for a feature cache; a subclass says which part."""

    name: str
    version = 1  # of the numbers that come out: raise it with every change of them, and caches start afresh

    def __init__(self, lobe: PretrainedEncoder):
        self.lobe = lobe

    @property
    def min_samples(self) -> int:
        return self.lobe.min_samples

    @property
    def weights(self) -> str:
        """The SHA-256 of all parameters that decide the output."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._parameters()):
            digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def settings(self) -> dict:
        """Everything that identifies the output, for a cache's key."""
        lobe = type(self.lobe).__name__
        known = {"features": self.name, "version": self.version, "lobe": lobe, "weights": self.weights}
        return {**known, **self.lobe.input_settings}

    def of_batch(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """Return the features of waveforms [batch, time] and their relative lengths [batch]."""
        raise NotImplementedError

    def extract(self, wav: torch.Tensor) -> torch.Tensor:
        """Return the features, on the CPU, of a waveform [time] at 16 kHz."""
        device = next(self.lobe.parameters()).device
        with torch.no_grad():
            return self.of_batch(wav[None].to(device))[0].cpu()

    def _parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self.lobe.state_dict().items()


class FrontEnd(FrozenFeatures):
    """What the convolutions of :class:`~speechbrain_ser.lobes.wav2vec2.Wav2Vec2` give: [frames, conv channels].

    About a third of a forward pass through wav2vec2-base is spent in convolutions that a frozen front end repeats
    every epoch with the same result.
    """

    name = "front_end"

    def of_batch(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        return self.lobe.convolve(wavs, wav_lens)[0]

    def _parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self.lobe.model.feature_extractor.state_dict().items()


class Embeddings(FrozenFeatures):
    """The states at which training begins: [frames, channels], or [frames, states, channels] to be summed by weights.

    The output of an encoder that is frozen as a whole; else, where its lowest layers are frozen, the input of the first
    layer that is trained. In float16, which holds a state to 5e-4 of its size in half the room.
    """

    name = "embeddings"

    @property
    def settings(self) -> dict:
        lobe = self.lobe
        frozen = {"freeze_layers": lobe.freeze_layers, "freeze": lobe.freeze}
        return {**super().settings, **frozen, "all_states": lobe.layer_weights is not None}

    def of_batch(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        states, _ = self.lobe.frozen_states(wavs, wav_lens)
        return (states[-1] if self.lobe.layer_weights is None else torch.stack(states, dim=2)).half()

    def unpack(self, features: torch.Tensor, lens: torch.Tensor | None) -> tuple[list[torch.Tensor], torch.LongTensor]:
        """Return the states [batch, frames, channels] of a padded batch of features, in float32, and own frames."""
        states = [features] if self.lobe.layer_weights is None else list(features.unbind(dim=2))
        return [state.float() for state in states], own_frames(features, lens).cpu()

    def _parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        state = self.lobe.model.state_dict(keep_vars=True)
        return [(name, tensor) for name, tensor in state.items() if not tensor.requires_grad]


class LayerStatistics(FrozenFeatures):
    """Every state of a frozen encoder, pooled over an utterance's own frames: [states, 2 * channels].

    The first state is the transformer's input, the others are its layers' outputs. `pooling` is a mode of
    :class:`~speechbrain_ser.nnet.pooling.MaskedPooling` that learns nothing; percentiles give 5 * channels.
    """

    name = "layer_statistics"

    def __init__(self, lobe: PretrainedEncoder, pooling: str = "mean_std"):
        super().__init__(lobe)
        if pooling == "attentive":
            raise UserError("pooling: attentive learns its weights, and a frozen encoder's statistics learn nothing")
        self.pooling = MaskedPooling(pooling)
        self.size = self.pooling.set_up(lobe.output_size)
        if pooling != "mean_std":
            self.name = f"{self.name}_{pooling}"

    def of_batch(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            states, counts = self.lobe.states(wavs, wav_lens)
            return torch.stack([self.pooling(state, counts) for state in states], dim=1)

    def stop_after(self, state: int) -> None:
        """Take away for good the layers above a state, but the one that reads it (a last output may be normalised)."""
        transformer = self.lobe.transformer
        transformer.layers = transformer.layers[: state + 1]
