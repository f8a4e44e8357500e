"""One run from a command line: checks, data, training, test, results. The same for every system's YAML."""

import contextlib
import logging
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from speechbrain.utils.distributed import if_main_process

from speechbrain_ser import pretraining, results
from speechbrain_ser.building import build
from speechbrain_ser.config import Config, read_config
from speechbrain_ser.distributed import is_first_to_fail, main_first, on_main, process_group, speaks
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import NO_ROOM
from speechbrain_ser.locks import TRY_LATER, FolderInUse, locked
from speechbrain_ser.preparation import Setup, prepare
from speechbrain_ser.stopping import INTERRUPTED, Stopped, stop_wish

logger = logging.getLogger(__name__)

WRITERS = {"recognition": results, "pretraining": pretraining}  # by the YAML's line `kind`


def main(argv: list[str], hparams_folder: Path) -> int:
    """Run one configuration; errors of the user's are printed without a traceback.

    Arguments
    ---------
    argv : list of str
        The command line after the program's name.
    hparams_folder : pathlib.Path
        Where the shipped YAMLs are.

    Returns
    -------
    int
        0, or 2 after an error that the user can mend, or `TRY_LATER`, or `INTERRUPTED`.
    """
    _set_up_messages()
    try:
        with stop_wish.heard(), _disk_and_loaders_named():
            run(read_config(argv, hparams_folder))
    except UserError as error:
        return _tell(f"error: {error}", TRY_LATER if isinstance(error, FolderInUse) else 2)
    except torch.OutOfMemoryError as error:
        return _tell(
            f"error: the device has too little memory: {error}\n  A smaller --micro_batch_size changes nothing else "
            "(nor does --gradient_checkpointing=True, where the YAML has it); the same command goes on",
            2,
        )
    except Stopped as stopped:
        status = INTERRUPTED if stopped.number == signal.SIGINT else TRY_LATER
        return _tell(f"\nended by {stopped}: the same command goes on from here", status)
    except Exception:
        if is_first_to_fail():
            raise
        return 2  # of several processes another one tells why
    return 0


def _set_up_messages() -> None:
    """Of several processes one speaks."""
    # force: a second run of one process (a notebook, the tests) must not write to the first one's streams
    logging.basicConfig(level=logging.INFO if speaks() else logging.ERROR, format="%(message)s", force=True)
    if not speaks():
        warnings.simplefilter("ignore")


def _tell(message: str, status: int) -> int:
    if is_first_to_fail():
        print(message, file=sys.stderr)
    return status


@contextlib.contextmanager
def _disk_and_loaders_named() -> Iterator[None]:
    """What is nobody's mistake in the configuration, but can be mended."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or "a file could not be written (in the run's folder, a cache or a log)"
        raise UserError(f"{where}: {error.strerror}") from error
    except RuntimeError as error:
        # torch: "DataLoader worker (pid 7) is killed by signal: Killed." or "DataLoader worker (pid(s) 7) exited …"
        if not (found := re.search(r"DataLoader worker \(pid\S* ([\d, ]+)\) .*", str(error))):
            raise
        raise UserError(
            f"a loading process died: {found[0]} The system ends processes that want more memory than there is: fewer "
            "num_workers need less. The same command goes on from the last checkpoint"
        ) from error


def run(config: Config) -> Path:
    """Train and test one configuration, with the processes that torchrun has started, or alone.

    Arguments
    ---------
    config : Config
        From :func:`speechbrain_ser.config.read_config`.

    Returns
    -------
    pathlib.Path
        The run's folder.

    Raises
    ------
    UserError
        Before training, for everything a user can have given wrong.
    """
    with process_group(config.run_opts) as config.run_opts:
        setup = on_main(lambda: prepare(config))
        setup.config.run_opts = config.run_opts  # the main process's device is another one
        writer = WRITERS[config.plain.get("kind", "recognition")]
        with contextlib.ExitStack() as stack:
            on_main(lambda: stack.enter_context(locked(setup.folder)))
            _train_and_test(setup, writer)
        if if_main_process():
            writer.print_results(setup)
    return setup.folder


def _train_and_test(setup: Setup, writer) -> None:
    if on_main(setup.finished):
        logger.info(f"finished already: {setup.folder} (delete the folder to train again)")
        return
    hparams, brain, loaders = main_first(lambda: build(setup))
    if not on_main(setup.trained):
        with stop_wish.deferred():
            brain.fit(hparams["epoch_counter"], loaders["train"], loaders["valid"])
    writer.evaluate_and_write(setup, brain, loaders)
    brain.checkpointer.keep_for_tests()
