"""wav2vec2, HuBERT, WavLM and data2vec as one SpeechBrain lobe whose output does not depend on padding."""

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

from speechbrain_ser.lobes.backbone import wants_normalized
from speechbrain_ser.lobes.pretrained import Embeddings, PretrainedEncoder
from speechbrain_ser.nnet.convolution import GroupNormFrontEndLayer, convolve_in_pieces, front_end_layer, innermost
from speechbrain_ser.nnet.masked import MaskedPositionalConv, normalize_own
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask, own_frames

# WavLM of transformers 5 gives torch's attention a boolean and a float mask: torch adds them, and complains
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")

DROPOUTS = ("hidden_dropout", "attention_dropout", "feat_proj_dropout", "activation_dropout")
NORMALIZE_EPS = 1e-7  # of the published preprocessing


class Wav2Vec2(PretrainedEncoder):
    """wav2vec2, HuBERT, WavLM or data2vec; arguments and errors are :class:`PretrainedEncoder`'s.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> folder = build_tiny_wav2vec2(getfixture("tmp_path") / "tiny", hidden_size=16, num_layers=1, conv_dim=8)
    >>> lobe = Wav2Vec2(str(folder)).eval()
    >>> wavs = torch.randn(2, 16000)  # the second utterance is half a second
    >>> lobe(wavs, torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 49, 16])
    """

    absent = ("pad_to_30s", "windows")
    dropout_keys, layerdrop_key = DROPOUTS, "layerdrop"
    front_end = ("feature_extractor",)
    below_layers = ("feature_projection", "encoder.pos_conv_embed")
    transformer_name = "encoder"

    def _set_up(self, folder: Path) -> None:
        """Replace the layers in which padding changes an utterance's result, and slow ones."""
        model = self.model
        layers = model.feature_extractor.conv_layers
        model.feature_extractor.conv_layers = nn.ModuleList(front_end_layer(layer) for layer in layers)
        if MaskedPositionalConv.needed_by(model.encoder.pos_conv_embed):
            model.encoder.pos_conv_embed = MaskedPositionalConv(model.encoder.pos_conv_embed)
        if not getattr(model.config, "do_stable_layer_norm", False):  # else it stands above the last layer
            self.below_layers = (*self.below_layers, "encoder.layer_norm")
        self._is_watched = False
        if self.layer_weights is not None:
            self._watch_layers()
        self.min_samples = 1  # of a frame, by going through the convolutions backwards
        for kernel, stride in zip(model.config.conv_kernel[::-1], model.config.conv_stride[::-1], strict=True):
            self.min_samples = (self.min_samples - 1) * stride + kernel
        if self.normalize_wav is None:
            self.normalize_wav = wants_normalized(folder)

    def fix_weights(self, dtype: torch.dtype | None = None) -> None:
        """As the base's: also the weight norm, and with a `dtype` weights in that type, becomes plain weights."""
        super().fix_weights(dtype)
        for module in list(self.model.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        if dtype is not None:
            _store_in(dtype, self.model)

    @property
    def input_settings(self) -> dict:
        config = self.model.config
        shape = {k: list(getattr(config, k)) for k in ("conv_kernel", "conv_stride")}
        return {"normalize_wav": bool(self.normalize_wav), "model_type": config.model_type, **shape}

    def frame_counts(self, n_samples: torch.LongTensor | int) -> torch.LongTensor:
        n_samples = torch.as_tensor(n_samples).long()
        return self.model._get_feat_extract_output_lengths(n_samples).long().clamp(min=0)

    def _states(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None, every: bool):
        if wavs.dim() > 2 and isinstance(self.features, Embeddings):
            return self.features.unpack(wavs, wav_lens)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            # what `convolve` gave, perhaps an epoch ago
            if wavs.dim() == 3 and wavs.shape[2] == self.model.config.conv_dim[-1]:
                features, counts = wavs, own_frames(wavs, wav_lens).cpu()
            else:
                features, counts = self.convolve(wavs, wav_lens)
            return self._transform(features, counts, every), counts

    def convolve(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        """Return the front end's output [batch, frames, conv channels], and own frames [batch], on the CPU.

        Past these stands anything. Arguments are those of :meth:`forward`.
        """
        lengths = absolute_lengths(wavs, wav_lens)  # [batch]
        own = frame_mask(lengths, wavs.shape[1])  # [batch, time]
        lengths = lengths.cpu()  # the one look at the device
        self._check_lengths(lengths)
        wavs = normalize_own(wavs, own, NORMALIZE_EPS) if self.normalize_wav else wavs.masked_fill(~own, 0.0)
        return self._convolve(wavs.to(self.model.dtype), lengths), self.frame_counts(lengths)

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
        hidden = found[0].new_zeros(len(found), int(self.frame_counts(wavs.shape[1])), found[0].shape[1])
        for row, features in zip(hidden, found, strict=True):
            row[: len(features)] = features
        return hidden

    def _transform(self, features: torch.Tensor, counts: torch.LongTensor, every: bool) -> list[torch.Tensor]:
        """Projection, SpecAugment and transformer: the last state, or all, each [batch, frames, channels]."""
        hidden = self.model.feature_projection(features)
        if isinstance(hidden, tuple):  # all but HuBERT give the features before the projection as well
            hidden = hidden[0]
        if self.apply_spec_augment and self.model.training:
            hidden = self._spec_augment(hidden, counts, self.model.masked_spec_embed)
        mask = None
        if _is_padded(counts, hidden.shape[1]):
            mask = frame_mask(counts.to(hidden.device), hidden.shape[1])  # [batch, frames]
        if not every:
            return [self.transformer(hidden, attention_mask=mask).last_hidden_state]
        self._watch_layers()
        with _collect_layer_inputs() as inputs:
            states = [self.transformer(hidden, attention_mask=mask).last_hidden_state]
        for index in reversed(range(len(self.transformer.layers))):
            states.insert(0, inputs.get(index, states[0]))  # a skipped layer has its successor's input
        return states

    def _watch_layers(self) -> None:
        """Let :func:`_collect_layer_inputs` see them; a second thread that does so too does no harm."""
        if not self._is_watched:
            for index, layer in enumerate(self.transformer.layers):
                layer.register_forward_pre_hook(partial(_store_layer_input, index))
            self._is_watched = True


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


# inputs of the transformer's layers by index, while a forward pass collects them (a context of its own per thread)
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
    if (inputs := _LAYER_INPUTS.get()) is not None:
        inputs[index] = args[0]
