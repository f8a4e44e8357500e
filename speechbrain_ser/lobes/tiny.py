"""Random wav2vec2-style backbones in any size, for the demo, for tests and for training from scratch.

    python -m speechbrain_ser.lobes.tiny pretrained/tiny
    python -m speechbrain_ser.lobes.tiny pretrained/base --hidden_size=768 --num_layers=12 --conv_dim=512 \\
        --num_heads=12 --intermediate_size=3072 --feat_extract_norm=group
"""

import argparse
import inspect
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from speechbrain_ser.lobes.backbone import BackboneError
from speechbrain_ser.lobes.import_whisper import quiet_transformers

MODELS = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
    "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioModel),
    "whisper": (WhisperConfig, WhisperModel),
}
CONV_LAYERS = 7
SETTINGS_FILE = "tiny.json"


def build_tiny_wav2vec2(
    folder: str | os.PathLike,
    seed: int = 0,
    model_type: str = "wav2vec2",
    hidden_size: int = 128,
    num_layers: int = 3,
    conv_dim: int = 64,
    feat_extract_norm: str = "layer",
    num_heads: int = 4,
    intermediate_size: int = 256,
    num_conv_pos_embeddings: int | None = None,
    dropout: float = 0.1,
    layerdrop: float = 0.0,
    do_stable_layer_norm: bool = False,
) -> Path:
    """Write a randomly initialised backbone that loads like a published one.

    The defaults give 0.6 M parameters, enough to learn a corpus of a few hundred utterances from scratch. The
    same settings give the same files byte for byte, and the program's random state is left alone. A folder
    that already holds the same settings is kept; any other is refused.

    Arguments
    ---------
    folder : str
        Where to write; appears complete or not at all.
    seed : int
        Of the weights.
    model_type : str
        `wav2vec2`, `hubert`, `wavlm`, `data2vec-audio` or `whisper` (80 mel bands; what speaks of convolutions is not
        read).
    hidden_size : int
        Channels of the transformer.
    num_layers : int
        Transformer layers.
    conv_dim : int
        Channels of each of the seven convolutions.
    feat_extract_norm : str
        `layer` or `group` (as wav2vec2-base; not in data2vec).
    num_heads : int
        Attention heads.
    intermediate_size : int
        Width of the feed-forward layers.
    num_conv_pos_embeddings : int, optional
        Kernel size of the positional convolution (of each of five in data2vec). None: as published, 128 (19).
    dropout : float
        Of hidden states, attention, feature projection and activations.
    layerdrop : float
        Probability of skipping a transformer layer in training.
    do_stable_layer_norm : bool
        Normalise before each transformer block instead of after (not in data2vec).

    Returns
    -------
    pathlib.Path
        The folder, with config.json, model.safetensors, preprocessor_config.json and the settings in
        tiny.json.

    Raises
    ------
    BackboneError
        When the folder holds anything else.
    ValueError
        When a setting is not possible.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tiny"
    >>> folder = build_tiny_wav2vec2(path, hidden_size=16, num_layers=1, conv_dim=8)
    >>> sorted(file.name for file in folder.iterdir())
    ['config.json', 'model.safetensors', 'preprocessor_config.json', 'tiny.json']
    """
    settings = {name: value for name, value in locals().items() if name != "folder"}
    folder = Path(folder).expanduser()
    if _is_built(folder, settings):
        return folder
    model = _build(settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write(temporary, model, settings)
        _move(temporary, folder, settings)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_built(folder: Path, settings: dict) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BackboneError(f"{folder} exists and was not built here: give another folder") from None
    if found != settings:
        different = sorted(name for name in settings if found.get(name) != settings[name])
        raise BackboneError(
            f"{folder} was built with other settings ({', '.join(different)}): give another folder or remove it"
        )
    return True


def _build(settings: dict) -> torch.nn.Module:
    config_class, model_class = _classes(settings)
    if settings["hidden_size"] % settings["num_heads"]:
        raise ValueError(f"hidden_size {settings['hidden_size']} is no multiple of num_heads {settings['num_heads']}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings["seed"])  # torch.manual_seed would reach into CUDA's as well
        return model_class(config_class(**(_whisper if config_class is WhisperConfig else _config)(settings)))


def _classes(settings: dict) -> tuple[type, type]:
    model_type = settings["model_type"]
    if model_type not in MODELS:
        raise ValueError(f"model_type is {model_type!r}, expected one of {', '.join(MODELS)}")
    if settings["feat_extract_norm"] not in ("layer", "group"):
        raise ValueError(f"feat_extract_norm is {settings['feat_extract_norm']!r}, expected layer or group")
    unlike = settings["feat_extract_norm"] == "group" or settings["do_stable_layer_norm"]
    if model_type == "data2vec-audio" and unlike:
        raise ValueError("data2vec-audio has a layer-norm front end only, and no do_stable_layer_norm")
    return MODELS[model_type]


def _config(settings: dict) -> dict:
    dropouts = ("hidden_dropout", "attention_dropout", "feat_proj_dropout", "activation_dropout")
    config = dict.fromkeys(dropouts, settings["dropout"])
    config |= {
        "hidden_size": settings["hidden_size"],
        "num_hidden_layers": settings["num_layers"],
        "num_attention_heads": settings["num_heads"],
        "intermediate_size": settings["intermediate_size"],
        "conv_dim": [settings["conv_dim"]] * CONV_LAYERS,
        "layerdrop": settings["layerdrop"],
        "num_conv_pos_embedding_groups": math.gcd(16, settings["hidden_size"]),
    }
    kernel = settings["num_conv_pos_embeddings"]
    if settings["model_type"] == "data2vec-audio":
        # its num_conv_pos_embeddings counts convolutions, the kernel has a name of its own
        return config | {"conv_pos_kernel_size": kernel or 19}
    return config | {
        "num_conv_pos_embeddings": kernel or 128,
        "feat_extract_norm": settings["feat_extract_norm"],
        "do_stable_layer_norm": settings["do_stable_layer_norm"],
    }


def _whisper(settings: dict) -> dict:
    sizes = {"layers": "num_layers", "attention_heads": "num_heads", "ffn_dim": "intermediate_size"}
    config = {f"encoder_{name}": settings[key] for name, key in sizes.items()}
    config |= {f"decoder_{name}": size for name, size in zip(sizes, (1, 1, 8), strict=True)}
    config |= dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), settings["dropout"])
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    return {
        **config,
        "d_model": settings["hidden_size"],
        "encoder_layerdrop": settings["layerdrop"],
        "vocab_size": 8,
        "begin_suppress_tokens": None,
        **tokens,
    }


