"""Gradient reversal: the identity forward, the negative gradient backward (Ganin and Lempitsky 2015, section 3)."""

import math
from collections.abc import Callable

import torch
from torch import nn

from speechbrain_ser.errors import UserError, nearest


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.strength * gradient, None


def dann_schedule(progress: float) -> float:
    """Grow from 0 to 1 along a training's progress: 2 / (1 + exp(-10 p)) - 1 (Ganin et al. 2016, section 5.2.2)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": lambda progress: 1.0, "dann": dann_schedule}


class GradientReversal(nn.Module):
    """Lets a head learn from an encoder that unlearns what the head needs.

    `strength` is the factor of the reversed gradient; -1 gives the plain gradient. `schedule` is ``constant``, or
    ``dann``: the strength grows from 0 with :attr:`progress`, the share of the training that is done (0 to 1), which
    whoever trains sets.

    Example
    -------
    >>> x = torch.ones(2, requires_grad=True)
    >>> GradientReversal(strength=0.5)(x).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    """

    def __init__(self, strength: float = 1.0, schedule: str = "constant"):
        super().__init__()
        if schedule not in SCHEDULES:
            hint = nearest(schedule, SCHEDULES)
            raise UserError(f"reversal schedule '{schedule}' is unknown{hint}; known: {', '.join(SCHEDULES)}")
        self.strength = strength
        self.schedule = schedule
        self.progress = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input itself; its gradient comes back times ``-strength`` (times the schedule's value)."""
        return _Reverse.apply(x, self.strength * SCHEDULES[self.schedule](self.progress))
