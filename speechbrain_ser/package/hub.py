"""Where a package is: a folder, or a model on the Hugging Face hub, of which only a package's own files are fetched."""

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from speechbrain_ser.errors import UserError
from speechbrain_ser.lobes.backbone import HUB_NAME
from speechbrain_ser.package.layout import CONFIG, FILES
from speechbrain_ser.package.plain_json import read_json


def is_hub_name(name: str) -> bool:
    """Whether it can be a model on the hub, and is nothing on this machine.

    Example
    -------
    >>> is_hub_name("somebody/emotions"), is_hub_name("results/cai_mtl/default"), is_hub_name("./emotions")
    (True, False, False)
    """
    return not os.path.lexists(name) and name.count("/") == 1 and HUB_NAME.fullmatch(name) is not None


def find_package(source: str | os.PathLike) -> Path:
    """The folder of a package.

    A hub model that is already in the hub's cache is used as it is, without asking the network.

    Arguments
    ---------
    source : str or os.PathLike
        A folder, or ``user/model``.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    UserError
        When there is no such folder, or the hub cannot be reached or has no such package.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_name(os.fspath(source)):
        raise UserError(f"{source}: expected the folder of a package, or user/model on the hub, found no such folder")
    return _cached(str(source)) or _fetched(str(source))


def _cached(name: str) -> Path | None:
    """The snapshot of a model in the user's cache, when all files of its config.json are there."""
    try:
        found = huggingface_hub.try_to_load_from_cache(name, CONFIG)
    except HFValidationError:
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    listed = read_json(folder / CONFIG, dict).get("files", {})
    return folder if isinstance(listed, dict) and all((folder / f).is_file() for f in FILES if f in listed) else None


def _fetched(name: str) -> Path:
    try:
        # this fails at once without network; a download would try again for half a minute
        info = huggingface_hub.HfApi().model_info(name, timeout=20)
        there = sorted(file.rfilename for file in info.siblings or ())
        if CONFIG not in there:
            raise UserError(f"hub model '{name}': expected a package's {CONFIG}, found {', '.join(there):.300}")
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[CONFIG, *FILES]))
    except UserError:
        raise
    except Exception as error:  # several libraries' network, offline and not-found errors
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(
            f"{name}: expected the folder of a package, or a model on the Hugging Face hub; there is no such folder "
            f"here, and the hub's could not be fetched ({reason})"
        ) from error
