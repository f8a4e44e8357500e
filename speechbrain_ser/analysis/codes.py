"""A recording through a decomposition: its codes, and what the decoder makes of them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from speechbrain_ser.analysis.parts import Parts
from speechbrain_ser.lobes.speech_decomposition import SpeechDecomposition
from speechbrain_ser.nnet.masked_mse import masked_mse


@dataclass(frozen=True)
class Analysis:
    """What a decomposition makes of a recording.

    Arguments
    ---------
    parts : Parts
        What it read.
    codes : dict of str to np.ndarray
        By encoder, in the decoder's order: [codes, size], or [size] where an utterance has one vector (timbre).
    hops : dict of str to int
        Frames that a code stands for, of the encoders that give more than one.
    reconstruction : np.ndarray, optional
        [frames, bands]; None without a decoder.
    mse : float, optional
        Of the reconstruction, over frames and bands; None without a decoder.
    """

    parts: Parts
    codes: dict[str, np.ndarray]
    hops: dict[str, int]
    reconstruction: np.ndarray | None
    mse: float | None


def reads_f0(decomposition: SpeechDecomposition) -> bool:
    """Whether an encoder reads F0: tracking it takes longer than all the rest.

    Example
    -------
    >>> from speechbrain_ser.lobes.speech_decomposition import RhythmEncoder
    >>> reads_f0(SpeechDecomposition({"rhythm": RhythmEncoder()}, decoder=None))
    False
    """
    return any(encoder.reads == "f0" for encoder in decomposition.encoders.values())


def analyse(decomposition: SpeechDecomposition, parts: Parts) -> Analysis:
    """Encode and decode a recording as it is: in evaluation mode, so that nothing is resampled.

    Arguments
    ---------
    decomposition : SpeechDecomposition
        On any device; it is left in the mode it was in.
    parts : Parts
        Of the recording, with F0 if an encoder reads it.

    Returns
    -------
    Analysis

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_ser.analysis.parts import parts_of
    >>> from speechbrain_ser.lobes.speech_decomposition import Decoder, RhythmEncoder, TimbreEncoder
    >>> from speechbrain_ser.processing.split_mel import SplitMel
    >>> encoders = {"rhythm": RhythmEncoder(), "timbre": TimbreEncoder(channels=64, groups=4)}
    >>> decomposition = SpeechDecomposition(encoders, partial(Decoder, units=8))
    >>> analysis = analyse(decomposition, parts_of(torch.randn(16000), "noise", SplitMel()))
    >>> {name: code.shape for name, code in analysis.codes.items()}, analysis.hops
    ({'rhythm': (8, 2), 'timbre': (64,)}, {'rhythm': 8})
    >>> analysis.reconstruction.shape
    (63, 80)
    """
    with evaluating(decomposition):
        codes = encode(decomposition, parts)
        reconstruction = mse = None
        if decomposition.decoder is not None:
            decoded = decomposition.decode(codes, len(parts.mel))
            mel = torch.from_numpy(parts.mel)[None].to(decoded)
            mse = masked_mse(decoded, mel, torch.tensor([len(parts.mel)])).item()
            reconstruction = to_array(decoded)
    return Analysis(
        parts=parts,
        codes={name: to_array(code) for name, code in codes.items()},
        hops={name: encoder.hop for name, encoder in decomposition.encoders.items() if hasattr(encoder, "hop")},
        reconstruction=reconstruction,
        mse=mse,
    )


def encode(decomposition: SpeechDecomposition, parts: Parts) -> dict[str, torch.Tensor]:
    """Codes of one recording, a batch of one, where the model is."""
    like = next(decomposition.parameters())
    mel = torch.from_numpy(parts.mel)[None].to(like)
    f0 = None if parts.f0 is None else torch.from_numpy(parts.f0)[None].to(like.device)
    return decomposition.encode(mel, f0)


def to_array(batch: torch.Tensor) -> np.ndarray:
    """The one utterance of a batch."""
    return batch[0].float().cpu().numpy()


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module is left in the mode it was in.

    Example
    -------
    >>> model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    >>> with evaluating(model):
    ...     model[0].training
    False
    >>> model.training, model[0].training, model[1].training
    (True, True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
