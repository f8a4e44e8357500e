"""wav2vec2, HuBERT, WavLM and data2vec as one SpeechBrain lobe whose output does not depend on padding."""

import contextlib
import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import partial

import torch
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2 as SpeechBrainWav2Vec2
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from speechbrain_ser.lobes.backbone import (
    BackboneError,
    check_loading,
    check_preprocessor,
    check_settings,
    load_quietly,
    resolve_backbone,
)
from speechbrain_ser.lobes.import_whisper import quiet_transformers
from speechbrain_ser.lobes.layers import (
    Embeddings,
    check_shares,
    check_spans,
    combine,
    drawn_spans,
    enable_gradient_checkpointing,
    finish,
    frames_of,
    freeze_lowest,
    keep_lowest,
    mask_channels,
)
from speechbrain_ser.nnet.convolution import innermost
from speechbrain_ser.nnet.front_end import GroupNormFrontEndLayer, convolve_in_pieces, front_end_layer
from speechbrain_ser.nnet.lora import add_lora, merge_lora
from speechbrain_ser.nnet.masked import MaskedPositionalConv, normalize_own
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask

logger = logging.getLogger(__name__)


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


DROPOUTS = ("hidden_dropout", "attention_dropout", "feat_proj_dropout", "activation_dropout")


#: parameters that the lobe can do without
OPTIONAL_PARAMETERS = {"masked_spec_embed"}


#: parts of the encoder; what a checkpoint holds beside them (quantizer, CTC head, …) is for other tasks
ENCODER_PARTS = ("feature_extractor.", "feature_projection.", "encoder.")


NORMALIZE_EPS = 1e-7  # of the published preprocessing


