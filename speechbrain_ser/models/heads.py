"""The heads of a model: which tasks have one, and initial weights that depend on nothing else."""

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import nn

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.nnet.seeded import build_seeded


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
    makers: Mapping[str, Callable[..., nn.Module]],
    in_features: int,
    tasks: Sequence[str],
    seed: int,
    sizes: Mapping[str, int] | None = None,
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
    sizes : mapping of str to int, optional
        By task, channels of those that read something else.

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
    sizes = dict.fromkeys(tasks, in_features) | {t: n for t, n in (sizes or {}).items() if t in tasks}
    return nn.ModuleDict({t: build_seeded(makers[t], t, seed, in_features=sizes[t]) for t in tasks})


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
