"""`speechbrain-ser predict`: which recordings, and where what is recognised goes."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from speechbrain_ser.errors import INTERRUPTED, UserError, nearest
from speechbrain_ser.files import locked
from speechbrain_ser.inference.formats import (
    Csv,
    JsonLines,
    ResultsFile,
    ResultsFolder,
    SegmentCsv,
    SegmentTable,
    Table,
    TimelineLines,
    index_path,
    origin_of,
    write_textgrid,
)
from speechbrain_ser.inference.recognizer import EmotionRecognizer, open_recognizer
from speechbrain_ser.inference.timeline import WINDOW, Timeline, plan_windows

logger = logging.getLogger(__name__)


STDIN = "-"


# what soundfile reads, by the endings that such files have
SUFFIXES = frozenset(
    ".aif .aifc .aiff .au .caf .flac .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav .wave".split()
)


def find_recordings(paths: Iterable[str], recursive: bool = False) -> list[str]:
    """The recordings that paths name, each once.

    Arguments
    ---------
    paths : iterable of str
        A file, whatever its name; a folder: the audio files in it, by their names' endings, in alphabetical order;
        ``-``: paths on standard input, one a line.
    recursive : bool
        Also the audio files in a folder's subfolders.

    Returns
    -------
    list of str
        What is no folder is taken for a recording: reading it will tell.

    Raises
    ------
    UserError
        For a folder without audio files, or when nothing is named at all.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for name in ("b.wav", "a.FLAC", "notes.txt"):
    ...     _ = (folder / name).write_bytes(b"")
    >>> [os.path.basename(path) for path in find_recordings([str(folder), str(folder / "b.wav"), "c.raw"])]
    ['a.FLAC', 'b.wav', 'c.raw']
    """
    found = [recording for path in _listed(paths) for recording in _recordings_of(path, recursive)]
    if not found:
        raise UserError("expected recordings or folders, found an empty list on standard input")
    return list(dict.fromkeys(found))


def _listed(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path != STDIN:
            yield path
            continue
        lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)  # bytes: a file's name may be in any encoding
        yield from (os.fsdecode(line) for line in lines if line)


def _recordings_of(path: str, recursive: bool) -> list[str]:
    if not os.path.isdir(path):
        return [str(Path(path))]  # `./a.wav` and `a.wav` are one
    found = [str(Path(folder, name)) for folder, names in _files_in(path, recursive) for name in names]
    found = [f for f in found if Path(f).suffix.lower() in SUFFIXES and not Path(f).name.startswith(".")]
    if not found:
        hint = "" if recursive else " (--recursive looks into its subfolders)"
        raise UserError(f"{path}: expected a folder of audio files, found none there{hint}")
    return sorted(found)


def _files_in(path: str, recursive: bool) -> Iterator[tuple[str, list[str]]]:
    for folder, _, names in os.walk(path):
        yield folder, names
        if not recursive:
            return


FORMATS = {"table": Table, "json": JsonLines, "csv": Csv}


TIMELINE_FORMATS = {"table": SegmentTable, "json": TimelineLines, "csv": SegmentCsv}


FOLDER_FORMATS = ("textgrid",)  # a file a recording


@contextlib.contextmanager
def destinations(
    form: str,
    out: str | None,
    picture: str | None,
    recordings: Sequence[str],
    recognizer: EmotionRecognizer,
    windows: tuple[float, float] | None,
):
    """Open what results go to; locked against other processes.

    Arguments
    ---------
    form : str
        One of :data:`FORMATS` or :data:`FOLDER_FORMATS`.
    out : str, optional
        A file, or the folder of one of :data:`FOLDER_FORMATS`; None: standard output.
    picture : str, optional
        A folder of pictures.
    recordings : sequence of str
        All paths.
    recognizer : EmotionRecognizer
        Whose results they are.
    windows : tuple of float, optional
        Seconds of a window and of a step, where timelines are written.

    Yields
    ------
    list
        Each with ``done``, paths of recordings that it has, and ``add(result)``. The picture comes before the line
        that says that a recording is done.

    Raises
    ------
    UserError
        When one cannot be written, or holds another model's results.
    """
    with contextlib.ExitStack() as stack:
        results = []
        folders = [(picture, ".png", _write_picture)] if picture is not None else []
        folders += [(out, ".TextGrid", write_textgrid)] if form in FOLDER_FORMATS else []
        for folder, suffix, write in folders:
            _lock(stack, index_path(folder, suffix))
            origin = origin_of(recognizer.model_id, *windows)
            results.append(stack.enter_context(ResultsFolder(folder, suffix, write, origin)))
        if form not in FOLDER_FORMATS:
            lines = _lines(form, recordings, recognizer, windows)
            if out is not None:
                _lock(stack, out)
            results.append(_Console(lines) if out is None else stack.enter_context(ResultsFile(out, lines)))
        yield results


def _lines(form: str, recordings: Sequence[str], recognizer: EmotionRecognizer, windows: tuple[float, float] | None):
    """How results are written, line by line."""
    about = [recognizer.classes, recognizer.decode is not None]
    if form == "table":
        return (FORMATS if windows is None else TIMELINE_FORMATS)[form](recordings, *about)
    if windows is None:
        return FORMATS[form](recognizer.model_id, *about)
    return TIMELINE_FORMATS[form](recognizer.model_id, *about, *windows)


def _lock(stack: contextlib.ExitStack, path: str | os.PathLike) -> None:
    try:
        stack.enter_context(locked(path))
    except OSError as error:
        raise UserError(f"--out: expected a file that can be written, found {path} ({error.strerror})") from error


def _write_picture(timeline: Timeline, path: Path) -> None:
    from speechbrain_ser.evaluation.figures import save_figure
    from speechbrain_ser.inference.timeline_figure import plot_timeline

    save_figure(plot_timeline(timeline), path)


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
        Recognise recordings of any length in windows of so many seconds (``EmotionRecognizer.timeline``). None: whole,
        unless `step`, `picture` or TextGrids are asked for.
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
