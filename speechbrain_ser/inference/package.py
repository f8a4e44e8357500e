"""A package: plain JSON and safetensors, classes of one table; nothing of the package is executed."""

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import huggingface_hub
import ruamel.yaml
import torch
from huggingface_hub.errors import HFValidationError
from ruamel.yaml.comments import TaggedScalar
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from speechbrain_ser.data.batches import SAMPLE_RATE
from speechbrain_ser.data.text import load_tokens
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.calibration import check_calibration
from speechbrain_ser.files import sha256
from speechbrain_ser.lobes.backbone import HUB_NAME
from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.lobes.encoder import Encoder
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.lobes.whisper import Whisper
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.models.decoding import KINDS
from speechbrain_ser.models.fu import FuModel
from speechbrain_ser.models.ha import HaModel
from speechbrain_ser.models.hsu import HsuModel
from speechbrain_ser.models.probe import ProbeModel
from speechbrain_ser.nnet.convolution import ConvHead
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.log_mel import LogMel
from speechbrain_ser.processing.pitch import PitchTrack
from speechbrain_ser.processing.split_mel import SplitMel

MOST_BYTES = 1 << 20


DEEPEST = 24


def read_json(path: Path, kind: type, most_bytes: int = MOST_BYTES):
    """The content of a JSON file, without any of the ways in which such a file can hurt.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    kind : type
        What it must hold, dict or list.
    most_bytes : int
        A larger file is not read.

    Returns
    -------
    dict or list

    Raises
    ------
    UserError
        When it is too large, too deeply nested, no JSON, no `kind`, says NaN, has a key twice, or control characters.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.json"
    >>> _ = path.write_text('{"a": 1, "a": 2}')
    >>> read_json(path, dict)
    Traceback (most recent call last):
        ...
    speechbrain_ser.errors.UserError: ...a.json: expected JSON: the key 'a' is there twice
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path}: expected a file that can be read: {error.strerror}") from error
    if len(data) > most_bytes:
        raise UserError(f"{path}: expected at most {most_bytes} bytes, found more")
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_each_once, parse_constant=_no_number)
    except RecursionError as error:
        raise UserError(f"{path}: expected at most {DEEPEST} levels, found more") from error
    except ValueError as error:
        raise UserError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: expected a JSON {_name(kind)}, found {_name(type(content))}")
    if _is_deeper(content, DEEPEST):
        raise UserError(f"{path}: expected at most {DEEPEST} levels, found more")
    if (text := next((text for text in _texts(content) if not text.isprintable()), None)) is not None:
        raise UserError(f"{path}: expected text that can be printed, found {text!a:.100}")
    return content


def _each_once(pairs: list) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r:.100} is there twice")
    return content


def _no_number(text: str):
    raise ValueError(f"{text} is no number")


def _is_deeper(content, levels: int) -> bool:
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(each, levels - 1) for each in inner))


def _texts(content) -> Iterator[str]:
    """Keys and values: what a terminal would obey must not reach it."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for each in [*content, *(content.values() if isinstance(content, dict) else [])]:
            yield from _texts(each)


def _name(kind: type) -> str:
    return {dict: "object", list: "list"}.get(kind, kind.__name__)


HERE = "speechbrain_ser/inference/package.py"


LONGEST_TEXT = 100


LARGEST = 1_000_000


#: arguments that make so many layers, or tables of that width
MOST = {"layers": 100, "lstm_layers": 100, "blocks": 100, "n_mels": 1024, "n_fft": 16384, "win_length": 16384}


class Kind(NamedTuple):
    """A class and the arguments that a description has, and has not, of it."""

    make: Callable[..., object]
    arguments: frozenset[str]
    left_out: frozenset[str] = frozenset()  # matter in training alone, or are set by who loads


def _kind(make, arguments: str, left_out: str = "") -> Kind:
    return Kind(make, frozenset(arguments.split()), frozenset(left_out.split()))


WITHOUT_WEIGHTS = "source save_path load_weights"


IN_TRAINING = (
    "attn_implementation gradient_checkpointing freeze_feature_extractor apply_spec_augment mask_time_prob "
    "mask_time_length mask_feature_prob mask_feature_length layerdrop dropout lora seed"
)


