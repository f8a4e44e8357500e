"""Some of an utterance's codes in the place of another's, as SpeechSplit converts speech (Qian et al. 2020, section 4).

The rules for two utterances of different lengths:

- The output is as long as the utterance whose rhythm it has, as in the published program. Where no encoder is called
  `rhythm`, the first that gives more than one code an utterance stands in for it.
- A code that changes within an utterance is laid on the output's frames from the start, without stretching: what is
  too long is cut, and past its end it is 0, as it is past an utterance's end in a padded batch. Content and pitch
  codes are meant to hold no rhythm, so there is nothing to align them by.
- Timbre is one vector, the same on every frame of whatever length.

Two things differ from the published program. It pads both utterances to 192 frames before it encodes them; here each is
encoded whole and by itself, so that its codes are those of its analysis. And it brings a foreign F0 to the source's
rhythm by a network trained for that, which Hsu et al. 2023 do not have; here the contour is the target's as it is.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from speechbrain_ser.analysis.codes import encode, evaluating, to_array
from speechbrain_ser.analysis.parts import Parts
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.lobes.speech_decomposition import SpeechDecomposition


@dataclass(frozen=True)
class Conversion:
    """An utterance with some of another's codes.

    Arguments
    ---------
    source, target : Parts
        Whose codes are kept, and whose replace some.
    swap : tuple of str
        The encoders whose codes are the target's.
    kept : tuple of str
        The other encoders.
    codes : dict of str to np.ndarray
        What was decoded: [codes, size], or [size] where an utterance has one vector (timbre).
    mel : np.ndarray
        The decoder's [frames, bands].
    f0_hz : np.ndarray, optional
        The contour asked for, laid on the output as its code is [frames], in Hz, 0 where unvoiced; None where no
        encoder reads F0. It is not measured on the output.
    """

    source: Parts
    target: Parts
    swap: tuple[str, ...]
    kept: tuple[str, ...]
    codes: dict[str, np.ndarray]
    mel: np.ndarray
    f0_hz: np.ndarray | None


def check_swap(decomposition: SpeechDecomposition, swap: Collection[str]) -> None:
    """Whether these codes can be swapped.

    Arguments
    ---------
    decomposition : SpeechDecomposition
        That would decode them.
    swap : collection of str
        Names of encoders.

    Raises
    ------
    UserError
        When there is no decoder, or no such encoder.

    Example
    -------
    >>> from speechbrain_ser.lobes.speech_decomposition import RhythmEncoder
    >>> check_swap(SpeechDecomposition({"rhythm": RhythmEncoder()}), ["rythm"])
    Traceback (most recent call last):
    speechbrain_ser.errors.UserError: swap: the model has no encoder 'rythm' (did you mean 'rhythm'?); it has: rhythm
    """
    for name in swap:
        if name not in decomposition.encoders:
            raise UserError(
                f"swap: the model has no encoder {name!r}{nearest(name, decomposition.encoders)}; "
                f"it has: {', '.join(decomposition.encoders)}"
            )
    if decomposition.decoder is None:
        raise UserError("swap: expected a model with a decoder, found encoders only: nothing can be reconstructed")


def convert(decomposition: SpeechDecomposition, source: Parts, target: Parts, swap: Collection[str]) -> Conversion:
    """The source with some of the target's codes, decoded; see this module's text for different lengths.

    Arguments
    ---------
    decomposition : SpeechDecomposition
        With a decoder, on any device; it is left in the mode it was in.
    source, target : Parts
        Two recordings, with F0 if an encoder reads it.
    swap : collection of str
        Encoders whose codes come from the target, of those that the model has: pitch, rhythm, timbre, content.
        Nothing swapped is the source's reconstruction, everything the target's.

    Returns
    -------
    Conversion

    Raises
    ------
    UserError
        When there is no decoder, or no such encoder.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_ser.analysis.parts import parts_of
    >>> from speechbrain_ser.lobes.speech_decomposition import Decoder, RhythmEncoder, TimbreEncoder
    >>> from speechbrain_ser.processing.split_mel import SplitMel
    >>> encoders = {"rhythm": RhythmEncoder(), "timbre": TimbreEncoder(channels=64, groups=4)}
    >>> decomposition = SpeechDecomposition(encoders, partial(Decoder, units=8))
    >>> source, target = (parts_of(torch.randn(n), f"{n}", SplitMel()) for n in (16000, 8000))
    >>> convert(decomposition, source, target, ["timbre"]).mel.shape
    (63, 80)
    >>> convert(decomposition, source, target, ["rhythm"]).mel.shape
    (32, 80)
    """
    check_swap(decomposition, swap)
    swap = tuple(name for name in decomposition.encoders if name in swap)  # in the decoder's order, once each
    frames = len((target if _leader(decomposition) in swap else source).mel)
    with evaluating(decomposition):
        own, other = encode(decomposition, source), encode(decomposition, target)
        codes = {
            name: _lay(encoder, (other if name in swap else own)[name], frames)
            for name, encoder in decomposition.encoders.items()
        }
        mel = decomposition.decode(codes, frames)
    return Conversion(
        source=source,
        target=target,
        swap=swap,
        kept=tuple(name for name in decomposition.encoders if name not in swap),
        codes={name: to_array(code) for name, code in codes.items()},
        mel=to_array(mel),
        f0_hz=_f0_asked_for(decomposition, source, target, swap, frames),
    )


def _leader(decomposition: SpeechDecomposition) -> str:
    """The encoder that decides the output's length."""
    names = list(decomposition.encoders)
    varying = [name for name in names if hasattr(decomposition.encoders[name], "hop")]
    return "rhythm" if "rhythm" in names else (varying or names)[0]


def _lay(encoder: torch.nn.Module, code: torch.Tensor, frames: int) -> torch.Tensor:
    """A code of any length for so many frames: cut, or 0 past its end."""
    if code.dim() == 2:  # one vector an utterance
        return code
    codes = -(-frames // encoder.hop)
    return F.pad(code, (0, 0, 0, codes - code.shape[1]))  # a negative padding cuts


def _f0_asked_for(decomposition, source: Parts, target: Parts, swap: tuple[str, ...], frames: int) -> np.ndarray | None:
    readers = [name for name, encoder in decomposition.encoders.items() if encoder.reads == "f0"]
    if not readers:
        return None
    f0 = (target if readers[0] in swap else source).f0_hz[:frames]
    return np.pad(f0, (0, frames - len(f0)))
