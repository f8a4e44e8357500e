"""What an installation can do: a line a part, each with what to do where it cannot."""

import contextlib
import io
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import soundfile
import torch
from packaging.requirements import Requirement

from speechbrain_ser.data.audio import cores, look_at
from speechbrain_ser.errors import UserError, printable
from speechbrain_ser.lobes.backbone import check_backbone

FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF")
ENOUGH = 5  # GB of free disk: encoders and checkpoints of a cross-validation
GIGABYTE = 1e9


def doctor(encoder: str = "openai/whisper-base", results_folder: str | os.PathLike = "results") -> int:
    """Look at versions, devices, sound, an encoder and disks, print a line each, and return 1 where one fails."""
    checks = {
        "python": lambda: f"{platform.python_version()} on {platform.platform(terse=True)}",
        "packages": _packages,
        "extras": _extras,
        "devices": _devices,
        "sound": _sound,
        f"encoder {encoder}": lambda: _encoder(encoder, Path(results_folder) / "cache" / "hub"),
        f"disk of {results_folder}": lambda: _disk(Path(results_folder)),
        "disk of the hub's cache": lambda: _disk(Path(huggingface_hub.constants.HF_HUB_CACHE)),
    }
    return int(not all([_told(name, check) for name, check in checks.items()]))


def _told(name: str, check: Callable[[], str]) -> bool:
    try:
        found, is_well = check(), True
    except (UserError, OSError) as error:
        found, is_well = str(error), False
    print(printable(f"{'ok  ' if is_well else 'FAIL'}  {name}: {found}"), flush=True)
    return is_well


def _wanted(extra: str = "") -> Iterator[Requirement]:
    for text in requires("speechbrain-ser") or ():
        requirement = Requirement(text)
        if bool(extra) == ("extra" in str(requirement.marker)) and (
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        ):
            yield requirement


def _lacking(requirements: Iterator[Requirement]) -> list[str]:
    lacking = []
    for requirement in requirements:
        try:
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                lacking.append(f"{requirement.name}{requirement.specifier} (found {version(requirement.name)})")
        except PackageNotFoundError:
            lacking.append(f"{requirement.name}{requirement.specifier} (not installed)")
    return lacking


def _packages() -> str:
    if lacking := _lacking(_wanted()):
        raise UserError(f"expected {', '.join(lacking)}: pip install --upgrade speechbrain-ser")
    names = ("speechbrain-ser", "torch", "torchaudio", "speechbrain", "transformers")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _extras() -> str:
    """None is needed for everything."""
    extras = [name for name in metadata("speechbrain-ser").get_all("Provides-Extra") or () if name != "test"]
    lacking = {name: _lacking(_wanted(name)) for name in extras}
    has = [name for name in extras if not lacking[name]]
    others = ", ".join(name for name in extras if lacking[name])
    return f"{', '.join(has) or 'none'}; not installed: {others or 'none'} (pip install 'speechbrain-ser[NAME]')"


def _devices() -> str:
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return f"{cores()} cores, {', '.join(names) or 'no CUDA device'}"


def _sound() -> str:
    samples = 0.1 * np.sin(np.arange(16_000) / 10)
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMATS:
            path = Path(folder, f"tone.{form.lower()}")
            try:
                soundfile.write(path, samples, 16_000, format=form)
                seconds = look_at(path).seconds
            except soundfile.LibsndfileError as error:
                raise UserError(f"{form}: {error}: pip install --upgrade soundfile") from error
            if not 0.9 < seconds < 1.2:
                raise UserError(f"{form}: expected 1 s, found {seconds:g} s: pip install --upgrade soundfile")
    return f"{', '.join(FORMATS)} are written and read (libsndfile {soundfile.__libsndfile_version__})"


def _encoder(name: str, folder: Path) -> str:
    with contextlib.redirect_stderr(io.StringIO()):  # the hub's retries
        config = check_backbone(name, folder)
    return f"{config['model_type']}, on this machine" if config else "on the hub, fetched at the first run"


def _disk(folder: Path) -> str:
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(place).free / GIGABYTE
    if not os.access(place, os.W_OK):
        raise UserError(f"{place} cannot be written: give another folder (--results_folder=…, HF_HOME=…)")
    if free < ENOUGH:
        raise UserError(f"{free:.1f} GB are free in {place}, expected {ENOUGH} at least: give another folder")
    return f"{free:.0f} GB free in {place}"
