"""IEMOCAP's original release (`IEMOCAP_full_release`) -> rows of a manifest.

Busso et al. 2008, "IEMOCAP: interactive emotional dyadic motion capture database". All labelled turns become
rows; which of them are used, under which class names, is the business of `apply_labels`.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from speechbrain_ser.data.corpora import read_text
from speechbrain_ser.errors import CorpusError, Offenders, shown

logger = logging.getLogger(__name__)

EMOTIONS = {
    "neu": "neutral",
    "hap": "happy",
    "exc": "excited",
    "ang": "angry",
    "sad": "sad",
    "fru": "frustrated",
    "sur": "surprise",
    "fea": "fear",
    "dis": "disgust",
    "oth": "other",
    "xxx": "undecided",
}
# the four classes of most papers; 5531 turns of the full release
DEFAULT_LABELS = {name: name for name in ("neutral", "happy", "angry", "sad")} | {"excited": "happy", "*": None}
OFFICIAL = {"labelled turns": 10039, "turns in the default four classes": 5531}
SESSIONS = 5

# A dialog's name may end in a letter (Ses03M_impro05a, Ses05M_script01_1b): no fixed columns.
DIALOG = re.compile(r"Ses(?P<session>\d\d)[FM]_\w+")
TURN = re.compile(r"(?P<dialog>Ses(?P<session>\d\d)[FM]_\w+)_(?P<letter>[FM])[0-9X]+")
NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
LABEL_LINE = re.compile(
    rf"\[{NUMBER}-{NUMBER}\]\t(?P<turn>\S+)\t(?P<code>\S+)\t"
    rf"\[(?P<valence>{NUMBER}),(?P<activation>{NUMBER}),(?P<dominance>{NUMBER})\]\s*"
)
# C-E1 is a rater's choice of emotions, C-F1 and C-M1 what the actors thought of themselves
VOTE_LINE = re.compile(r"C-E\d+:\t(?P<emotions>[^\t]*)\t.*")
# five pairs of actors played the same scenes: Ses01F_script02_1 and Ses03M_script02_1 are one script
SCRIPT = re.compile(r"script\d\d_\d")
# `M: Yeah.` has no turn name and is no turn; the time is not needed
TRANSCRIPT_LINE = re.compile(r"(?P<turn>Ses\d\d[FM]_\w+)\s*(?:\[[^\]]*\])?\s*:(?P<text>.*)")


def find_utterances(data_folder: str | os.PathLike) -> list[dict]:
    """Return a row of the manifest, without its duration, for each labelled turn of the sessions that are there."""
    root = Path(data_folder)
    if not root.is_dir():
        raise CorpusError(f"IEMOCAP: no such folder: {root}")
    sessions = sorted(path for path in root.glob("Session[0-9]*") if path.is_dir())
    if not sessions:
        found = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
        message = (
            f"IEMOCAP in {root}: expected Session1 … Session{SESSIONS}, found {', '.join(shown(found)) or 'nothing'}"
        )
        if deeper := sorted(path.parent for path in root.glob("*/Session[0-9]*") if path.is_dir()):
            message += f". Give the folder inside it: {deeper[0]}"
        elif re.fullmatch(r"Session\d", root.resolve().name):
            message += f". Give the folder that holds it: {root.resolve().parent}"
        raise CorpusError(message)
    offenders = Offenders(f"IEMOCAP in {root}: incomplete or damaged")
    rows = [row for session in sessions for row in _session_rows(root, session, offenders)]
    offenders.raise_any()
    if len(sessions) < SESSIONS:
        names = ", ".join(session.name for session in sessions)
        logger.warning("IEMOCAP in %s: %s only, the full release has %d sessions", root, names, SESSIONS)
    return rows


def _session_rows(root: Path, session: Path, offenders: Offenders) -> Iterator[dict]:
    """A dialog is three things: a label file, a transcription and a folder of wavs. All must be there."""
    found = {
        "label file": _named(session / "dialog" / "EmoEvaluation", "{}.txt"),
        "transcription": _named(session / "dialog" / "transcriptions", "{}.txt"),
        "wav folder": _named(session / "sentences" / "wav", "{}"),
    }
    for dialog in sorted(set().union(*found.values())):
        lost = [kind for kind, dialogs in found.items() if dialog not in dialogs]
        for kind in lost:
            where = ", ".join(other for other in found if other not in lost)
            offenders.add(f"dialog without its {kind}", f"{session.name}: {dialog} (found its {where})")
        if not lost:
            yield from _dialog_rows(root, *(dialogs[dialog] for dialogs in found.values()), offenders)
    if not any(found.values()):
        offenders.add("session without dialogs", f"{session.name} (expected dialog/EmoEvaluation/Ses…_….txt)")


def _named(folder: Path, pattern: str) -> dict[str, Path]:
    """Dialog name -> path. Files of another file system (`._Ses01F_impro01.txt`) are no dialogs."""
    if not folder.is_dir():
        return {}
    is_text = pattern.endswith(".txt")
    names = {Path(name).stem if is_text else name for name in os.listdir(folder)}
    paths = {name: folder / pattern.format(name) for name in names if DIALOG.fullmatch(name)}
    return {name: path for name, path in paths.items() if (path.is_file() if is_text else path.is_dir())}


def _dialog_rows(
    root: Path, label_file: Path, transcription: Path, wav_folder: Path, offenders: Offenders
) -> Iterator[dict]:
    transcripts = _read_transcripts(transcription)
    wavs = {name for name in os.listdir(wav_folder) if name[0] != "."}
    labels = _read_labels(label_file, root, offenders)
    if not labels:
        offenders.add("label file without a valid label", label_file.relative_to(root))
    unlabelled = sorted(wavs - {f"{turn}.wav" for turn, _ in labels})
    if unlabelled and labels:
        logger.warning("%s: %d wavs without a label, e.g. %s", label_file, len(unlabelled), unlabelled[0])
    for turn, values in labels:
        parts = TURN.fullmatch(turn)
        wav = wav_folder / f"{turn}.wav"
        if turn not in transcripts:
            offenders.add("turn without a line in its transcription", f"{turn} ({transcription.relative_to(root)})")
        if wav.name not in wavs:
            offenders.add("turn without its wav", wav.relative_to(root))
        yield {
            "ID": turn,
            "wav": f"{{data_root}}/{wav.relative_to(root).as_posix()}",
            "emotion": EMOTIONS[values["code"]],
            # who speaks is the turn's letter; the dialog's letter is who wore the markers
            "speaker": parts["session"] + parts["letter"],
            "gender": parts["letter"],
            "session": f"Ses{parts['session']}",
            "dialog": parts["dialog"],
            "transcript": transcripts.get(turn, ""),
            "script": script[0] if (script := SCRIPT.search(parts["dialog"])) else "",
            "language": "en",
            "corpus": "iemocap",
            **{name: f"{float(values[name]):g}" for name in ("valence", "activation", "dominance")},
            "votes": "; ".join(values["votes"]),
        }


def _read_labels(path: Path, root: Path, offenders: Offenders) -> list[tuple[str, dict]]:
    """Turn, and its code, valence, activation, dominance and votes; other raters' lines and the header are passed over.

    A rater may have chosen several emotions, each of which is a vote.
    """
    labelled = []
    for number, line in enumerate(_lines(path), 1):
        if labelled and (vote := VOTE_LINE.fullmatch(line)):
            # a rater's word is `Anger` or `Neutral state`: codes are such words' first three letters
            codes = (name.strip()[:3].lower() for name in vote["emotions"].split(";") if name.strip())
            labelled[-1][1]["votes"] += [EMOTIONS.get(code, "other") for code in codes]
        if not line.startswith("["):
            continue
        where = f"{path.relative_to(root)}, line {number}"
        values = LABEL_LINE.fullmatch(line)
        if not values:
            offenders.add("label line not as '[start - end]<tab>turn<tab>emotion<tab>[v, a, d]'", f"{where}: {line!r}")
            continue
        turn = TURN.fullmatch(values["turn"])
        if not turn or turn["dialog"] != path.stem:
            offenders.add("label of a turn that is not of this dialog", f"{where}: {values['turn']}")
        elif values["code"] not in EMOTIONS:
            kind = f"unknown emotion code (known: {' '.join(EMOTIONS)})"
            offenders.add(kind, f"{where}: {values['turn']} is {values['code']!r}")
        else:
            labelled.append((values["turn"], values.groupdict() | {"votes": []}))
    return labelled


def _read_transcripts(path: Path) -> dict[str, str]:
    """Turn -> its words, tags such as {LAUGHTER} included; lines that name no turn are passed over."""
    matches = filter(None, map(TRANSCRIPT_LINE.fullmatch, _lines(path)))
    return {match["turn"]: match["text"].strip() for match in matches}


def _lines(path: Path) -> list[str]:
    # older files have a stray latin-1 character; str.splitlines would end a line at some of those
    return re.split(r"\r\n?|\n", read_text(path, otherwise="latin-1"))
