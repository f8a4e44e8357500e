"""`speechbrain-ser predict`: which recordings, how what is recognised is written, and where it goes.

JSON lines that any later call goes on with, CSV and tables made of them, TextGrids.
"""

import contextlib
import csv
import io
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import BinaryIO

from praatio.data_classes.interval_tier import IntervalTier
from praatio.data_classes.textgrid import Textgrid
from tqdm import tqdm

from speechbrain_ser.errors import INTERRUPTED, UserError, printable
from speechbrain_ser.files import cannot_be_written, file_stem, locked, written_whole
from speechbrain_ser.inference.recognizer import EmotionRecognizer, Recognition, open_recognizer
from speechbrain_ser.inference.timeline import WINDOW, Timeline, plan_windows

logger = logging.getLogger(__name__)

SILENT = "-"  # in a table, in place of an emotion below the threshold; empty in CSV, null in JSON
NUMBERS = ("start", "end", "posterior")  # columns of a table that are aligned to the right
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # a file's name may be in any encoding
BEGINNING = b'{"path": '  # of a record's line
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet may compute, and what it has become below
STDIN = "-"
FOLDER_FORMATS = ("textgrid",)  # a file a recording
BY_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "json"}
# of what soundfile reads
SUFFIXES = {*".aif .aifc .aiff .au .caf .flac .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav .wave".split()}

# of sound that it does not read, alone or beside pictures
UNREAD = {*".3gp .aac .amr .ape .m4a .m4b .mka .mkv .mov .mp4 .webm .wma .wv".split()}


# ------------------------------------------------------------------ records as text
# A record is what `to_dict` of a Recognition or a Timeline gives, and the model's name.


def json_text(record: dict, header: bool = False) -> str:
    """Return a record as one line of JSON, with no header ever."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def _rows(record: dict) -> list[dict]:
    """One row, or, of a timeline, one a segment with the recording's duration."""
    if "segments" not in record:
        return [record]
    about = {name: record[name] for name in ("window", "step", "model")}
    places = {"path": record["path"], "start": 0.0, "end": 0.0, "duration": record["duration"]}  # the columns' order
    return [{**places, **segment, **about} for segment in record["segments"]]