class Wav2Vec2(SpeechBrainWav2Vec2):
    """A pretrained speech encoder, fine-tuned or frozen, that gives each utterance what it would get alone.

    Outputs past an utterance's end are exactly 0. All arguments are explicit, so that a mistyped one is an
    error.

    Arguments
    ---------
    source : str
        Local folder (config.json and model.safetensors or pytorch_model.bin) or hub name. Model types:
        wav2vec2, hubert, wavlm, data2vec-audio.
    save_path : str
        Where hub models are kept.
    freeze : bool
        Use the encoder as a fixed feature extractor: no gradient, and no dropout or SpecAugment even in
        training.
    freeze_feature_extractor : bool
        Keep the convolutional front end fixed, fine-tune the rest.
    apply_spec_augment : bool
        Mask spans of frames (and channels) in training.
    mask_time_prob : float
        Share of frames to mask, 0 to 1.
    mask_time_length : int
        Frames (20 ms) of a span; utterances shorter than one stay unmasked.
    mask_feature_prob : float
        Share of channels to mask, 0 to 1.
    mask_feature_length : int
        Channels of a span.
    layerdrop : float, optional
        Probability of skipping a transformer layer in training; None keeps the checkpoint's.
    dropout : float, optional
        Dropout of hidden states, attention, feature projection and activations; None keeps the checkpoint's.
    gradient_checkpointing : bool
        Recompute activations in the backward pass: less memory, about a third slower, same gradients.
    attn_implementation : str, optional
        `eager`, `sdpa` or `flash_attention_2`, where the model has it (WavLM: eager only); None takes the
        fastest that needs no further package.
    n_layers : int, optional
        Keep the first so many transformer layers; None: all.
    freeze_layers : int
        Keep the front end and the lowest so many transformer layers fixed, fine-tune the upper ones.
    weighted_sum : bool
        Output a learned, softmax-weighted sum of all layers, as SUPERB does, instead of the last layer. It
        starts uniform and is learned even when the encoder is frozen.
    normalize_wav : bool, optional
        Bring each utterance to zero mean and unit variance; None does as the checkpoint's preprocessor says.
    output_norm : bool
        Normalise the output over each utterance's frames and channels (no parameters).
    cache_front_end : bool
        Let whoever loads data read the frozen front end's output instead of waveforms (``features``).
    cache_embeddings : bool
        Let whoever loads data read the frozen encoder's output instead of waveforms (``features``).
    load_weights : bool
        False: `source` is a folder of a config.json and a preprocessor_config.json alone, and the parameters are
        drawn, for who fills them from a checkpoint of a whole model. Of both files only plain settings of the four
        model types are taken (:data:`speechbrain_ser.lobes.backbone.SETTINGS`), none that names code.
    lora : mapping, optional
        ``rank``, ``alpha``, ``layers`` (:func:`speechbrain_ser.nnet.lora.add_lora`): train thin matrices beside these
        layers' own; all other parameters of the encoder stay as they are, the front end's too.
    seed : int
        Of LoRA's initial weights.

    Attributes
    ----------
    output_size : int
        Channels of the output.
    min_samples : int
        Samples of the shortest utterance that gives a frame (400 for wav2vec2-base).
    features : FrontEnd or Embeddings, optional
        What is frozen, where its output is to be cached.

    Raises
    ------
    BackboneError
        When the backbone cannot be found, read or used; nothing has been built by then.
    ValueError
        When an argument is out of range.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> path = getfixture("tmp_path") / "tiny"
    >>> folder = build_tiny_wav2vec2(path, hidden_size=16, num_layers=1, conv_dim=8)
    >>> lobe = Wav2Vec2(str(folder)).eval()
    >>> wavs = torch.randn(2, 16000)  # the second utterance is half a second
    >>> lobe(wavs, torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 49, 16])
    >>> lobe.frame_counts(torch.tensor([16000, 8000]))
    tensor([49, 24])
    """

    def __init__(
        self,
        source: str,
        save_path: str = "pretrained",
        freeze: bool = False,
        freeze_feature_extractor: bool = False,
        apply_spec_augment: bool = True,
        mask_time_prob: float = 0.05,
        mask_time_length: int = 10,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 10,
        layerdrop: float | None = None,
        dropout: float | None = None,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        n_layers: int | None = None,
        freeze_layers: int = 0,
        weighted_sum: bool = False,
        normalize_wav: bool | None = None,
        output_norm: bool = False,
        cache_front_end: bool = False,
        cache_embeddings: bool = False,
        load_weights: bool = True,
        lora: Mapping | None = None,
        seed: int = 0,
    ):
        if freeze and lora is not None:
            raise ValueError("freeze and lora: a frozen encoder learns nothing; expected freeze: False or lora: null")
        freeze_feature_extractor = freeze_feature_extractor or lora is not None
        if cache_front_end and not (freeze or freeze_feature_extractor):
            raise ValueError(
                "cache_front_end: expected a front end that is not trained (freeze_feature_extractor, freeze or lora)"
            )
        if cache_embeddings and not freeze:
            raise ValueError("cache_embeddings: expected an encoder that is not trained (freeze)")
        check_shares(
            mask_time_prob=mask_time_prob,
            mask_feature_prob=mask_feature_prob,
            layerdrop=layerdrop,
            dropout=dropout,
        )
        check_spans(mask_time_length=mask_time_length, mask_feature_length=mask_feature_length)
        folder = resolve_backbone(source, save_path) if load_weights else check_settings(source)
        overrides = dict.fromkeys(DROPOUTS, dropout) | {"layerdrop": layerdrop}
        with quiet_transformers():
            super().__init__(
                source=str(folder),
                save_path=str(save_path),
                output_norm=output_norm,
                freeze=freeze,
                freeze_feature_extractor=freeze_feature_extractor,
                apply_spec_augment=apply_spec_augment,
                # the rest reaches _from_pretrained below
                config_overrides={name: value for name, value in overrides.items() if value is not None},
                attn_implementation=attn_implementation,
                load_weights=load_weights,
            )
        if normalize_wav is not None:
            self.normalize_wav = normalize_wav
        self.output_size: int = self.model.config.hidden_size
        self.min_samples = _min_samples(self.model.config)
        self.time_spans = {"prob": mask_time_prob, "length": mask_time_length}
        self.feature_spans = {"prob": mask_feature_prob, "length": mask_feature_length}
        self._set_up_spec_augment(apply_spec_augment)
        _swap_layers(self.model)
        encoder = self.model.encoder
        encoder.layers = keep_lowest(encoder.layers, n_layers)
        self.model.config.num_hidden_layers = len(encoder.layers)
        self.freeze_layers = freeze_layers
        below = [self.model.feature_extractor, self.model.feature_projection, encoder.pos_conv_embed]
        below += [] if getattr(self.model.config, "do_stable_layer_norm", False) else [encoder.layer_norm]
        if not freeze:
            freeze_lowest(self.model, encoder.layers, below, freeze_layers)
        if lora is not None:
            add_lora(self.model, encoder.layers[freeze_layers:], lora, seed)
        if gradient_checkpointing and not freeze:
            enable_gradient_checkpointing(self.model)
        self.layer_weights = nn.Parameter(torch.zeros(len(encoder.layers) + 1)) if weighted_sum else None
        self._is_watched = False
        if weighted_sum:
            self._watch_layers()
        self.features = FrontEnd(self) if cache_front_end else None
        if cache_embeddings:
            self.features = Embeddings(self)

    # --- building ----------------------------------------------------------------------------------------

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, config_overrides=None, load_weights=True, **kwargs
    ):
        """Load the weights in SpeechBrain's place: strictly, in float32, the random state left alone."""
        self.config.update(config_overrides or {})
        # whatever the settings, the parameter exists: checkpoints with and without SpecAugment interchange
        self.config.mask_time_prob = 0.05
        _check_attention(self.config, kwargs["attn_implementation"], source)
        self.load_weights = load_weights
        self.model = (_load if load_weights else _draw)(source, self.config, **kwargs)

    def load_feature_extractor(self, source, cache_dir, **kwarg):
        """Load the preprocessor's settings; a folder without them is taken to want normalised waveforms."""
        if not self.load_weights:  # not by the class that the file names
            self.feature_extractor = Wav2Vec2FeatureExtractor(do_normalize=check_preprocessor(source))
            return
        try:
            self.feature_extractor = AutoFeatureExtractor.from_pretrained(source, cache_dir=cache_dir, **kwarg)
        except (OSError, ValueError):
            logger.info("%s has no preprocessor_config.json: waveforms are normalised (do_normalize)", source)
            self.feature_extractor = Wav2Vec2FeatureExtractor(do_normalize=True)

    def _set_up_spec_augment(self, apply_spec_augment: bool) -> None:
        """The masks are drawn here: transformers' crash on short utterances, and HuBERT's cover padding."""
        config = self.model.config
        size = config.hidden_size
        if self.feature_spans["prob"] > 0 and self.feature_spans["length"] > size:
            raise ValueError(f"mask_feature_length is {self.feature_spans['length']}: the encoder has {size} channels")
        self.time_spans["min_spans"] = getattr(config, "mask_time_min_masks", 2)
        self.feature_spans["min_spans"] = getattr(config, "mask_feature_min_masks", 0)  # WavLM has none
        self.apply_spec_augment = apply_spec_augment
        if not apply_spec_augment or self.time_spans["prob"] == 0:
            # DistributedDataParallel waits for the gradient of every parameter that wants one
            self.model.masked_spec_embed.requires_grad = False

    def train(self, mode: bool = True):
        """Set the training mode; what is frozen stays in evaluation mode (SpeechBrain's does not)."""
        super().train(mode)
        if self.freeze:
            self.model.eval()
        elif self.freeze_feature_extractor:
            self.model.feature_extractor.eval()
        if mode and self.freeze_layers and not self.freeze:
            for part in (self.model.feature_extractor, self.model.feature_projection):
                part.eval()
            for layer in self.model.encoder.layers[: self.freeze_layers]:
                layer.eval()
        return self

    def fix_weights(self, dtype: torch.dtype | None = None) -> None:
        """Work ahead what every forward pass would repeat, once nothing is learned any more.

        Weight normalisation and LoRA become plain weights. Results stay as they are, bit for bit but for LoRA's
        rounding, under autocast to `dtype`; parameters change their names and types, so that a checkpoint does not fit
        afterwards.

        Arguments
        ---------
        dtype : torch.dtype, optional
            Of the autocast that all later forward passes run under; None: none.
        """
        merge_lora(self.model)
        for module in list(self.model.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        if dtype is not None:
            _store_in(dtype, self.model)

    @property
    def input_settings(self) -> dict:
        """What decides the frozen states beside the parameters, for a cache's key."""
        config = self.model.config
        shape = {k: list(getattr(config, k)) for k in ("conv_kernel", "conv_stride")}
        return {"normalize_wav": bool(self.normalize_wav), "model_type": config.model_type, **shape}

    # --- lengths -----------------------------------------------------------------------------------------

    def frame_counts(self, n_samples: torch.LongTensor | int) -> torch.LongTensor:
        """Frames that the encoder gives for so many samples, by its own convolutions.

        Arguments
        ---------
        n_samples : torch.LongTensor or int
            Samples at 16 kHz, of any shape.

        Returns
        -------
        torch.LongTensor
            Frames, of the same shape; 0 below `min_samples`.
        """
        n_samples = torch.as_tensor(n_samples).long()
        return self.model._get_feat_extract_output_lengths(n_samples).long().clamp(min=0)

    # --- forward -----------------------------------------------------------------------------------------

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """Encode a padded batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, right-padded [batch, time]; or what `features` gives of them, right-padded [batch,
            frames, channels] (of the convolutions; or the output, with a dimension of states before the channels where
            these are summed by weights).
        wav_lens : torch.Tensor, optional
            Relative lengths [batch]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            [batch, frames, channels], exactly 0 past an utterance's end.

        Raises
        ------
        ValueError
            When the shapes do not match or an utterance is shorter than `min_samples`.
        """
        return self.extract_features(wavs, wav_lens)

    def extract_features(self, wav: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """As :meth:`forward`, under SpeechBrain's name."""
        if wav.dim() > 2 and isinstance(self.features, Embeddings):
            states, counts = self.features.unpack(wav), frames_of(wav, wav_lens)
        else:
            states, counts = self._states(wav, wav_lens, every=self.layer_weights is not None)
        return finish(combine(states, self.layer_weights), counts, self.output_norm)

    def states(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], torch.LongTensor]:
        """Encode a padded batch, and return what every layer gives.

        Arguments
        ---------
        wavs, wav_lens
            As in :meth:`forward`, waveforms alone.

        Returns
        -------
        tuple
            The transformer's input and the output of each layer, [batch, frames, channels] each, and each utterance's
            frames [batch], on the CPU; past these, anything.
        """
        self._watch_layers()
        return self._states(wavs, wav_lens, every=True)

    def _states(self, wav: torch.Tensor, wav_lens: torch.Tensor | None, every: bool):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            # what `convolve` gave, perhaps an epoch ago
            if wav.dim() == 3 and wav.shape[2] == self.model.config.conv_dim[-1]:
                features, counts = wav, frames_of(wav, wav_lens)
            else:
                features, counts = self.convolve(wav, wav_lens)
            return self._transform(features, counts, every), counts

    def _watch_layers(self) -> None:
        """Let :func:`_collect_layer_inputs` see them."""
        with _WATCHING:  # a feature cache asks from several threads
            if not self._is_watched:
                for index, layer in enumerate(self.model.encoder.layers):
                    layer.register_forward_pre_hook(partial(_store_layer_input, index))
            self._is_watched = True

    def convolve(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        """The convolutional front end alone.

        Arguments
        ---------
        wavs, wav_lens
            As in :meth:`forward`.

        Returns
        -------
        tuple of torch.Tensor
            [batch, frames, conv channels], and each utterance's frames [batch], on the CPU; past these, anything.
        """
        lengths = absolute_lengths(wavs, wav_lens)  # [batch]
        own_samples = frame_mask(lengths, wavs.shape[1])  # [batch, time]
        lengths = lengths.cpu()  # the one look at the device
        counts = self._checked_frame_counts(lengths)  # [batch]
        return self._convolve(self._prepare(wavs, own_samples), lengths), counts

    def _checked_frame_counts(self, lengths: torch.LongTensor) -> torch.LongTensor:
        if torch.compiler.is_exporting():
            return self.frame_counts(lengths)
        short = (lengths < self.min_samples).nonzero().flatten().tolist()
        if short:
            listed = ", ".join(f"utterance {index} has {lengths[index]} samples" for index in short)
            raise ValueError(
                f"{listed}: the encoder needs at least {self.min_samples} samples "
                f"({self.min_samples / 16:.0f} ms at 16 kHz)"
            )
        return self.frame_counts(lengths)

    def _prepare(self, wavs: torch.Tensor, own: torch.BoolTensor) -> torch.Tensor:
        """Normalise each utterance over its own samples and zero its padding [batch, time]."""
        if self.normalize_wav:
            wavs = normalize_own(wavs, own, NORMALIZE_EPS)
        else:
            wavs = wavs.masked_fill(~own, 0.0)
        return wavs.to(self.model.dtype)

    def _convolve(self, wavs: torch.Tensor, lengths: torch.LongTensor) -> torch.Tensor:
        """Convolutional features [batch, frames, conv channels]; without GroupNorm they need no mask."""
        first, *others = self.model.feature_extractor.conv_layers
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_feature_extractor):
            if _one_by_one(wavs):
                return self._convolve_one_by_one(wavs, lengths)
            hidden = first(wavs[:, :, None], lengths if _is_padded(lengths, wavs.shape[1]) else None)
            for layer in others:
                hidden = layer(hidden)  # [batch, frames, conv channels]
        return hidden

    def _convolve_one_by_one(self, wavs: torch.Tensor, lengths: torch.LongTensor) -> torch.Tensor:
        """As :meth:`_convolve`; exactly 0 past an utterance's end."""
        layers = self.model.feature_extractor.conv_layers
        found = [convolve_in_pieces(layers, wav[:n]) for wav, n in zip(wavs, lengths.tolist(), strict=True)]
        frames = int(self.frame_counts(wavs.shape[1]))
        hidden = found[0].new_zeros(len(found), frames, found[0].shape[1])
        for row, features in zip(hidden, found, strict=True):
            row[: len(features)] = features
        return hidden

    def _transform(self, features: torch.Tensor, counts: torch.LongTensor, every: bool) -> list[torch.Tensor]:
        """Projection, SpecAugment and transformer: the last state, or all, each [batch, frames, channels]."""
        hidden = self.model.feature_projection(features)
        if isinstance(hidden, tuple):  # all but HuBERT give the features before the projection as well
            hidden = hidden[0]
        if self.apply_spec_augment and self.model.training:
            hidden = self._spec_augment(hidden, counts)
        mask = None
        if _is_padded(counts, hidden.shape[1]):
            mask = frame_mask(counts.to(hidden.device), hidden.shape[1])  # [batch, frames]
        with _collect_layer_inputs() as inputs:
            last = self.model.encoder(hidden, attention_mask=mask).last_hidden_state
        return _all_states(inputs, last, len(self.model.encoder.layers) + 1) if every else [last]

    def _spec_augment(self, hidden: torch.Tensor, counts: torch.LongTensor) -> torch.Tensor:
        """Mask spans of own frames by the learned vector, spans of channels by 0."""
        masked = drawn_spans(counts.numpy(), hidden.shape[1], self.time_spans).to(hidden.device)
        if self.time_spans["prob"] > 0:
            # even when nothing is masked, so that the vector always has a gradient (DistributedDataParallel)
            hidden = torch.where(masked[:, :, None], self.model.masked_spec_embed.to(hidden.dtype), hidden)
        return mask_channels(hidden, self.feature_spans)


def _is_padded(counts: torch.LongTensor, longest: int) -> bool:
    """Whether a batch has padding; a graph that is exported must expect it, whatever its example."""
    return torch.compiler.is_exporting() or int(counts.min()) < longest


def _one_by_one(wavs: torch.Tensor) -> bool:
    """Whether utterances go through the front end one by one: on a CPU a batch gains nothing there, and its padding
    is computed and masked. A graph that is being captured, or gradients, want the batch."""
    return wavs.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _store_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Keep weights in the type, and the front end's in the memory order, in which they are used."""
    folded = {m.conv for m in model.modules() if isinstance(m, GroupNormFrontEndLayer)}  # anew for each utterance
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d) and module not in folded:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    for layer in model.feature_extractor.conv_layers:
        if layer.conv.weight.device.type == "cpu" and layer.conv not in folded:
            layer.conv.weight.data = innermost(layer.conv.weight.data)


