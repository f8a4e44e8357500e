"""The page and its API, in Gradio."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from speechbrain_ser.errors import UserError
from speechbrain_ser.serve.html import render, render_error
from speechbrain_ser.serve.recognition import Answer
from speechbrain_ser.serve.uploads import Uploads

logger = logging.getLogger(__name__)

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