def csv_text(record: dict, header: bool = False) -> str:
    """Return the rows of a record as CSV, with the columns of a run's predictions.csv.

    Text that a spreadsheet would take for a formula (``=2+3.wav``) gets an apostrophe, as people write it there; who
    reads paths back takes one away from what begins with apostrophes and one of ``= + - @``, tab, carriage return.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in _rows(record):
        cells = {}
        for name, value in row.items():
            cells |= {f"posterior_{c}": p for c, p in value.items()} if name == "posteriors" else {name: value}
        if header:
            writer.writerow(cells)
        header = False
        writer.writerow(f"'{c}" if isinstance(c, str) and FORMULA.match(c) else c for c in cells.values())
    return text.getvalue()


def table_text(record: dict, header: bool = False, widths: tuple[int, int] = (0, 0)) -> str:
    """Return the rows of a record for people to read, times in seconds.

    `widths` are the characters of the longest path and of the longest emotion, of all records.

    Example
    -------
    >>> segments = [{"start": 0.0, "end": 4.0, "emotion": "sad", "posteriors": {"sad": 0.751}, "transcript": "NEIN"},
    ...             {"start": 4.0, "end": 5.5, "emotion": None, "posteriors": {"sad": 0.5}, "transcript": ""}]
    >>> record = {"path": "a.wav", "duration": 5.5, "segments": segments, "window": 4, "step": 2, "model": "c0ffee"}
    >>> print(table_text(record, True), end="")
    recording    start      end  emotion  posterior  transcript
    a.wav         0.00     4.00  sad          0.751  NEIN
    a.wav         4.00     5.50  -            0.500
    """
    lines = []
    for row in _rows(record):
        cells = {"recording": row["path"].ljust(max(widths[0], len("recording")))}
        cells |= {name: f"{row[name]:7.2f}" for name in ("start", "end") if name in row}
        cells["emotion"] = (row["emotion"] or SILENT).ljust(max(widths[1], len("emotion")))
        cells["posterior"] = f"{max(row['posteriors'].values()):9.3f}"
        cells |= {name: row[name] for name in ("transcript",) if name in row}
        names = [name.rjust(len(cell)) if name in NUMBERS else name.ljust(len(cell)) for name, cell in cells.items()]
        lines += ["  ".join(names)] if header and not lines else []
        lines.append(printable("  ".join(cells.values()), also="\n\t"))
    return "".join(line.rstrip() + "\n" for line in lines)


FORMATS = {"table": table_text, "json": json_text, "csv": csv_text}


def records_to_csv(records: Iterable[dict], path: Path) -> None:
    with written_whole(path) as temporary, temporary.open("w", newline="", **TEXT) as file:
        for number, record in enumerate(records):
            file.write(csv_text(record, header=number == 0))


def write_textgrid(timeline: Timeline, path: str | os.PathLike) -> Path:
    """Write tiers ``emotion``, empty where the recogniser abstained, and, of one that transcribes, ``transcript``."""
    path = Path(path)
    tiers = {"emotion": [(segment.start, segment.end, segment.emotion or "") for segment in timeline.segments]}
    if timeline.phrases is not None:
        tiers["transcript"] = [(phrase.start, phrase.end, phrase.text) for phrase in timeline.phrases]
    grid = Textgrid(0.0, timeline.duration)
    for name, entries in tiers.items():
        grid.addTier(IntervalTier(name, entries, 0.0, timeline.duration))
    with written_whole(path) as temporary:
        # no interval is dropped for being short: the last step may be
        grid.save(str(temporary), "long_textgrid", includeBlankSpaces=True, minimumIntervalLength=None)
    return path


# ------------------------------------------------------------------ files that later calls go on with


def origin_of(record: dict) -> str:
    """Return what results of one file have in common, in words.

    >>> origin_of({"model": "c0ffee", "window": 4.0, "step": 2.0, "phrases": []})
    'c0ffee, windows of 4 s every 2 s, with transcripts'
    """
    windows = f", windows of {record['window']:g} s every {record['step']:g} s" if "window" in record else ""
    spoken = "with" if {"transcript", "phrases"} & record.keys() else "without"
    return record.get("made_by") or f"{record['model']}{windows}, {spoken} transcripts"


class ResultsFile:
    """Records of one origin as JSON lines, by path, in a file that any number of calls go on with.

    ``done`` has the paths of the recordings that had a record when it was opened.
    """

    def __init__(self, path: Path, file: BinaryIO, origin: str):
        self.path, self.file, self.origin = path, file, origin
        self.done = {record["path"] for record in self.records()}
        file.truncate(self.end)  # a line that a killed process had not finished

    def add(self, record: dict) -> None:
        """Append a record, which is in the system's hands when this returns."""
        try:
            self.file.write(json_text(record).encode(**TEXT))
            self.file.flush()
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def records(self) -> Iterator[dict]:
        """Read what the file holds, a record at a time."""
        self.file.seek(0)
        self.end = 0
        for number, line in enumerate(self.file, 1):
            if not line.endswith(b"\n"):
                if line[: len(BEGINNING)] != BEGINNING[: len(line)]:  # a stranger's file stays as it is
                    raise self._refusal("results", number, repr(line[:100]))
                return
            try:
                record = json.loads(line.decode(**TEXT))
                path, origin = record["path"], origin_of(record)
            except (ValueError, KeyError, TypeError) as error:
                raise self._refusal("results", number, repr(line[:100])) from error
            if origin != self.origin or not isinstance(path, str):
                raise self._refusal(f"results of this model ({self.origin})", number, f"those of another ({origin})")
            self.end += len(line)
            yield record

    def _refusal(self, expected: str, number: int, found: str) -> UserError:
        return UserError(
            f"--out: expected {expected} in line {number} of {self.path}, found {found}: give another file"
        )


