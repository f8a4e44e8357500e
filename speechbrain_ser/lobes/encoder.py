"""One name for every pretrained speech encoder: which lobe it is, its own configuration tells."""

import inspect
from collections.abc import Mapping

from torch import nn

from speechbrain_ser.lobes.backbone import (
    MODEL_TYPES,
    BackboneError,
    check_settings,
    read_config,
    resolve_backbone,
)
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.lobes.whisper import Whisper

LOBES = {"whisper": Whisper}  # by model type; all others are Wav2Vec2's


class Encoder:
    """A pretrained speech encoder of any family: wav2vec2, HuBERT, WavLM, data2vec or Whisper.

    Calling it gives a :class:`~speechbrain_ser.lobes.wav2vec2.Wav2Vec2` or a
    :class:`~speechbrain_ser.lobes.whisper.Whisper`, which document the arguments. A setting that the family does not
    have must be left at its default.

    Arguments
    ---------
    source : str
        Local folder or hub name.
    save_path : str
        Where hub models are kept.
    load_weights : bool
        False: `source` holds settings alone.
    **settings
        Those of the lobes, all explicit.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    BackboneError
        When the encoder cannot be found, read or used, or a setting is given that its family does not have.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> path = getfixture("tmp_path") / "tiny"
    >>> folder = build_tiny_wav2vec2(path, model_type="whisper", hidden_size=16, num_layers=2)
    >>> type(Encoder(str(folder), n_layers=1)).__name__
    'Whisper'
    >>> Encoder(str(folder), normalize_wav=True)
    Traceback (most recent call last):
        ...
    speechbrain_ser.lobes.backbone.BackboneError: normalize_wav is True: Whisper (...) has no such setting, ...
    """

    def __new__(
        cls,
        source: str,
        save_path: str = "pretrained",
        freeze: bool = False,
        freeze_feature_extractor: bool = False,
        freeze_layers: int = 0,
        n_layers: int | None = None,
        apply_spec_augment: bool = True,
        mask_time_prob: float = 0.05,
        mask_time_length: int = 10,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 10,
        layerdrop: float | None = None,
        dropout: float | None = None,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        weighted_sum: bool = False,
        output_norm: bool = False,
        normalize_wav: bool | None = None,
        cache_front_end: bool = False,
        cache_embeddings: bool = False,
        pad_to_30s: bool = False,
        windows: bool = False,
        load_weights: bool = True,
        lora: Mapping | None = None,
        seed: int = 0,
    ) -> nn.Module:
        given = {name: value for name, value in locals().items() if name not in ("cls", "source", "save_path")}
        folder = resolve_backbone(source, save_path) if load_weights else check_settings(source)
        model_type = read_config(folder)["model_type"]
        lobe = LOBES.get(model_type, Wav2Vec2)
        known, defaults = inspect.signature(lobe).parameters, inspect.signature(cls).parameters
        for name in [name for name in given if name not in known]:
            if given[name] != defaults[name].default:
                raise BackboneError(
                    f"{name} is {given[name]!r}: {MODEL_TYPES[model_type]} ({source}) has no such setting, leave it "
                    f"{defaults[name].default!r}"
                )
            del given[name]
        return lobe(str(folder), **given)