LEFT_OUT = f"{WITHOUT_WEIGHTS} {IN_TRAINING} cache_front_end"


# states that were cached in float16 are read so by who uses the model, too
OF_BOTH = "n_layers weighted_sum output_norm freeze freeze_layers cache_embeddings"


OF_WAV2VEC2, OF_WHISPER = f"{OF_BOTH} normalize_wav", f"{OF_BOTH} pad_to_30s windows"


#: lobes whose settings lie in the package's folder `backbone`
ENCODERS = {
    "speechbrain_ser.lobes.encoder.Encoder": _kind(Encoder, f"{OF_WAV2VEC2} {OF_WHISPER}", LEFT_OUT),
    "speechbrain_ser.lobes.wav2vec2.Wav2Vec2": _kind(Wav2Vec2, OF_WAV2VEC2, LEFT_OUT),
    "speechbrain_ser.lobes.whisper.Whisper": _kind(Whisper, OF_WHISPER, f"{WITHOUT_WEIGHTS} {IN_TRAINING}"),
}


LOG_MEL = "speechbrain_ser.processing.log_mel.LogMel"


MODELS = {
    "speechbrain_ser.models.cai.CaiModel": _kind(CaiModel, "encoder pooling heads loss_weights", "seed"),
    "speechbrain_ser.models.ha.HaModel": _kind(HaModel, "encoder pooling heads loss_weights", "seed reversal schedule"),
    "speechbrain_ser.models.fu.FuModel": _kind(
        FuModel, "features encoder heads loss_weights fixed_length cut standardize cached", "feature_augment seed"
    ),
    "speechbrain_ser.models.hsu.HsuModel": _kind(
        HsuModel,
        "encoder pooling mel pitch parts emotion_reads sizes resample resampling heads loss_weights",
        "seed",
    ),
    "speechbrain_ser.models.probe.ProbeModel": _kind(ProbeModel, "encoder heads loss_weights", "seed"),
}


CLASSES = (
    MODELS
    | ENCODERS
    | {
        "speechbrain_ser.lobes.cnn_blstm_attention.CNNBLSTMAttention": _kind(
            CNNBLSTMAttention,
            "input_size channels kernels bottleneck lstm_size lstm_layers heads head_size dropout initialization",
        ),
        "speechbrain_ser.nnet.pooling.MaskedPooling": _kind(MaskedPooling, "mode"),
        LOG_MEL: _kind(LogMel, "n_fft hop_length n_mels scale"),
        "speechbrain_ser.processing.split_mel.SplitMel": _kind(SplitMel, "dither"),
        "speechbrain_ser.processing.pitch.PitchTrack": _kind(PitchTrack, "method f_range"),
        "speechbrain_ser.nnet.convolution.ConvHead": _kind(ConvHead, "out_features hidden kernel", "dropout"),
        "torch.nn.Linear": _kind(nn.Linear, "out_features bias"),
    }
)


def find_kind(name: str, where: str, table: Mapping[str, Kind] = CLASSES) -> Kind:
    """The entry of a class in the table.

    Raises
    ------
    UserError
        Naming the place, the class and the table.

    Example
    -------
    >>> find_kind("torch.nn.Linear", "heads").make
    <class 'torch.nn.modules.linear.Linear'>
    >>> find_kind("os.system", "heads")
    Traceback (most recent call last):
        ...
    speechbrain_ser.errors.UserError: heads: expected a class of the table in ...classes.py, found os.system
    """
    if not isinstance(name, str) or name not in table:
        hint = nearest(name[:LONGEST_TEXT], table) if isinstance(name, str) else ""
        kind = "a model" if table is MODELS else "a class"
        raise UserError(f"{where}: expected {kind} of the table in {HERE}, found {name!s:.200}{hint}")
    return table[name]


