"""`speechbrain-ser predict`: which recordings, and where what is recognised goes."""

import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from speechbrain_ser.data.audio import BadAudioError
from speechbrain_ser.errors import INTERRUPTED, UserError, printable
from speechbrain_ser.inference.formats import (
    FORMATS,
    ResultsFolder,
    origin_of,
    records_to_csv,
    results_file,
    write_srt,
    write_textgrid,
)
from speechbrain_ser.inference.recognizer import EmotionRecognizer, Recognition, open_recognizer
from speechbrain_ser.inference.timeline import WINDOW, Timeline, WindowPlan, plan_windows
from speechbrain_ser.inference.turns import VAD, follow_turns, read_turns
from speechbrain_ser.processing.voice_activity import BY_ENERGY, method

logger = logging.getLogger(__name__)

STDIN = "-"
FOLDER_FORMATS = {"textgrid": (".TextGrid", write_textgrid), "srt": (".srt", write_srt)}  # a file a recording
BY_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "json"}
# of what soundfile reads
SUFFIXES = {*".aif .aifc .aiff .au .caf .flac .mp3 .nist .oga .ogg .opus .rf64 .snd .sph .voc .w64 .wav .wave".split()}

# of sound that it does not read, alone or beside pictures
UNREAD = {*".3gp .aac .amr .ape .m4a .m4b .mka .mkv .mov .mp4 .webm .wma .wv".split()}


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
    segments: str | None = None,
    **options,
) -> int:
    """Recognise recordings with a trained model, as ``speechbrain-ser predict --help`` says it; `form` is its --format.

    What `out` and `picture` have is not done again. JSON lines are appended as they come; a CSV file is made of such
    lines, which stay beside it (``results.csv.jsonl``), when the command ends, however it ends. The status is 1 when
    some recordings gave no result: they are listed on stderr, and tried again by the next call.
    """
    form = _format(form, out)
    if window is None and segments is None and (step is not None or picture is not None or form in FOLDER_FORMATS):
        window = WINDOW
    recordings = find_recordings(paths, recursive)
    is_only, turns_of = len(recordings) == 1, {}
    if segments is not None:  # before the model is loaded, which takes a while
        turns_of = {r: VAD if segments == VAD else read_turns(segments, r, is_only) for r in recordings}
    recognizer = open_recognizer(model, run_opts={"device": device} if device else None, **options)
    if segments is not None:
        plan = plan_windows(recognizer, WINDOW if window is None else window, step)
        follow_all = partial(_by_turns, recognizer, turns_of, plan, segments)
        made_by = {"segments_by": Path(segments).name}
        if segments == VAD and method() == "energy" and recognizer.speech_by is None:
            logger.warning(BY_ENERGY)
    elif window is not None:
        plan = plan_windows(recognizer, window, step)
        follow_all = partial(recognizer.timelines, duration=window, step=step, batch_size=batch_size, progress=True)
        made_by = dict(zip(("window", "step"), plan.seconds, strict=True))
    else:
        follow_all, made_by = partial(recognizer.classify_files, batch_size=batch_size), {}
    try:
        with contextlib.ExitStack() as stack:
            outputs = list(_outputs(stack, form, out, picture, recordings, recognizer, made_by))
            todo = [path for path in recordings if any(path not in done for done, _ in outputs)]
            if len(todo) < len(recordings):
                places = " and ".join(filter(None, [out, picture]))
                logger.info(f"{len(recordings) - len(todo)} of {len(recordings)} recordings are in {places} already")
            failures = _recognise(recognizer, todo, follow_all, outputs)
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
    how: Mapping[str, float | str],
) -> Iterator[tuple[Collection[str], Callable[[Recognition | Timeline], None]]]:
    """What results go to: paths that it has, and what takes a result; a recording's picture comes before its line."""
    made_by = {"model": recognizer.model_id} | ({"speech_by": recognizer.speech_by} if recognizer.speech_by else {})
    about = made_by | dict(how)
    origin = origin_of(about if recognizer.decode is None else about | {"transcript": ""})

    def record(found: Recognition | Timeline) -> dict:
        return {**found.to_dict(), **how, **made_by}

    folders = [(picture, ".png", _write_picture)] if picture is not None else []
    folders += [(out, *FOLDER_FORMATS[form])] if form in FOLDER_FORMATS else []
    for folder, suffix, write in folders:
        index = stack.enter_context(results_file(Path(folder, f"index{suffix}.jsonl"), origin))
        results = ResultsFolder(index, suffix, write)
        yield results.done, results.add
    if out is None:
        text = FORMATS[form]
        if form == "table":
            text = partial(text, widths=(max(map(len, recordings)), max(map(len, recognizer.classes), default=0)))
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
    header = True

    def show(found: Recognition | Timeline) -> None:
        nonlocal header
        with tqdm.external_write_mode():  # the bar makes room
            if not (line := text(record(found), header)):
                return
            header = False
            print(printable(line) if sys.stdout.isatty() else line, end="", flush=True)  # else data, for a program

    return show


def _write_picture(timeline: Timeline, path: Path) -> None:
    from speechbrain_ser.evaluation.figures import save_figure
    from speechbrain_ser.inference.timeline_figure import plot_timeline

    save_figure(plot_timeline(timeline), path)


def _by_turns(recognizer: EmotionRecognizer, turns_of: Mapping, plan: WindowPlan, source: str, paths: Sequence[str]):
    for path in paths:
        try:
            yield follow_turns(recognizer, path, turns_of[path], plan, source)
        except BadAudioError as defect:
            yield Timeline(path, error=defect.words)


def _recognise(
    recognizer: EmotionRecognizer,
    paths: Sequence[str],
    follow_all: Callable[[Sequence[str]], Iterable[Recognition | Timeline]],
    outputs: Sequence[tuple[Collection[str], Callable]],
) -> dict[str, str]:
    """Hand results on as they come; return the errors of recordings that have none, by path."""
    failures, unspoken = {}, 0
    for result in tqdm(follow_all(paths), "recordings", len(paths), file=sys.stderr, disable=None):
        if result.error is not None:
            failures[result.path] = result.error
            continue
        unspoken += not recognizer.is_speech(result.speech) or getattr(result, "segments", None) == []
        for done, add in outputs:
            if result.path not in done:
                add(result)
    if unspoken:
        least = f"less than --min-speech={recognizer.min_speech:g} of the time"
        logger.warning(f"{unspoken} of {len(paths)} recordings hold no speech ({least}), and get no emotion")
    return failures
