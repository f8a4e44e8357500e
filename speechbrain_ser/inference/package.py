"""Load a package: plain JSON and safetensors, classes of one table; nothing of the package is executed."""

import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import ruamel.yaml
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from ruamel.yaml.comments import TaggedScalar
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from speechbrain_ser.data.batches import SAMPLE_RATE
from speechbrain_ser.data.labels import DIMENSIONS
from speechbrain_ser.data.text import CharacterTokens, SentencePieceTokens, load_tokens
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.calibration import check_calibration
from speechbrain_ser.files import sha256
from speechbrain_ser.lobes.backbone import HUB_NAME, files_on_hub, reaching_hub
from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.lobes.encoder import Encoder
from speechbrain_ser.lobes.pretrained import PretrainedEncoder
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.lobes.whisper import Whisper
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.models.fu import FuModel
from speechbrain_ser.models.ha import HaModel
from speechbrain_ser.models.heads import KINDS
from speechbrain_ser.models.hsu import HsuModel
from speechbrain_ser.models.probe import ProbeModel
from speechbrain_ser.nnet.convolution import ConvHead
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing import speech_split
from speechbrain_ser.processing.log_mel import LogMel
from speechbrain_ser.processing.pitch import PitchTrack
from speechbrain_ser.processing.split_mel import HOP, SplitMel

# ------------------------------------------------------------------ what a package is made of

FORMAT, VERSION = "speechbrain-ser package", 1
CONFIG = "config.json"
PARAMETERS = "model.safetensors"
LABELS = "labels.json"
TOKENS = "tokens.json"
BACKBONE = "backbone"
BACKBONE_FILES = (f"{BACKBONE}/config.json", f"{BACKBONE}/preprocessor_config.json")
ONNX, INT8 = "model.onnx", "model.int8.onnx"
SPEECHBRAIN_FILES = ("hyperparams.yaml", "label_encoder.txt")  # written for SpeechBrain, never read here
CARD = "README.md"
RECORDINGS = "recordings.txt"  # digests of what the model was trained on, 16 hexadecimal digits a line
# whose hashes config.json may hold
FILES = (PARAMETERS, LABELS, TOKENS, *BACKBONE_FILES, ONNX, INT8, *SPEECHBRAIN_FILES, RECORDINGS)
LICENSE = "LICENSE"
UNHASHED = (CONFIG, CARD, LICENSE)  # may be there without a hash: they are edited on a hub's page, no model reads them
LARGE = (PARAMETERS, ONNX, INT8)  # as large as the model: the others are small
KEYS = "format format_version speechbrain_ser model classes decoding sample_rate calibration files".split()
GRAPH = "onnx"  # a further key, where a graph reads more than waveforms
FEATURES = ("mel", "f0")  # that no graph computes
# of a model that is used: other heads, and what only they read, are for training
TASKS = ("emotion", "asr", *DIMENSIONS)

MOST_BYTES = 1 << 20  # of a file of text, and of the header of the parameters,
MOST_TOKENS_BYTES = 8 << 20  # but for a SentencePiece model in hexadecimal digits
MOST_RECORDINGS_BYTES = 32 << 20  # and for digests of two million recordings
MOST_FETCHED = 10 << 30  # of a large one on the hub: what a description allows is known once that has been fetched
MOST_OF = {TOKENS: MOST_TOKENS_BYTES, RECORDINGS: MOST_RECORDINGS_BYTES, **dict.fromkeys(LARGE, MOST_FETCHED)}
DEEPEST, MOST_ITEMS, MOST_NUMBER = 24, 10_000, 10**15  # levels of JSON, entries of one of its lists or objects
LONGEST_TEXT, LONGEST_LIST, LARGEST = 100, 100, 1_000_000  # of a description,
MOST = {"layers": 20, "lstm_layers": 20, "blocks": 20, "n_mels": 512, "n_fft": 8192, "win_length": 8192}
MOST |= dict.fromkeys(("kernel", "kernels", "kernel_size", "heads", "groups"), 1000)
MOST_CLASSES, WIDEST_BEAM = 1000, 500
# of one second of sound: what Whisper's largest encoder takes for its 30 s, and numbers that are in memory at a time
MOST_WORK, MOST_NUMBERS = 2e12, 1 << 27
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}


