"""`speechbrain-ser predict`: emotions and transcripts of recordings, on the console or into a file that resumes."""

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.inference import EmotionRecognizer
from speechbrain_ser.locks import locked
from speechbrain_ser.package.opening import open_recognizer
from speechbrain_ser.predict.formats import Csv, JsonLines, Table
from speechbrain_ser.predict.recordings import find_recordings
from speechbrain_ser.predict.results_file import ResultsFile

logger = logging.getLogger(__name__)

FORMATS = {"table": Table, "json": JsonLines, "csv": Csv}
BY_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "json"}
INTERRUPTED = 130  # exit status after Ctrl-C


def predict(
    paths: Sequence[str],
    model: str,
    form: str | None = None,
    recursive: bool = False,
    out: str | None = None,
    batch_size: int = 8,
    transcribe: bool = True,
    device: str | None = None,
    max_seconds: float = 120.0,
) -> int:
    """Recognise recordings with a trained model.

    Arguments
    ---------
    paths : sequence of str
        Files, folders, ``-`` for paths on standard input.
    model : str
        A run's folder, a package's folder, or a package's name on the hub.
    form : str, optional
        ``table`` (the default on the console), ``json`` or ``csv``; of a file, its name's ending says it.
    recursive : bool
        Also look into subfolders.
    out : str, optional
        A file to which results are appended as they come; what it has is not done again.
    batch_size : int
        Recordings a batch.
    transcribe : bool
        Give transcripts where the system has an ASR head.
    device : str, optional
        ``cpu``, ``cuda:0``, …
    max_seconds : float
        The longest recording that is taken.

    Returns
    -------
    int
        0, or 1 when some recordings gave no result: they are listed on stderr, and tried again by the next call.

    Raises
    ------
    UserError
        When nothing can be done: no model, no recordings, a file of another model's results.
    """
    form = _format(form, out)
    recordings = find_recordings(paths, recursive)
    run_opts = {"device": device} if device else None
    recognizer = open_recognizer(model, run_opts=run_opts, transcribe=transcribe, max_seconds=max_seconds)
    try:
        with _results(form, out, recordings, recognizer) as results:
            todo = [path for path in recordings if path not in results.done]
            if len(todo) < len(recordings):
                logger.info(f"{len(recordings) - len(todo)} of {len(recordings)} recordings are in {out} already")
            failures = _recognise(recognizer, todo, batch_size, results)
    except KeyboardInterrupt:
        print("interrupted" + (f"; the same command goes on where {out} ends" if out else ""), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # who reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if failures:
        listed = "\n".join(f"  {path}: {error}" for path, error in failures.items())
        print(f"{len(failures)} of {len(recordings)} recordings gave no result:\n{listed}", file=sys.stderr)
    return 1 if failures else 0


def _format(form: str | None, out: str | None) -> str:
    form = form or (BY_SUFFIX.get(Path(out).suffix.lower()) if out else "table")
    if form is None or (out and form == "table"):
        raise UserError(f"--out: give --format=json or --format=csv, or a name that ends so; found {out}")
    if form not in FORMATS:
        raise UserError(f"--format: '{form}' is unknown{nearest(form, FORMATS)}; known: {', '.join(FORMATS)}")
    return form


@contextlib.contextmanager
def _results(form: str, out: str | None, recordings: Sequence[str], recognizer: EmotionRecognizer):
    """Where results go."""
    first = recordings if form == "table" else recognizer.model_id
    form = FORMATS[form](first, recognizer.classes, recognizer.decode is not None)
    if out is None:
        yield _Console(form)
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except OSError as error:
            raise UserError(f"--out: expected a file that can be written, found {out} ({error.strerror})") from error
        yield stack.enter_context(ResultsFile(out, form))


class _Console:
    """Standard output, a line a result."""

    done = frozenset()

    def __init__(self, form):
        self.form = form
        with contextlib.suppress(AttributeError):  # a file's name may be in any encoding
            sys.stdout.reconfigure(errors="surrogateescape")
        print(form.header, end="", flush=True)

    def add(self, found) -> None:
        with tqdm.external_write_mode():  # the bar makes room
            print(self.form.line(found), end="", flush=True)


def _recognise(recognizer, paths: Sequence[str], batch_size: int, results) -> dict[str, str]:
    """Results as they come; returns the errors of those that have none, by path."""
    failures = {}
    found = recognizer.classify_files(paths, batch_size)
    for result in tqdm(found, "recordings", len(paths), file=sys.stderr, disable=None):
        if result.error is None:
            results.add(result)
        else:
            failures[result.path] = result.error
    return failures
