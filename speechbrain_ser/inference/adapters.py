"""A package in the form of others: an ONNX graph, and what SpeechBrain's ``EncoderClassifier`` is made of."""

import contextlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.utils.checkpoints import mark_as_transfer, register_checkpoint_hooks
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.errors import UserError, followed
from speechbrain_ser.inference.package import FEATURES, TASKS, build_model
from speechbrain_ser.models.heads import model_inputs, padded, signals_of
from speechbrain_ser.processing.lengths import absolute_lengths
from speechbrain_ser.processing.rapt import frame_count

logger = logging.getLogger(__name__)

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of logits, as a share of the largest
# samples of the utterances on which the graph is compared: one alone, equal ones, a padded batch; beside the shortest
BATCHES = ((16000,), (5000, 5000), (30001, 20000, 3111, 17777, 0), (0,))
EXAMPLE = (12345, 9000, 3000)
ANYTHING = 7.0  # what padding is filled with
EQUAL = 0.99  # of the decisions of a graph in eight bits


def check_possible() -> None:
    """Refuse a lack of packages, with what to install."""
    if lacking := [package for package in NEEDED if importlib.util.find_spec(package) is None]:
        raise UserError(f'--onnx needs {", ".join(lacking)}: pip install "speechbrain-ser[onnx]"')


def take_waveforms(model: nn.Module) -> None:
    """Let a model that trains no more read waveforms, as its graph does, and of features those that no graph computes.

    These are SpeechSplit's (:mod:`speechbrain_ser.processing.speech_split`): their dither is seeded by the recording,
    and F0 is a search. Log-mel spectrograms, and what a frozen encoder gives, are computed within.
    """
    model.keep_tasks(set(TASKS))
    model.inputs = {"sig": None} | {name: model.inputs[name] for name in FEATURES if name in model.inputs}


