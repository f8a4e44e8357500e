"""A picture of a timeline: waveform, emotions, posteriors and words over time, in rows as lines of a page."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

import speechbrain_ser.evaluation.figures  # noqa: F401 (its settings: a recording's name is no formula)
from speechbrain_ser.inference.timeline import Phrase, Timeline

# Okabe and Ito's colours, which people tell apart whatever their colour vision
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#888888")
ABSTAINED = "#DDDDDD"
WIDTH, MARGIN, TOP, GAP = 12.0, 0.25, 0.4, 0.42  # inches: picture, its sides, title and legend, between rows
FONT, EM = 8.0, 0.68  # points; an average capital's width in them
PLAIN = {"parse_math": False}  # a name or a word with two $ is no formula
WORD_LINES = 4
ROW_SECONDS = 60.0  # in which words are still legible
ONE_ROW = 1.5 * ROW_SECONDS  # no second row for a scrap
MOST_WORDS = 30 * ROW_SECONDS  # of a longer recording, an overview and its busiest minutes: a PNG has an end
LANE = 0.62  # from a speaker's lane to the next one's, with the name between
ROWS, BUSIEST = 12, 6  # of an overview, without words; minutes below it
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 36_000)  # seconds
MOST_TICKS = 13

# from bottom to top, in units of the posteriors' height
POSTERIORS, SEGMENTS, WAVEFORM = (0.0, 1.0), (1.06, 1.4), (1.46, 2.26)


def plot_timeline(timeline: Timeline) -> Figure:
    """Draw waveform, segments of one emotion, stacked posteriors and, where there are any, words.

    Up to a minute and a half is one row. What is longer goes on in the next row: a minute a row where there are words,
    as many as make a dozen rows where there are none. Beyond :data:`MOST_WORDS` seconds there are that dozen, and the
    minutes in which the emotion changes most often, with their words.
    """
    rows = _rows(timeline)
    speakers = dict.fromkeys(segment.speaker for segment in timeline.segments)
    lanes = {speaker: SEGMENTS[0] - k * LANE for k, speaker in enumerate(speakers)}
    lowest = 0.0 if timeline.by is None else min([SEGMENTS[0], *lanes.values()]) - 0.1
    unit = 1.0 if len(rows) == 1 else 0.45  # inches of the posteriors' height
    words = (WORD_LINES * FONT * 1.3 / 72 + 0.08) / unit  # height of the words
    heights = [(WAVEFORM[1] - lowest + words * has_words) * unit for *_, has_words in rows]
    figure = Figure(figsize=(WIDTH, TOP + sum(heights) + GAP * len(rows)))
    colours = {None: ABSTAINED, **dict(zip(timeline.classes, cycle(COLOURS), strict=False))}
    bottom, tall = figure.get_figheight() - TOP + 0.1, figure.get_figheight()
    for (start, end, has_words), height in zip(rows, heights, strict=True):
        seconds, bottom = end - start, bottom - height - GAP
        axes = figure.add_axes((MARGIN / WIDTH, bottom / tall, 1 - 2 * MARGIN / WIDTH, height / tall))
        axes.set(xlim=(start, end), ylim=(lowest - words * has_words, WAVEFORM[1]), yticks=[])
        axes.xaxis.tick_top()
        axes.xaxis.set_major_locator(MultipleLocator(next(t for t in TICKS if seconds / t <= MOST_TICKS)))
        axes.xaxis.set_major_formatter(FuncFormatter(_clock if seconds > ROW_SECONDS / 2 else lambda t, _: f"{t:g} s"))
        axes.tick_params(labelsize=FONT, length=2, pad=1)
        axes.spines[:].set_visible(False)
        _draw_waveform(axes, timeline)
        _draw_segments(axes, timeline, colours, lanes)
        if timeline.by is None:
            _draw_posteriors(axes, timeline, colours)
        if has_words:
            _write_words(axes, timeline.phrases, unit)
    _write_title(figure, timeline, colours)
    return figure


def _rows(timeline: Timeline) -> list[tuple[float, float, bool]]:
    """Begin and end of each row in seconds, and whether its words are written."""
    duration, has_words = timeline.duration, bool(timeline.phrases)
    if duration <= ONE_ROW:
        return [(0.0, duration, has_words)]
    is_long, overview = duration > MOST_WORDS, ROW_SECONDS * math.ceil(duration / ROW_SECONDS / ROWS)
    seconds = ROW_SECONDS if has_words and not is_long else overview
    rows = [(k * seconds, (k + 1) * seconds, has_words and not is_long) for k in range(math.ceil(duration / seconds))]
    changes = Counter(int(segment.start // ROW_SECONDS) for segment in timeline.segments if segment.emotion)
    busiest = sorted(minute for minute, _ in changes.most_common(BUSIEST)) if is_long else []
    return rows + [(m * ROW_SECONDS, (m + 1) * ROW_SECONDS, has_words) for m in busiest]


def _clock(seconds: float, _=None) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _draw_waveform(axes: Axes, timeline: Timeline) -> None:
    times = timeline.envelope_step * (np.arange(len(timeline.envelope)) + 0.5)
    here = _inside(axes, times)
    loudest = np.abs(timeline.envelope).max(initial=0.0) or 1.0
    middle, half = np.mean(WAVEFORM), (WAVEFORM[1] - WAVEFORM[0]) / 2
    low, high = (middle + half * timeline.envelope[here] / loudest).T
    axes.fill_between(times[here], low, high, color="#444444", linewidth=0.4)


def _draw_segments(axes: Axes, timeline: Timeline, colours: dict, lanes: dict) -> None:
    """In a lane a speaker, whose name stands in its beginning, above what is there."""
    height = SEGMENTS[1] - SEGMENTS[0]
    left, right = axes.get_xlim()
    for speaker, bottom in lanes.items() if timeline.by is not None else ():
        axes.axhspan(bottom, bottom + height, color="#F4F4F4", linewidth=0)
        name = (speaker or "").encode("utf-8", "replace").decode()[:40]
        axes.annotate(name, (left, bottom + height), va="bottom", fontsize=FONT, color="#555555", **PLAIN)
    for segment in timeline.segments:
        start, end = max(segment.start, left), min(segment.end, right)
        if start >= end:
            continue
        colour, name, bottom = colours[segment.emotion], segment.emotion or "?", lanes[segment.speaker]
        axes.broken_barh([(start, end - start)], (bottom, height), color=colour, edgecolor="white", linewidth=0.6)
        if len(name) + 1 <= _characters(axes, end - start):
            ink = "white" if np.dot(to_rgb(colour), (0.3, 0.6, 0.1)) < 0.42 else "black"
            middle = ((start + end) / 2, bottom + height / 2.2)
            axes.annotate(name, middle, ha="center", va="center", fontsize=FONT, color=ink, **PLAIN)


def _draw_posteriors(axes: Axes, timeline: Timeline, colours: dict) -> None:
    times = timeline.edges.repeat(2)[1:-1]
    stacked = timeline.posteriors.repeat(2, axis=0).T
    here = _inside(axes, times)
    names = [colours[name] for name in timeline.classes]
    axes.stackplot(times[here], stacked[:, here], colors=names, linewidth=0)


def _write_words(axes: Axes, phrases: Sequence[Phrase], unit: float) -> None:
    """Each phrase below its beginning, in as many lines as there is room for until the next one."""
    left, right = axes.get_xlim()
    here = [phrase for phrase in phrases if left <= phrase.start < right]
    for phrase, after in zip(here, [*(p.start for p in here), right][1:], strict=True):
        start = min(phrase.start, right - 0.04 * (right - left))  # at a row's end there is no room
        width = max(1, int(_characters(axes, max(after, start) - start)) - 1)
        lines = wrap(phrase.text, max(width, 2))
        if len(lines) > WORD_LINES:
            lines = [*lines[: WORD_LINES - 1], lines[WORD_LINES - 1][:-1] + "…"]
        axes.annotate("\n".join(lines), (start, -0.05 / unit), va="top", fontsize=FONT, linespacing=1.1, **PLAIN)


def _characters(axes: Axes, seconds: float) -> float:
    """How many characters are as wide as so many seconds."""
    left, right = axes.get_xlim()
    return seconds / (right - left) * (WIDTH - 2 * MARGIN) * 72 / (FONT * EM)


def _inside(axes: Axes, times: np.ndarray) -> np.ndarray:
    """Which times lie in a row, and one to either side."""
    left, right = axes.get_xlim()
    first, stop = np.searchsorted(times, [left, right], side="right")
    return np.arange(max(0, first - 1), min(len(times), stop + 1))


def _write_title(figure: Figure, timeline: Timeline, colours: dict) -> None:
    name = Path(timeline.path).name.encode("utf-8", "replace").decode()
    windows = f"windows of {timeline.window:g} s every {timeline.step:g} s"
    title = f"{name}: {_clock(timeline.duration)}, {windows if timeline.by is None else 'segments by ' + timeline.by}"
    if timeline.duration > MOST_WORDS:
        title += "; below: its busiest minutes"
    figure.text(MARGIN / WIDTH, 1 - 0.12 / figure.get_figheight(), title, va="top", fontsize=11, **PLAIN)
    abstained = any(segment.emotion is None for segment in timeline.segments)
    shown = [*timeline.classes, *([None] if abstained else [])]
    is_old = timeline.speech is None and all(segment.speech is None for segment in timeline.segments)
    abstention = "? (abstained)" if is_old else "? (no speech, or unsure)"
    handles = [Patch(color=colours[name], label=name or abstention) for name in shown]
    figure.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1 - MARGIN / WIDTH, 1), ncols=len(handles), frameon=False,
        fontsize=FONT + 1, handlelength=1,
    )  # fmt: skip
