"""SAVEE (Haq and Jackson 2009, "Speaker-dependent audio-visual emotion recognition") -> rows of a manifest.

Four English men, 480 recordings. Everything is in the name: `DC/a01.wav` (or `DC_a01.wav`) is speaker DC, anger,
recording 01. The sentences are TIMIT's and do not come with the recordings: transcript and dialog are empty.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from speechbrain_ser.errors import CorpusError, Offenders, nearest

SPEAKERS = ("DC", "JE", "JK", "KL")
EMOTIONS = {
    "a": "angry",
    "d": "disgust",
    "f": "fear",
    "h": "happy",
    "n": "neutral",
    "sa": "sad",
    "su": "surprise",
}
DEFAULT_LABELS = {name: name for name in EMOTIONS.values()}
OFFICIAL = {"recordings": 480}
RECORDINGS = {code: 30 if code == "n" else 15 for code in EMOTIONS}  # of each speaker
LAYOUTS = {"AudioData": "{speaker}/{take}.wav", "ALL": "{speaker}_{take}.wav"}
WANTED = "AudioData/DC/a01.wav … AudioData/KL/su15.wav, or ALL/DC_a01.wav … ALL/KL_su15.wav"
# what a renamed copy may still look like: `dc/A1.wav`, `DC-a01 (2).wav`
LOOSE = re.compile(
    rf"(?<![a-z0-9])(?:({'|'.join(SPEAKERS)})[^a-z0-9]*)?({'|'.join(EMOTIONS)})[^a-z0-9]*([0-9]+)", re.IGNORECASE
)


def find_utterances(data_folder: str | os.PathLike) -> list[dict]:
    """All recordings, none missing and none too many.

    Arguments
    ---------
    data_folder : path
        The folder that holds `AudioData` (a folder a speaker) or `ALL` (speaker and recording in the file name), or
        that folder itself. A demo corpus in SAVEE's layout must be as complete as it was made.

    Returns
    -------
    list of dict
        Rows of a manifest, without durations.

    Raises
    ------
    CorpusError
        Another folder, or one that is not complete: recordings that are missing, renamed, doubled or unknown are
        listed with what was expected.
    """
    root = Path(data_folder)
    folder, layout = wav_folder(root)
    takes = _demo_takes(folder) or [
        (speaker, f"{code}{number:02}")
        for speaker in SPEAKERS
        for code, count in RECORDINGS.items()
        for number in range(1, count + 1)
    ]
    expected = {layout.format(speaker=speaker, take=take): (speaker, take) for speaker, take in takes}
    _check(set(_recordings(folder)), expected, f"SAVEE in {folder}: not the {len(expected)} recordings it should hold")
    inner = folder.relative_to(root).as_posix()
    prefix = "{data_root}" if inner == "." else f"{{data_root}}/{inner}"
    return [_row(speaker, take, f"{prefix}/{name}") for name, (speaker, take) in expected.items()]


def wav_folder(root: Path) -> tuple[Path, str]:
    """The folder of the recordings, and how they are named in it.

    Arguments
    ---------
    root : path
        The corpus, or its folder of recordings.

    Returns
    -------
    path, str
        The folder, and one of `LAYOUTS`' patterns of a recording's path in it.

    Raises
    ------
    CorpusError
        None of the layouts is there, or both are; the message says which folder was probably meant.
    """
    if not root.is_dir():
        raise CorpusError(f"SAVEE: no such folder: {root}")
    found = [(root / name, layout) for name, layout in LAYOUTS.items() if (root / name).is_dir()] or _itself(root)
    if len(found) == 1:
        return found[0]
    if found:
        raise CorpusError(f"SAVEE in {root}: found its recordings twice. Give one of {found[0][0]} and {found[1][0]}")
    message = f"SAVEE in {root}: expected {WANTED}, found none"
    inner = sorted({path.parent for name in LAYOUTS for path in root.glob(f"*/{name}") if path.is_dir()})
    if inner:
        message += f". Give the folder inside it: {inner[0]}"
    elif root.resolve().name in SPEAKERS:
        message += f". Give the folder that holds it: {root.resolve().parent}"
    raise CorpusError(message)


def _itself(root):
    names = os.listdir(root)
    layouts = []
    if any(name.upper() in SPEAKERS and (root / name).is_dir() for name in names):
        layouts.append("AudioData")
    if any(name.upper().startswith(tuple(f"{s}_" for s in SPEAKERS)) and _is_wav(name) for name in names):
        layouts.append("ALL")
    if len(layouts) == 2:
        raise CorpusError(f"SAVEE in {root}: expected {WANTED}, found speakers' folders and files like DC_a01.wav")
    return [(root, LAYOUTS[name]) for name in layouts]


def _is_wav(name):
    return name.lower().endswith(".wav") and name[0] != "."


def _demo_takes(folder):
    """A demo corpus says beside its recordings how many sentences it was made with: the rest is its plan."""
    from speechbrain_ser.data.corpora import demo
    from speechbrain_ser.data.corpora import demo as demo_layouts

    marker = demo.read_marker(folder.resolve().parent)
    if marker is None or marker.get("layout") != "savee":
        return None
    wavs = [Path(turn.wav) for turn in demo_layouts.savee_layout(marker["sentences"]).turns]
    return [(wav.parent.name, wav.stem) for wav in wavs]


def _recordings(folder) -> Iterable[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (Path(parent, name).relative_to(folder).as_posix() for name in names if _is_wav(name))


def _check(found, expected, where):
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


def _key(name):
    """Speaker, emotion and number, however they are written; None where they cannot be told."""
    path = Path(name)
    match = LOOSE.search(path.stem)
    if not match:
        return None
    speaker = (match[1] or path.parent.name).upper()
    return (speaker, match[2].lower(), int(match[3])) if speaker in SPEAKERS else None


def _add_missing(offenders, missing, expected):
    """A speaker who is not there at all is one line, not 120."""
    for speaker in SPEAKERS:
        lost = [name for name in missing if expected[name][0] == speaker]
        count = sum(who == speaker for who, _ in expected.values())
        if lost and len(lost) == count:
            offenders.add("speaker without any recording", f"{speaker} (expected {count}: {lost[0]} … {lost[-1]})")
        else:
            for name in lost:
                offenders.add(f"missing of {speaker}'s {count}", name)


def _row(speaker, take, wav):
    return {
        "ID": f"{speaker}_{take}",
        "wav": wav,
        "emotion": EMOTIONS[take.rstrip("0123456789")],
        "speaker": speaker,
        "gender": "M",
        "session": "",
        "dialog": "",
        "transcript": "",
        "language": "en",
        "corpus": "savee",
    }
