"""The one table of classes that a package may name, and models built from it and plain JSON.

A class that is not here cannot be in a package. To add one: read what its arguments can reach (files, network, code),
name those that change a result and are plain values, and leave out the others.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.lobes.encoder import Encoder
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.lobes.whisper import Whisper
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.models.fu import FuModel
from speechbrain_ser.models.ha import HaModel
from speechbrain_ser.models.hsu import HsuModel
from speechbrain_ser.models.probe import ProbeModel
from speechbrain_ser.nnet.conv_head import ConvHead
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.log_mel import LogMel
from speechbrain_ser.processing.pitch_track import PitchTrack
from speechbrain_ser.processing.split_mel import SplitMel

HERE = "speechbrain_ser/package/classes.py"
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
        LOG_MEL: _kind(
            LogMel,
            "sample_rate n_fft hop_length win_length n_mels f_min f_max mel_scale mel_norm power pad_mode scale top_db "
            "floor",
        ),
        "speechbrain_ser.processing.split_mel.SplitMel": _kind(SplitMel, "dither"),
        "speechbrain_ser.processing.pitch_track.PitchTrack": _kind(PitchTrack, "method f_range"),
        "speechbrain_ser.nnet.conv_head.ConvHead": _kind(ConvHead, "out_features hidden kernel", "dropout"),
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
