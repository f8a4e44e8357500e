"""Whisper's encoder as a lobe that gives each utterance, in any batch, what it gets alone, at its own length.

Whisper was trained on 30 seconds, whatever is said in them, and is used so: a sentence of two seconds costs as much
as fifteen, and every mean over frames is mostly of silence. Here features, convolutions and positions are those of an
utterance's own frames. Parameters keep transformers' names.
"""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speechbrain_ser.lobes.backbone import (
    BackboneError,
    check_loading,
    check_settings,
    load_quietly,
    read_config,
    resolve_backbone,
)
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
from speechbrain_ser.nnet.lora import add_lora, merge_lora
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask
from speechbrain_ser.processing.log_mel import LogMel

SAMPLE_RATE = 16_000
HOP, N_FFT = 160, 400  # samples: 10 and 25 ms
STRIDE = 2  # of the second convolution: 20 ms from frame to frame
DYNAMIC = 8.0  # decades below an utterance's peak that its features keep
ATTENTION = ("eager", "sdpa")


class Whisper(nn.Module):
    """The encoder of Whisper (Radford et al. 2022), fine-tuned or frozen.

    Outputs past an utterance's end are exactly 0. All arguments are explicit, so that a mistyped one is an error.

    Arguments
    ---------
    source : str
        Local folder (config.json and model.safetensors or pytorch_model.bin) or hub name of a Whisper of any size.
    save_path : str
        Where hub models are kept.
    freeze : bool
        Use the encoder as a fixed feature extractor: no gradient, and no dropout or SpecAugment even in training.
    freeze_feature_extractor : bool
        Keep the two convolutions fixed, fine-tune the rest.
    freeze_layers : int
        Keep the convolutions and the lowest so many transformer layers fixed, fine-tune the upper ones.
    n_layers : int, optional
        Keep the first so many transformer layers; None: all. The encoder's own layer norm stands after the last one
        kept: what layers add to grows to hundreds in a few channels, and no head learns from that.
    apply_spec_augment : bool
        Mask spans of frames (and channels) by 0 in training, where training begins: after the convolutions, or in the
        input of the first layer that is trained.
    mask_time_prob, mask_time_length, mask_feature_prob, mask_feature_length
        Shares to mask, 0 to 1, and spans in frames (20 ms) and channels.
    layerdrop : float, optional
        Probability of skipping a trained layer in training; None keeps the checkpoint's.
    dropout : float, optional
        Dropout of hidden states, attention and activations; None keeps the checkpoint's.
    gradient_checkpointing : bool
        Recompute activations in the backward pass: less memory, about a third slower, same gradients.
    attn_implementation : str, optional
        `eager` or `sdpa` (the default).
    weighted_sum : bool
        Output a learned, softmax-weighted sum of all layers, as SUPERB does, instead of the last layer.
    output_norm : bool
        Normalise the output over each utterance's frames and channels (no parameters).
    pad_to_30s : bool
        Encode each utterance followed by silence up to 30 s, as published; the output keeps its own frames.
    windows : bool
        Encode an utterance of more than 30 s in pieces of 30 s, and join their frames; False: it is refused, because
        Whisper has no positions for it.
    cache_embeddings : bool
        Let whoever loads data read the output of what is frozen (`freeze`, or `freeze_layers`) instead of waveforms
        (``features``).
    lora : mapping, optional
        Train thin matrices beside some layers' own, and nothing else, in the layers from `freeze_layers` on
        (:func:`speechbrain_ser.nnet.lora.add_lora`).
    seed : int
        Of their initial weights.
    load_weights : bool
        False: `source` is a folder of a config.json and a preprocessor_config.json alone, and the parameters are drawn,
        for who fills them from a checkpoint of a whole model.

    Attributes
    ----------
    output_size : int
        Channels of the output.
    min_samples, max_samples : int
        Samples of the shortest utterance that gives a frame (160), and of the longest one; None where `windows` takes
        any.
    features : Embeddings, optional
        What is frozen, where its output is to be cached.

    Raises
    ------
    BackboneError
        When the encoder cannot be found, read or used.
    ValueError
        When an argument is out of range.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> path = getfixture("tmp_path") / "tiny"
    >>> folder = build_tiny_wav2vec2(path, model_type="whisper", hidden_size=16, num_layers=2)
    >>> lobe = Whisper(str(folder)).eval()
    >>> wavs = torch.randn(2, 16000)  # the second utterance is half a second
    >>> lobe(wavs, torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 50, 16])
    >>> lobe.frame_counts(torch.tensor([16000, 8000]))
    tensor([50, 25])
    """

    def __init__(
        self,
        source: str,
        save_path: str = "pretrained",
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
        pad_to_30s: bool = False,
        windows: bool = False,
        cache_embeddings: bool = False,
        load_weights: bool = True,
        lora: Mapping | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if freeze and lora is not None:
            raise ValueError("freeze and lora: a frozen encoder learns nothing; expected freeze: False or lora: null")
        if cache_embeddings and not (freeze or freeze_layers):
            raise ValueError("cache_embeddings: expected an encoder that is not trained, or not all (freeze_layers)")
        if pad_to_30s and cache_embeddings and not freeze:
            raise ValueError("pad_to_30s: cached states have an utterance's own frames alone: expected freeze")
        if pad_to_30s and windows:
            raise ValueError("pad_to_30s and windows: expected one of them, found both")
        check_shares(mask_time_prob=mask_time_prob, mask_feature_prob=mask_feature_prob)
        check_shares(layerdrop=layerdrop, dropout=dropout)
        check_spans(mask_time_length=mask_time_length, mask_feature_length=mask_feature_length)
        folder = resolve_backbone(source, save_path) if load_weights else check_settings(source)
        config = _config(folder, layerdrop, dropout, attn_implementation)
        self.model: WhisperEncoder = _load(folder, config) if load_weights else _draw(config)
        self.model.layers = keep_lowest(self.model.layers, n_layers)
        config.encoder_layers = len(self.model.layers)
        with torch.device("cpu"):  # its filters are computed, even where parameters have a size and no memory
            # -100 dB is the floor of 1e-10 that Whisper's features have
            self.log_mel = LogMel(n_fft=N_FFT, hop_length=HOP, n_mels=config.num_mel_bins, scale="db")
        self.output_size: int = config.d_model
        self.min_samples = HOP
        self.longest = config.max_source_positions * STRIDE * HOP  # samples
        self.max_samples = None if windows else self.longest
        self.freeze, self.freeze_layers = freeze, len(self.model.layers) if freeze else freeze_layers
        self.freeze_feature_extractor = freeze_feature_extractor or bool(self.freeze_layers) or lora is not None
        self.apply_spec_augment = apply_spec_augment
        self.time_spans = {"prob": mask_time_prob, "length": mask_time_length, "min_spans": 2}
        self.feature_spans = {"prob": mask_feature_prob, "length": mask_feature_length, "min_spans": 0}
        self.output_norm, self.pad_to_30s, self.windows = output_norm, pad_to_30s, windows
        self._freeze()
        if lora is not None:
            add_lora(self.model, self.model.layers[self.freeze_layers :], lora, seed)
        if gradient_checkpointing and not freeze:
            enable_gradient_checkpointing(self.model)
        self.layer_weights = nn.Parameter(torch.zeros(len(self.model.layers) + 1)) if weighted_sum else None
        self.features = Embeddings(self) if cache_embeddings else None

    def _freeze(self) -> None:
        model = self.model
        model.embed_positions.requires_grad_(False)  # sinusoids
        if self.freeze:
            model.requires_grad_(False)
            return
        freeze_lowest(model, model.layers, [model.conv1, model.conv2], self.freeze_layers)
        if self.freeze_feature_extractor:
            model.conv1.requires_grad_(False)
            model.conv2.requires_grad_(False)

    def fix_weights(self, dtype: torch.dtype | None = None) -> None:
        """Merge LoRA's matrices into the plain weights, once nothing is learned any more."""
        merge_lora(self.model)

    def train(self, mode: bool = True):
        """Set the training mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for layer in self.model.layers[: self.freeze_layers]:
            layer.eval()
        return self

    @property
    def input_settings(self) -> dict:
        """What decides the frozen states beside the parameters, for a cache's key."""
        return {"log_mel": self.log_mel.settings, "pad_to_30s": self.pad_to_30s, "windows": self.windows}

    # --- lengths -----------------------------------------------------------------------------------------

    def frame_counts(self, n_samples: torch.LongTensor | int) -> torch.LongTensor:
        """Return the frames of so many samples at 16 kHz, of any shape; 0 below `min_samples`."""
        bands = torch.as_tensor(n_samples).long() // HOP  # Whisper drops the spectrum's last frame
        return (bands + STRIDE - 1) // STRIDE

    def _check_lengths(self, lengths: torch.LongTensor) -> None:
        for k, n in enumerate(lengths.tolist()):
            if n < self.min_samples:
                raise ValueError(f"utterance {k} has {n} samples, expected {self.min_samples} (10 ms) at least")
            if self.max_samples and n > self.max_samples:
                raise ValueError(
                    f"utterance {k} has {n / SAMPLE_RATE:.1f} s: this Whisper has positions for "
                    f"{self.max_samples / SAMPLE_RATE:g} s (windows: True encodes it in pieces)"
                )

    # --- forward -----------------------------------------------------------------------------------------

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """Encode a padded batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, right-padded [batch, time]; or what `features` gives of them, right-padded [batch,
            frames, channels] ([batch, frames, states, channels] where these are summed by weights).
        wav_lens : torch.Tensor, optional
            Relative lengths [batch]; None when there is no padding.

        Returns
        -------
        torch.Tensor
            [batch, frames, channels], exactly 0 past an utterance's end.

        Raises
        ------
        ValueError
            When the shapes do not match, or an utterance is shorter than `min_samples` or longer than `max_samples`.
        """
        states, counts = self.states(wavs, wav_lens)
        return finish(combine(states, self.layer_weights), counts, self.output_norm)

    def states(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], torch.LongTensor]:
        """Encode a padded batch, and return what every layer gives.

        Arguments
        ---------
        wavs, wav_lens
            As in :meth:`forward`.

        Returns
        -------
        tuple
            The transformer's input and the output of each layer, [batch, frames, channels] each (of cached features
            only those from the first trained layer's input on), and each utterance's frames [batch], on the CPU; past
            these, anything.
        """
        if wavs.dim() == 2:
            states, counts, attended = self._frozen_states(wavs, wav_lens)
        else:
            states, counts = self.features.unpack(wavs), frames_of(wavs, wav_lens)
            attended = counts
        if not self.freeze:
            hidden = self._spec_augment(states[-1], counts)
            states += self._layers(hidden, attended, self.freeze_layers, len(self.model.layers))
        return [state[:, : int(counts.max())] for state in states], counts

    def frozen_states(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], torch.LongTensor]:
        """Return the states from the transformer's input to that of the first layer that is trained; of a frozen
        encoder, to its output. Arguments and form are those of :meth:`states`."""
        states, counts, _ = self._frozen_states(wavs, wav_lens)
        return [state[:, : int(counts.max())] for state in states], counts

    def _frozen_states(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None):
        """These states, each utterance's own frames, and the frames that attention sees: with `pad_to_30s` all."""
        lengths = absolute_lengths(wavs, wav_lens)  # [batch]
        self._check_lengths(lengths)
        counts = self.frame_counts(lengths).cpu()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_feature_extractor):
            if self.pad_to_30s:
                own = frame_mask(lengths, wavs.shape[1])
                wavs = nn.functional.pad(wavs.masked_fill(~own, 0.0), (0, self.longest - wavs.shape[1]))
                lengths = torch.full_like(lengths, self.longest)
            attended = self.frame_counts(lengths).cpu()
            pieces, lengths, owners = _pieces(wavs, lengths, self.longest)
            hidden = self._convolve(pieces, lengths)  # [pieces, frames, channels]
            states = [hidden, *self._layers(hidden, self.frame_counts(lengths).cpu(), 0, self.freeze_layers)]
            return [_join(state, owners, counts) for state in states], counts, attended

    def _convolve(self, wavs: torch.Tensor, lengths: torch.LongTensor) -> torch.Tensor:
        """Features, both convolutions and positions [batch, frames, channels]."""
        bands = self._bands(wavs, lengths)
        n_bands = (lengths // HOP).to(bands.device)
        hidden = nn.functional.gelu(self.model.conv1(_own(bands, n_bands).transpose(1, 2)))
        hidden = nn.functional.gelu(self.model.conv2(_own(hidden.transpose(1, 2), n_bands).transpose(1, 2)))
        hidden = hidden.transpose(1, 2)
        return hidden + self.model.embed_positions.weight[: hidden.shape[1]]

    def _bands(self, wavs: torch.Tensor, lengths: torch.LongTensor) -> torch.Tensor:
        """Whisper's features [batch, frames of 10 ms, bands]: decades over 8 below the utterance's peak."""
        decades = self.log_mel(wavs, lengths / wavs.shape[1])[:, :-1] / 10
        own = frame_mask(lengths // HOP, decades.shape[1])[:, :, None]
        peak = decades.masked_fill(~own, -torch.inf).amax(dim=(1, 2), keepdim=True)  # [batch, 1, 1]
        return (torch.maximum(decades, peak - DYNAMIC) + 4) / 4

    def _layers(self, hidden: torch.Tensor, counts: torch.LongTensor, first: int, end: int) -> list[torch.Tensor]:
        """The outputs of the layers `first` to `end` (not included) [batch, frames, channels] each."""
        longest = self.model.config.max_source_positions
        if hidden.shape[1] > longest:  # cached states of an utterance that is encoded in pieces
            pieces, lengths, owners = _pieces(hidden, counts, longest)
            found = self._layers(pieces, lengths, first, end)
            return [_join(state, owners, counts) for state in found]
        mask, found = _attention_mask(counts, hidden), []
        for k, layer in enumerate(self.model.layers[first:end], first):
            if not self._is_dropped(k):
                hidden = layer(hidden, attention_mask=mask)
            found.append(hidden)
        if found and end == len(self.model.layers):
            found[-1] = self.model.layer_norm(hidden)
        return found

    def _is_dropped(self, layer: int) -> bool:
        drops = self.training and layer >= self.freeze_layers and self.model.layerdrop > 0
        return drops and torch.rand([]).item() < self.model.layerdrop

    def _spec_augment(self, hidden: torch.Tensor, counts: torch.LongTensor) -> torch.Tensor:
        """Mask spans of own frames, and of channels, by 0."""
        if not (self.apply_spec_augment and self.training):
            return hidden
        masked = drawn_spans(counts.numpy(), hidden.shape[1], self.time_spans).to(hidden.device)
        hidden = hidden.masked_fill(masked[:, :, None], 0.0)
        return mask_channels(hidden, self.feature_spans)


def _own(x: torch.Tensor, counts: torch.LongTensor) -> torch.Tensor:
    """0 past each end [batch, frames, channels], as convolutions pad an utterance alone."""
    return x.masked_fill(~frame_mask(counts, x.shape[1])[:, :, None], 0.0)


def _attention_mask(counts: torch.LongTensor, hidden: torch.Tensor) -> torch.Tensor | None:
    """What is added to the attention's scores [batch, 1, 1, frames]; None without padding."""
    frames = hidden.shape[1]
    if int(counts.min()) == frames and not torch.compiler.is_exporting():
        return None
    padding = ~frame_mask(counts.to(hidden.device), frames)
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros_like(padding, dtype=hidden.dtype).masked_fill(padding, lowest)[:, None, None, :]


# --- pieces of what is too long --------------------------------------------------------------------------


def _pieces(x: torch.Tensor, lengths: torch.LongTensor, size: int):
    """Cut [batch, time, …] into pieces of `size`: these, padded, their lengths, and whose each is."""
    if x.shape[1] <= size:
        return x, lengths, None
    found, owners = [], []
    for k, n in enumerate(lengths.tolist()):
        # a rest that gives no frame is no piece
        starts = [start for start in range(0, n, size) if start == 0 or x.dim() > 2 or n - start >= HOP]
        found += [x[k, start : min(start + size, n)] for start in starts]
        owners += [k] * len(starts)
    sizes = torch.tensor([len(piece) for piece in found], device=lengths.device)
    return nn.utils.rnn.pad_sequence(found, batch_first=True), sizes, owners


def _join(pieces: torch.Tensor, owners: list[int] | None, counts: torch.LongTensor) -> torch.Tensor:
    """The pieces' frames, each utterance's one after the other [batch, frames, channels]."""
    if owners is None:
        return pieces
    joined = pieces.new_zeros(len(counts), int(counts.max()), pieces.shape[2])
    for k, n in enumerate(counts.tolist()):
        mine = torch.cat([piece for piece, owner in zip(pieces, owners, strict=True) if owner == k])
        joined[k, :n] = mine[:n]
    return joined


# --- loading ---------------------------------------------------------------------------------------------


def _config(folder, layerdrop: float | None, dropout: float | None, attn_implementation: str | None) -> WhisperConfig:
    content = read_config(folder)
    if content["model_type"] != "whisper":
        raise BackboneError(f"backbone {folder} is of model type {content['model_type']!r}: expected whisper")
    if attn_implementation not in (None, *ATTENTION):
        raise BackboneError(
            f"attn_implementation is {attn_implementation!r}, which this Whisper lobe does not have: it supports "
            f"{', '.join(ATTENTION)}"
        )
    config = WhisperConfig.from_dict(content)
    if layerdrop is not None:
        config.encoder_layerdrop = layerdrop
    if dropout is not None:
        config.dropout = config.attention_dropout = config.activation_dropout = dropout
    config._attn_implementation = attn_implementation or "sdpa"
    return config


def _load(folder, config: WhisperConfig) -> WhisperEncoder:
    model, report = load_quietly(WhisperEncoder, folder, config, key_mapping={r"^(model\.)?encoder\.": ""})
    check_loading(report, folder, lambda key: not key.startswith(("model.decoder.", "decoder.", "proj_out.")))
    return model


def _draw(config: WhisperConfig) -> WhisperEncoder:
    with torch.random.fork_rng(devices=[]):
        return WhisperEncoder(config).float()
