"""Segments by speech, not by clock: who speaks when, by others' files or by voice activity, each recognised."""

import csv
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from praatio.textgrid import openTextgrid
from torch.nn.utils.rnn import pad_sequence

from speechbrain_ser.data.audio import SAMPLE_RATE, claimed_seconds
from speechbrain_ser.errors import Offenders, UserError
from speechbrain_ser.inference.timeline import Segment, Timeline, WindowPlan, follow, outlined, stream_audio, stretch_of
from speechbrain_ser.processing.voice_activity import VoiceActivity

logger = logging.getLogger(__name__)

VAD = "vad"
BATCH = 8  # segments, or windows, at a time
WHOLE = 15.0  # seconds up to which a segment is recognised whole, as the utterances that models are trained on
BEYOND = 0.05  # seconds by which a segment may end after its recording: other programs round
TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})")


@dataclass(frozen=True)
class Turn:
    """Who speaks from when to when, in seconds; what they say, where a file tells; the line of the file."""

    start: float
    end: float
    speaker: str = ""  # "": nobody told
    text: str | None = None
    place: str = ""


# ------------------------------------------------------------------ files of others


def read_turns(path: str | os.PathLike, recording: str, is_only: bool = True) -> list[Turn]:
    """Read who speaks when in a `recording` from an RTTM, TextGrid, CSV or SRT, in order of time.

    An RTTM, and a CSV with a column ``path``, may tell of many recordings: of one, what has its name without folder and
    ending. Where `is_only` one is recognised, a file that tells of one other is its file, too. Lines that cannot be
    read are one UserError.

    Of a TextGrid every tier is a speaker; a CSV has ``start``, ``end``, and perhaps ``speaker`` and ``text``.
    """
    path = Path(path)
    if (read := READERS.get(path.suffix.lower())) is None:
        raise UserError(f"--segments: expected vad, or a file {', '.join(READERS)}, found {path}")
    try:
        wrong = Offenders(f"--segments={path}", UserError)
        found = list(read(path, wrong))
    except (OSError, UnicodeError) as error:
        raise UserError(f"--segments={path}: expected a file that can be read, found none: {error}") from error
    wrong.raise_any()
    names = {name for name, _ in found if name}
    if names and Path(recording).stem not in names and not (is_only and len(names) == 1):
        named = ", ".join(sorted(names)[:5])
        raise UserError(f"--segments={path}: expected segments of {Path(recording).stem}, found those of {named}")
    if not names and not is_only:
        raise UserError(f"--segments={path}: tells of one recording; expected one, found several: give one at a time")
    mine = [turn for name, turn in found if len(names) < 2 or name == Path(recording).stem]
    if not mine:
        raise UserError(f"--segments={path}: expected segments, found none")
    return sorted(mine, key=lambda turn: (turn.start, turn.end))


def check_turns(turns: Sequence[Turn], duration: float, where: str) -> None:
    """Refuse, all at once, segments that are empty, beyond the recording's end, or overlap of one speaker.

    Those of several speakers may overlap; that, and segments without a speaker, is said.
    """
    wrong, last, overlaps = Offenders(where, UserError), {}, 0
    for turn in turns:
        said = f"{turn.place}: {turn.start:g} to {turn.end:g} s"
        if turn.start < 0 or turn.end - turn.start < 1 / SAMPLE_RATE:
            wrong.add("empty segments (expected an end after the start)", said)
        elif turn.end > duration + BEYOND:
            wrong.add(f"segments beyond the recording's end ({duration:.3f} s)", said)
        before = last.get(turn.speaker)
        if before and turn.start < before.end - 1 / SAMPLE_RATE:
            wrong.add("segments that overlap another one of the same speaker", f"{said}, and {before.place}")
        overlaps += any(turn.start < other.end for speaker, other in last.items() if speaker != turn.speaker)
        last[turn.speaker] = max(turn, before or turn, key=lambda each: each.end)
    wrong.raise_any()
    if overlaps:
        logger.warning(f"{where}: {overlaps} of {len(turns)} segments overlap another speaker's: there both are heard")
    if (unknown := [turn.place for turn in turns if not turn.speaker]) and len(unknown) < len(turns):
        logger.warning(f"{where}: no speaker is given in {len(unknown)} segments ({', '.join(unknown[:5])})")


