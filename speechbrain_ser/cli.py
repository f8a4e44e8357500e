"""The console command `speechbrain-ser`."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command.

    Arguments
    ---------
    argv : list of str, optional
        Its name and options; those of the command line by default.

    Returns
    -------
    int
        The exit status: 0, or 1 after a wrong input, which is printed to stderr.

    Example
    -------
    >>> main(["demo-corpus", "corpus", "--layout=nowhere"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    parser = argparse.ArgumentParser("speechbrain-ser", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_demo_corpus,):
        add(commands)
    arguments = vars(parser.parse_args(argv))
    run = arguments.pop("run")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from .corpora.errors import CorpusError

    try:
        run(**arguments)
    except CorpusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _command(commands, name, run: Callable, help):
    """A sub-command: its options become keyword arguments of `run`, which imports what it needs."""
    parser = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _demo_corpus(commands):
    def run(out, layout, seed):
        from .corpora.demo import make_demo_corpus

        print(make_demo_corpus(out, layout, seed))

    parser = _command(commands, "demo-corpus", run, "speak a small corpus in a real corpus's layout")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    layouts = ("iemocap", "savee", "emodb")
    parser.add_argument("--layout", choices=layouts, default="iemocap", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the variation (default: %(default)s)")


if __name__ == "__main__":
    sys.exit(main())
