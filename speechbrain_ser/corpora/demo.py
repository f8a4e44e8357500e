"""A corpus for trying things out: speech that eSpeak NG acts, on disk as the real corpora are.

`corpus: demo` makes it in IEMOCAP's layout when it is absent and then prepares it as IEMOCAP.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from . import demo_layouts, iemocap
from .acting import act
from .audio import cores
from .errors import CorpusError, nearest
from .espeak import speak

LAYOUTS = {
    "iemocap": demo_layouts.iemocap_layout,
    "savee": demo_layouts.savee_layout,
    "emodb": demo_layouts.emodb_layout,
}
EMOTIONS = iemocap.EMOTIONS
DEFAULT_LABELS = iemocap.DEFAULT_LABELS
MARKER = "demo_corpus.json"  # written last: a corpus that has it is complete
VERSION = 2  # raise it when the corpus of a seed changes

logger = logging.getLogger(__name__)


def find_utterances(data_folder: str | os.PathLike, seed: int | None = None) -> list[dict]:
    """All turns of the demo corpus, which is made when it is absent.

    Arguments
    ---------
    data_folder : path
        Where it is, or will be.
    seed : int, optional
        Of a corpus that is made (0 by default); one that is there must have it when it is given.

    Returns
    -------
    list of dict
        Rows of a manifest, without durations.

    Raises
    ------
    CorpusError
        The folder holds something else.
    """
    found = read_marker(Path(data_folder))
    if found is None or found.get("layout") != "iemocap" or seed not in (None, found.get("seed")):
        make_demo_corpus(data_folder, "iemocap", seed or 0)
    return [{**row, "corpus": "demo"} for row in iemocap.find_utterances(data_folder)]


def make_demo_corpus(
    out: str | os.PathLike, layout: str = "iemocap", seed: int = 0, sentences: int | None = None
) -> Path:
    """Speaks a corpus. The same seed gives the same bytes; a complete one is left as it is.

    Arguments
    ---------
    out : path
        The folder to make; it may exist when it is empty or holds this very corpus.
    layout : str
        iemocap (ten speakers, English), savee (four men, English) or emodb (ten speakers, German).
    seed : int
        Of the variation between utterances.
    sentences : int, optional
        How many everybody says, for a small corpus; as many as the layout has by default. Some more are said only by
        the speakers of IEMOCAP's Session 5, SAVEE's KL, EMO-DB's 15 and 16.

    Returns
    -------
    path
        `out`

    Raises
    ------
    CorpusError
        An unknown layout, a folder that holds something else, or eSpeak NG is not installed.
    """
    if layout not in LAYOUTS:
        raise CorpusError(f"unknown layout {layout!r}{nearest(layout, LAYOUTS)}; known: {', '.join(LAYOUTS)}")
    out = Path(out)
    wanted = {"layout": layout, "seed": seed, "sentences": sentences, "version": VERSION}
    if _is_there(out, wanted):
        logger.info("%s is there already", out)
        return out
    plan = LAYOUTS[layout](sentences)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        durations = _speak_all(plan, unfinished, seed)
        plan.write_texts(unfinished, durations)
        marker = json.dumps(wanted, sort_keys=True, indent=1)
        (unfinished / MARKER).write_text(marker + "\n", encoding="utf-8", newline="\n")
        if out.is_dir():
            out.rmdir()  # empty, or _is_there would have refused it
        unfinished.rename(out)
    except OSError:
        if not _is_there(out, wanted):  # else another process was quicker, with the same result
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    logger.info("%s: %d utterances, %.1f minutes", out, len(durations), sum(durations.values()) / 60)
    return out


def _is_there(out, wanted):
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = read_marker(out)
    if found is None:
        what = "a file" if out.is_file() else f"a folder without {MARKER}"
        raise CorpusError(f"{out} is no demo corpus but {what}: give a new or an empty folder")
    if found != wanted:
        changed = ", ".join(
            f"{key} {found.get(key)!r} instead of {value!r}" for key, value in wanted.items() if found.get(key) != value
        )
        raise CorpusError(f"{out} holds another demo corpus ({changed}): give another folder or remove it")
    return True


def read_marker(folder: Path) -> dict | None:
    """What a demo corpus was made from.

    Arguments
    ---------
    folder : path
        Where it may be.

    Returns
    -------
    dict or None
        Its layout, seed, sentences and version; None where no demo corpus is.
    """
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _speak_all(plan, root, seed):
    """Speakers in parallel, each in a process of its own. Returns every turn's duration by its wav."""
    durations = {}
    with ThreadPoolExecutor(cores()) as pool, tqdm(desc="speech", total=len(plan.turns), disable=None) as bar:
        done = [
            pool.submit(_speak_one, plan, name, [seed, number], root, bar.update)
            for number, name in enumerate(plan.voices)
        ]
        for future in done:
            durations.update(future.result())
    return durations


def _speak_one(plan, name, seed, root, update: Callable):
    random = np.random.default_rng(seed)
    turns = [turn for turn in plan.turns if turn.speaker == name]
    voice = plan.voices[name]
    sounds = speak([act(turn.text, plan.voice_language, voice, turn.emotion, random) for turn in turns])
    durations = {}
    for turn, (samples, rate) in zip(turns, sounds, strict=True):
        samples = resample(samples, rate, plan.sample_rate)
        path = root / turn.wav
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, plan.sample_rate, subtype="PCM_16")
        durations[turn.wav] = len(samples) / plan.sample_rate
        update()
    return durations


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """int16 samples at another rate.

    Arguments
    ---------
    samples : numpy.ndarray
        int16, one dimension.
    rate, new_rate : int
        Hz.

    Returns
    -------
    numpy.ndarray
        int16, one dimension.

    Example
    -------
    >>> resample(np.zeros(22050, np.int16), 22050, 16000).shape
    (16000,)
    """
    new = soxr.resample(samples.astype(np.float64), rate, new_rate)  # as int16 soxr would dither, at random
    return np.clip(np.rint(new), -32768, 32767).astype(np.int16)
