"""A package's model: plain JSON, safetensors, classes of one table; nothing of the package is executed."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from speechbrain_ser.calibration import check_calibration
from speechbrain_ser.dataio import SAMPLE_RATE
from speechbrain_ser.decoding import KINDS
from speechbrain_ser.errors import UserError
from speechbrain_ser.package.classes import build_model
from speechbrain_ser.package.description import has_backbone
from speechbrain_ser.package.hub import find_package
from speechbrain_ser.package.layout import (
    BACKBONE,
    BACKBONE_FILES,
    CONFIG,
    FORMAT,
    LABELS,
    PARAMETERS,
    TOKENS,
    VERSION,
    check_files,
    checked_path,
)
from speechbrain_ser.package.plain_json import read_json
from speechbrain_ser.tokens import load_tokens

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
