"""Recordings of any length: read in blocks, recognised in windows, told as segments of one emotion and phrases."""

from speechbrain_ser.timeline.result import Phrase, Segment, Timeline

__all__ = ["Phrase", "Segment", "Timeline"]
