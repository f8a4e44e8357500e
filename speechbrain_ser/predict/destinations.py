"""Where results go: the console, a file, a folder of TextGrids, a folder of pictures."""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from speechbrain_ser.errors import UserError
from speechbrain_ser.inference import EmotionRecognizer
from speechbrain_ser.locks import locked
from speechbrain_ser.predict.formats import Csv, JsonLines, Table
from speechbrain_ser.predict.results_file import ResultsFile
from speechbrain_ser.predict.results_folder import ResultsFolder, index_path
from speechbrain_ser.predict.timeline_formats import SegmentCsv, SegmentTable, TimelineLines, origin_of
from speechbrain_ser.timeline import Timeline
from speechbrain_ser.timeline.textgrid import write_textgrid

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
    from speechbrain_ser.evaluation.figures import save_figure  # a second that only pictures cost
    from speechbrain_ser.timeline.picture import plot_timeline

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
