"""What a cache keeps on disk: named tensors with a checksum of everything that matters about them."""

import hashlib
from pathlib import Path

import safetensors.torch
import torch

from speechbrain_ser.files import replacing

Features = torch.Tensor | dict[str, torch.Tensor]

BARE = "_"  # the name of a tensor that came without one
CHECKSUM = "_sha256"  # the tensor that holds the checksum of the others


class DamagedEntry(Exception):
    """What was read is not what was written, or was written for something else."""


def pack(features: Features, key: str) -> bytes:
    """Features as the content of a safetensors file.

    Arguments
    ---------
    features : torch.Tensor or dict of torch.Tensor
        One array, or several by name.
    key : str
        What they are the features of: part of the checksum, so that a file under another's name is noticed.

    Returns
    -------
    bytes
        The same for the same features and key.

    Example
    -------
    >>> data = pack({"mel": torch.zeros(3, 2), "f0": torch.ones(3)}, "a recording")
    >>> unpack(data, "a recording")["f0"]
    tensor([1., 1., 1.])
    >>> unpack(data, "another recording")
    Traceback (most recent call last):
    speechbrain_ser.processing.entries.DamagedEntry: its checksum is wrong
    """
    named = {BARE: features} if isinstance(features, torch.Tensor) else features
    named = {name: tensor.contiguous() for name, tensor in sorted(named.items())}
    checksum = torch.frombuffer(bytearray(_digest(named, key)), dtype=torch.uint8)
    return safetensors.torch.save({**named, CHECKSUM: checksum})


def unpack(data: bytes, key: str) -> Features:
    """The features of :func:`pack`, or an error: never something else.

    Arguments
    ---------
    data : bytes
        Content of the file.
    key : str
        Whose features are expected.

    Returns
    -------
    torch.Tensor or dict of torch.Tensor
        As they were packed.

    Raises
    ------
    DamagedEntry
        When the content is truncated, altered, or another's.
    """
    try:
        named = safetensors.torch.load(data)
        checksum = bytes(named.pop(CHECKSUM).numpy())
    except Exception as error:  # the reader of an altered header may fail in any way
        raise DamagedEntry(f"it cannot be read: {error}") from error
    if checksum != _digest(named, key):
        raise DamagedEntry("its checksum is wrong")
    return named[BARE] if set(named) == {BARE} else named


def write_whole(data: bytes, path: Path) -> None:
    """Write a file that appears whole or not at all, whoever else writes the same one at the same time.

    Example
    -------
    >>> path = getfixture("tmp_path") / "entry"
    >>> write_whole(b"whole", path)
    >>> path.read_bytes()
    b'whole'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _digest(named: dict[str, torch.Tensor], key: str) -> bytes:
    """Over the key and every tensor's name, type, shape and values; the rest of a file carries no meaning."""
    digest = hashlib.sha256(key.encode())
    for name, tensor in sorted(named.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()
