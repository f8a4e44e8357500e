"""Which files a package has, by what they are known, and how they are checked before any of them is used."""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import sha256

FORMAT = "speechbrain-ser package"
VERSION = 1
CONFIG = "config.json"
PARAMETERS = "model.safetensors"
LABELS = "labels.json"
TOKENS = "tokens.json"
BACKBONE = "backbone"
BACKBONE_FILES = (f"{BACKBONE}/config.json", f"{BACKBONE}/preprocessor_config.json")
ONNX = "model.onnx"
SPEECHBRAIN_FILES = ("hyperparams.yaml", "label_encoder.txt")  # written for SpeechBrain, never read here
CARD = "README.md"
#: all files whose hash config.json may hold
FILES = (PARAMETERS, LABELS, TOKENS, *BACKBONE_FILES, ONNX, *SPEECHBRAIN_FILES)
#: may be there without a hash: they are edited on a hub's page, and nothing reads them
UNHASHED = (CONFIG, CARD, "LICENSE")
SHA256 = re.compile(r"[0-9a-f]{64}")


def check_files(folder: Path, hashes: dict) -> None:
    """Refuse a folder that is not exactly what its config.json says, before anything of it is used.

    Arguments
    ---------
    folder : pathlib.Path
        The package; its config.json has been read.
    hashes : dict of str to str
        SHA-256 of each file, by its path in the folder.

    Raises
    ------
    UserError
        Naming the file: a path that leaves the folder, a file that no package has, one that lacks, differs from its
        hash, or is a link to somewhere else; one that is there and not listed.
    """
    config = folder / CONFIG
    for name, digest in hashes.items():
        _check_name(name, config)
        if not (isinstance(digest, str) and SHA256.fullmatch(digest)):
            raise UserError(
                f"{config}: files: {name}: expected a SHA-256 of 64 hexadecimal digits, found {digest!r:.100}"
            )
    for path in _found(folder):
        if path not in hashes and path not in UNHASHED:
            name = path if path.isprintable() else ascii(path)
            raise UserError(f"{folder / name}: expected only files that {CONFIG} lists, found this one")
    for name, digest in hashes.items():
        found = sha256(checked_path(folder, name))
        if found != digest:
            raise UserError(f"{folder / name}: expected the SHA-256 {digest} of {CONFIG}, found {found}")


def _check_name(name: str, config: Path) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise UserError(f"{config}: files: expected paths within the folder, found {name!r:.200}")
    if name not in FILES:
        raise UserError(f"{config}: files: expected some of {', '.join(FILES)}, found {name!r:.200}")


def _found(folder: Path) -> Iterator[str]:
    """All files below a folder, and links; hidden ones (.git, .gitattributes, .cache) are left alone."""
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in [*files, *links]:
            if not name.startswith("."):
                yield (Path(place) / name).relative_to(folder).as_posix()


def _unreadable(error: OSError):
    raise UserError(f"{error.filename}: expected a folder that can be read: {error.strerror}") from error


def checked_path(folder: Path, name: str) -> Path:
    """The path of a file of the package: a regular file, itself in the folder.

    In a snapshot of the Hugging Face hub's cache each file is a link into the cache's folder of blobs, two levels up;
    such a link is followed, no other.

    Raises
    ------
    UserError
        When there is none, or it is somewhere else.
    """
    path = folder / name
    if not path.is_file():  # follows links; false for pipes and devices
        raise UserError(
            f"{path}: expected a file of the package, found {'something else' if _exists(path) else 'none'}"
        )
    home, real = folder.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"  # not resolved: it may be no link itself
    is_blob = home.parent.name == "snapshots" and real.parent == blobs
    if not (is_blob or real.is_relative_to(home)):
        raise UserError(f"{path}: expected a file within {home}, found a link to {real}")
    return path


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
