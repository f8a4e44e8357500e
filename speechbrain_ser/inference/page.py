"""`speechbrain-ser serve`: a page on this machine, its API, and what stands before them."""

import base64
import contextlib
import importlib.util
import io
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import soundfile
import yaml
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse

from speechbrain_ser.data.audio import sound_name
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.intervals import speaker_interval, speaker_sums
from speechbrain_ser.inference.formats import write_textgrid
from speechbrain_ser.inference.recognizer import EmotionRecognizer, Recognition, open_recognizer
from speechbrain_ser.inference.timeline import Phrase, Segment, Timeline, plan_windows
from speechbrain_ser.inference.timeline_figure import plot_timeline

logger = logging.getLogger(__name__)


KEEP = 900.0  # seconds that an upload waits for its request: those that nobody asks about are removed then


SWEEP = 30.0  # seconds from look to look


SPACE = 10  # uploads of full size that wait at a time, together


class Uploads:
    """A private folder, used as a context: at its end nothing of it is left.

    Arguments
    ---------
    max_bytes : int
        Of one upload.

    Example
    -------
    >>> with Uploads(1000) as uploads:
    ...     path = uploads.folder / "hash" / "a.wav"
    ...     path.parent.mkdir()
    ...     _ = path.write_bytes(b"RIFF")
    ...     uploads.received([str(path)])
    ...     uploads.find(str(path)) == path, uploads.is_full()
    ...     uploads.remove(path)
    ...     list(uploads.folder.iterdir())
    (True, False)
    []
    >>> uploads.folder.exists()
    False
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.waiting = Counter()  # requests that an upload waits for: equal recordings share a file
        self.lock = threading.Lock()
        self.ended = threading.Event()

    def __enter__(self) -> "Uploads":
        self.folder = Path(tempfile.mkdtemp(prefix="speechbrain-ser-serve-")).resolve()  # mode 700
        threading.Thread(target=self._sweep_on, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def received(self, paths: Iterable[str]) -> None:
        """Uploads that are whole, a request for each of which follows."""
        with self.lock:
            self.waiting.update(map(Path, paths))

    def find(self, name: object) -> Path:
        """The upload that a request names.

        Arguments
        ---------
        name : object
            What the request has in the place of a path.

        Returns
        -------
        pathlib.Path
            Of a file in the folder, for sure.

        Raises
        ------
        UserError
            For everything else, whether or not there is such a file.
        """
        with contextlib.suppress(OSError, TypeError, ValueError):
            path = Path(name).resolve()
            if path.is_relative_to(self.folder) and path.is_file():
                return path
        raise UserError("expected a recording that was sent, found none: send it (again), each is deleted when used")

    def remove(self, path: Path) -> None:
        """Delete an upload that was used, unless somebody who sent the same is waiting."""
        with self.lock:
            self.waiting[path] -= 1
            if self.waiting[path] > 0:
                return
            self._delete(path)

    def is_full(self) -> bool:
        """Whether so much is waiting that no more is taken."""
        return sum(size for _, size, _ in self._files()) > SPACE * self.max_bytes

    def sweep(self, age: float = KEEP) -> None:
        """Delete what nobody asked about for `age` seconds."""
        for path, _, modified in self._files():
            if time.time() - modified > age:
                with self.lock:
                    self._delete(path)

    def _delete(self, path: Path) -> None:
        self.waiting.pop(path, None)
        path.unlink(missing_ok=True)
        if path.parent != self.folder:
            with contextlib.suppress(OSError):  # others are in it
                path.parent.rmdir()

    def _sweep_on(self) -> None:
        while not self.ended.wait(SWEEP):
            self.sweep()

    def _files(self) -> list[tuple[Path, int, float]]:
        """Path, size and time of each file."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.lstat()
                    found.append((path, stat.st_size, stat.st_mtime))
        return found


API = "/gradio_api"


UPLOAD = f"{API}/upload"


# What the page and the API need. Gradio has more: proxies, downloads of URLs, stored links, editors.
READ = ("/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")


READ += tuple(f"{API}/{name}" for name in ("info", "openapi.json", "app_id", "startup-events", "queue/data"))


READ += (f"{API}/upload_progress",)


