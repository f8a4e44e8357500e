"""A row of CTC logits as phrases: cut at pauses, so that memory stays bounded, and decoded one by one."""

from collections.abc import Callable, Iterator

import torch

from speechbrain_ser.timeline.result import Phrase
from speechbrain_ser.tokens import WORD

WORD_STARTS = "▁"  # of a SentencePiece token


class PhraseCutter:
    """Cuts at pauses: stretches of frames whose likeliest token is the blank or the mark between words.

    What goes on without a pause for too long is cut at a word's end, if there is one, else at its longest silence.

    Arguments
    ---------
    decode : Decoder
        Logits to text (:class:`speechbrain_ser.decoding.Decoder`); its ``tokens`` say what the logits spell with.
    frame_seconds : float
        From frame to frame.
    min_pause : float
        Seconds of a pause. Within a phrase CTC is blank between letters too, for as long as a vowel lasts.
    max_phrase : float
        Seconds of a phrase at most.

    Example
    -------
    >>> from speechbrain_ser.decoding import Decoder
    >>> from speechbrain_ser.tokens import CharacterTokens
    >>> cutter = PhraseCutter(Decoder(CharacterTokens(["<blank>", "|", "A", "B"]), "greedy"), 0.1, min_pause=0.3)
    >>> logits = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 3, 0, 1, 0, 0, 0, 3, 3]), 4).float()
    >>> cutter.add(logits)
    >>> cutter.finish()
    [Phrase(start=0.1, end=0.4, text='A B'), Phrase(start=0.9, end=1.1, text='B')]
    """

    def __init__(self, decode: Callable, frame_seconds: float, min_pause: float = 0.5, max_phrase: float = 30.0):
        self.decode, self.frame_seconds = decode, frame_seconds
        self.min_pause, self.max_phrase = round(min_pause / frame_seconds), round(max_phrase / frame_seconds)
        labels = decode.tokens.labels
        self.silent = torch.tensor([t == decode.tokens.blank or label == WORD for t, label in enumerate(labels)])
        self.divides = torch.tensor([label == WORD or label.startswith(WORD_STARTS) for label in labels])
        self.phrases: list[Phrase] = []
        self.first = 0  # the frame with which what is held begins
        self.held: torch.Tensor | None = None  # [frames, tokens]
        self.said: int | None = None  # the token that was said last, as long as it may go on

    def add(self, logits: torch.Tensor) -> None:
        """Take in the row's next frames [frames, tokens]."""
        self.held = logits if self.held is None else torch.cat([self.held, logits])
        self._skip_said()
        while (stop := self._end_of_phrase()) is not None:
            self._say(stop)

    def finish(self) -> list[Phrase]:
        """All phrases, in order."""
        if self.held is not None and len(self.held):
            self._say(int((~self.silent[self.held.argmax(-1)]).nonzero()[-1]) + 1)
        return self.phrases

    def whole(self, logits: torch.Tensor) -> list[Phrase]:
        """All frames [frames, tokens] of a short recording as one phrase, decoded in one piece."""
        said = (~self.silent[logits.argmax(-1)]).nonzero().flatten().tolist() or [0, len(logits) - 1]
        self._append(said[0], said[-1] + 1, logits)
        return self.phrases

    def _end_of_phrase(self) -> int | None:
        """How many of the held frames, which begin with speech, make a phrase; None: that is yet to be seen."""
        best = self.held.argmax(-1)
        stretches = list(_stretches(self.silent[best]))
        for start, stop in stretches:
            if stop - start >= self.min_pause:
                return start
        if len(best) <= self.max_phrase:
            return None

        def rank(stretch: tuple[int, int]) -> tuple[bool, int, int]:
            start, stop = stretch
            return bool(self.divides[best[start : stop + 1]].any()), stop - start, start

        return max((s for s in stretches if s[0] <= self.max_phrase), key=rank, default=(self.max_phrase, 0))[0]

    def _say(self, stop: int) -> None:
        """Make a phrase of the first held frames, and let go of them."""
        self.said = int(self.held[stop - 1].argmax())
        self._append(self.first, self.first + stop, self.held[:stop])
        self._drop(stop)
        self._skip_said()

    def _append(self, first: int, stop: int, logits: torch.Tensor) -> None:
        (text,) = self.decode(logits[None], torch.tensor([len(logits)]))
        if text:
            start, end = round(first * self.frame_seconds, 3), round(stop * self.frame_seconds, 3)
            self.phrases.append(Phrase(start, end, text))

    def _skip_said(self) -> None:
        """Let go of the rest of a token in which a phrase was cut, then of silence."""
        if self.said is not None:
            self._drop(_first(self.held.argmax(-1) != self.said))
            self.said = None if len(self.held) else self.said
        self._drop(_first(~self.silent[self.held.argmax(-1)]))

    def _drop(self, frames: int) -> None:
        self.first, self.held = self.first + frames, self.held[frames:].clone()


def _first(mask: torch.Tensor) -> int:
    """Where the first True is; the length, where there is none."""
    where = mask.nonzero().flatten()
    return int(where[0]) if len(where) else len(mask)


def _stretches(mask: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch of True.

    Example
    -------
    >>> list(_stretches(torch.tensor([False, True, True, False, True])))
    [(1, 3), (4, 5)]
    """
    padded = torch.nn.functional.pad(mask.int(), (1, 1))
    change = padded.diff().nonzero().flatten().tolist()
    return zip(change[::2], change[1::2], strict=True)
