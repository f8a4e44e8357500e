"""One name for every pretrained speech encoder: which lobe it is, its own configuration tells."""

import inspect
from importlib import import_module

from speechbrain_ser.lobes.backbone import MODEL_TYPES, resolve_backbone
from speechbrain_ser.lobes.pretrained import PretrainedEncoder


class Encoder:
    """A pretrained speech encoder of any family: wav2vec2, HuBERT, WavLM, data2vec or Whisper.

    Calling it returns a :class:`~speechbrain_ser.lobes.wav2vec2.Wav2Vec2` or a
    :class:`~speechbrain_ser.lobes.whisper.Whisper`; arguments and errors are those of
    :class:`~speechbrain_ser.lobes.pretrained.PretrainedEncoder`.

    Example
    -------
    >>> from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
    >>> folder = build_tiny_wav2vec2(getfixture("tmp_path") / "tiny", model_type="whisper", hidden_size=16)
    >>> type(Encoder(str(folder), n_layers=1)).__name__
    'Whisper'
    """

    __signature__ = inspect.signature(PretrainedEncoder)  # for who looks for mistyped arguments

    def __new__(cls, source, save_path="pretrained", *, load_weights: bool = True, **settings) -> PretrainedEncoder:
        backbone = resolve_backbone(source, save_path, load_weights)
        module, _, name = MODEL_TYPES[backbone.config["model_type"]].partition(".")
        lobe = getattr(import_module(f"speechbrain_ser.lobes.{module}"), name)
        return lobe(backbone, load_weights=load_weights, **settings)