class Kind(NamedTuple):
    """A class, and the arguments that no description has: they matter in training alone, or who loads sets them."""

    make: Callable
    left_out: Sequence[str] = ()

    def check_arguments(self, given: Iterable[str], where: str, also: Iterable[str] = ()) -> None:
        """Refuse arguments that the class has not, or that no description has but for some."""
        known = set(inspect.signature(self.make).parameters) - {*self.left_out} | {*also}
        if unknown := sorted(set(given) - known):
            known = ", ".join(sorted(known)) or "none"
            raise UserError(f"{where}: expected arguments {known}, found {', '.join(unknown)}")


OF_ENCODERS = (
    "source save_path load_weights cache_front_end attn_implementation gradient_checkpointing layerdrop dropout lora "
    "freeze_feature_extractor apply_spec_augment mask_time_prob mask_time_length mask_feature_prob mask_feature_length "
    "seed"
).split()
#: lobes whose settings lie in the package's folder `backbone`
ENCODERS = {
    "speechbrain_ser.lobes.encoder.Encoder": Kind(Encoder, OF_ENCODERS),
    "speechbrain_ser.lobes.wav2vec2.Wav2Vec2": Kind(Wav2Vec2, OF_ENCODERS),
    "speechbrain_ser.lobes.whisper.Whisper": Kind(Whisper, OF_ENCODERS),
}
MODELS = {
    "speechbrain_ser.models.cai.CaiModel": Kind(CaiModel, ("seed",)),
    "speechbrain_ser.models.ha.HaModel": Kind(HaModel, ("seed", "reversal", "schedule")),
    "speechbrain_ser.models.fu.FuModel": Kind(FuModel, ("seed", "feature_augment")),
    "speechbrain_ser.models.hsu.HsuModel": Kind(HsuModel, ("seed",)),
    "speechbrain_ser.models.probe.ProbeModel": Kind(ProbeModel, ("seed",)),
}
CLASSES = {
    **MODELS,
    **ENCODERS,
    "speechbrain_ser.lobes.cnn_blstm_attention.CNNBLSTMAttention": Kind(CNNBLSTMAttention),
    "speechbrain_ser.nnet.pooling.MaskedPooling": Kind(MaskedPooling),
    "speechbrain_ser.processing.log_mel.LogMel": Kind(LogMel),
    "speechbrain_ser.processing.split_mel.SplitMel": Kind(SplitMel),
    "speechbrain_ser.processing.pitch.PitchTrack": Kind(PitchTrack),
    "speechbrain_ser.nnet.convolution.ConvHead": Kind(ConvHead, ("in_features", "dropout")),
    "torch.nn.Linear": Kind(nn.Linear, ("in_features", "device", "dtype")),
}


def _find_kind(name: object, where: str, table: Mapping[str, Kind] = CLASSES) -> Kind:
    if not isinstance(name, str) or name not in table:
        hint = nearest(name[:LONGEST_TEXT], table) if isinstance(name, str) else ""
        kind = f"a {'model' if table is MODELS else 'class'} of the table in speechbrain_ser/inference/package.py"
        raise UserError(f"{where}: expected {kind}, found {name!s:.200}{hint}")
    return table[name]


# ------------------------------------------------------------------ a run's YAML to a description


def describe(tree: Mapping, where: str) -> dict:
    """Make the line `model` of a run's YAML plain data, for :func:`build_model`.

    Heads for other tasks than :data:`TASKS` are left out, and so are arguments that matter in training alone.
    `tree` is the YAML with its tags, as ruamel.yaml's round-trip loader reads it; `where`, its file, is for messages.
    """
    where = f"{where}: model"
    description = _described(tree.get("model"), where)
    _check_model(description, where)
    arguments = description["arguments"]
    weights = arguments.get("loss_weights", {})
    wanted = [task for task in TASKS if weights.get(task)]
    if "emotion" not in wanted:
        raise UserError(f"{where}: it recognises no emotion (loss_weights), which a package needs")
    arguments["loss_weights"] = {task: weights[task] for task in wanted}
    arguments["heads"] = {task: maker for task, maker in arguments.get("heads", {}).items() if task in wanted}
    return description


