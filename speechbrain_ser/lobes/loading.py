"""Weights from a folder, strictly: transformers draws what does not fit at random, and only prints so."""

import os
from collections.abc import Callable, Mapping

import torch

from speechbrain_ser.lobes.backbone import BackboneError
from speechbrain_ser.lobes.quiet import quiet_transformers


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
