"""A package in the form of others: an ONNX graph, and what SpeechBrain's ``EncoderClassifier`` is made of."""

import contextlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.checkpoints import mark_as_transfer, register_checkpoint_hooks
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.package import build_model
from speechbrain_ser.models.heads import model_inputs
from speechbrain_ser.processing.lengths import absolute_lengths
from speechbrain_ser.processing.log_mel import LogMel

SYSTEMS = ("speechbrain_ser.models.cai.CaiModel", "speechbrain_ser.models.ha.HaModel")
REASONS = {  # against the others
    "speechbrain_ser.models.fu.FuModel": "Fu's system reads spectrograms, which are computed outside its graph",
    "speechbrain_ser.models.hsu.HsuModel": "Hsu's system reads spectrograms and F0, whose tracker is no graph",
    "speechbrain_ser.models.probe.ProbeModel": "the probe reads inner layers, which no graph of its encoder gives",
}
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of logits, as a share of the largest
# samples of the utterances on which the graph is compared: one alone, equal ones, a padded batch; beside the shortest
BATCHES = ((16000,), (5000, 5000), (30001, 20000, 3111, 17777, 0))
EXAMPLE = (12345, 9000, 3000)


def check_possible(description: dict) -> None:
    """Refuse a system that ONNX cannot hold, with the reason, and a lack of packages, with what to install."""
    name = description["class"]
    if name not in SYSTEMS:
        raise UserError(f"--onnx: {REASONS.get(name, name)}: only Cai's and Ha's systems can be exported")
    if lacking := [package for package in NEEDED if importlib.util.find_spec(package) is None]:
        raise UserError(f'--onnx needs {", ".join(lacking)}: pip install "speechbrain-ser[onnx]"')


class Graph(nn.Module):
    """Waveforms and their samples to the logits of every head, and frames."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.names = ["emotion", "frames", *(["asr"] if "asr" in model.heads else [])]

    def forward(self, wavs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model((wavs, lengths.double() / wavs.shape[1]))
        return tuple(outputs[name] for name in self.names)


def write_onnx(model: nn.Module, path: Path) -> None:
    """Export by torch's dynamo exporter (the older one is silently wrong here) and check; the model trains no more.

    Inputs: ``wavs`` float32 [batch, time], right-padded, and ``lengths`` int64 [batch] in samples. Outputs: ``emotion``
    [batch, classes] logits, ``frames`` [batch], and ``asr`` [batch, frames, tokens] logits where there is an ASR head.
    """
    for part in model.modules():
        if isinstance(part, LogMel):
            part.prepare_graph()
    model.encoder.fix_weights()  # weight norm would be computed in the graph, which no quantizer takes
    graph, dynamic = Graph(model).eval(), torch.export.Dim.DYNAMIC
    wavs, lengths = _batch([max(n, model.min_samples) for n in EXAMPLE])
    shapes = {"wavs": {0: dynamic, 1: dynamic}, "lengths": {0: dynamic}}
    try:
        with _quiet(), torch.no_grad():
            names = {"input_names": ["wavs", "lengths"], "output_names": graph.names}
            program = torch.onnx.export(
                graph, (wavs, lengths), dynamo=True, dynamic_shapes=shapes, verbose=False, **names
            )
            program.save(path)
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"--onnx: this model cannot be exported: {str(error).strip()!s:.500}") from error
    check_onnx(graph, path)


def check_onnx(graph: nn.Module, path: Path) -> None:
    """Refuse a graph whose outputs, each utterance's own, differ from its module's by more than 1e-4 of the largest."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for samples in (*BATCHES, (0,)):
        wavs, lengths = _batch([max(n, graph.model.min_samples) for n in samples])
        with torch.no_grad():
            expected = dict(zip(graph.names, graph(wavs, lengths), strict=True))
        outputs = session.run(graph.names, {"wavs": wavs.numpy(), "lengths": lengths.numpy()})
        found = {name: torch.from_numpy(value) for name, value in zip(graph.names, outputs, strict=True)}
        frames, seen = expected.pop("frames").tolist(), found.pop("frames").tolist()
        if seen != frames:
            raise UserError(f"--onnx: {list(samples)} samples: expected {frames} frames, found {seen}")
        for name, value in expected.items():
            ends = frames if name == "asr" else [len(row) for row in value]
            right, other = (torch.cat([row[:n] for row, n in zip(x, ends, strict=True)]) for x in (value, found[name]))
            worst = float((right - other).abs().max() / right.abs().max().clamp(min=1))
            if not worst <= TOLERANCE:
                raise UserError(f"--onnx: {list(samples)} samples: the graph's {name} logits are off by {worst:.1e}")


def _batch(samples: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, padded by other noise, which must not matter."""
    generator = torch.Generator().manual_seed(sum(samples))
    return torch.randn(len(samples), max(samples), generator=generator), torch.tensor(samples)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words on operators of packages that are not here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


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
                self.model = build_model(description, "hyperparams.yaml", folder)

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
