"""The decomposition of speech from plain sizes: which encoders, how wide, and nothing that no task needs."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.lobes.speech_decomposition import (
    ContentEncoder,
    Decoder,
    PitchEncoder,
    RhythmEncoder,
    SpeechDecomposition,
    TimbreEncoder,
)
from speechbrain_ser.nnet.random_resampling import RandomResampling
from speechbrain_ser.nnet.seeded import build_seeded

# `single` is the one encoder of a plain autoencoder: rhythm's kind, which reads the spectrogram as it is
ENCODERS = {
    "content": ContentEncoder,
    "pitch": PitchEncoder,
    "rhythm": RhythmEncoder,
    "timbre": TimbreEncoder,
    "single": RhythmEncoder,
}
RESAMPLED = ("content", "pitch")


def build_decomposition(
    parts: Sequence[str],
    sizes: Mapping[str, Mapping[str, int]],
    resampling: Mapping[str, float] | None,
    seed: int,
    with_decoder: bool = True,
) -> SpeechDecomposition | None:
    """Encoders by name, and a decoder that fits them; each part's initial weights depend on its name alone.

    Arguments
    ---------
    parts : sequence of str
        Which of :data:`ENCODERS`; none gives None.
    sizes : mapping of str to mapping
        Arguments of each encoder and of the ``decoder``; what is missing is the class's default.
    resampling : mapping, optional
        Arguments of :class:`~speechbrain_ser.nnet.random_resampling.RandomResampling`; None: rhythm stays.
    seed : int
        The run's seed.
    with_decoder : bool
        Whether the spectrogram is to be put together again.

    Returns
    -------
    SpeechDecomposition or None

    Raises
    ------
    UserError
        Naming an unknown part, or a size that its class does not have or cannot take.

    Example
    -------
    >>> sizes = {"rhythm": {"units": 1}, "timbre": {"channels": 32, "groups": 4}, "decoder": {"units": 16}}
    >>> build_decomposition(["rhythm", "timbre"], sizes, None, seed=1).output_sizes
    {'rhythm': 2, 'timbre': 64}
    """
    check_names("parts", parts, ENCODERS)
    check_names("sizes", sizes, [*ENCODERS, "decoder"])
    if not parts:
        return None
    makers = {name: partial(ENCODERS[name], **sizes.get(name, {})) for name in parts}
    for name in set(RESAMPLED) & set(parts):
        kind = None if resampling is None else partial(_make, "resampling", RandomResampling, **resampling)
        makers[name] = partial(makers[name], resampling=kind)
    encoders = {name: _make(f"sizes: {name}", build_seeded, make, name, seed) for name, make in makers.items()}
    decoder = partial(build_seeded, partial(Decoder, **sizes.get("decoder", {})), "decoder", seed)
    return _make("sizes: decoder", SpeechDecomposition, encoders, decoder if with_decoder else None)


def check_names(line: str, names: Sequence[str] | Mapping, known: Iterable[str]) -> None:
    """Refuse a line of names that are not known, or given twice.

    Raises
    ------
    UserError
        Naming the line, what was found and what is known.

    Example
    -------
    >>> check_names("parts", ["content", "pitch"], ENCODERS)
    """
    if isinstance(names, str) or not isinstance(names, Sequence | Mapping):
        raise UserError(f"{line}: expected names of {', '.join(known)}, found {names!r}")
    if unknown := [f"{n}{nearest(str(n), known)}" for n in names if n not in known]:
        raise UserError(f"{line}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    if len(set(names)) < len(names):
        raise UserError(f"{line}: a name is given twice: {', '.join(names)}")


def _make(where: str, make, *args, **kwargs):
    """What a constructor says of its arguments, with the line that has them."""
    try:
        return make(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
