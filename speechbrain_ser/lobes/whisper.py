"""Whisper's encoder as a lobe: at an utterance's own length, where the published program computes 30 seconds."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speechbrain_ser.lobes.pretrained import PretrainedEncoder
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask
from speechbrain_ser.processing.log_mel import LogMel

HOP, N_FFT = 160, 400  # samples: 10 and 25 ms
STRIDE = 2  # of the second convolution: 20 ms from frame to frame
DYNAMIC = 8.0  # decades below an utterance's peak that its features keep


class Whisper(PretrainedEncoder):
    """The encoder of Whisper (Radford et al. 2022); arguments and errors are :class:`PretrainedEncoder`'s.

    SpecAugment masks, by 0, where training begins: after the convolutions, or in the input of the first layer that is
    trained. With `n_layers` the encoder's own layer norm stands after the last layer kept: what layers add to grows to
    hundreds in a few channels, and no head learns from that.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> folder = build_tiny_wav2vec2(getfixture("tmp_path") / "tiny", model_type="whisper", hidden_size=16)
    >>> wavs = torch.randn(2, 16000)  # the second utterance is half a second
    >>> Whisper(str(folder))(wavs, torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 50, 16])
    """

    absent = ("normalize_wav", "cache_front_end")
    dropout_keys, layerdrop_key = ("dropout", "attention_dropout", "activation_dropout"), "encoder_layerdrop"
    front_end, below_layers, transformer_name = ("conv1", "conv2"), ("embed_positions",), ""
    model_class = WhisperEncoder
    attentions = ("eager", "sdpa")
    key_mapping: ClassVar = {r"^(model\.)?encoder\.": ""}
    starts_above_frozen = True
    min_samples = HOP

    def _set_up(self, folder: Path) -> None:
        config = self.model.config
        # -100 dB is the floor of 1e-10 that Whisper's features have
        self.log_mel = LogMel(n_fft=N_FFT, hop_length=HOP, n_mels=config.num_mel_bins, scale="db")
        self.longest = config.max_source_positions * STRIDE * HOP  # samples
        self.max_samples = None if self.windows else self.longest
        self.model.embed_positions.requires_grad_(False)  # sinusoids

    @property
    def input_settings(self) -> dict:
        return {"log_mel": self.log_mel.settings, "pad_to_30s": self.pad_to_30s, "windows": self.windows}

    def frame_counts(self, n_samples: torch.LongTensor | int) -> torch.LongTensor:
        bands = torch.as_tensor(n_samples).long() // HOP  # Whisper drops the spectrum's last frame
        return (bands + STRIDE - 1) // STRIDE

    def _states(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None, every: bool):
        if wavs.dim() == 2:
            states, counts, attended = self._frozen_states(wavs, wav_lens)
        else:
            states, counts = self.features.unpack(wavs, wav_lens)
            attended = counts
        if not self.freeze:
            hidden = states[-1]
            if self.apply_spec_augment and self.training:
                hidden = self._spec_augment(hidden, counts, hidden.new_zeros(()))
            states += self._layers(hidden, attended, self.freeze_layers, len(self.model.layers))
        return _trimmed(states, counts, wavs), counts

    def frozen_states(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], torch.LongTensor]:
        states, counts, _ = self._frozen_states(wavs, wav_lens)
        return _trimmed(states, counts, wavs), counts

    def _frozen_states(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None):
        """These states, each utterance's own frames, and the frames that attention sees: with `pad_to_30s` all."""
        lengths = absolute_lengths(wavs, wav_lens)  # [batch]
        counts = self.frame_counts(lengths).cpu()
        self._check_lengths(lengths.cpu())
        is_learned = not (self.freeze or self.freeze_feature_extractor or self.freeze_layers)
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_learned):
            if self.pad_to_30s:
                own = frame_mask(lengths, wavs.shape[1])
                wavs = nn.functional.pad(wavs.masked_fill(~own, 0.0), (0, self.longest - wavs.shape[1]))
                lengths = torch.full_like(lengths, self.longest)
            attended = self.frame_counts(lengths).cpu()
            pieces, lengths, owners = _pieces(wavs, lengths, self.longest)
            hidden = self._convolve(pieces, lengths)  # [pieces, frames, channels]
            end = len(self.model.layers) if self.freeze else self.freeze_layers
            states = [hidden, *self._layers(hidden, self.frame_counts(lengths).cpu(), 0, end)]
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
        # cached states of an utterance that is encoded in pieces; a graph is for one piece
        if not torch.compiler.is_exporting() and hidden.shape[1] > longest:
            pieces, lengths, owners = _pieces(hidden, counts, longest)
            return [_join(state, owners, counts) for state in self._layers(pieces, lengths, first, end)]
        mask, found = _attention_mask(counts, hidden), []
        for k, layer in enumerate(self.model.layers[first:end], first):
            if not self._is_dropped(k):
                hidden = layer(hidden, attention_mask=mask)
            found.append(hidden)
        if found and end == len(self.model.layers):
            found[-1] = self.model.layer_norm(hidden)
        return found

    def _is_dropped(self, layer: int) -> bool:
        drops = self.training and not self.freeze and layer >= self.freeze_layers and self.model.layerdrop > 0
        return drops and torch.rand([]).item() < self.model.layerdrop


def _trimmed(states: list[torch.Tensor], counts: torch.LongTensor, wavs: torch.Tensor) -> list[torch.Tensor]:
    """As long as the longest utterance's own frames; in a graph, where that is not known, as long as the batch's."""
    is_graph = torch.compiler.is_exporting()
    frames = (wavs.shape[1] // HOP + STRIDE - 1) // STRIDE if is_graph else int(counts.max())
    return [state[:, :frames] for state in states]


def _own(x: torch.Tensor, counts: torch.LongTensor) -> torch.Tensor:
    """0 past each end [batch, frames, channels], as convolutions pad an utterance alone."""
    return x.masked_fill(~frame_mask(counts, x.shape[1])[:, :, None], 0.0)


def _attention_mask(counts: torch.LongTensor, hidden: torch.Tensor) -> torch.Tensor | None:
    """What is added to the attention's scores [batch, 1, 1, frames]; None without padding."""
    frames = hidden.shape[1]
    if not torch.compiler.is_exporting() and int(counts.min()) == frames:
        return None
    padding = ~frame_mask(counts.to(hidden.device), frames)
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros_like(padding, dtype=hidden.dtype).masked_fill(padding, lowest)[:, None, None, :]


def _pieces(x: torch.Tensor, lengths: torch.LongTensor, size: int):
    """Cut [batch, time, …] into pieces of `size`: these, padded, their lengths, and whose each is."""
    if torch.compiler.is_exporting() or x.shape[1] <= size:  # a graph is for one piece
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
