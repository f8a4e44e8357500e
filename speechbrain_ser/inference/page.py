"""`speechbrain-ser serve`: a page on this machine to record or drop speech, and its API for programs."""

import json
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from speechbrain_ser.data.audio import BadAudioError, claimed_seconds
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.export import run_card
from speechbrain_ser.inference.formats import write_textgrid
from speechbrain_ser.inference.package import CARD, read_small
from speechbrain_ser.inference.recognizer import EmotionRecognizer, Recognition, open_recognizer
from speechbrain_ser.inference.timeline import MIN_SPEECH, Timeline, plan_windows
from speechbrain_ser.inference.timeline_figure import plot_timeline
from speechbrain_ser.inference.turns import VAD, follow_turns

try:
    import gradio as gr
    from gradio_client.utils import is_http_url_like
except ModuleNotFoundError as error:
    raise UserError('serve: expected Gradio, found none: pip install "speechbrain-ser[serve]"') from error

logger = logging.getLogger(__name__)

WHOLE = 15.0  # seconds up to which a recording is one utterance, as those that models are trained and tested on
DPI = 150
FILES = ("png", "json", "TextGrid")  # to download
QUEUE = 8  # requests that wait; the next one is told so
KEPT = (60, 900)  # Gradio looks every minute for uploads and answers older than 15 minutes, and deletes them
REMEMBERED = 100  # visitors and requests that Gradio keeps in memory; by default 10,000, half a gigabyte
TITLE = "Speech emotion recognition"
LIMITS = (
    "It tells what speech sounds like to those who labelled its corpus, not what somebody feels. Other languages, "
    "microphones, ages and situations make it err more often, also where it sounds sure. Do not judge people by it."
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# the browser itself keeps the page from asking anybody else for anything
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; frame-ancestors 'none'"

# ------------------------------------------------------------------ answers


def recognise(
    recognizer: EmotionRecognizer,
    path: Path,
    window: float = 4.0,
    step: float | None = None,
    max_seconds: float = 600.0,
    segments: str | None = None,
) -> tuple[dict, Timeline]:
    """Recognise one recording as a whole and over time: what the API gives, and the timeline.

    A recording of at most :data:`WHOLE` seconds is recognised as one utterance, as `predict` does, beside its timeline;
    of a longer one the posteriors are the timeline's mean, and the words the timeline's. With `segments`
    :data:`~speechbrain_ser.inference.turns.VAD` the timeline that is given is one of stretches of speech. A UserError
    says what is wrong with the recording, without its folder.
    """
    with suppress(BadAudioError):  # what is no recording says so when it is decoded
        if (seconds := claimed_seconds(path)) > max_seconds:
            raise UserError(f"too long: {seconds:.1f} s (expected at most {max_seconds:g} s)")
    timeline = _sound(recognizer.timelines([path], window, step))
    is_whole = timeline.duration <= min(WHOLE, recognizer.max_seconds)
    found = _sound(recognizer.classify_files([path])) if is_whole else _mean(recognizer, timeline)
    phrases = [asdict(phrase) for phrase in timeline.phrases or []]
    if segments == VAD:
        timeline = follow_turns(recognizer, path, VAD, plan_windows(recognizer, window, step))
    answer = {
        "recording": path.name,
        "duration": timeline.duration,
        "emotion": found.emotion,
        "speech": found.speech,
        "speech_by": recognizer.speech_by,
        "posteriors": found.posteriors,
        "whole": is_whole,
        "transcript": found.transcript,
        "segments": [
            {name: value for name, value in asdict(segment).items() if value is not None or name == "emotion"}
            for segment in timeline.segments
        ],
        "phrases": phrases,
    }
    return json.loads(json.dumps(answer), parse_float=lambda text: round(float(text), 6)), timeline


def _sound(results: Iterable[Timeline | Recognition]) -> Timeline | Recognition:
    (found,) = results
    if found.error is not None:
        raise UserError(found.error)
    return found


def _mean(recognizer: EmotionRecognizer, timeline: Timeline) -> Recognition:
    posterior = np.average(timeline.posteriors, axis=0, weights=np.diff(timeline.edges))
    posteriors = dict(zip(timeline.classes, posterior.tolist(), strict=True))
    emotion = recognizer.emotion_of(posterior, timeline.speech)
    return Recognition(None, emotion, posteriors, timeline.transcript, speech=timeline.speech)


def model_text(model: str | os.PathLike) -> str:
    """Return a run's figures, or a package's model card, as Markdown."""
    folder = Path(model)
    if (folder / "metrics.json").is_file():
        return run_card(folder)
    with suppress(UserError):
        return read_small(folder / CARD).decode("utf-8", "replace").split("---\n", 2)[-1]
    return "The model's card is on the hub."


# ------------------------------------------------------------------ the page


def build_page(recognise: Callable[[Path], tuple[dict, Timeline]], about: str, limits: str) -> gr.Blocks:
    """Build the page and its one named endpoint, ``/recognize``.

    `recognise` is :func:`recognise` of one model, `about` what that model is (Markdown), `limits` what is taken.
    """

    def answer(recording: str) -> tuple[dict, Timeline]:
        """The recording is deleted before its answer goes out."""
        path = Path(recording)
        try:
            return recognise(path)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        finally:
            path.unlink(missing_ok=True)

    def show(recording: str) -> tuple:
        found, timeline = answer(recording)
        how = "heard as one utterance" if found["whole"] else "the mean over time"
        heard = f"{found['recording']}, {found['duration']:.1f} s, {how}"
        if found["speech"] is not None:
            heard += f"; speech in {found['speech']:.0%} of the time, by {found['speech_by']}"
        said = found["posteriors"] if found["emotion"] else "no speech"
        transcript = gr.Textbox(found["transcript"], visible=found["transcript"] is not None)
        files = _write_files(Path(recording).with_suffix(""), found, timeline)
        return gr.Column(visible=True), gr.Label(said, label=heard), transcript, files[0], *files

    def recognize(recording: str) -> dict:  # Gradio shows the names and the words
        """Emotion, posteriors, transcript and segments of a recording."""
        return answer(recording)[0]

    one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "model"}
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=KEPT) as page:
        gr.Markdown(f"# {TITLE}\nRecord yourself or drop a recording: it is recognised at once, then deleted.")
        recording = gr.Audio(
            sources=["upload", "microphone"], type="filepath", label="Recording", editable=False, buttons=[]
        )
        gr.Markdown(limits)
        with gr.Column(visible=False) as results:
            label = gr.Label()
            transcript = gr.Textbox(label="Transcript", placeholder="no words were recognised", interactive=False)
            picture = gr.Image(show_label=False, buttons=[], alt_text="Waveform, emotions and words over time")
            with gr.Row():
                files = [gr.DownloadButton(ending) for ending in FILES]
        gr.Markdown(f"**Its limits.** {LIMITS}")
        with gr.Accordion("About the model", open=False):
            gr.Markdown(about)

        hide = {"fn": lambda: gr.Column(visible=False), "outputs": results, "queue": False, "api_visibility": "private"}
        recording.clear(**hide)
        gr.on([recording.upload, recording.stop_recording], **hide).then(
            show, recording, [results, label, transcript, picture, *files], api_visibility="private", **one_at_a_time
        )
        gr.Button(visible=False).click(
            recognize, recording, gr.JSON(visible=False), api_name="recognize", **one_at_a_time
        )
    _take_only_sent(page, recording)
    return page.queue(max_size=QUEUE, api_open=False)


