"""One run from a command line: checks, data, training, test, results. The same for every system's YAML."""

import contextlib
import logging
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from speechbrain_ser import pretraining, results
from speechbrain_ser.building import build
from speechbrain_ser.config import Config, read_config
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import NO_ROOM
from speechbrain_ser.locks import TRY_LATER, FolderInUse, locked
from speechbrain_ser.preparation import prepare
from speechbrain_ser.stopping import Stopped, stop_wish

logger = logging.getLogger(__name__)

WRITERS = {"recognition": results, "pretraining": pretraining}  # by the YAML's line `kind`
INTERRUPTED = 130  # exit status after Ctrl-C


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
    # force: a second run of one process (a notebook, the tests) must not write to the first one's streams
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        with stop_wish.heard(), _disk_and_loaders_named():
            run(read_config(argv, hparams_folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return TRY_LATER if isinstance(error, FolderInUse) else 2
    except Stopped as stopped:
        print(f"\nended by {stopped}: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED if stopped.number == signal.SIGINT else TRY_LATER
    return 0


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
    """Train and test one configuration.

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
    setup = prepare(config)
    writer = WRITERS[config.plain.get("kind", "recognition")]
    with locked(setup.folder):
        if setup.finished():
            logger.info(f"finished already: {setup.folder} (delete the folder to train again)")
        else:
            hparams, brain, loaders = build(setup)
            if not setup.trained():
                with stop_wish.deferred():
                    brain.fit(hparams["epoch_counter"], loaders["train"], loaders["valid"])
            writer.evaluate_and_write(setup, brain, loaders)
            brain.checkpointer.keep_for_tests()
    writer.print_results(setup)
    return setup.folder
