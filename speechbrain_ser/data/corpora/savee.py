"""SAVEE (Haq and Jackson 2009, "Speaker-dependent audio-visual emotion recognition") -> rows of a manifest.

Four English men, 480 recordings. Everything is in the name: `DC/a01.wav` (or `DC_a01.wav`) is speaker DC, anger,
recording 01. The sentences are TIMIT's and do not come with the recordings: transcript and dialog are empty.

Who shares a sentence the documentation tells: the four speakers say the same; of an emotion's 15 sentences 3 are common
to all emotions, 2 are the emotion's own and are also said neutrally, 10 are said in that emotion alone; of the 30
neutral ones 3 are the common ones, 2 x 6 the emotions' own, 15 are said neutrally alone. It lists them in this order,
the emotions in the alphabet's; the release itself has no texts by which the numbers could be checked.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from speechbrain_ser.data.corpora import DEMO_MARKER, other_folder
from speechbrain_ser.errors import CorpusError, Offenders, nearest

SPEAKERS = ("DC", "JE", "JK", "KL")
EMOTIONS = {
    **{"a": "angry", "d": "disgust", "f": "fear", "h": "happy", "n": "neutral"},
    **{"sa": "sad", "su": "surprise"},
}
DEFAULT_LABELS = {name: name for name in EMOTIONS.values()}
OFFICIAL = {"recordings": 480}
RECORDINGS = {code: 30 if code == "n" else 15 for code in EMOTIONS}  # of each speaker
COMMON, OWN = 3, 2  # sentences of all emotions, and of one emotion and neutral
LAYOUTS = {"AudioData": "{speaker}/{take}.wav", "ALL": "{speaker}_{take}.wav"}
WANTED = "AudioData/DC/a01.wav … AudioData/KL/su15.wav, or ALL/DC_a01.wav … ALL/KL_su15.wav"
# what a renamed copy may still look like: `dc/A1.wav`, `DC-a01 (2).wav`
LOOSE = re.compile(
    rf"(?<![a-z0-9])(?:({'|'.join(SPEAKERS)})[^a-z0-9]*)?({'|'.join(EMOTIONS)})[^a-z0-9]*([0-9]+)", re.IGNORECASE
)


def find_utterances(data_folder: str | os.PathLike) -> list[dict]:
    """Return a row of the manifest, without its duration, for each recording, none missing and none too many.

    `data_folder` holds `AudioData` (a folder a speaker) or `ALL` (speaker and recording in the file name), or is one.
    """
    root = Path(data_folder)
    folder, layout = _wav_folder(root)
    takes = [
        (speaker, f"{code}{number:02}")
        for speaker in SPEAKERS
        for code, count in RECORDINGS.items()
        for number in range(1, count + 1)
    ]
    expected = {layout.format(speaker=speaker, take=take): (speaker, take) for speaker, take in takes}
    found = set(_recordings(folder))
    if (folder.resolve().parent / DEMO_MARKER).is_file():
        expected = {name: take for name, take in expected.items() if name in found}
    _check(found, expected, f"SAVEE in {folder}: not the {len(expected)} recordings it should hold")
    inner = folder.relative_to(root).as_posix()
    prefix = "{data_root}" if inner == "." else f"{{data_root}}/{inner}"
    return [_row(speaker, take, f"{prefix}/{name}") for name, (speaker, take) in expected.items()]


def _wav_folder(root: Path) -> tuple[Path, str]:
    """The folder of the recordings, and how their paths in it are made of speaker and take."""
    if not root.is_dir():
        raise CorpusError(f"SAVEE: no such folder: {root}")
    found = [(root / name, layout) for name, layout in LAYOUTS.items() if (root / name).is_dir()] or _itself(root)
    if len(found) == 1:
        return found[0]
    if found:
        raise CorpusError(f"SAVEE in {root}: found its recordings twice. Give one of {found[0][0]} and {found[1][0]}")
    message = f"SAVEE in {root}: expected {WANTED}, found none"
    raise other_folder(message, root, LAYOUTS, root.resolve().name in SPEAKERS)


def _itself(root: Path) -> list[tuple[Path, str]]:
    names = os.listdir(root)
    is_there = {
        "AudioData": any(name.upper() in SPEAKERS and (root / name).is_dir() for name in names),
        "ALL": any(name.upper().startswith(tuple(f"{s}_" for s in SPEAKERS)) and _is_wav(name) for name in names),
    }
    if all(is_there.values()):
        raise CorpusError(f"SAVEE in {root}: expected {WANTED}, found speakers' folders and files like DC_a01.wav")
    return [(root, LAYOUTS[name]) for name, is_here in is_there.items() if is_here]


def _is_wav(name: str) -> bool:
    return name.lower().endswith(".wav") and name[0] != "."


def _recordings(folder: Path) -> Iterable[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (Path(parent, name).relative_to(folder).as_posix() for name in names if _is_wav(name))


def _check(found: set[str], expected: dict[str, tuple[str, str]], where: str) -> None:
    offenders = Offenders(where)
    missing = [name for name in expected if name not in found]
    names = {_key(name): name for name in expected}
    for name in sorted(found - set(expected)):
        meant = names.get(_key(name))
        if meant in missing:
            missing.remove(meant)
            offenders.add("renamed", f"{name} (expected {meant})")
        elif meant:
            offenders.add("doubled", f"{name} (another {meant})")
        else:
            offenders.add(f"unknown (expected names like {next(iter(expected))})", f"{name}{nearest(name, missing)}")
    _add_missing(offenders, missing, expected)
    offenders.raise_any()


def _key(name: str) -> tuple[str, str, int] | None:
    """Speaker, emotion and number, however they are written; None where they cannot be told."""
    path = Path(name)
    match = LOOSE.search(path.stem)
    if not match:
        return None
    speaker = (match[1] or path.parent.name).upper()
    return (speaker, match[2].lower(), int(match[3])) if speaker in SPEAKERS else None


def _add_missing(offenders: Offenders, missing: list[str], expected: dict[str, tuple[str, str]]) -> None:
    """A speaker who is not there at all is one line, not 120."""
    for speaker in SPEAKERS:
        lost = [name for name in missing if expected[name][0] == speaker]
        count = sum(who == speaker for who, _ in expected.values())
        if lost and len(lost) == count:
            offenders.add("speaker without any recording", f"{speaker} (expected {count}: {lost[0]} … {lost[-1]})")
            continue
        for name in lost:
            offenders.add(f"missing of {speaker}'s {count}", name)


def text_of(take: str) -> str:
    """Return one name of a sentence, whoever says it in whichever emotion.

    Example
    -------
    >>> text_of("a03"), text_of("n03"), text_of("sa05"), text_of("n13"), text_of("n16")
    ('common-03', 'common-03', 'sa-05', 'sa-05', 'n-16')
    """
    code, number = take.rstrip("0123456789"), int(take.lstrip("adfhnsu"))
    if number <= COMMON:
        return f"common-{number:02}"
    if code == "n" and number <= COMMON + OWN * (len(EMOTIONS) - 1):
        place, rest = divmod(number - COMMON - 1, OWN)
        return f"{[e for e in EMOTIONS if e != 'n'][place]}-{COMMON + 1 + rest:02}"
    return f"{code}-{number:02}"


def _row(speaker: str, take: str, wav: str) -> dict:
    return {
        "ID": f"{speaker}_{take}",
        "wav": wav,
        "emotion": EMOTIONS[take.rstrip("0123456789")],
        "speaker": speaker,
        "gender": "M",
        **dict.fromkeys(("session", "dialog", "transcript"), ""),
        "text": text_of(take),
        "language": "en",
        "corpus": "savee",
    }
