"""`speechbrain-ser serve`: the page on this machine, until Ctrl-C."""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from speechbrain_ser.errors import UserError
from speechbrain_ser.package.opening import open_recognizer
from speechbrain_ser.serve.about import about_model
from speechbrain_ser.serve.recognition import Answer, recognise
from speechbrain_ser.serve.uploads import Uploads
from speechbrain_ser.timeline.recognition import plan_windows

logger = logging.getLogger(__name__)

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

        from speechbrain_ser.serve.guard import Guard
        from speechbrain_ser.serve.html import STYLE
        from speechbrain_ser.serve.page import build_page

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