def _check_attention(config, requested: str | None, source: str) -> None:
    model_class = MODEL_MAPPING[type(config)]
    supported = ["eager"]
    supported += ["sdpa"] if model_class._supports_sdpa else []
    supported += ["flash_attention_2"] if model_class._supports_flash_attn else []
    if requested is not None and requested not in supported:
        raise BackboneError(
            f"attn_implementation is {requested!r}, which backbone {source} ({config.model_type}) "
            f"does not have: it supports {', '.join(supported)}"
        )


def _min_samples(config) -> int:
    """Samples that give one frame, by going through the convolutions backwards."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def _load(folder: str, config, attn_implementation: str | None) -> nn.Module:
    """Load weights strictly, in float32 whatever they were saved in, and leave the random state as it was."""
    model, report = load_quietly(AutoModel, folder, config, attn_implementation=attn_implementation)
    missing = set(report["missing_keys"]) - OPTIONAL_PARAMETERS
    check_loading({**report, "missing_keys": missing}, folder, _is_encoder_parameter)
    return model


def _draw(folder: str, config, attn_implementation: str | None) -> nn.Module:
    """A model of these settings with random parameters; the random state is left as it was."""
    try:
        with torch.random.fork_rng(devices=[]):
            return AutoModel.from_config(config, dtype=torch.float32, attn_implementation=attn_implementation)
    except (OSError, RuntimeError, ValueError, ImportError, TypeError, KeyError) as error:
        raise BackboneError(f"backbone {folder} cannot be built: {error}") from error


def _is_encoder_parameter(key: str) -> bool:
    base = key.partition(".")[2]  # with and without the "wav2vec2." of a checkpoint with heads
    return key.startswith(ENCODER_PARTS) or base.startswith(ENCODER_PARTS)


def _swap_layers(model: nn.Module) -> None:
    """Replace the layers in which padding changes an utterance's result, and slow ones; parameters keep their
    names."""
    layers = model.feature_extractor.conv_layers
    model.feature_extractor.conv_layers = nn.ModuleList(front_end_layer(layer) for layer in layers)
    if MaskedPositionalConv.needed_by(model.encoder.pos_conv_embed):
        model.encoder.pos_conv_embed = MaskedPositionalConv(model.encoder.pos_conv_embed)


#: inputs of the transformer layers by index, while a forward pass collects them (a context of its own per
#: thread)
_WATCHING = threading.Lock()


_LAYER_INPUTS: ContextVar[dict[int, torch.Tensor] | None] = ContextVar("layer_inputs", default=None)


@contextlib.contextmanager
def _collect_layer_inputs() -> Iterator[dict[int, torch.Tensor]]:
    inputs: dict[int, torch.Tensor] = {}
    token = _LAYER_INPUTS.set(inputs)
    try:
        yield inputs
    finally:
        _LAYER_INPUTS.reset(token)


def _store_layer_input(index: int, layer: nn.Module, args: tuple) -> None:
    inputs = _LAYER_INPUTS.get()
    if inputs is not None:
        inputs[index] = args[0]


def _all_states(inputs: dict[int, torch.Tensor], last: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Inputs of all layers and the encoder's output; a skipped layer has its successor's input."""
    states = [last]
    for index in reversed(range(count - 1)):
        states.append(inputs.get(index, states[-1]))
    return states[::-1]