def _rttm(path: Path, wrong: Offenders) -> Iterator[tuple[str, Turn]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        fields, place = line.split(), f"line {number}"
        if not fields or fields[0].startswith(";;") or fields[0] == "SPKR-INFO":
            continue
        if fields[0] != "SPEAKER" or len(fields) < 8 or (times := _numbers(fields[3:5])) is None:
            wrong.add("lines that are not `SPEAKER recording 1 start duration <NA> <NA> speaker`", f"{place}: {line!r}")
            continue
        speaker = "" if fields[7] == "<NA>" else fields[7]
        yield fields[1], Turn(times[0], round(sum(times), 6), speaker, place=place)


def _csv(path: Path, wrong: Offenders) -> Iterator[tuple[str, Turn]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if lacking := [name for name in ("start", "end") if name not in (rows.fieldnames or ())]:
            wrong.add("columns that are missing (of start, end, speaker, text, path)", ", ".join(lacking))
            return
        for row in rows:
            place = f"line {rows.line_num}"
            if (times := _numbers([row["start"], row["end"]])) is None:
                wrong.add("lines without a start and an end in seconds", f"{place}: {row['start']!r}, {row['end']!r}")
                continue
            yield Path(row.get("path") or "").stem, Turn(*times, row.get("speaker") or "", row.get("text"), place)


def _srt(path: Path, wrong: Offenders) -> Iterator[tuple[str, Turn]]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    starts = [k for k, line in enumerate(lines) if "-->" in line]
    for k, after in zip(starts, [*starts, len(lines) + 2][1:], strict=True):
        times = [
            int(h) * 3600 + int(m) * 60 + int(s) + int(f"{ms:0<3}") / 1000 for h, m, s, ms in TIME.findall(lines[k])
        ]
        if len(times) != 2:
            wrong.add("lines that are not `00:00:01,500 --> 00:00:03,000`", f"line {k + 1}: {lines[k]!r}")
            continue
        said = lines[k + 1 : after - 1]
        yield "", Turn(*times, text=" ".join(line.strip() for line in said if line.strip()), place=f"line {k + 1}")


def _textgrid(path: Path, wrong: Offenders) -> Iterator[tuple[str, Turn]]:
    try:
        grid = openTextgrid(str(path), includeEmptyIntervals=False)
    except OSError:
        raise
    except Exception as error:  # praatio raises whatever its parser meets
        wrong.add("no TextGrid that praatio reads", f"{type(error).__name__}: {error}")
        return
    for tier in grid.tiers:
        for number, entry in enumerate(tier.entries, 1):
            if len(entry) == 3 and entry[2].strip():  # points are no segments
                yield "", Turn(float(entry[0]), float(entry[1]), tier.name, entry[2], f"tier {tier.name}, {number}")


READERS = {".rttm": _rttm, ".textgrid": _textgrid, ".csv": _csv, ".srt": _srt}


def _numbers(words: Sequence[str | None]) -> list[float] | None:
    try:
        numbers = [float(word or "") for word in words]
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


# ------------------------------------------------------------------ a recording


def follow_turns(
    recognizer, path: str | os.PathLike, turns: Sequence[Turn] | str, plan: WindowPlan, source: str = VAD
) -> Timeline:
    """Return a recording's timeline by `turns`, or, of :data:`VAD`, by where voice activity is.

    Each is heard alone, as `predict` hears a file: whole up to :data:`WHOLE` seconds, else in windows of `plan`, which
    make segments of one emotion. The recording is in memory meanwhile. Errors name the `source` that turns are from.
    """
    activity, ends, stretch = VoiceActivity(), [], stretch_of(claimed_seconds(path))
    blocks = outlined(stream_audio(path), stretch, ends)
    wav = torch.cat(list(activity.hear(blocks) if turns == VAD else blocks))
    duration, by = len(wav) / SAMPLE_RATE, Path(source).name
    if turns == VAD:
        turns = [Turn(start, end) for start, end in activity.stretches(len(wav))]
    check_turns(turns, duration, f"--segments={source}")
    batches = (turns[k : k + BATCH] for k in range(0, len(turns), BATCH))
    segments = [segment for batch in batches for segment in _segments(recognizer, path, wav, batch, plan)]
    segments.sort(key=lambda segment: (segment.start, segment.end))
    outline = {"envelope": np.concatenate(ends), "envelope_step": stretch / SAMPLE_RATE}
    return Timeline(os.fspath(path), duration, segments=segments, classes=list(recognizer.classes), by=by, **outline)


def _segments(recognizer, path, wav: torch.Tensor, turns: Sequence[Turn], plan: WindowPlan) -> Iterator[Segment]:
    longest = min(WHOLE, recognizer.max_seconds)
    parts = [wav[round(turn.start * SAMPLE_RATE) : round(turn.end * SAMPLE_RATE)] for turn in turns]
    whole = [k for k, part in enumerate(parts) if len(part) <= longest * SAMPLE_RATE]
    found = {}
    if whole:
        lengths = torch.tensor([len(parts[k]) for k in whole])
        batch = pad_sequence([parts[k] for k in whole], batch_first=True)
        found = dict(zip(whole, recognizer.classify_batch(batch, lengths / lengths.max()), strict=True))
    for k, turn in enumerate(turns):
        if (one := found.get(k)) is not None:
            text = turn.text if turn.text is not None else one.transcript
            if one.error is not None:
                logger.warning(f"{path}: no emotion from {turn.start:g} to {turn.end:g} s: {one.error}")
            yield Segment(turn.start, turn.end, one.emotion, one.posteriors, one.speech, turn.speaker, text)
            continue
        over_time = follow(recognizer, path, len(parts[k]) / SAMPLE_RATE, plan, BATCH, False, [parts[k]])
        for part in over_time.segments:
            text = turn.text if turn.text is not None or over_time.phrases is None else over_time.text_of(part)
            start, end = turn.start + part.start, min(turn.end, turn.start + part.end)
            yield replace(part, start=start, end=end, speaker=turn.speaker, text=text)
