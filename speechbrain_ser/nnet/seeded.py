"""Initial weights that depend on nothing else."""

import zlib
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def build_seeded(make: Callable[..., T], name: str, seed: int, **arguments) -> T:
    """A part of a model whose initial weights depend on nothing but the seed and its own name.

    Leaving a part out then changes no other random draw: with ``alpha: 0`` the emotion head, the shuffling and every
    dropout mask are what they are with the ASR head beside them.

    Arguments
    ---------
    make : callable
        A constructor, perhaps with some of its arguments, as ``!name:torch.nn.Linear`` gives it.
    name : str
        The part's name: for a head, its task's.
    seed : int
        The run's seed.
    **arguments
        What the constructor still lacks.

    Returns
    -------
    torch.nn.Module
        What the constructor gives.

    Example
    -------
    >>> from functools import partial
    >>> from torch import nn
    >>> make = partial(nn.Linear, out_features=4)
    >>> a, b = (build_seeded(make, "emotion", seed=1, in_features=8) for _ in range(2))
    >>> torch.equal(a.weight, b.weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{name}:{seed}".encode()))
        return make(**arguments)
