"""From a file to its timeline: blocks to windows, windows in batches to posteriors and logits, these to the result."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from tqdm import tqdm

from speechbrain_ser.dataio import SAMPLE_RATE
from speechbrain_ser.errors import UserError
from speechbrain_ser.timeline.envelope import Envelope
from speechbrain_ser.timeline.joining import LogitJoiner
from speechbrain_ser.timeline.phrases import PhraseCutter
from speechbrain_ser.timeline.result import Phrase, Timeline, merge_steps
from speechbrain_ser.timeline.steps import StepPosteriors
from speechbrain_ser.timeline.streaming import stream_audio
from speechbrain_ser.timeline.windows import Window, WindowPlan

WINDOW = 4.0  # seconds, by default
LEAST_STEP = 0.1  # seconds


def plan_windows(recognizer, duration: float, step: float | None) -> WindowPlan:
    """Where the windows of a recogniser lie.

    Arguments
    ---------
    recognizer : EmotionRecognizer
        Its model gives the shortest window, its ``max_seconds`` the longest.
    duration : float
        Seconds of a window.
    step : float, optional
        Seconds from one to the next; None: half of `duration`.

    Returns
    -------
    WindowPlan

    Raises
    ------
    UserError
        For windows that are too short or too long, or a step that would leave gaps.
    """
    step = duration / 2 if step is None else step
    grid = _samples_a_frame(recognizer.model) if recognizer.decode else 1
    least = max(LEAST_STEP, (recognizer.model.min_samples + grid) / SAMPLE_RATE)
    if not least <= duration <= recognizer.max_seconds:
        most = f"max_seconds, {recognizer.max_seconds:g} s"
        raise UserError(f"window: expected {least:g} s to {most}, found {duration:g} s")
    if not LEAST_STEP <= step <= duration:
        raise UserError(f"step: expected {LEAST_STEP:g} s to the window's {duration:g} s, found {step:g} s")
    return WindowPlan(round(duration * SAMPLE_RATE), round(step * SAMPLE_RATE), grid)


def follow(
    recognizer, path: str | os.PathLike, seconds: float, plan: WindowPlan, batch_size: int, progress: bool
) -> Timeline:
    """The timeline of one recording.

    Held at a time are a block of the recording, a batch of windows and a phrase's logits; kept are posteriors a step,
    phrases and an outline of the waveform.

    Arguments
    ---------
    recognizer : EmotionRecognizer
        Recognises windows.
    path : str or os.PathLike
        The recording, which was found to be sound.
    seconds : float
        It lasts, as its header says: for the progress bar.
    plan : WindowPlan
        Where windows lie.
    batch_size : int
        Windows a batch.
    progress : bool
        Show on a terminal how many seconds are done.

    Returns
    -------
    Timeline

    Raises
    ------
    BadAudioError
        When the recording cannot be read to its end, or the model has no answer to it.
    """
    envelope, steps = Envelope(), StepPosteriors(plan.step)
    speech = _Speech(recognizer.decode, plan.grid) if recognizer.decode else None
    windows = plan.cut(_outlined(stream_audio(path), envelope))
    format_of_bar = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    bar = tqdm(None, "seconds", seconds, leave=False, disable=None if progress else True, bar_format=format_of_bar)
    with bar:
        for batch in _batches(windows, batch_size):
            posteriors, logits = recognizer.window_outputs([window.wav for window in batch])
            for k, window in enumerate(batch):
                steps.add(window.start, window.stop, posteriors[k])
                if speech:
                    speech.add(window, logits[k])
            bar.update(batch[-1].stop / SAMPLE_RATE - bar.n)
    edges, posteriors = steps.finish()
    edges = edges / SAMPLE_RATE
    return Timeline(
        path=os.fspath(path),
        duration=float(edges[-1]),
        window=plan.seconds[0],
        step=plan.seconds[1],
        segments=merge_steps(edges, posteriors, recognizer.classes, recognizer.emotion_of),
        phrases=speech.finish() if speech else None,
        classes=list(recognizer.classes),
        edges=edges,
        posteriors=posteriors,
        envelope=envelope.finish(),
        envelope_step=envelope.stretch / SAMPLE_RATE,
    )


class _Speech:
    """Phrases of windows' CTC logits."""

    def __init__(self, decode, samples_a_frame: int):
        self.samples_a_frame = samples_a_frame
        self.joiner = LogitJoiner(decode.tokens.blank)
        self.cutter = PhraseCutter(decode, samples_a_frame / SAMPLE_RATE)

    def add(self, window: Window, logits: torch.Tensor) -> None:
        self.cutter.add(self.joiner.add(window.start // self.samples_a_frame, logits))

    def finish(self) -> list[Phrase]:
        rest = self.joiner.finish()
        if self.joiner.windows == 1:  # it is decoded as any recording is
            return self.cutter.whole(rest)
        self.cutter.add(rest)
        return self.cutter.finish()


def _samples_a_frame(model) -> int:
    """From one frame of the encoder to the next: so many lengths give exactly one frame."""
    return int((model.frame_counts(torch.arange(SAMPLE_RATE)) == 1).sum())


def _outlined(blocks: Iterable[torch.Tensor], envelope: Envelope) -> Iterator[torch.Tensor]:
    for block in blocks:
        envelope.add(block)
        yield block


def _batches(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    while batch := list(islice(windows, size)):
        yield batch
