"""The heads of a model: which tasks have one, and initial weights that depend on nothing else."""

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from speechbrain_ser.errors import UserError, nearest


def active_tasks(loss_weights: Mapping[str, float], known: tuple[str, ...]) -> list[str]:
    """The tasks that a set of weights asks for, in the model's order.

    Raises
    ------
    UserError
        For a task the model does not have, or a weight that is not a number >= 0.

    Example
    -------
    >>> active_tasks({"emotion": 1.0, "asr": 0}, ("emotion", "asr"))
    ['emotion']
    """
    if unknown := [task for task in loss_weights if task not in known]:
        raise UserError(f"loss_weights: unknown task '{unknown[0]}'{nearest(unknown[0], known)}")
    for task, weight in loss_weights.items():
        if not (isinstance(weight, (int, float)) and 0 <= weight < float("inf")):
            raise UserError(f"the weight of task '{task}' must be a number >= 0, found {weight!r}")
    if not any(loss_weights.values()):
        raise UserError("every task has weight 0: nothing would be trained")
    return [task for task in known if loss_weights.get(task, 0) > 0]


def build_heads(
    makers: Mapping[str, Callable[..., nn.Module]], in_features: int, tasks: Sequence[str], seed: int
) -> nn.ModuleDict:
    """A head for each task (:func:`build_seeded`).

    Arguments
    ---------
    makers : mapping of str to callable
        By task, constructors that still lack ``in_features``.
    in_features : int
        Channels of what the heads read.
    tasks : sequence of str
        Those that get a head; the emotion is one of them.
    seed : int
        The run's seed.

    Returns
    -------
    torch.nn.ModuleDict

    Raises
    ------
    UserError
        Without an emotion task.
    """
    if "emotion" not in tasks:
        raise UserError("loss_weights: without the emotion task (weight 0) there is nothing to recognise")
    return nn.ModuleDict({task: build_seeded(makers[task], task, seed, in_features=in_features) for task in tasks})


def keep_heads(heads: nn.ModuleDict, tasks: Collection[str]) -> None:
    """Remove the heads of other tasks; the emotion's stays.

    Arguments
    ---------
    heads : torch.nn.ModuleDict
        By task; changed in place.
    tasks : collection of str
        Whose heads stay, where there are such heads.

    Example
    -------
    >>> heads = nn.ModuleDict({task: nn.Linear(2, 2) for task in ("emotion", "asr", "speaker")})
    >>> keep_heads(heads, {"asr"})
    >>> list(heads)
    ['emotion', 'asr']
    """
    for task in set(heads) - {"emotion", *tasks}:
        del heads[task]


def build_seeded(make: Callable[..., nn.Module], name: str, seed: int, **arguments) -> nn.Module:
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

    Example
    -------
    >>> from functools import partial
    >>> make = partial(nn.Linear, out_features=4)
    >>> a, b = (build_seeded(make, "emotion", seed=1, in_features=8) for _ in range(2))
    >>> torch.equal(a.weight, b.weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{name}:{seed}".encode()))
        return make(**arguments)