def build_model(description: dict, where: str, backbone: str | None = None) -> nn.Module:
    """A model with random parameters, from its description.

    Arguments
    ---------
    description : dict
        ``{"class": name, "arguments": {…}}``, nested; ``partial`` instead of ``class``: a constructor that still
        lacks arguments.
    where : str
        Who the description is from, for messages.
    backbone : str, optional
        The folder of the backbone's settings, where the model has one.

    Returns
    -------
    torch.nn.Module
        In evaluation mode.

    Raises
    ------
    UserError
        For a class or argument that is not in the table, a value that is not plain, and whatever the constructors say.
    """
    make = {name: partial(kind.make, source=backbone, load_weights=False) for name, kind in ENCODERS.items()}
    make[LOG_MEL] = _log_mel
    find_kind(description.get("class") if isinstance(description, dict) else description, where, MODELS)
    try:
        return _build(description, where, make).eval()
    except UserError:
        raise
    except Exception as error:  # a constructor may fail in any way at values of another kind
        raise UserError(f"{where}: no model can be built from it: {type(error).__name__}: {error!s:.500}") from error


def _build(content, where: str, make: Mapping[str, Callable]):
    if isinstance(content, list):
        return [_build(each, f"{where}[{k}]", make) for k, each in enumerate(content)]
    if not isinstance(content, dict):
        return _plain(content, where)
    if not {"class", "partial"} & set(content):
        return {name: _build(each, f"{where}: {name}", make) for name, each in content.items()}
    if set(content) not in ({"class", "arguments"}, {"partial", "arguments"}):
        raise UserError(f"{where}: expected class (or partial) and arguments, found {', '.join(content)!s:.200}")
    name = content.get("class", content.get("partial"))
    kind, arguments = find_kind(name, where), content["arguments"]
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: arguments: expected an object, found {type(arguments).__name__}")
    if unknown := sorted(set(arguments) - kind.arguments):
        raise UserError(f"{where}: {name}: expected arguments {_listed(kind.arguments)}, found {', '.join(unknown)}")
    built = {key: _build(each, f"{where}: {key}", make) for key, each in arguments.items()}
    maker = make.get(name, kind.make)
    return maker(**built) if "class" in content else partial(maker, **built)


