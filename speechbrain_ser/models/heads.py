"""What a model reads of waveforms, and its heads: which tasks have one, with initial weights of their own."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from speechbrain.dataio.batch import PaddedData
from speechbrain.utils.data_utils import batch_pad_right
from torch import nn

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.nnet.initialization import build_seeded


def signals_of(model: nn.Module, wav: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model reads of one waveform, by name.

    Arguments
    ---------
    model : torch.nn.Module
        One of :mod:`speechbrain_ser.models`.
    wav : torch.Tensor
        [time], 16 kHz, on the CPU.

    Returns
    -------
    dict of str to torch.Tensor
        [time] or [frames, …] each.
    """
    return {name: wav if features is None else features.extract(wav) for name, features in model.inputs.items()}


def padded(signals: Sequence[Mapping[str, torch.Tensor]], device: str | torch.device) -> dict[str, PaddedData]:
    """Several waveforms' signals as the keyword arguments of a model's forward pass.

    Example
    -------
    >>> batch = padded([{"sig": torch.ones(4)}, {"sig": torch.ones(2)}], "cpu")
    >>> batch["sig"].data.shape, batch["sig"].lengths.tolist()
    (torch.Size([2, 4]), [1.0, 0.5])
    """
    inputs = {}
    for name in signals[0]:
        data, lengths = batch_pad_right([each[name] for each in signals])
        inputs[name] = PaddedData(data.to(device), lengths.to(device))
    return inputs


@torch.no_grad()
def model_inputs(model: nn.Module, wavs: Sequence[torch.Tensor], device: str | torch.device) -> dict[str, PaddedData]:
    """The keyword arguments of a model's forward pass on several waveforms [time], 16 kHz, on the CPU."""
    return padded([signals_of(model, wav) for wav in wavs], device)


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