READ_BELOW = ("/assets/", "/static/", f"{API}/heartbeat/", f"{API}/call/", f"{API}/file=")


WRITE = (UPLOAD, *(f"{API}/{name}" for name in ("queue/join", "cancel", "reset")))


WRITE_BELOW = (f"{API}/call/",)


BODY = 1 << 16  # bytes of a request that is no upload, and of what surrounds an upload


LOCAL = ("localhost", "127.0.0.1", "[::1]")


SECURITY = {
    # the browser itself keeps the page from asking anybody else for anything
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """ASGI middleware.

    Arguments
    ---------
    app : callable
        The ASGI application behind it.
    uploads : Uploads
        Where uploads go, and how large one may be.
    is_local : bool
        Whether only this machine is served: then a request must name it (against DNS rebinding).
    """

    def __init__(self, app, uploads: Uploads, is_local: bool):
        self.app, self.uploads, self.is_local = app, uploads, is_local

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if refusal := self._refusal(scope["method"], scope["path"], Headers(scope=scope)):
            status, words = refusal
            await PlainTextResponse(words + "\n", status)(scope, receive, _with_headers(send))
        elif scope["path"] == UPLOAD:
            await self.app(scope, self._bounded(receive), self._noting(_with_headers(send)))
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and words, where a request is not let through."""
        host = headers.get("host", "")
        if self.is_local and _name(host) not in LOCAL:
            return 403, f"expected a request to {' or '.join(LOCAL)}, found one to {host!r}"
        if "origin" in headers and headers["origin"].partition("://")[2] != host:
            return 403, f"expected a request of this page, found one of {headers['origin']!r}"
        if not _is_known(method, path):
            return 404, "not found"
        if method != "POST":
            return None
        most = BODY + (self.uploads.max_bytes if path == UPLOAD else 0)
        length = headers.get("content-length")
        if path != UPLOAD and length is None:
            return 411, "expected a request with its length"
        if length is not None and not (length.isdecimal() and int(length) <= most):
            return 413, self._too_large() if path == UPLOAD else f"expected at most {most} bytes"
        if path == UPLOAD and self.uploads.is_full():
            return 503, "too many recordings are waiting: try again in a minute"
        return None

    def _too_large(self) -> str:
        return f"the recording exceeds the maximum allowed size of {self.uploads.max_bytes / 2**20:g} MB"

    def _bounded(self, receive):
        """An upload's bytes, counted as they come; Gradio deletes the rest of one whose parser is told of an error."""
        so_far = 0

        async def bounded():
            nonlocal so_far
            message = await receive()
            so_far += len(message.get("body", b""))
            if so_far > self.uploads.max_bytes + BODY:
                raise MultiPartException(self._too_large())
            if message["type"] == "http.disconnect":
                raise MultiPartException("the upload was broken off")
            return message

        return bounded

    def _noting(self, send):
        """Tells the uploads' folder what has come."""
        status, body = 0, b""

        async def noting(message):
            nonlocal status, body
            status = message.get("status", status)
            body += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body") and status == 200:
                self.uploads.received(json.loads(body))
            await send(message)

        return noting


def _is_known(method: str, path: str) -> bool:
    if method in ("GET", "HEAD"):
        return path == "/" or path in READ or _is_below(path, READ_BELOW)
    return method == "POST" and (path in WRITE or _is_below(path, WRITE_BELOW))


def _is_below(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a path begins so, and names nothing elsewhere (an address, a network share)."""
    return any(path.startswith(p) and "://" not in path and "//" not in path for p in prefixes)


def _name(host: str) -> str:
    """A Host header without its port.

    Example
    -------
    >>> _name("localhost:7860"), _name("[::1]:7860"), _name("127.0.0.1")
    ('localhost', '[::1]', '127.0.0.1')
    """
    return (host[: host.index("]") + 1] if "]" in host else host.partition(":")[0]).lower()


def _with_headers(send):
    async def sending(message):
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(SECURITY)
        await send(message)

    return sending


LIMITS = (
    "It tells what speech sounds like to those who labelled its corpus, not what somebody feels. Other languages, "
    "microphones, ages and situations than that corpus's make it err more often, also where it sounds sure. Do not "
    "judge people by it."
)


def about(metrics: dict, predictions: pd.DataFrame | None, classes: Sequence[str], transcribes: bool) -> str:
    """What a model is, as Markdown.

    Arguments
    ---------
    metrics : dict
        The run's ``metrics.json``.
    predictions : pandas.DataFrame or None
        Its ``predictions.csv``: the interval comes from it.
    classes : sequence of str
        What it tells apart.
    transcribes : bool
        Whether it transcribes as well.

    Returns
    -------
    str
        Two paragraphs.
    """
    figures = metrics["selections"][metrics["selection"]]
    said = f"accuracy (WA) {_percent(figures['all']['WA'])}{_interval(predictions, classes)}"
    if transcribes and figures["all"].get("WER") is not None:
        said += f", WER {_percent(figures['all']['WER'])}"
    n = figures["all"]["n"]
    speakers = "" if predictions is None else f" of {_count(predictions['speaker'].nunique(), 'speaker')}"
    heard = "never heard in training" if metrics["speaker_disjoint"] else f"in training as well ({metrics['leak']})"
    corpora = " and ".join(c for c in (metrics["corpus"], metrics.get("second_corpus")) if c)
    return (
        f"**The model** is `{metrics['system']}`, trained on {corpora}; it {_skills(classes, transcribes)}. "
        f"Tested on {n} utterances{speakers} {heard} (protocol `{metrics['protocol']}`, fold {metrics['fold']}, "
        f"{figures['selected_by']}): {said}.\n\n**Its limits.** {LIMITS}"
    )


def about_model(model: str | os.PathLike, classes: Sequence[str], transcribes: bool) -> str:
    """The same, of a run's folder, or of a package's, by its model card.

    Arguments
    ---------
    model : str or os.PathLike
        The folder; that of a package may lack its card, and a name on a hub is no folder: little is said then.
    classes, transcribes
        See :func:`about`.

    Returns
    -------
    str
        Two paragraphs of Markdown.
    """
    folder = Path(model)
    if not (folder / "metrics.json").is_file():
        return _about_package(folder, classes, transcribes)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    file = folder / "predictions.csv"
    predictions = pd.read_csv(file, dtype=str, keep_default_na=False) if file.is_file() else None
    return about(metrics, predictions, classes, transcribes)


def _about_package(folder: Path, classes: Sequence[str], transcribes: bool) -> str:
    said = f"**The model** is a package that {_skills(classes, transcribes)}"
    try:
        _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        (result,) = yaml.safe_load(front)["model-index"][0]["results"]
        figures = ", ".join(f"{_plain(m['name'])} {_percent(m['value'])}" for m in result["metrics"][:9])
        said += f". Tested on {_plain(result['dataset']['name'])}: {figures}; intervals and more are in its README.md"
    except (OSError, ValueError, KeyError, TypeError, IndexError, yaml.YAMLError):
        said += ". Its model card says how well"
    return f"{escape(said, quote=False)}.\n\n**Its limits.** {LIMITS}"


def _plain(text: object) -> str:
    """Short text, and nothing else that a stranger's YAML can be."""
    if not isinstance(text, str) or len(text) > 200:
        raise TypeError("expected short text")
    return text


def _skills(classes: Sequence[str], transcribes: bool) -> str:
    also = " and transcribes" if transcribes else ""
    return f"tells {len(classes)} emotions apart ({', '.join(classes)}){also}"


def _interval(predictions: pd.DataFrame | None, classes: Sequence[str]) -> str:
    if predictions is None:
        return ""
    ends = speaker_interval(speaker_sums(predictions[["speaker", "emotion", "predicted"]], classes)["WA"])
    if ends is None:
        return " (one speaker: no interval)"
    return f" (95 % interval over speakers: {_percent(ends.low)} to {_percent(ends.high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


WHOLE = 15.0  # seconds up to which a recording is taken for one utterance: what models are trained and tested on


DENSEST = 8 * 48_000  # samples a second of recording, all channels together: few bytes can decode to a full memory


DPI = 150


@dataclass(frozen=True)
class Answer:
    """What was recognised in a recording.

    Arguments
    ---------
    name : str
        The recording's file name.
    duration : float
        Seconds.
    emotion : str or None
        The likeliest class of the whole recording; None where the recogniser abstained.
    posteriors : dict of str to float
        By class, of the whole recording.
    is_whole : bool
        Whether these were recognised in one piece; else they are the timeline's.
    transcript : str, optional
        Where the model has an ASR head.
    segments : list of Segment
        Stretches of one emotion.
    phrases : list of Phrase
        What was said when, where the model has an ASR head.
    textgrid : str, optional
        The timeline for Praat.
    picture : bytes, optional
        The timeline as PNG.
    """

    name: str
    duration: float
    emotion: str | None
    posteriors: dict[str, float]
    is_whole: bool = True
    transcript: str | None = None
    segments: list[Segment] = field(default_factory=list)
    phrases: list[Phrase] = field(default_factory=list)
    textgrid: str | None = None
    picture: bytes | None = None

    def to_dict(self) -> dict:
        """What the API gives.

        Example
        -------
        >>> Answer("a.wav", 1.5, "sad", {"sad": 1.0}, True, "NO", [Segment(0.0, 1.5, "sad", {"sad": 1.0})]).to_dict()
        {'recording': 'a.wav', 'duration': 1.5, 'emotion': 'sad', 'posteriors': {'sad': 1.0}, 'whole': True,
         'transcript': 'NO',
         'segments': [{'start': 0.0, 'end': 1.5, 'emotion': 'sad', 'posteriors': {'sad': 1.0}}], 'phrases': []}
        """
        plain = {"recording": self.name, "duration": self.duration, "emotion": self.emotion}
        plain |= {"posteriors": self.posteriors, "whole": self.is_whole, "transcript": self.transcript}
        plain |= {"segments": [asdict(s) for s in self.segments], "phrases": [asdict(p) for p in self.phrases]}
        return _rounded(plain)


def recognise(
    recognizer: EmotionRecognizer,
    path: Path,
    window: float = 4.0,
    step: float | None = None,
    max_seconds: float = 600.0,
) -> Answer:
    """Recognise one recording as a whole and over time.

    A recording of at most :data:`WHOLE` seconds is recognised as one utterance, as `predict` does, beside its timeline;
    of a longer one the posteriors are the timeline's mean, and the words the timeline's.

    Arguments
    ---------
    recognizer : EmotionRecognizer
        The model.
    path : pathlib.Path
        The recording.
    window, step : float
        Of the timeline, in seconds (:meth:`EmotionRecognizer.timeline`).
    max_seconds : float
        The longest recording that is taken.

    Returns
    -------
    Answer

    Raises
    ------
    UserError
        What is wrong with the recording, without its folder.
    """
    _check_header(path, max_seconds)
    timeline = _sound(recognizer.timelines([path], window, step))
    is_whole = timeline.duration <= min(WHOLE, recognizer.max_seconds)
    found = _sound(recognizer.classify_files([path])) if is_whole else _mean(recognizer, timeline)
    return Answer(
        path.name,
        timeline.duration,
        found.emotion,
        found.posteriors,
        is_whole,
        found.transcript,
        timeline.segments,
        timeline.phrases or [],
        _textgrid(timeline, path.parent),
        _picture(timeline),
    )


def _check_header(path: Path, max_seconds: float) -> None:
    """What is too long is not decoded; what is no recording says so when it is."""
    try:
        header = soundfile.info(sound_name(path))
    except (soundfile.SoundFileError, OSError):
        return
    seconds = header.frames / header.samplerate
    if seconds > max_seconds:
        raise UserError(f"too long: {seconds:.1f} s (expected at most {max_seconds:g} s)")
    if header.samplerate * header.channels > DENSEST:
        found = f"{header.channels} channels at {header.samplerate} Hz"
        raise UserError(f"too dense: {found} (expected at most 8 channels at 48000 Hz, or as much)")


def _sound(results: Iterable[Timeline | Recognition]) -> Timeline | Recognition:
    """The only one of some results, which has no error."""
    (found,) = results
    if found.error is not None:
        raise UserError(found.error)
    return found


def _mean(recognizer: EmotionRecognizer, timeline: Timeline) -> Recognition:
    posterior = np.average(timeline.posteriors, axis=0, weights=np.diff(timeline.edges))
    posteriors = dict(zip(timeline.classes, posterior.tolist(), strict=True))
    return Recognition(None, recognizer.emotion_of(posterior), posteriors, timeline.transcript)


def _textgrid(timeline: Timeline, folder: Path) -> str:
    """By way of a file, which lies with the recording and is deleted at once."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        return write_textgrid(timeline, Path(temporary, "timeline.TextGrid")).read_text(encoding="utf-8")


def _picture(timeline: Timeline) -> bytes:
    content = io.BytesIO()
    plot_timeline(timeline).savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def _rounded(content):
    """Plain data, floats with six digits behind the point."""
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return round(content, 6) if isinstance(content, float) else content


STYLE = """
.gradio-container {max-width: 1100px !important; margin: 0 auto !important; min-width: 0; width: 100%}
.gradio-container :is(.main, .wrap, .contain) {min-width: 0; max-width: 100%}
.html-container:has(.ser) {padding: 0 !important}
.ser-small {font-size: .9em; opacity: .85; max-width: 50em}
.ser {line-height: 1.4}
.ser h3 {margin: 1.3em 0 .4em; font-size: 1em; font-weight: 600}
.ser .emotion {font-size: 1.9em; font-weight: 700; margin: 0; line-height: 1.2; overflow-wrap: anywhere}
.ser .emotion small {font-size: .5em; font-weight: 400; opacity: .75; display: block}
.ser .bars {display: grid; grid-template-columns: max-content 1fr 4.2em; gap: .35em .7em; align-items: center;
  max-width: 44em}
.ser .bars .bar {height: .8em; border-radius: .4em; background: var(--border-color-primary); overflow: hidden}
.ser .bars .bar i {display: block; height: 100%; background: var(--primary-500)}
.ser .bars .share {text-align: right; font-variant-numeric: tabular-nums}
.ser blockquote {margin: 0 !important; padding: .1em 0 .1em .8em; border-left: 3px solid var(--primary-500);
  font-size: 1.05em; overflow-wrap: anywhere; max-width: 44em}
.ser .picture {overflow-x: auto; background: #fff; border-radius: 6px}
.ser .picture img {width: 100%; min-width: 860px; max-width: none; height: auto; margin: 0}
.ser .files a {display: inline-block; margin: .2em .6em .2em 0; padding: .4em .9em; border-radius: 6px;
  border: 1px solid var(--border-color-primary); text-decoration: none}
.ser .error {padding: .7em 1em; border-left: 3px solid #dc2626; background: #dc262618; overflow-wrap: anywhere}
footer .divider {display: none}
"""


def render(answer: Answer) -> str:
    """What the page shows of an answer.

    Arguments
    ---------
    answer : Answer
        Its texts may hold anything.

    Returns
    -------
    str
        HTML that asks nobody for anything.

    Example
    -------
    >>> page = render(Answer("a.wav", 2.0, "sad", {"sad": 0.9, "<b>": 0.1}, True, "YES & NO"))
    >>> "YES &amp; NO" in page, "<b>" in page, "90.0 %" in page
    (True, False, True)
    """
    parts = [_emotion(answer), _bars(answer.posteriors)]
    if answer.transcript is not None:
        text = escape(answer.transcript) or "<i>no words were recognised</i>"
        parts.append(f"<h3>Transcript</h3><blockquote>{text}</blockquote>")
    if answer.picture is not None:
        source = _data("image/png", answer.picture)
        alt = "Waveform, emotions, posteriors and words over time"
        parts.append(f'<h3>Over time</h3><div class="picture" tabindex="0"><img src="{source}" alt="{alt}"></div>')
    parts.append(f'<h3>Download</h3><p class="files">{"".join(_files(answer))}</p>')
    return f'<div class="ser">{"".join(parts)}</div>'


def render_error(words: str) -> str:
    """What the page shows where there is no answer.

    Example
    -------
    >>> print(render_error("unreadable: <b>"))
    <div class="ser"><p class="error" role="alert"><b>No result:</b> unreadable: &lt;b&gt;</p></div>
    """
    return f'<div class="ser"><p class="error" role="alert"><b>No result:</b> {escape(words)}</p></div>'


def _emotion(answer: Answer) -> str:
    how = "heard as one utterance" if answer.is_whole else "the mean over time"
    about = f"{escape(answer.name)}, {answer.duration:.1f} s, {how}"
    if answer.emotion is None:
        return f'<p class="emotion">undecided<small>no emotion is likely enough; {about}</small></p>'
    return f'<p class="emotion">{escape(answer.emotion)}<small>{about}</small></p>'


def _bars(posteriors: dict[str, float]) -> str:
    rows = [
        f'<span>{escape(name)}</span><span class="bar"><i style="width: {100 * p:.1f}%"></i></span>'
        f'<span class="share">{100 * p:.1f} %</span>'
        for name, p in sorted(posteriors.items(), key=lambda item: -item[1])
    ]
    return f'<h3>Posteriors</h3><div class="bars">{"".join(rows)}</div>'


def _files(answer: Answer) -> list[str]:
    stem = Path(answer.name).stem
    text = json.dumps(answer.to_dict(), ensure_ascii=False, indent=1)
    files = {"json": ("application/json", text.encode())}
    if answer.textgrid is not None:
        files["TextGrid"] = ("text/plain", answer.textgrid.encode())
    if answer.picture is not None:
        files["png"] = ("image/png", answer.picture)
    return [
        f'<a download="{escape(f"{stem}.{ending}")}" href="{_data(kind, content)}">{ending}</a>'
        for ending, (kind, content) in files.items()
    ]


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


QUEUE = 8  # requests that wait; the next one is told so


TITLE = "Speech emotion recognition"


BROKEN = "this recording could not be recognised; the server's log says more"


def build_page(recognise: Callable[[Path], Answer], uploads: Uploads, about: str, limits: str) -> gr.Blocks:
    """The page.

    Arguments
    ---------
    recognise : callable
        A recording's path to its answer; raises UserError for what is wrong with it.
    uploads : Uploads
        Where recordings come to; each is deleted when its answer is there.
    about : str
        What the model is, as Markdown.
    limits : str
        What is taken, in words.

    Returns
    -------
    gradio.Blocks
        With the named endpoint ``/recognize``.
    """
    one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
    answer = _Answering(recognise, uploads)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nRecord yourself or drop a recording: it is recognised at once, then deleted.")
        recording = _sent(sources=["upload", "microphone"], label="Recording", editable=False, buttons=[])
        gr.Markdown(limits, elem_classes="ser-small")
        shown = gr.HTML(padding=False)
        gr.Markdown(about, elem_classes="ser-small")
        gr.on(
            [recording.upload, recording.stop_recording],
            answer.for_the_page,
            recording,
            shown,
            api_visibility="private",
            **one_at_a_time,
        )
        recording.clear(None, None, shown, js="() => ''")  # by the browser alone
        sent = _sent(visible=False, label="recording")
        gr.Button(visible=False).click(
            answer.for_programs, sent, gr.JSON(visible=False, label="answer"), api_name="recognize", **one_at_a_time
        )
    page.queue(max_size=QUEUE, api_open=False)
    return page


def _sent(**options) -> gr.Audio:
    """Audio that is sent: where a request names an address instead, Gradio's own would be downloaded from there."""
    audio = gr.Audio(type="filepath", **options)
    move = audio.async_move_resource_to_block_cache

    async def move_only(path):
        if "://" in str(path):
            raise gr.Error("expected a recording that is sent, found an address", print_exception=False)
        return await move(path)

    audio.async_move_resource_to_block_cache = move_only  # not by a subclass: Gradio writes a .pyi beside one's file
    return audio


class _Answering:
    """Recordings to answers; a recording is deleted before its answer goes out."""

    def __init__(self, recognise: Callable[[Path], Answer], uploads: Uploads):
        self.recognise, self.uploads, self.lock = recognise, uploads, threading.Lock()

    def for_the_page(self, recording: str) -> str:
        try:
            return render(self._answer(recording))
        except UserError as error:
            return render_error(str(error))

    def for_programs(self, recording: str) -> dict:
        """Emotion, posteriors, transcript and segments of a recording."""
        try:
            return self._answer(recording).to_dict()
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _answer(self, recording: str) -> Answer:
        path = self.uploads.find(recording)
        try:
            with self.lock:
                return self.recognise(path)
        except UserError:
            raise
        except Exception as error:  # the server goes on
            logger.exception("a recording could not be recognised")
            raise UserError(BROKEN) from error
        finally:
            self.uploads.remove(path)


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_seconds: float = 600.0,
    max_mb: float = 50.0,
    device: str | None = None,
    window: float = 4.0,
    step: float | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    Arguments
    ---------
    model : str
        A run's folder, a package's folder, or a package's name on the hub.
    host : str
        The address to listen at; any other than this machine's own lets others use the page.
    port : int
        The port.
    max_seconds : float
        The longest recording that is taken.
    max_mb : float
        The largest file that is taken, in MB of 2**20 bytes.
    device : str, optional
        ``cpu``, ``cuda:0``, …
    window, step : float
        Of the timeline, in seconds (:meth:`EmotionRecognizer.timeline`).

    Raises
    ------
    UserError
        When Gradio is not installed, for a model that cannot be used, limits that admit nothing, a port in use.
    """
    for name, value in (("--max-seconds", max_seconds), ("--max-mb", max_mb)):
        if not value > 0:
            raise UserError(f"{name}: expected a number > 0, found {value!r}")
    _check_gradio()
    host = host.strip("[]")
    _check_port(host, port)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it runs
    recognizer = open_recognizer(model, run_opts={"device": device} if device else None)
    plan_windows(recognizer, window, step)  # an error now, not at the first recording
    about = about_model(model, recognizer.classes, recognizer.decode is not None)
    if host not in LOOPBACK:
        logger.warning(f"warning: everybody who reaches {host} can use this page: it has no password and no encryption")
    answer = partial(recognise, recognizer, window=window, step=step, max_seconds=max_seconds)
    limits = f"Any format that soundfile reads, up to {max_seconds:g} seconds and {max_mb:g} MB."
    with _terminated_as_interrupted(), running(answer, about, limits, host, port, int(max_mb * 2**20)) as url:
        print(f"{url} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    print("ended; nothing was kept")


@contextlib.contextmanager
def running(
    answer: Callable[[Path], Answer], about: str, limits: str, host: str, port: int, max_bytes: int
) -> Iterator[str]:
    """The page while the context lasts.

    Arguments
    ---------
    answer : callable
        A recording's path to its answer.
    about, limits : str
        What the page says of the model, and of what it takes; Markdown.
    host : str
        The address to listen at.
    port : int
        The port.
    max_bytes : int
        The largest file that is taken.

    Yields
    ------
    str
        The page's address.
    """
    with Uploads(max_bytes) as uploads, _environment(uploads.folder, host):
        import gradio as gr
        from starlette.middleware import Middleware

        page = build_page(answer, uploads, about, limits)
        try:
            _, url, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                app_kwargs={"middleware": [Middleware(Guard, uploads=uploads, is_local=host in LOOPBACK)]},
                max_file_size=max_bytes,
                state_session_capacity=1,  # Gradio keeps the last answer of as many visitors
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css=STYLE,
                footer_links=["api"],
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                share=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
                num_workers=0,
            )
            yield url
        except OSError as error:
            raise UserError(f"--port: {port} of {host} cannot be used: {error}") from error
        finally:
            page.close(verbose=False)


def _check_gradio() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise UserError('serve: expected Gradio, found none: pip install "speechbrain-ser[serve]"')


def _check_port(host: str, port: int) -> None:
    """Before the model is loaded, which takes a while."""
    try:
        if not 0 < port < 1 << 16:
            raise OverflowError("a port is a number from 1 to 65535")
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host={host} --port={port} cannot be used: {error}: give another") from error


@contextlib.contextmanager
def _environment(folder: Path, host: str) -> Iterator[None]:
    """Gradio's variables: ours for as long as the page lasts, whatever the user's shell says."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    # it is not by way of a proxy that Gradio asks itself whether it runs
    os.environ["NO_PROXY"] = ",".join(filter(None, [before.get("NO_PROXY", before.get("no_proxy")), *LOOPBACK, host]))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A service manager's SIGTERM ends the page as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
