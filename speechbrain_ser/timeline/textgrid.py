"""A timeline as a TextGrid, to look at beside the recording in Praat."""

import os
from pathlib import Path

from praatio.data_classes.interval_tier import IntervalTier
from praatio.data_classes.textgrid import Textgrid

from speechbrain_ser.files import replacing
from speechbrain_ser.timeline.result import Timeline


def write_textgrid(timeline: Timeline, path: str | os.PathLike) -> Path:
    """Write tiers ``emotion`` and, where the model transcribes, ``transcript``, in one step.

    Arguments
    ---------
    timeline : Timeline
        Of a recording without an error. Where the recogniser abstained, the emotion's label is empty.
    path : str or os.PathLike
        The file.

    Returns
    -------
    pathlib.Path

    Example
    -------
    >>> from praatio.textgrid import openTextgrid
    >>> from speechbrain_ser.timeline import Phrase, Segment
    >>> timeline = Timeline("a.wav", 5.5, segments=[Segment(0.0, 5.5, "sad", {})], phrases=[Phrase(0.2, 1.5, "NEIN")])
    >>> path = write_textgrid(timeline, getfixture("tmp_path") / "a.TextGrid")
    >>> openTextgrid(str(path), includeEmptyIntervals=False).getTier("transcript").entries
    (Interval(start=0.2, end=1.5, label='NEIN'),)
    """
    path = Path(path)
    tiers = {"emotion": [(segment.start, segment.end, segment.emotion or "") for segment in timeline.segments]}
    if timeline.phrases is not None:
        tiers["transcript"] = [(phrase.start, phrase.end, phrase.text) for phrase in timeline.phrases]
    grid = Textgrid(0.0, timeline.duration)
    for name, entries in tiers.items():
        grid.addTier(IntervalTier(name, entries, 0.0, timeline.duration))
    with replacing(path) as temporary:
        # no interval is dropped for being short: the last step may be
        grid.save(str(temporary), "long_textgrid", includeBlankSpaces=True, minimumIntervalLength=None)
    return path