def _plain(value, where: str):
    """Text and numbers of a usual size: what is built must not outgrow the machine."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise UserError(f"{where}: expected at most {LONGEST_TEXT} characters, found {len(value)}")
    most = MOST.get(where.rpartition(": ")[2], LARGEST)
    if isinstance(value, (int, float)) and not -most <= value <= most:
        raise UserError(f"{where}: expected at most {most}, found {value!s:.100}")
    return value


def _log_mel(**arguments) -> LogMel:
    """Its filters are computed, from values, when it is built: even where parameters have a size and no memory."""
    with torch.device("cpu"):
        return LogMel(**arguments)


def _listed(names) -> str:
    return ", ".join(sorted(names)) or "none"


FORMAT = "speechbrain-ser package"


VERSION = 1


CONFIG = "config.json"


PARAMETERS = "model.safetensors"


LABELS = "labels.json"


TOKENS = "tokens.json"


BACKBONE = "backbone"


BACKBONE_FILES = (f"{BACKBONE}/config.json", f"{BACKBONE}/preprocessor_config.json")


ONNX = "model.onnx"


SPEECHBRAIN_FILES = ("hyperparams.yaml", "label_encoder.txt")  # written for SpeechBrain, never read here


CARD = "README.md"


#: all files whose hash config.json may hold
FILES = (PARAMETERS, LABELS, TOKENS, *BACKBONE_FILES, ONNX, *SPEECHBRAIN_FILES)


#: may be there without a hash: they are edited on a hub's page, and nothing reads them
UNHASHED = (CONFIG, CARD, "LICENSE")


SHA256 = re.compile(r"[0-9a-f]{64}")


def check_files(folder: Path, hashes: dict) -> None:
    """Refuse a folder that is not exactly what its config.json says, before anything of it is used.

    Arguments
    ---------
    folder : pathlib.Path
        The package; its config.json has been read.
    hashes : dict of str to str
        SHA-256 of each file, by its path in the folder.

    Raises
    ------
    UserError
        Naming the file: a path that leaves the folder, a file that no package has, one that lacks, differs from its
        hash, or is a link to somewhere else; one that is there and not listed.
    """
    config = folder / CONFIG
    for name, digest in hashes.items():
        _check_name(name, config)
        if not (isinstance(digest, str) and SHA256.fullmatch(digest)):
            raise UserError(
                f"{config}: files: {name}: expected a SHA-256 of 64 hexadecimal digits, found {digest!r:.100}"
            )
    for path in _found(folder):
        if path not in hashes and path not in UNHASHED:
            name = path if path.isprintable() else ascii(path)
            raise UserError(f"{folder / name}: expected only files that {CONFIG} lists, found this one")
    for name, digest in hashes.items():
        found = sha256(checked_path(folder, name))
        if found != digest:
            raise UserError(f"{folder / name}: expected the SHA-256 {digest} of {CONFIG}, found {found}")


def _check_name(name: str, config: Path) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise UserError(f"{config}: files: expected paths within the folder, found {name!r:.200}")
    if name not in FILES:
        raise UserError(f"{config}: files: expected some of {', '.join(FILES)}, found {name!r:.200}")


def _found(folder: Path) -> Iterator[str]:
    """All files below a folder, and links; hidden ones (.git, .gitattributes, .cache) are left alone."""
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in [*files, *links]:
            if not name.startswith("."):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _unreadable(error: OSError):
    raise UserError(f"{error.filename}: expected a folder that can be read: {error.strerror}") from error


def checked_path(folder: Path, name: str) -> Path:
    """The path of a file of the package: a regular file, itself in the folder.

    In a snapshot of the Hugging Face hub's cache each file is a link into the cache's folder of blobs, two levels up;
    such a link is followed, no other.

    Raises
    ------
    UserError
        When there is none, or it is somewhere else.
    """
    path = folder / name
    if not path.is_file():  # follows links; false for pipes and devices
        raise UserError(
            f"{path}: expected a file of the package, found {'something else' if _exists(path) else 'none'}"
        )
    home, real = folder.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"  # not resolved: it may be no link itself
    is_blob = home.parent.name == "snapshots" and real.parent == blobs
    if not (is_blob or real.is_relative_to(home)):
        raise UserError(f"{path}: expected a file within {home}, found a link to {real}")
    return path


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


#: tasks of a model that is used: other heads, and what only they read, are for training
TASKS = ("emotion", "asr")


TAG = re.compile(r"!(new|name):(.+)")


def describe(tree: Mapping, where: str) -> dict:
    """The line `model` of a run's YAML as plain data.

    Heads for other tasks than :data:`TASKS` are left out, and so are arguments that matter in training alone.

    Arguments
    ---------
    tree : mapping
        The YAML with its tags, as ruamel.yaml's round-trip loader reads it.
    where : str
        Its file, for messages.

    Returns
    -------
    dict
        What :func:`speechbrain_ser.inference.package.build_model` takes.

    Raises
    ------
    UserError
        For a class that no package may name, an unknown argument, or a value that is not plain.

    Example
    -------
    >>> text = '''
    ... model: !new:speechbrain_ser.models.cai.CaiModel
    ...   encoder: !new:speechbrain_ser.lobes.wav2vec2.Wav2Vec2 {source: /somewhere, weighted_sum: true}
    ...   pooling: !new:speechbrain_ser.nnet.pooling.MaskedPooling
    ...   heads: {emotion: !name:torch.nn.Linear {out_features: 4}, asr: !name:torch.nn.Linear {out_features: null}}
    ...   loss_weights: {emotion: 1.0, asr: 0}
    ...   seed: 1
    ... '''
    >>> found = describe(ruamel.yaml.YAML().load(text), "hyperparams.yaml")
    >>> found["class"], found["arguments"]["encoder"]["arguments"]
    ('speechbrain_ser.models.cai.CaiModel', {'weighted_sum': True})
    >>> found["arguments"]["heads"]
    {'emotion': {'partial': 'torch.nn.Linear', 'arguments': {'out_features': 4}}}
    """
    where = f"{where}: model"
    description = _plain_description(tree.get("model"), where)
    find_kind(description.get("class") if isinstance(description, dict) else description, where, MODELS)
    arguments = description["arguments"]
    weights = arguments.get("loss_weights", {})
    wanted = [task for task in TASKS if weights.get(task)]
    arguments["loss_weights"] = {task: weights[task] for task in wanted}
    arguments["heads"] = {task: maker for task, maker in arguments.get("heads", {}).items() if task in wanted}
    return description


def has_backbone(description: dict) -> bool:
    """Whether a model reads waveforms by a pretrained encoder, whose settings then go with it."""
    arguments = description.get("arguments")
    encoder = arguments.get("encoder") if isinstance(arguments, dict) else None
    return isinstance(encoder, dict) and encoder.get("class") in ENCODERS


def _plain_description(node, where: str):
    tag = str(getattr(getattr(node, "tag", None), "value", None) or "")
    if tag.startswith("!"):
        return _described(tag, node, where)
    if isinstance(node, Mapping):
        return {str(key): _plain_description(value, f"{where}: {key}") for key, value in node.items()}
    if isinstance(node, str):
        return _text(str(node))
    if isinstance(node, Sequence):
        return [_plain_description(value, f"{where}[{k}]") for k, value in enumerate(node)]
    return _scalar(node, where)


def _described(tag: str, node, where: str) -> dict:
    match = TAG.fullmatch(tag)
    if match is None:
        raise UserError(f"{where}: expected plain values and classes, found {tag}, which no package can hold")
    key, name = {"new": "class", "name": "partial"}[match[1]], match[2]
    kind = find_kind(name, where)
    given = [] if isinstance(node, TaggedScalar) else node
    named = dict(given) if isinstance(given, Mapping) else _by_name(kind.make, given, where)
    if unknown := sorted(set(named) - kind.arguments - kind.left_out):
        known = ", ".join(sorted(kind.arguments | kind.left_out))
        raise UserError(f"{where}: {name}: expected arguments {known}, found {', '.join(unknown)}")
    kept = {n: _plain_description(value, f"{where}: {n}") for n, value in named.items() if n in kind.arguments}
    return {key: name, "arguments": kept}


def _by_name(make, given: Sequence, where: str) -> dict:
    try:
        return inspect.signature(make).bind_partial(*given).arguments
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error


def _text(text: str):
    """HyperPyYAML reads ``(1, 2)`` as a tuple."""
    if not re.fullmatch(r"\(.*\)", text):
        return text
    return [_scalar(each, text) for each in ruamel.yaml.YAML(typ="safe").load(f"[{text[1:-1]}]")]


def _scalar(value, where: str):
    for kind in (bool, int, float, str):  # ruamel.yaml's own numbers remember how they were written
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    raise UserError(f"{where}: expected plain values, found {type(value).__name__}")


def is_hub_name(name: str) -> bool:
    """Whether it can be a model on the hub, and is nothing on this machine.

    Example
    -------
    >>> is_hub_name("somebody/emotions"), is_hub_name("results/cai_mtl/default"), is_hub_name("./emotions")
    (True, False, False)
    """
    return not os.path.lexists(name) and name.count("/") == 1 and HUB_NAME.fullmatch(name) is not None


def find_package(source: str | os.PathLike) -> Path:
    """The folder of a package.

    A hub model that is already in the hub's cache is used as it is, without asking the network.

    Arguments
    ---------
    source : str or os.PathLike
        A folder, or ``user/model``.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UserError
        When there is no such folder, or the hub cannot be reached or has no such package.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_name(os.fspath(source)):
        raise UserError(f"{source}: expected the folder of a package, or user/model on the hub, found no such folder")
    return _cached(str(source)) or _fetched(str(source))


