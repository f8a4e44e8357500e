"""What `--model` names: a run's folder, a package's, or a package on the Hugging Face hub."""

import os
from pathlib import Path

from speechbrain_ser.inference import EmotionRecognizer
from speechbrain_ser.package.hub import is_hub_name
from speechbrain_ser.package.layout import CONFIG


def open_recognizer(model: str | os.PathLike, **options) -> EmotionRecognizer:
    """A recogniser by whatever names its model.

    A folder with a config.json is a package, of which nothing is executed; any other folder is a run, whose YAML is.

    Arguments
    ---------
    model : str or os.PathLike
        A run's folder, a package's folder, or ``user/model`` on the hub.
    **options
        Those of :meth:`EmotionRecognizer.from_run` and :meth:`EmotionRecognizer.from_package`.

    Returns
    -------
    EmotionRecognizer

    Raises
    ------
    UserError
        As these two do.
    """
    is_package = os.path.lexists(Path(model) / CONFIG) or is_hub_name(os.fspath(model))
    return (EmotionRecognizer.from_package if is_package else EmotionRecognizer.from_run)(model, **options)