@contextlib.contextmanager
def results_file(path: str | os.PathLike, origin: str) -> Iterator[ResultsFile]:
    """Open a file of results, locked against other processes; its folder is made where there is none.

    One that holds other things, or records of another origin (:func:`origin_of`), is a UserError and stays as it is.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
            file = stack.enter_context(path.open("a+b"))
        except OSError as error:
            raise UserError(f"--out: expected a file that can be written, found {path} ({error.strerror})") from error
        yield ResultsFile(path, file, origin)


class ResultsFolder:
    """A file a recording, named after it and made by `write`, in the folder of an index that says whose each is.

    A name is taken in the index before its file is written, and `write` gives it whole or not at all. Recordings of one
    name in several folders get a file each (``a.png``, ``a-2.png``), and a file that somebody else has put there is
    never overwritten. ``done`` has the paths of the recordings that have a file.
    """

    def __init__(self, index: ResultsFile, suffix: str, write: Callable[[Timeline, Path], object]):
        self.index, self.suffix, self.write = index, suffix, write
        self.folder = index.path.parent
        self.names = {record["path"]: record["file"] for record in index.records()}
        self.done = {path for path, name in self.names.items() if (self.folder / name).is_file()}

    def add(self, found: Timeline) -> None:
        path = self.folder / (self.names.get(found.path) or self._take_name(found.path))
        self.write(found, path)

    def _take_name(self, path: str) -> str:
        stem, taken = file_stem(Path(path).stem), set(self.names.values())
        names = (f"{stem}{f'-{n}' if n > 1 else ''}{self.suffix}" for n in count(1))
        name = next(n for n in names if n not in taken and not os.path.lexists(self.folder / n))
        self.index.add({"path": path, "file": name, "made_by": self.index.origin})
        self.names[path] = name
        return name


# ------------------------------------------------------------------ which recordings


def find_recordings(paths: Iterable[str], recursive: bool = False) -> list[str]:
    """Return the recordings that paths name, each once.

    A path is a file, whatever its name (reading it will tell); a folder: the audio files in it by their names' endings,
    in alphabetical order, and with `recursive` those in its subfolders; ``-``: paths on standard input, one a line.
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
    files = [f for f in Path(path).glob("**/*" if recursive else "*") if not f.name.startswith(".")]
    found = sorted(str(f) for f in files if f.suffix.lower() in SUFFIXES and not f.is_dir())
    _tell_of_others(path, files, recursive)
    if not found:
        hint = "" if recursive else " (--recursive looks into its subfolders)"
        raise UserError(f"{path}: expected a folder of audio files, found none there{hint}")
    return found


def _tell_of_others(path: str, files: list[Path], recursive: bool) -> None:
    passed = Counter(f"{f.suffix.lower()} (soundfile does not read it)" for f in files if f.suffix.lower() in UNREAD)
    if recursive:
        passed["linked folders (name them to look into them)"] = sum(f.is_symlink() and f.is_dir() for f in files)
    if told := ", ".join(f"{n} {what}" for what, n in sorted(passed.items()) if n):
        logger.warning(f"{path}: passed over: {told}")


# ------------------------------------------------------------------ the command