def describe_graph(model: nn.Module) -> dict | None:
    """Say what the graph of a model reads, and how the module that it names makes that; None: waveforms alone."""
    read = {name: model.inputs[name] for name in FEATURES if name in model.inputs}
    if not read:
        return None
    found = {"inputs": ["wavs", "lengths", *read], "module": speech_split.__name__, "dither": read["mel"].dither}
    pitch = read.get("f0")
    return found if pitch is None else found | {"method": pitch.method, "f_range": list(pitch.f_range)}


def _check_model(description: object, where: str) -> None:
    _find_kind(description.get("class") if isinstance(description, dict) else description, where, MODELS)


def _described(node, where: str):
    tag = str(getattr(getattr(node, "tag", None), "value", None) or "")
    if tag.startswith("!"):
        return _described_class(tag, node, where)
    if isinstance(node, Mapping):
        return {str(key): _described(value, f"{where}: {key}") for key, value in node.items()}
    if isinstance(node, str) and re.fullmatch(r"\(.*\)", node):  # HyperPyYAML reads (1, 2) as a tuple
        node = ruamel.yaml.YAML(typ="safe").load(f"[{node[1:-1]}]")
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_described(value, f"{where}[{k}]") for k, value in enumerate(node)]
    for kind in (bool, int, float, str):  # ruamel.yaml's own numbers remember how they were written
        if isinstance(node, kind):
            return kind(node)
    if node is None:
        return None
    raise UserError(f"{where}: expected plain values, found {type(node).__name__}")


def _described_class(tag: str, node, where: str) -> dict:
    match = re.fullmatch(r"!(new|name):(.+)", tag)
    if match is None:
        raise UserError(f"{where}: expected plain values and classes, found {tag}, which no package can hold")
    key, name = {"new": "class", "name": "partial"}[match[1]], match[2]
    kind = _find_kind(name, where)
    given = {} if isinstance(node, TaggedScalar) else node
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: {name}: expected arguments with their names, found a list")
    kind.check_arguments(given, f"{where}: {name}", also=kind.left_out)
    kept = {n: _described(value, f"{where}: {n}") for n, value in given.items() if n not in kind.left_out}
    return {key: name, "arguments": kept}


# ------------------------------------------------------------------ a description to a model


def build_model(description: dict, where: str, backbone: str | None = None) -> nn.Module:
    """Build a model with random parameters, in evaluation mode, from its description.

    A description is ``{"class": name, "arguments": {…}}``, nested; ``partial`` instead of ``class``: a constructor that
    still lacks arguments. `where`, its file, is for messages; `backbone` is the folder of the backbone's settings.
    """
    make = {name: kind.make for name, kind in CLASSES.items()}
    make |= {name: partial(kind.make, source=backbone, load_weights=False) for name, kind in ENCODERS.items()}
    _check_model(description, where)
    try:
        model = _build(description, where, make).eval()
        _check_cost(model, where)
        return model
    except UserError:
        raise
    except Exception as error:  # a constructor may fail in any way at values of another kind
        raise UserError(f"{where}: no model can be built from it: {type(error).__name__}: {error!s:.500}") from error


def _build(content, where: str, make: Mapping[str, Callable]):
    if isinstance(content, (list, dict)) and len(content) > LONGEST_LIST:
        raise UserError(f"{where}: expected at most {LONGEST_LIST} entries, found {len(content)}")
    if isinstance(content, list):
        return [_build(each, f"{where}[{k}]", make) for k, each in enumerate(content)]
    if not isinstance(content, dict):
        return _checked_value(content, where)
    if not {"class", "partial"} & set(content):
        return {name: _build(each, f"{where}: {name}", make) for name, each in content.items()}
    if set(content) not in ({"class", "arguments"}, {"partial", "arguments"}):
        raise UserError(f"{where}: expected class (or partial) and arguments, found {', '.join(content)!s:.200}")
    name = content.get("class", content.get("partial"))
    kind, arguments = _find_kind(name, where), content["arguments"]
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: arguments: expected an object, found {type(arguments).__name__}")
    kind.check_arguments(arguments, f"{where}: {name}")
    built = {key: _build(each, f"{where}: {key}", make) for key, each in arguments.items()}
    return make[name](**built) if "class" in content else partial(make[name], **built)


