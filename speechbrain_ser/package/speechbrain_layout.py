"""SpeechBrain's own layout beside a package's files, for ``EncoderClassifier.from_hparams``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from speechbrain.dataio.encoder import CategoricalEncoder

from speechbrain_ser.dataio import SAMPLE_RATE
from speechbrain_ser.files import write_text
from speechbrain_ser.package.description import has_backbone
from speechbrain_ser.package.layout import BACKBONE_FILES, PARAMETERS, SPEECHBRAIN_FILES
from speechbrain_ser.package.plain_json import read_json

TEMPLATE = """\
# For speechbrain.inference.classifiers.EncoderClassifier.from_hparams; written by speechbrain-ser export.
# SpeechBrain EXECUTES such a file: load only one from people whom you trust. speechbrain-ser itself never reads it.
sample_rate: {sample_rate}

{description}
embedding: !new:speechbrain_ser.package.adapter.Embedding
  description: !ref <description>
  backbone: !ref <backbone>
  preprocessor: !ref <preprocessor>
label_encoder: !apply:speechbrain_ser.package.adapter.empty_encoder [{n_classes}]

modules:
  compute_features: !new:torch.nn.Identity
  mean_var_norm: !new:speechbrain_ser.package.adapter.Unchanged
  embedding_model: !ref <embedding>
  classifier: !new:speechbrain_ser.package.adapter.LogPosteriors
    embedding: !ref <embedding>
    temperature: {temperature!r}

pretrainer: !new:speechbrain_ser.package.adapter.NamedPretrainer
  files:
    embedding: {parameters}
    label_encoder: {labels}
  loadables:
    embedding: !ref <embedding>
    label_encoder: !ref <label_encoder>
"""


def write(folder: Path, description: dict, classes: Sequence[str], calibration: Mapping | None) -> None:
    """Write hyperparams.yaml and label_encoder.txt into a package whose other files are there.

    Arguments
    ---------
    folder : pathlib.Path
        The package.
    description : dict
        Of its model.
    classes : sequence of str
        In the order of the logits.
    calibration : mapping, optional
        Its temperature divides the logits.
    """
    contents = [read_json(folder / f, dict) if has_backbone(description) else None for f in BACKBONE_FILES]
    plain = dict(zip(("description", "backbone", "preprocessor"), (description, *contents), strict=True))
    text = TEMPLATE.format(
        sample_rate=SAMPLE_RATE,
        description=yaml.safe_dump(plain, sort_keys=False),
        n_classes=len(classes),
        temperature=float((calibration or {}).get("temperature") or 1.0),
        parameters=PARAMETERS,
        labels=SPEECHBRAIN_FILES[1],
    )
    write_text(text, folder / SPEECHBRAIN_FILES[0])
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(classes, sequence_input=False)
    encoder.save(folder / SPEECHBRAIN_FILES[1])