def predict(
    paths: Sequence[str],
    model: str,
    form: str | None = None,
    recursive: bool = False,
    out: str | None = None,
    batch_size: int = 8,
    device: str | None = None,
    window: float | None = None,
    step: float | None = None,
    picture: str | None = None,
    **options,
) -> int:
    """Recognise recordings with a trained model, as ``speechbrain-ser predict --help`` says it; `form` is its --format.

    What `out` and `picture` have is not done again. JSON lines are appended as they come; a CSV file is made of such
    lines, which stay beside it (``results.csv.jsonl``), when the command ends, however it ends. The status is 1 when
    some recordings gave no result: they are listed on stderr, and tried again by the next call.
    """
    form = _format(form, out)
    if window is None and (step is not None or picture is not None or form in FOLDER_FORMATS):
        window = WINDOW
    recordings = find_recordings(paths, recursive)
    recognizer = open_recognizer(model, run_opts={"device": device} if device else None, **options)
    windows = None if window is None else plan_windows(recognizer, window, step).seconds
    try:
        with contextlib.ExitStack() as stack:
            outputs = list(_outputs(stack, form, out, picture, recordings, recognizer, windows))
            todo = [path for path in recordings if any(path not in done for done, _ in outputs)]
            if len(todo) < len(recordings):
                places = " and ".join(filter(None, [out, picture]))
                logger.info(f"{len(recordings) - len(todo)} of {len(recordings)} recordings are in {places} already")
            failures = _recognise(recognizer, todo, batch_size, windows, outputs)
    except KeyboardInterrupt:
        print("interrupted" + (f"; the same command goes on with {out}" if out else ""), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # who reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if failures:
        listed = "\n".join(printable(f"  {path}: {error}", also="\n") for path, error in failures.items())
        print(f"{len(failures)} of {len(recordings)} recordings gave no result:\n{listed}", file=sys.stderr)
    return 1 if failures else 0


def _format(form: str | None, out: str | None) -> str:
    form = form or (BY_SUFFIX.get(Path(out).suffix.lower()) if out else "table")
    if form is None or (out and form == "table"):
        raise UserError(
            f"--out: give --format=json or --format=csv, or a name that ends so, or --format=textgrid; found {out}"
        )
    if form in FOLDER_FORMATS and out is None:
        raise UserError(f"--format={form}: expected a folder for the files, --out=FOLDER, found none")
    return form


def _outputs(
    stack: contextlib.ExitStack,
    form: str,
    out: str | None,
    picture: str | None,
    recordings: Sequence[str],
    recognizer: EmotionRecognizer,
    windows: tuple[float, float] | None,
) -> Iterator[tuple[Collection[str], Callable[[Recognition | Timeline], None]]]:
    """What results go to: paths that it has, and what takes a result; a recording's picture comes before its line."""
    about = {"model": recognizer.model_id, **dict(zip(("window", "step"), windows or (), strict=False))}
    origin = origin_of(about if recognizer.decode is None else about | {"transcript": ""})

    def record(found: Recognition | Timeline) -> dict:
        return {**found.to_dict(), "model": recognizer.model_id}

    folders = [(picture, ".png", _write_picture)] if picture is not None else []
    folders += [(out, ".TextGrid", write_textgrid)] if form in FOLDER_FORMATS else []
    for folder, suffix, write in folders:
        index = stack.enter_context(results_file(Path(folder, f"index{suffix}.jsonl"), origin))
        results = ResultsFolder(index, suffix, write)
        yield results.done, results.add
    if out is None:
        text = FORMATS[form]
        if form == "table":
            text = partial(text, widths=(max(map(len, recordings)), max(map(len, recognizer.classes))))
        yield (), _console(text, record)
    elif form not in FOLDER_FORMATS:
        lines = Path(out if form == "json" else f"{out}.jsonl")
        if os.path.lexists(out) and not lines.exists():
            raise UserError(f"--out: expected {lines}, of which {out} is made, found {out} alone: give another file")
        file = stack.enter_context(results_file(lines, origin))
        if form == "csv":
            stack.callback(lambda: records_to_csv(file.records(), Path(out)))  # whatever ends the command
        yield file.done, lambda found: file.add(record(found))


def _console(text: Callable[..., str], record: Callable[[Recognition | Timeline], dict]) -> Callable:
    headers = chain([True], repeat(False))

    def show(found: Recognition | Timeline) -> None:
        with tqdm.external_write_mode():  # the bar makes room
            line = text(record(found), next(headers))
            print(printable(line) if sys.stdout.isatty() else line, end="", flush=True)  # else data, for a program

    return show


def _write_picture(timeline: Timeline, path: Path) -> None:
    from speechbrain_ser.evaluation.figures import save_figure
    from speechbrain_ser.inference.timeline_figure import plot_timeline

    save_figure(plot_timeline(timeline), path)


def _recognise(
    recognizer: EmotionRecognizer,
    paths: Sequence[str],
    batch_size: int,
    windows: tuple[float, float] | None,
    outputs: Sequence[tuple[Collection[str], Callable]],
) -> dict[str, str]:
    """Hand results on as they come; return the errors of recordings that have none, by path."""
    failures = {}
    if windows is None:
        found = recognizer.classify_files(paths, batch_size)
    else:
        found = recognizer.timelines(paths, *windows, batch_size, progress=True)
    for result in tqdm(found, "recordings", len(paths), file=sys.stderr, disable=None):
        if result.error is not None:
            failures[result.path] = result.error
            continue
        for done, add in outputs:
            if result.path not in done:
                add(result)
    return failures