def _check_cost(model: nn.Module, where: str) -> None:
    """Refuse what asks too much of a machine for one second of sound, or hears less often than once a second.

    From above: every parameter is used for every frame, and every frame attends to every other.
    """
    n_parameters = sum(p.numel() for p in model.parameters())
    widest = max(max(p.shape, default=1) for p in model.parameters())
    work = numbers = heads = 0
    frames = max(getattr(model, "fixed_length", 0), SAMPLE_RATE // HOP + 1)  # the latter of SplitMel and PitchTrack
    for part in model.modules():
        if isinstance(part, LogMel):
            frames = max(frames, n := _number(part, SAMPLE_RATE))
            numbers, work = max(numbers, n * part.n_fft), work + n * part.n_fft * part.output_size
        if isinstance(part, PretrainedEncoder):
            heads = part.model.config.num_attention_heads
            frames = max(frames, _number(part, part.longest if part.pad_to_30s else SAMPLE_RATE))
        if isinstance(part, Wav2Vec2):
            if part.min_samples > SAMPLE_RATE:
                raise UserError(f"{where}: expected frames of at most a second, found {part.min_samples} samples")
            config, n, width = part.model.config, SAMPLE_RATE, 1
            for channels, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
                n = (n - kernel) // stride + 1
                numbers, work = max(numbers, n * channels), work + n * kernel * width * channels
                width = channels
        if isinstance(part, CNNBLSTMAttention):
            heads = part.self_attention.heads
    numbers = max(numbers, frames * widest, heads * frames**2)
    work += frames * n_parameters + frames**2 * widest
    for found, most, what in ((work, MOST_WORK, "multiplications"), (numbers, MOST_NUMBERS, "numbers at a time")):
        if found > most:
            raise UserError(f"{where}: expected at most {most:.1e} {what} for a second of sound, found {found:.1e}")


def _number(part: nn.Module, samples: int) -> int:
    with torch.device("cpu"):  # a number, even where parameters have a size and no memory
        return int(part.frame_counts(samples))


def _checked_value(value, where: str):
    """Text and numbers of a usual size: what is built must not outgrow the machine."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise UserError(f"{where}: expected at most {LONGEST_TEXT} characters, found {len(value)}")
    most = MOST.get(where.rpartition(": ")[2].partition("[")[0], LARGEST)
    if isinstance(value, (int, float)) and not -most <= value <= most:
        raise UserError(f"{where}: expected at most {most}, found {value!s:.100}")
    return value


# ------------------------------------------------------------------ files


def _read_json(path: Path, kind: type, most_bytes: int = MOST_BYTES):
    """Read a JSON file of a `kind`, dict or list: small, not deep, without NaN, double keys or control characters."""
    data = read_small(path, most_bytes)
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_each_once)
    except RecursionError as error:
        raise UserError(f"{path}: expected at most {DEEPEST} levels, found more") from error
    except ValueError as error:
        raise UserError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, kind):
        expected, found = ("object" if each is dict else each.__name__ for each in (kind, type(content)))
        raise UserError(f"{path}: expected a JSON {expected}, found {found}")
    _check_content(content, DEEPEST, path)
    return content


def read_small(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file that a stranger wrote: of bounded size, of a regular file, and not waiting for a pipe's other end."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: expected a file that can be read, found something else")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read: {error.strerror}") from error
    if len(data) > most_bytes:
        raise UserError(f"{path}: expected at most {most_bytes} bytes, found more")
    return data


def _each_once(pairs: list) -> dict:
    content = {}
    for name, value in pairs:  # not by counting: a megabyte has many keys
        if name in content:
            raise ValueError(f"the key {name[:100]!r} is there twice")
        content[name] = value
    return content


def _check_content(content, levels: int, path: Path) -> None:
    """Of a bounded depth and breadth, without numbers that are none to others, and what a terminal would obey."""
    if isinstance(content, str) and not content.isprintable():
        raise UserError(f"{path}: expected text that can be printed, found {content[:100]!a}")
    if isinstance(content, (int, float)) and not -MOST_NUMBER <= content <= MOST_NUMBER:
        raise UserError(f"{path}: expected numbers up to {MOST_NUMBER:.0e}, found {content!s:.100}")
    if isinstance(content, (dict, list)):
        if levels == 0:
            raise UserError(f"{path}: expected at most {DEEPEST} levels, found more")
        if len(content) > MOST_ITEMS:
            raise UserError(f"{path}: expected at most {MOST_ITEMS} entries in one place, found {len(content)}")
        for each in [*content, *(content.values() if isinstance(content, dict) else [])]:
            _check_content(each, levels - 1, path)


def _check_files(folder: Path, hashes: dict) -> None:
    """Refuse a folder that is not exactly what its config.json says, before anything of it is used.

    Sizes come before hashes; those of :data:`LARGE` files are for who knows how large they can be.
    """
    config = folder / CONFIG
    for name, digest in hashes.items():
        if name not in FILES:
            raise UserError(f"{config}: files: expected some of {', '.join(FILES)}, found {name[:200]!r}")
        if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
            expected = "a SHA-256 of 64 hexadecimal digits"
            raise UserError(f"{config}: files: {name}: expected {expected}, found {digest!r:.100}")
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]  # .git, .cache
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in [*links, *(name for name in names if not name.startswith("."))]:  # .gitattributes
            path = Path(parent, name).relative_to(folder).as_posix()
            if path not in {*hashes, *UNHASHED}:
                expected = f"expected only files that {CONFIG} lists, found this one"
                raise UserError(f"{folder}/{ascii(path)[1:-1]}: {expected}")
    if lacking := [name for name in (PARAMETERS, LABELS) if name not in hashes]:
        raise UserError(f"{config}: files: expected {', '.join(lacking)} among them, found none")
    for name in (CARD, LICENSE):
        if os.path.lexists(folder / name):
            _check_size(_checked_path(folder, name), MOST_BYTES)
    for name in hashes:
        path = _checked_path(folder, name)
        if name not in LARGE:
            _check_size(path, MOST_OF.get(name, MOST_BYTES))
            _check_hash(path, hashes[name])
    for name in {*BACKBONE_FILES} & {*hashes}:  # which the lobe reads
        _read_json(folder / name, dict)


def _check_bytes(what: str, found: int, most: int) -> None:
    if found > most:
        raise UserError(f"{what}: expected at most {most} bytes, found {found}")


def _check_size(path: Path, most: int) -> None:
    _check_bytes(str(path), path.stat().st_size, most)


def _check_hash(path: Path, digest: str) -> None:
    if (found := sha256(path)) != digest:
        raise UserError(f"{path}: expected the SHA-256 {digest} of {CONFIG}, found {found}")


def _checked_path(folder: Path, name: str) -> Path:
    """Return the path of a file of the package: a regular file, itself in the folder.

    In a snapshot of the Hugging Face hub's cache each file is a link into the cache's folder of blobs, two levels up;
    such a link is followed, no other.
    """
    path = folder / name
    if not path.is_file():  # follows links; false for pipes and devices
        found = "something else" if os.path.lexists(path) else "none"
        raise UserError(f"{path}: expected a file of the package, found {found}")
    home, real = folder.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"  # not resolved: it may be no link itself
    is_blob = home.parent.name == "snapshots" and real.parent == blobs
    if not (is_blob or real.is_relative_to(home)):
        raise UserError(f"{path}: expected a file within {home}, found a link to {real}")
    return path


# ------------------------------------------------------------------ the hub


def is_hub_name(name: str) -> bool:
    """Whether it can be a model on the hub (``user/model``), and is nothing on this machine."""
    return not os.path.lexists(name) and name.count("/") == 1 and HUB_NAME.fullmatch(name) is not None


def _find_package(source: str | os.PathLike) -> Path:
    """A package's folder; a hub model is fetched, a package's own files of it, unless the hub's cache has it."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = os.fspath(source)
    if not is_hub_name(name):
        raise UserError(f"{source}: expected the folder of a package, or user/model on the hub, found no such folder")
    fetch = partial(huggingface_hub.snapshot_download, name, allow_patterns=[CONFIG, *FILES])
    try:
        if _is_whole(cached := Path(fetch(local_files_only=True))):
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    expected = "the folder of a package, or a model on the Hugging Face hub; there is no such folder here"
    with reaching_hub(f"{name}: expected {expected}, and the hub's"):
        if CONFIG not in (there := files_on_hub(name)):
            raise UserError(f"hub model '{name}': expected a package's {CONFIG}, found {', '.join(there):.300}")
        for file in {*FILES, CONFIG} & {*there}:
            _check_bytes(f"hub model '{name}': {file}", there[file], MOST_OF.get(file, MOST_BYTES))
        return Path(fetch())


def _is_whole(folder: Path) -> bool:
    if not (folder / CONFIG).is_file():
        return False
    listed = _read_json(folder / CONFIG, dict).get("files", {})
    return isinstance(listed, dict) and all((folder / name).is_file() for name in FILES if name in listed)


# ------------------------------------------------------------------ loading


@dataclass(frozen=True)
class Package:
    """What a package holds."""

    model: nn.Module  # in evaluation mode, on the CPU
    classes: list[str]  # in the order of the logits
    tokens: CharacterTokens | SentencePieceTokens | None  # what the ASR head spells with, where there is one
    decoding: dict | None  # ``kind`` and ``beam_size`` of its search
    calibration: dict | None  # the content of the run's ``calibration.json``
    digest: str  # of the parameters: 16 hexadecimal digits
    recordings: frozenset[str] | None  # digests of what it was trained on; None of a package of an earlier version


def load_package(source: str | os.PathLike) -> Package:
    """Load a package that ``speechbrain-ser export`` wrote: a folder, or ``user/model`` on the Hugging Face hub.

    Sizes are looked at first, and all hashes are checked before anything is used. The model is first built without
    memory: what it costs is bounded, and it is compared with the names, sizes and types in the file of parameters.
    UserError names the file, what was expected and what was found.
    """
    folder = _find_package(source)
    config = _read_config(folder)
    _check_files(folder, config["files"])
    classes = _read_classes(folder, config)
    tokens = _read_tokens(folder / TOKENS) if config["decoding"] is not None else None
    model = _filled(folder, config["model"], config["files"])
    _check_sizes(folder, model, classes, tokens)
    if GRAPH in config and config[GRAPH] != (expected := describe_graph(model)):
        raise UserError(f"{folder / CONFIG}: {GRAPH}: expected {expected}, found {config[GRAPH]!r:.200}")
    digest = config["files"][PARAMETERS][:16]
    recordings = _read_recordings(folder / RECORDINGS) if RECORDINGS in config["files"] else None
    return Package(model, classes, tokens, config["decoding"], config["calibration"], digest, recordings)


def _read_config(folder: Path) -> dict:
    path = _checked_path(folder, CONFIG)
    config = _read_json(path, dict)
    if config.get("format") != FORMAT:
        raise UserError(f"{path}: format: expected {FORMAT!r}, found {config.get('format')!r:.100}")
    if (version := config.get("format_version")) != VERSION or isinstance(version, bool):
        raise UserError(f"{path}: format_version: this program reads {VERSION}, found {version!r:.100}")
    if wrong := sorted({*KEYS} ^ {*config} - {GRAPH}):
        raise UserError(f"{path}: expected the keys {', '.join(KEYS)}; missing or unknown: {', '.join(wrong)!s:.200}")
    for key in ("model", "files"):
        if not isinstance(config[key], dict):
            raise UserError(f"{path}: {key}: expected an object, found {config[key]!r:.100}")
    if config["sample_rate"] != SAMPLE_RATE:
        raise UserError(f"{path}: sample_rate: expected {SAMPLE_RATE}, found {config['sample_rate']!r:.100}")
    if config["calibration"] is not None:
        check_calibration(config["calibration"], f"{path}: calibration")
    if (decoding := config["decoding"]) is not None:
        right = isinstance(decoding, dict) and set(decoding) == {"kind", "beam_size"} and decoding["kind"] in KINDS
        if not (right and isinstance(decoding["beam_size"], int) and 1 <= decoding["beam_size"] <= WIDEST_BEAM):
            expected = f"kind ({', '.join(KINDS)}) and beam_size, 1 to {WIDEST_BEAM}"
            raise UserError(f"{path}: decoding: expected {expected}, found {decoding!r:.200}")
    return config


def _read_classes(folder: Path, config: dict) -> list[str]:
    path, classes = folder / LABELS, _read_json(folder / LABELS, list)
    right = 1 <= len(classes) <= MOST_CLASSES and all(isinstance(c, str) and 0 < len(c) <= 100 for c in classes)
    if not right or len(set(classes)) < len(classes):
        raise UserError(f"{path}: expected 1 to {MOST_CLASSES} different names of classes, found {classes!r:.200}")
    if classes != config["classes"]:
        raise UserError(f"{path}: expected the classes of {CONFIG}, {config['classes']!r:.200}, found {classes!r:.200}")
    return classes


def _read_tokens(path: Path):
    state = _read_json(path, dict, MOST_TOKENS_BYTES)
    labels = state.get("labels")
    are_texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    is_characters = state.get("kind") == "characters" and set(state) == {"kind", "labels"} and are_texts
    if not (is_characters or (state.get("kind") == "sentencepiece" and isinstance(state.get("model"), str))):
        raise UserError(f"{path}: expected kind characters and labels, or kind sentencepiece and model, found neither")
    try:
        tokens = load_tokens(path)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: expected what a run writes: {error}") from error
    _check_content(list(tokens.labels), DEEPEST, path)  # of SentencePiece's own
    return tokens


def _read_recordings(path: Path) -> frozenset[str]:
    text = read_small(path, MOST_RECORDINGS_BYTES)
    if not re.fullmatch(rb"([0-9a-f]{16}\n)*", text):
        raise UserError(f"{path}: expected lines of 16 hexadecimal digits, found something else")
    return frozenset(text.decode().split())


def _filled(folder: Path, description: dict, hashes: dict) -> nn.Module:
    where, backbone = f"{folder / CONFIG}: model", str(folder / BACKBONE)
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):  # sizes without memory
            expected = build_model(description, where, backbone).state_dict()
        _compare_tensors(folder / PARAMETERS, expected)
        for name in {*LARGE} & {*hashes}:
            # a graph has the same parameters, and some code
            _check_size(folder / name, 2 * (folder / PARAMETERS).stat().st_size + MOST_TOKENS_BYTES)
            _check_hash(folder / name, hashes[name])
        model = build_model(description, where, backbone)
    model.load_state_dict(load_file(folder / PARAMETERS))
    return model


