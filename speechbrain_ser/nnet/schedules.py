"""Learning-rate schedules in the shape of transformers' own."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup


def constant_with_warmup(optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int) -> LambdaLR:
    """transformers' schedule of that name, called as its other schedules are.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        Holds the rates.
    num_warmup_steps : int
        Steps with a rising rate.
    num_training_steps : int
        All steps; the rate does not depend on them.

    Returns
    -------
    torch.optim.lr_scheduler.LambdaLR
    """
    del num_training_steps
    return get_constant_schedule_with_warmup(optimizer, num_warmup_steps)
