"""One run from a command line: checks, data, training, test, results. The same for every system's YAML."""

import logging
import sys
from pathlib import Path

from speechbrain_ser import pretraining, results
from speechbrain_ser.building import build
from speechbrain_ser.config import Config, read_config
from speechbrain_ser.errors import UserError
from speechbrain_ser.locks import FolderInUse, locked
from speechbrain_ser.preparation import prepare

logger = logging.getLogger(__name__)

WRITERS = {"recognition": results, "pretraining": pretraining}  # by the YAML's line `kind`
TRY_LATER = 75  # exit status (sysexits' EX_TEMPFAIL): another process works in the run's folder


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
        0, or 2 after an error that the user can mend, or `TRY_LATER`.
    """
    # force: a second run of one process (a notebook, the tests) must not write to the first one's streams
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        run(read_config(argv, hparams_folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return TRY_LATER if isinstance(error, FolderInUse) else 2
    return 0


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
                brain.fit(hparams["epoch_counter"], loaders["train"], loaders["valid"])
            writer.evaluate_and_write(setup, brain, loaders)
            brain.checkpointer.keep_for_tests()
    writer.print_results(setup)
    return setup.folder