def _cached(name: str) -> Path | None:
    """The snapshot of a model in the user's cache, when all files of its config.json are there."""
    try:
        found = huggingface_hub.try_to_load_from_cache(name, CONFIG)
    except HFValidationError:
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    listed = read_json(folder / CONFIG, dict).get("files", {})
    return folder if isinstance(listed, dict) and all((folder / f).is_file() for f in FILES if f in listed) else None


def _fetched(name: str) -> Path:
    try:
        # this fails at once without network; a download would try again for half a minute
        info = huggingface_hub.HfApi().model_info(name, timeout=20)
        there = sorted(file.rfilename for file in info.siblings or ())
        if CONFIG not in there:
            raise UserError(f"hub model '{name}': expected a package's {CONFIG}, found {', '.join(there):.300}")
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[CONFIG, *FILES]))
    except UserError:
        raise
    except Exception as error:  # several libraries' network, offline and not-found errors
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(
            f"{name}: expected the folder of a package, or a model on the Hugging Face hub; there is no such folder "
            f"here, and the hub's could not be fetched ({reason})"
        ) from error


KEYS = "format format_version speechbrain_ser model classes decoding sample_rate calibration files".split()


MOST_CLASSES = 1000


MOST_TOKENS_BYTES = 64 << 20  # a SentencePiece model is in it, in hexadecimal digits


DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}


@dataclass(frozen=True)
class Package:
    """What a package holds.

    Arguments
    ---------
    model : torch.nn.Module
        In evaluation mode, on the CPU.
    classes : list of str
        Emotion classes, in the order of the logits.
    tokens : CharacterTokens or SentencePieceTokens, optional
        What the ASR head spells with; None where there is no such head.
    decoding : dict, optional
        ``kind`` and ``beam_size`` of the search.
    calibration : dict, optional
        The content of the run's ``calibration.json``, as it is; None where it had none.
    digest : str
        Of the parameters: 16 hexadecimal digits.
    """

    model: nn.Module
    classes: list[str]
    tokens: object | None
    decoding: dict | None
    calibration: dict | None
    digest: str


def load_package(source: str | os.PathLike) -> Package:
    """The model of a package that ``speechbrain-ser export`` wrote.

    All hashes are checked before anything is used. The model is first built without memory and compared with the
    names, sizes and types in the file of parameters.

    Arguments
    ---------
    source : str or os.PathLike
        The folder, or a name on the Hugging Face hub (``user/model``).

    Returns
    -------
    Package

    Raises
    ------
    UserError
        Naming the file, what was expected and what was found.
    """
    folder = find_package(source)
    config = _read_config(folder)
    check_files(folder, config["files"])
    _check_presence(folder, config)
    classes = _classes(folder, config)
    tokens = _tokens(folder) if config["decoding"] is not None else None
    model = _filled(folder, config["model"])
    _check_sizes(folder, model, classes, tokens)
    digest = config["files"][PARAMETERS][:16]
    return Package(model, classes, tokens, config["decoding"], config["calibration"], digest)


def _read_config(folder: Path) -> dict:
    path = checked_path(folder, CONFIG)
    config = read_json(path, dict)
    if config.get("format") != FORMAT:
        raise UserError(f"{path}: format: expected {FORMAT!r}, found {config.get('format')!r:.100}")
    if config.get("format_version") != VERSION or isinstance(config["format_version"], bool):
        found = config.get("format_version")
        raise UserError(f"{path}: format_version: this program reads {VERSION}, found {found!r:.100}")
    if wrong := sorted(set(KEYS) ^ set(config)):
        raise UserError(f"{path}: expected the keys {', '.join(KEYS)}; missing or unknown: {', '.join(wrong)!s:.200}")
    _check_values(path, config)
    return config


def _check_values(path: Path, config: dict) -> None:
    for key in ("model", "files"):
        if not isinstance(config[key], dict):
            raise UserError(f"{path}: {key}: expected an object, found {config[key]!r:.100}")
    if config["sample_rate"] != SAMPLE_RATE:
        raise UserError(f"{path}: sample_rate: expected {SAMPLE_RATE}, found {config['sample_rate']!r:.100}")
    if config["calibration"] is not None:
        check_calibration(config["calibration"], f"{path}: calibration")
    decoding = config["decoding"]
    if decoding is None:
        return
    size = decoding.get("beam_size") if isinstance(decoding, dict) else None
    right = isinstance(decoding, dict) and set(decoding) == {"kind", "beam_size"} and decoding["kind"] in KINDS
    if not (right and isinstance(size, int) and 1 <= size <= 10_000):
        raise UserError(f"{path}: decoding: expected kind ({', '.join(KINDS)}) and beam_size, found {decoding!r:.200}")