def _write(folder: Path, model: torch.nn.Module, settings: dict) -> None:
    with quiet_transformers():
        model.save_pretrained(folder)
    if settings["model_type"] == "whisper":
        WhisperFeatureExtractor().save_pretrained(folder)
    else:
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _share(folder)


def _share(folder: Path) -> None:
    """Usual permissions: temporary folders and safetensors' files are the owner's alone."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def _move(temporary: Path, folder: Path, settings: dict) -> None:
    try:
        os.replace(temporary, folder)
    except OSError:  # another process was faster
        if not _is_built(folder, settings):
            raise


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text}")
    return text.lower() == "true"


def main(arguments: list[str] | None = None) -> None:
    """The command line: every argument of :func:`build_tiny_wav2vec2` is an option."""
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_ser.lobes.tiny",
        description="Write a randomly initialised wav2vec2, HuBERT, WavLM, data2vec or Whisper backbone.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="where to write")
    for name, parameter in list(inspect.signature(build_tiny_wav2vec2).parameters.items())[1:]:
        default = parameter.default
        kind = _boolean if isinstance(default, bool) else int if default is None else type(default)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"default: {default}")
    settings = vars(parser.parse_args(arguments))
    try:
        folder = build_tiny_wav2vec2(**settings)
    except ValueError as error:
        parser.error(str(error))
    print(folder)


if __name__ == "__main__":
    main()