def _compare_tensors(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """The file must hold the model's tensors, all of them and no others, of their sizes and types."""
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    if header > MOST_BYTES:
        raise UserError(f"{path}: expected a file of safetensors whose header has at most {MOST_BYTES} bytes")
    _check_size(path, MOST_BYTES + 2 * sum(value.numel() * value.element_size() for value in expected.values()))
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {name: f"{part.get_dtype()} {part.get_shape()}" for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: expected a file of safetensors: {error}") from error
    wanted = {name: f"{DTYPES.get(value.dtype, value.dtype)} {list(value.shape)}" for name, value in expected.items()}
    for name in sorted({*wanted, *found}):
        if (expected := wanted.get(name, "none")) != (there := found.get(name, "none")):
            first = f"{ascii(name)[1:-1]:.100} {expected}, found {there}"
            raise UserError(f"{path}: expected the tensors of the model of {CONFIG}, {first}")


def _check_sizes(folder: Path, model: nn.Module, classes: list, tokens) -> None:
    if (n := model.heads["emotion"].out_features if "emotion" in model.heads else 0) != len(classes):
        raise UserError(f"{folder / LABELS}: expected {n} classes, as the model has, found {len(classes)}")
    if ("asr" in model.heads) != (tokens is not None):
        found = "decoding" if tokens is not None else "null"
        raise UserError(f"{folder / CONFIG}: decoding: expected it where the model has an ASR head, found {found}")
    if tokens is not None and (n := model.heads["asr"].out_features) != len(tokens):
        raise UserError(f"{folder / TOKENS}: expected {n} tokens, as the model has, found {len(tokens)}")