def _check_presence(folder: Path, config: dict) -> None:
    """Of each file that this model needs there must be a hash."""
    needed = {PARAMETERS, LABELS}
    needed |= {TOKENS} if config["decoding"] is not None else set()
    needed |= set(BACKBONE_FILES) if has_backbone(config["model"]) else set()
    if lacking := sorted(needed - set(config["files"])):
        raise UserError(
            f"{folder / CONFIG}: files: expected {', '.join(sorted(needed))}; missing: {', '.join(lacking)}"
        )


def _classes(folder: Path, config: dict) -> list[str]:
    path, classes = folder / LABELS, read_json(folder / LABELS, list)
    right = 1 <= len(classes) <= MOST_CLASSES and all(isinstance(c, str) and 0 < len(c) <= 100 for c in classes)
    if not right or len(set(classes)) < len(classes):
        raise UserError(f"{path}: expected 1 to {MOST_CLASSES} different names of classes, found {classes!r:.200}")
    if classes != config["classes"]:
        raise UserError(f"{path}: expected the classes of {CONFIG}, {config['classes']!r:.200}, found {classes!r:.200}")
    return classes


def _tokens(folder: Path):
    path = folder / TOKENS
    state = read_json(path, dict, MOST_TOKENS_BYTES)
    labels = state.get("labels")
    if state.get("kind") == "characters":
        right = (
            set(state) == {"kind", "labels"} and isinstance(labels, list) and all(isinstance(t, str) for t in labels)
        )
    else:
        right = state.get("kind") == "sentencepiece" and isinstance(state.get("model"), str)
    if not right:
        raise UserError(f"{path}: expected kind characters and labels, or kind sentencepiece and model, found neither")
    try:
        tokens = load_tokens(path)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: expected what a run writes: {error}") from error
    if wrong := [label for label in tokens.labels if not label.isprintable()]:  # of SentencePiece's own
        raise UserError(f"{path}: expected text that can be printed, found {wrong[0]!a:.100}")
    return tokens


def _filled(folder: Path, description: dict) -> nn.Module:
    where, backbone = f"{folder / CONFIG}: model", str(folder / BACKBONE)
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):  # sizes without memory
            expected = build_model(description, where, backbone).state_dict()
        _compare(folder / PARAMETERS, expected)
        model = build_model(description, where, backbone)
    model.load_state_dict(load_file(folder / PARAMETERS))
    return model


def _compare(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """The file of parameters must hold the model's tensors, all of them and no others, of their sizes and types."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}
            found = {name: (part.get_shape(), part.get_dtype()) for name, part in found.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: expected a file of safetensors: {error}") from error
    wanted = {name: (list(value.shape), DTYPES.get(value.dtype, str(value.dtype))) for name, value in expected.items()}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [
        f"{name if name.isprintable() else ascii(name):.100} is not the model's" for name in found if name not in wanted
    ]
    both = [name for name in wanted if name in found and found[name] != wanted[name]]
    problems += [f"{name}: expected {_said(wanted[name])}, found {_said(found[name])}" for name in both]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path}: expected the tensors of the model of {CONFIG}: {'; '.join(problems[:5])}{more}")


def _said(tensor: tuple) -> str:
    return f"{tensor[1]} {list(tensor[0])}"


def _check_sizes(folder: Path, model: nn.Module, classes: list, tokens) -> None:
    """As many logits as classes and tokens."""
    if (n := model.heads["emotion"].out_features) != len(classes):
        raise UserError(f"{folder / LABELS}: expected {n} classes, as the model has, found {len(classes)}")
    if ("asr" in model.heads) != (tokens is not None):
        found = "decoding" if tokens is not None else "null"
        raise UserError(f"{folder / CONFIG}: decoding: expected it where the model has an ASR head, found {found}")
    if tokens is not None and (n := model.heads["asr"].out_features) != len(tokens):
        raise UserError(f"{folder / TOKENS}: expected {n} tokens, as the model has, found {len(tokens)}")