def _take_only_sent(page: gr.Blocks, recording: gr.Audio) -> None:
    """Fetch no address that a request gives in place of an upload, as Gradio's components do; tell what is no upload.

    Gradio refuses other files by itself, without a word.
    """
    take, read = recording.async_move_resource_to_block_cache, page.preprocess_data
    told = {"duration": None, "print_exception": False}

    async def take_sent(path: str) -> str | None:
        if is_http_url_like(path):
            raise gr.Error(f"{path:.100}: allowed only: sent recordings", **told)
        return await take(path)

    async def read_sent(*args, **kwargs) -> list:
        try:
            return await read(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error("allowed only: sent recordings, by the path that an upload answers", **told) from error

    page.preprocess_data = read_sent
    recording.async_move_resource_to_block_cache = take_sent


def _write_files(stem: Path, answer: dict, timeline: Timeline) -> list[Path]:
    picture, text, grid = paths = [stem.with_name(f"{stem.name}.{ending}") for ending in FILES]
    plot_timeline(timeline).savefig(picture, dpi=DPI)
    text.write_text(json.dumps(answer, ensure_ascii=False, indent=1), encoding="utf-8")
    write_textgrid(timeline, grid)
    return paths


class Guard:
    """ASGI middleware: requests name this machine (against DNS rebinding) and come from no other site.

    With `is_local` only this machine is served, and who asks it by its `public_name`: a reverse proxy. Any name of it
    will do otherwise.
    """

    def __init__(self, app, is_local: bool, public_name: str | None = None):
        self.app, self.is_local, self.names = app, is_local, [*LOOPBACK, *filter(None, [public_name])]
        self.public_name = public_name

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        app = PlainTextResponse(refusal, 403) if refusal else self.app
        await app(scope, receive, send_with_policy)

    def _refusal(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.is_local and _hostname(f"//{host}") not in self.names:
            hint = "" if self.public_name else " (behind a proxy: --public-name)"
            return f"expected a request to {' or '.join(self.names)}, found one to {host!r}{hint}\n"
        # a proxy may name this machine, where the browser names the proxy
        ours = origin is None or urlsplit(origin).netloc == host or (_hostname(origin) or "") == self.public_name
        if not ours:
            return f"expected a request of this page, found one of {headers['origin']!r}\n"
        return None


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # such as [
        return None


# ------------------------------------------------------------------ the command


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_seconds: float = 600.0,
    max_mb: float = 50.0,
    device: str | None = None,
    window: float = 4.0,
    step: float | None = None,
    min_speech: float = MIN_SPEECH,
    segments: str | None = None,
    public_name: str | None = None,
    root_path: str | None = None,
    trust_run: bool = False,
) -> None:
    """Serve the page until Ctrl-C, as ``speechbrain-ser serve --help`` says it; an MB has 2**20 bytes."""
    if public_name and _hostname(f"//{public_name}") != public_name:
        raise UserError(f"--public-name: expected a name such as ser.example.org, in lower case, found {public_name!r}")
    if root_path and not root_path.startswith(("/", "http://", "https://")):
        raise UserError(f"--root-path: expected a path such as /ser, found {root_path!r}")
    for name, value in (("--max-seconds", max_seconds), ("--max-mb", max_mb)):
        if not value > 0:
            raise UserError(f"{name}: expected a number > 0, found {value!r}")
    try:  # before the model is loaded, which takes a while
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--host={host} --port={port} cannot be used: {error}: give another") from error
    options = {"run_opts": {"device": device} if device else None, "min_speech": min_speech}
    recognizer = open_recognizer(model, trust_run, **options)
    plan_windows(recognizer, window, step)  # an error now, not at the first recording
    if host not in LOOPBACK:
        logger.warning(f"warning: everybody who reaches {host} can use this page: it has no password and no encryption")
    answer = partial(recognise, recognizer, window=window, step=step, max_seconds=max_seconds, segments=segments)
    limits = f"Any format that soundfile reads, up to {max_seconds:g} seconds and {max_mb:g} MB."
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's, as Ctrl-C
    at = (host, port, int(max_mb * 2**20), public_name, root_path)
    with running(answer, model_text(model), limits, *at) as url:
        print(f"{url} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    print("ended; nothing was kept")


@contextmanager
def running(
    recognise: Callable[[Path], tuple[dict, Timeline]],
    about: str,
    limits: str,
    host: str,
    port: int,
    max_bytes: int,
    public_name: str | None = None,
    root_path: str | None = None,
) -> Iterator[str]:
    """Serve :func:`build_page` while the context lasts; it yields the page's address."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks itself whether it runs,
    os.environ["NO_PROXY"] = ",".join([os.environ.get("NO_PROXY", ""), *LOOPBACK, host])  # and not by way of a proxy
    with tempfile.TemporaryDirectory(prefix="speechbrain-ser-serve-") as folder:  # its owner's alone
        os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(folder)
        os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = str(REMEMBERED)
        page = build_page(recognise, about, limits)
        try:
            _, url, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                app_kwargs={"middleware": [Middleware(Guard, is_local=host in LOOPBACK, public_name=public_name)]},
                root_path=root_path,
                max_file_size=max_bytes,
                state_session_capacity=REMEMBERED,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                footer_links=["api"],
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                strict_cors=True,
                run_history=False,  # of recordings and answers, in the browser
                enable_monitoring=False,
            )
            yield url
        finally:
            page.close(verbose=False)
