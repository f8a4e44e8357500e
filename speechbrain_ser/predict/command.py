"""`speechbrain-ser predict`: emotions and transcripts of recordings, on the console or into a file that resumes."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.inference import EmotionRecognizer
from speechbrain_ser.package.opening import open_recognizer
from speechbrain_ser.predict.destinations import FOLDER_FORMATS, FORMATS, destinations
from speechbrain_ser.predict.recordings import find_recordings
from speechbrain_ser.stopping import INTERRUPTED
from speechbrain_ser.timeline.recognition import WINDOW, plan_windows

logger = logging.getLogger(__name__)

BY_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "json"}


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
    calibrated: bool = True,
    threshold: float = 0.0,
    window: float | None = None,
    step: float | None = None,
    picture: str | None = None,
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
        ``textgrid``: a file a recording, in the folder `out`.
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
        The longest recording that is taken; in windows all are.
    calibrated : bool
        Posteriors with the temperature that was fitted on the run's validation utterances; False: as trained.
    threshold : float
        No emotion where the largest posterior is below it.
    window : float, optional
        Recognise recordings of any length in windows of so many seconds
        (:meth:`speechbrain_ser.inference.EmotionRecognizer.timeline`). None: whole, unless `step`, `picture` or
        TextGrids are asked for.
    step : float, optional
        Seconds from window to window; None: half a window.
    picture : str, optional
        A folder of pictures, one a recording.

    Returns
    -------
    int
        0, or 1 when some recordings gave no result: they are listed on stderr, and tried again by the next call.

    Raises
    ------
    UserError
        When nothing can be done: no model, no recordings, a file of another model's results, or of the same one's with
        another temperature or threshold.
    """
    form = _format(form, out)
    if window is None and (step is not None or picture is not None or form in FOLDER_FORMATS):
        window = WINDOW
    recordings = find_recordings(paths, recursive)
    run_opts = {"device": device} if device else None
    options = {"run_opts": run_opts, "transcribe": transcribe, "max_seconds": max_seconds}
    recognizer = open_recognizer(model, **options, calibrated=calibrated, threshold=threshold)
    windows = None if window is None else plan_windows(recognizer, window, step).seconds
    try:
        with destinations(form, out, picture, recordings, recognizer, windows) as results:
            todo = [path for path in recordings if any(path not in each.done for each in results)]
            if len(todo) < len(recordings):
                places = " and ".join(filter(None, [out, picture]))
                logger.info(f"{len(recordings) - len(todo)} of {len(recordings)} recordings are in {places} already")
            failures = _recognise(recognizer, todo, batch_size, windows, results)
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
    known = [*FORMATS, *FOLDER_FORMATS]
    form = form or (BY_SUFFIX.get(Path(out).suffix.lower()) if out else "table")
    if form is None or (out and form == "table"):
        raise UserError(
            f"--out: give --format=json or --format=csv, or a name that ends so, or --format=textgrid; found {out}"
        )
    if form not in known:
        raise UserError(f"--format: '{form}' is unknown{nearest(form, known)}; known: {', '.join(known)}")
    if form in FOLDER_FORMATS and out is None:
        raise UserError(f"--format={form}: expected a folder for the files, --out=FOLDER, found none")
    return form


def _recognise(
    recognizer: EmotionRecognizer,
    paths: Sequence[str],
    batch_size: int,
    windows: tuple[float, float] | None,
    results: Sequence,
) -> dict[str, str]:
    """Results as they come; returns the errors of those that have none, by path."""
    failures = {}
    if windows is None:
        found = recognizer.classify_files(paths, batch_size)
    else:
        found = recognizer.timelines(paths, *windows, batch_size, progress=True)
    for result in tqdm(found, "recordings", len(paths), file=sys.stderr, disable=None):
        if result.error is not None:
            failures[result.path] = result.error
            continue
        for each in results:
            if result.path not in each.done:
                each.add(result)
    return failures
