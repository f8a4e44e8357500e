"""Several processes that train one model (torchrun): their group, who writes, what is summed, how an error ends all.

With one process everything here does nothing. SpeechBrain's own functions (``run_on_main``, ``main_process_only``) stay
what guards a file; here is what they lack.
"""

import contextlib
import dataclasses
import os
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from speechbrain.utils.distributed import (
    MainProcessContext,
    ddp_barrier,
    ddp_broadcast,
    ddp_init_group,
    if_main_process,
    infer_device,
    is_distributed_initialized,
)
from speechbrain.utils.run_opts import RunOptions
from torch import nn

from speechbrain_ser.errors import UserError

T = TypeVar("T")

_failures: torch.distributed.Store | None = None  # where the first process that fails says so


def is_launched() -> bool:
    """Whether torchrun, or something like it, has started this process."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def speaks() -> bool:
    """Whether this process tells the console what all of them do."""
    return not is_launched() or os.environ["RANK"] == "0"


def rank() -> int:
    """Return which process this is, from 0."""
    return torch.distributed.get_rank() if is_distributed_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return torch.distributed.get_world_size() if is_distributed_initialized() else 1


@contextlib.contextmanager
def process_group(run_opts: RunOptions) -> Iterator[RunOptions]:
    """Join the processes that torchrun has started, and give the run options with this process's own device.

    Where no ``distributed_backend`` is given it is nccl with GPUs and gloo without.
    """
    global _failures
    if not is_launched():
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("WORLD_SIZE is above 1, but RANK or LOCAL_RANK is not set: start processes with torchrun")
        yield run_opts
        return
    run_opts = _own_options(run_opts)
    ddp_init_group(run_opts)
    _failures = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    yield run_opts
    # not after an error: another process may wait for us, and never answer
    ddp_barrier()
    torch.distributed.destroy_process_group()


def _own_options(run_opts: RunOptions) -> RunOptions:
    device, changes = run_opts.device or infer_device(), {}
    if run_opts.data_parallel_backend:
        raise UserError("--data_parallel_backend is one process with several GPUs: start it without torchrun")
    if "distributed_backend" not in run_opts.overridden_args:
        changes["distributed_backend"] = "nccl" if device.startswith("cuda") else "gloo"
    if changes.get("distributed_backend", run_opts.distributed_backend) == "nccl":
        n, found = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if n > found:
            raise UserError(
                f"{n} processes need a GPU each, there are {found}: give torchrun --nproc_per_node={max(found, 1)}, or "
                "train.py --device=cpu"
            )
        if ":" in (run_opts.device or ""):
            raise UserError(f"--device={run_opts.device} is one GPU, each process has its own: --device=cuda")
        changes["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
    return dataclasses.replace(run_opts, **changes, overridden_args=run_opts.overridden_args | set(changes))


def on_main(function: Callable[[], T], keep: bool = True) -> T | None:
    """Run a function in the main process alone; an error of the user's, and, to `keep`, its result are everybody's."""
    if not is_distributed_initialized():
        return function()
    result = error = None
    if if_main_process():
        try:
            with MainProcessContext():
                result = function()
        except UserError as raised:
            error = raised
    sent, error = ddp_broadcast((result if keep else None, error))
    if error is not None:
        raise error
    return result if if_main_process() else sent


def main_first(function: Callable[[], T]) -> T:
    """Run a function in the main process, then in all others, which find done what it leaves in files.

    Nothing in it may wait for other processes. An error of the user's in the main process is everybody's, and then the
    others do not start.
    """
    result = on_main(function, keep=False)
    if not if_main_process():
        with MainProcessContext():
            result = function()
    ddp_barrier()
    return result


def gathered(value: T) -> list[T]:
    """Return what every process has, by rank."""
    if not is_distributed_initialized():
        return [value]
    found = [None] * world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make every gradient the sum over the processes; where no process has one, there is none.

    Why not DistributedDataParallel: it wants every process to use every parameter in every step. Here a step of N
    utterances may have none for a process, a layer may be dropped in one of them, and a part may be used by chance.
    """
    if not is_distributed_initialized():
        return
    parameters = [p for p in parameters if p.requires_grad]
    found = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    gradients = []
    for parameter, is_used in zip(parameters, found.tolist(), strict=True):
        if is_used and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients += [parameter.grad] if is_used else []
    if gradients:
        flat = nn.utils.parameters_to_vector(gradients)  # one message; activations have left room for the copy
        torch.distributed.all_reduce(flat)
        nn.utils.vector_to_parameters(flat, gradients)


def same_parameters(module: nn.Module) -> None:
    """Take the main process's parameters, should two machines have built them otherwise."""
    if is_distributed_initialized():
        for parameter in module.parameters():
            torch.distributed.broadcast(parameter.data, src=0)


def own_random_state(seed: int) -> None:
    """Seed Python's, NumPy's and torch's states by rank: dropout must not be the same in all processes."""
    if rank() == 0:  # what it would be with one process
        return
    words = [int(w) for w in np.random.SeedSequence([seed, rank()]).generate_state(3)]
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002 (the generator that SpecAugment draws from)
    torch.manual_seed(words[2])


def is_first_to_fail() -> bool:
    """Whether this process is the first of all to ask, which tells what went wrong; others fail because it does."""
    if _failures is None:
        return speaks()
    try:
        return _failures.add(f"speechbrain_ser/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except RuntimeError:  # who kept the store is gone
        return False