def feeds(signals: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Return what a graph reads of several waveforms' signals, as :func:`take_waveforms` has them."""
    inputs = {name: pair.data.numpy() for name, pair in padded(signals, "cpu").items()}
    return {"wavs": inputs.pop("sig"), "lengths": np.array([len(each["sig"]) for each in signals]), **inputs}


class Graph(nn.Module):
    """Waveforms, their samples and SpeechSplit's features, where they are read, to every head's logits, and frames."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.inputs = ["wavs", "lengths", *(name for name in FEATURES if name in model.inputs)]
        self.names = ["emotion", "frames", *(["asr"] if "asr" in model.heads else [])]

    def forward(
        self, wavs: torch.Tensor, lengths: torch.Tensor, mel: torch.Tensor | None = None, f0: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        inputs = {"sig": (wavs, lengths.double() / wavs.shape[1])}
        for name, x in (("mel", mel), ("f0", f0)):
            if x is not None:
                inputs[name] = (x, frame_count(lengths).double() / x.shape[1])
        outputs = {"frames": self.model.frame_counts(lengths), **self.model(**inputs)}
        return tuple(outputs[name] for name in self.names)


def write_onnx(model: nn.Module, path: Path) -> None:
    """Export by torch's dynamo exporter (the older one is silently wrong here) and check; the model trains no more.

    Inputs: ``wavs`` float32 [batch, time], right-padded by anything, ``lengths`` int64 [batch] in samples, and ``mel``
    and ``f0`` where the model reads them. Outputs: ``emotion`` [batch, classes] logits, ``frames`` [batch], and ``asr``
    [batch, frames, tokens] logits where there is an ASR head.
    """
    take_waveforms(model)
    for part in model.modules():
        if hasattr(part, "prepare_graph"):
            part.prepare_graph()
        if hasattr(part, "fix_weights"):  # weight norm would be computed in the graph, which no quantizer takes
            part.fix_weights()
    graph, dynamic = Graph(model).eval(), torch.export.Dim.DYNAMIC
    example = {name: torch.from_numpy(x) for name, x in _batch(model, EXAMPLE).items()}
    shapes = {name: dict.fromkeys(range(min(x.dim(), 2)), dynamic) for name, x in example.items()}
    try:
        with _quiet(), torch.no_grad():
            names = {"input_names": graph.inputs, "output_names": graph.names}
            program = torch.onnx.export(
                graph, kwargs=example, dynamo=True, dynamic_shapes=shapes, verbose=False, **names
            )
            program.save(path)
    except torch.onnx.errors.OnnxExporterError as error:
        why = str(error.__cause__ or error).strip()
        raise UserError(f"--onnx: this model cannot be exported, leave --onnx out: {why:.500}") from error
    check_onnx(graph, path)


def check_onnx(graph: Graph, path: Path) -> None:
    """Refuse a graph whose outputs, each utterance's own, differ from its module's by more than 1e-4 of the largest."""
    session, most = open_graph(path), 0.0
    for samples in BATCHES:
        inputs = _batch(graph.model, samples)
        with torch.no_grad():
            outputs = graph(**{name: torch.from_numpy(x) for name, x in inputs.items()})
        expected = dict(zip(graph.names, outputs, strict=True))
        found = {n: torch.from_numpy(v) for n, v in zip(graph.names, session.run(graph.names, inputs), strict=True)}
        frames, seen = expected.pop("frames").tolist(), found.pop("frames").tolist()
        if seen != frames:
            raise UserError(f"--onnx: {list(samples)} samples: expected {frames} frames, found {seen}")
        for name, value in expected.items():
            ends = frames if name == "asr" else [len(row) for row in value]
            right, other = (torch.cat([row[:n] for row, n in zip(x, ends, strict=True)]) for x in (value, found[name]))
            worst = float((right - other).abs().max() / right.abs().max().clamp(min=1))
            if not worst <= TOLERANCE:
                raise UserError(f"--onnx: {list(samples)} samples: the graph's {name} logits are off by {worst:.1e}")
            most = max(most, worst)
    logger.info(f"{path.name}: its logits are off PyTorch's by at most {most:.1e} of the largest")


def write_int8(model: nn.Module, path: Path, out: Path, recordings: Sequence[str]) -> None:
    """Write a graph with weights of eight bits beside the one at `path`, where it decides as that one does.

    That is, on at least 99 % of a run's own test recordings; UserError says on how many it does not. Weights have seven
    of the bits: with eight, sums of products overflow on CPUs without VNNI. `model` is the graph's, after
    :func:`write_onnx`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        seven_bits = {"weight_type": QuantType.QInt8, "reduce_range": True, "per_channel": True}
        quantize_dynamic(path, out, **seven_bits)
    longest = getattr(model.encoder, "longest", None)  # samples: a Whisper's graph takes 30 s
    sessions, equal = [open_graph(path), open_graph(out)], 0
    for recording in followed(recordings, "deciding with eight bits and without", len(recordings), show=None):
        inputs = feeds([signals_of(model, load_audio(recording)[:longest])])
        first, second = (session.run(["emotion"], inputs)[0].argmax() for session in sessions)
        equal += int(first == second)
    found = f"{equal} of {len(recordings)} decisions on the run's test utterances are those of {path.name}"
    if not equal >= EQUAL * len(recordings):
        raise UserError(f"--int8: {found}, expected at least {EQUAL:.0%}: nothing is written; leave it out")
    logger.info(f"{out.name}: {found}")


def open_graph(path: Path):
    """Return onnxruntime's session of a graph, computed on the CPU.

    One that would read other files, or could go on for ever, is a UserError.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    if any(each.data_location == each.EXTERNAL for each in _all(model, "TensorProto")):
        raise UserError(f"{path}: expected all parameters within, found some that lie in other files")
    if len([*_all(model, "GraphProto")]) > 1 or model.functions:
        raise UserError(f"{path}: expected one graph, without loops, branches and functions, found some")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _all(message, kind: str) -> Iterator:
    """Every part of a kind of a model, wherever it is: in subgraphs, attributes, functions."""
    if message.DESCRIPTOR.name == kind:
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if isinstance(value, Sequence) else [value]:
                yield from _all(each, kind)


def _batch(model: nn.Module, samples: Sequence[int]) -> dict[str, np.ndarray]:
    """What a graph reads of noise of so many samples, at least a frame of it, padded by what must not matter."""
    generator = torch.Generator().manual_seed(sum(samples))
    wavs = [torch.randn(max(n, model.min_samples), generator=generator) for n in samples]
    signals = [signals_of(model, wav) for wav in wavs]
    inputs = feeds(signals)
    for name in {*signals[0]}:
        for row, signal in zip(inputs["wavs" if name == "sig" else name], signals, strict=True):
            row[len(signal[name]) :] = ANYTHING
    return inputs


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
