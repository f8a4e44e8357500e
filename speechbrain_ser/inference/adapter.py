"""What a package's hyperparams.yaml is made of, so that SpeechBrain's EncoderClassifier runs our model."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.checkpoints import mark_as_transfer, register_checkpoint_hooks
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from speechbrain_ser.inference.package import build_model
from speechbrain_ser.models.heads import model_inputs
from speechbrain_ser.processing.lengths import absolute_lengths


@register_checkpoint_hooks
class Embedding(nn.Module):
    """SpeechBrain's ``embedding_model``: waveforms to the vectors that the emotion head reads.

    `description` is as in the package's config.json, `backbone` and `preprocessor` are the backbone's two files.
    """

    def __init__(self, description: Mapping, backbone: Mapping | None = None, preprocessor: Mapping | None = None):
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            for name, content in (("config", backbone), ("preprocessor_config", preprocessor)):
                (Path(folder) / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
            with torch.random.fork_rng(devices=[]):
                self.model = build_model(_plain(description), "hyperparams.yaml", folder)

    @mark_as_transfer
    def load(self, path: str) -> None:
        """Fill the parameters from the package's safetensors; then only what the emotion needs stays."""
        self.model.load_state_dict(load_file(path))
        self.model.keep_tasks({"emotion"})

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor) -> torch.Tensor:
        """Waveforms [batch, time], right-padded, and relative lengths [batch] to vectors [batch, 1, channels]."""
        lengths = absolute_lengths(wavs, wav_lens).tolist()
        signals = [wav[:n].cpu() for wav, n in zip(wavs, lengths, strict=True)]
        return self.model(**model_inputs(self.model, signals, wavs.device))["embedding"][:, None]


class LogPosteriors(nn.Module):
    """SpeechBrain's ``classifier``: an Embedding's vectors to log posteriors, logits divided by the temperature."""

    def __init__(self, embedding: Embedding, temperature: float = 1.0):
        super().__init__()
        self.head, self.temperature = embedding.model.heads["emotion"], temperature

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """[batch, 1, channels] to [batch, 1, classes]."""
        return (self.head(vectors).float() / self.temperature).log_softmax(-1)


class Unchanged(nn.Module):
    """SpeechBrain's ``mean_var_norm`` for a model that normalises by itself."""

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None) -> torch.Tensor:
        """Return the waveforms."""
        return wavs


def empty_encoder(n_classes: int) -> CategoricalEncoder:
    """Make SpeechBrain's label encoder, to be filled from its file."""
    encoder = CategoricalEncoder()
    encoder.expect_len(n_classes)
    return encoder


class NamedPretrainer(Pretrainer):
    """SpeechBrain's Pretrainer for files with names of their own: of each loadable, the file's name in the source."""

    def __init__(self, files: Mapping[str, str], **kwargs):
        super().__init__(**kwargs)
        self.files = dict(files)

    def collect_files(self, default_source=None, **kwargs):
        """As SpeechBrain's, from the source that is given."""
        if default_source is not None:
            self.add_paths({name: f"{default_source}/{file}" for name, file in self.files.items()})
        return super().collect_files(default_source, **kwargs)


def _plain(content):
    """HyperPyYAML's mappings and lists as JSON's."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [_plain(value) for value in content]
    return content
