"""Random backbones in any size, for the demo, for tests and for training from scratch."""

import json
import math
import os
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import folder_written_whole, write_json
from speechbrain_ser.lobes.backbone import MODEL_TYPES, quiet_transformers
from speechbrain_ser.lobes.wav2vec2 import DROPOUTS
from speechbrain_ser.lobes.whisper import Whisper

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
    """Write a randomly initialised backbone that loads like a published one, whole or not at all; return its folder.

    The defaults give 0.6 M parameters, enough to learn a corpus of a few hundred utterances from scratch. The same
    settings give the same files byte for byte, and the program's random state is left alone. A folder that already
    holds the same settings is kept; any other is refused.

    Arguments
    ---------
    model_type : str
        `wav2vec2`, `hubert`, `wavlm`, `data2vec-audio` or `whisper` (80 mel bands; what speaks of convolutions is not
        read).
    conv_dim : int
        Channels of each of the seven convolutions.
    feat_extract_norm : str
        `layer` or `group` (as wav2vec2-base; not in data2vec).
    num_conv_pos_embeddings : int, optional
        Kernel size of the positional convolution (of each of five in data2vec). None: as published, 128 (19).
    do_stable_layer_norm : bool
        Normalise before each transformer block instead of after (not in data2vec).

    Example
    -------
    >>> folder = build_tiny_wav2vec2(getfixture("tmp_path") / "tiny", hidden_size=16, num_layers=1, conv_dim=8)
    >>> sorted(file.name for file in folder.iterdir())
    ['config.json', 'model.safetensors', 'preprocessor_config.json', 'tiny.json']
    """
    settings = {name: value for name, value in locals().items() if name != "folder"}
    folder = Path(folder).expanduser()
    if _is_built(folder, settings):
        return folder
    model = _build(settings)
    try:
        with folder_written_whole(folder) as temporary, quiet_transformers():
            model.save_pretrained(temporary)
            PREPROCESSORS[MODEL_TYPES[model_type]]().save_pretrained(temporary)
            write_json(settings, temporary / SETTINGS_FILE)
    except UserError:
        if not _is_built(folder, settings):  # else another process was faster
            raise
    return folder


def _is_built(folder: Path, settings: dict) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} exists and was not built here: give another folder") from None
    if different := sorted(name for name in {*settings, *found} if found.get(name) != settings.get(name)):
        way_out = "give another folder or remove it"
        raise UserError(f"{folder} was built with other settings ({', '.join(different)}): {way_out}")
    return True


def _build(settings: dict) -> torch.nn.Module:
    model_type, norm = settings["model_type"], settings["feat_extract_norm"]
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type is {model_type!r}, expected one of {', '.join(MODEL_TYPES)}")
    if model_type == "data2vec-audio" and (norm != "layer" or settings["do_stable_layer_norm"]):
        raise ValueError("data2vec-audio has a layer-norm front end only, and no do_stable_layer_norm")
    config = AutoConfig.for_model(model_type, **SIZES[MODEL_TYPES[model_type]](settings))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings["seed"])  # torch.manual_seed would reach into CUDA's as well
        return AutoModel.from_config(config)


def _wav2vec2(settings: dict) -> dict:
    kernel = settings["num_conv_pos_embeddings"]
    if settings["model_type"] == "data2vec-audio":
        # its num_conv_pos_embeddings counts convolutions, the kernel has a name of its own
        kinds = {"conv_pos_kernel_size": kernel or 19}
    else:
        kinds = {"num_conv_pos_embeddings": kernel or 128}
        kinds |= {name: settings[name] for name in ("feat_extract_norm", "do_stable_layer_norm")}
    return {
        **dict.fromkeys(DROPOUTS, settings["dropout"]),
        "hidden_size": settings["hidden_size"],
        "num_hidden_layers": settings["num_layers"],
        "num_attention_heads": settings["num_heads"],
        "intermediate_size": settings["intermediate_size"],
        "conv_dim": [settings["conv_dim"]] * CONV_LAYERS,
        "layerdrop": settings["layerdrop"],
        "num_conv_pos_embedding_groups": math.gcd(16, settings["hidden_size"]),
        **kinds,
    }


def _whisper(settings: dict) -> dict:
    return {
        **dict.fromkeys(Whisper.dropout_keys, settings["dropout"]),
        "d_model": settings["hidden_size"],
        "encoder_layers": settings["num_layers"],
        "encoder_attention_heads": settings["num_heads"],
        "encoder_ffn_dim": settings["intermediate_size"],
        "encoder_layerdrop": settings["layerdrop"],
        "decoder_layers": 1,
        "decoder_attention_heads": 1,
        "decoder_ffn_dim": 8,
        "vocab_size": 8,
        "begin_suppress_tokens": None,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    }


SIZES = {"wav2vec2.Wav2Vec2": _wav2vec2, "whisper.Whisper": _whisper}  # by lobe
PREPROCESSORS = {
    "wav2vec2.Wav2Vec2": partial(Wav2Vec2FeatureExtractor, do_normalize=True, return_attention_mask=True),
    "whisper.Whisper": WhisperFeatureExtractor,
}
