"""Hand-made corpora: folders as they are on disk, with tiny recordings."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

DIMENSIONS = "[2.5000, 3.5000, 1.3333]"
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X \xb0"

# turn, emotion code, words: every emotion code, dialogs with a suffix, both actors in either one's dialog,
# tags, and everything that upsets a careless CSV or a careless replacement
TRAP_TURNS = (
    ("Ses01F_impro01_F000", "neu", "Excuse me."),
    ("Ses01F_impro01_M000", "fru", "Yeah."),
    ("Ses01F_impro01_F001", "xxx", ""),
    ("Ses01F_impro01_M003", "ang", 'I said "no", {LAUGHTER} no. {data_root} {}'),
    ("Ses01M_script01_1_F000", "hap", "[BREATHING] It's great; isn't it: now?"),
    ("Ses01M_script01_1_M000", "exc", "Café, naïve."),
    ("Ses03M_impro05a_F002", "sad", "NA"),
    ("Ses03M_impro05a_M010", "sur", "None"),
    ("Ses05M_script01_1b_F004", "fea", "{LG}"),
    ("Ses05M_script01_1b_M004", "dis", "What's that?"),
    ("Ses05F_impro08_M011", "oth", "'Tis."),
)


def write_wav(path: Path, seconds: float = 0.02, rate: int = 16000, **options) -> Path:
    """A quiet tone in noise, of which each path has its own: no two recordings of a corpus are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([*bytes(path)]).normal(0, 0.01, round(seconds * rate))
    soundfile.write(path, 0.1 * np.sin(np.arange(len(noise)) / 7) + noise, rate, **options)
    return path


def iemocap_tree(folder: Path, turns: Iterable[tuple[str, str, str]] = TRAP_TURNS) -> Path:
    """`IEMOCAP_full_release` with the given turns and all the things in it that are no turns."""
    dialogs = {}
    for turn, code, words in turns:
        dialogs.setdefault(turn.rpartition("_")[0], []).append((turn, code, words))
    for dialog, members in dialogs.items():
        session = folder / f"Session{int(dialog[3:5])}"
        evaluation, transcriptions = (session / "dialog" / "EmoEvaluation", session / "dialog" / "transcriptions")
        write(evaluation / f"{dialog}.txt", _labels(members))
        write(transcriptions / f"{dialog}.txt", _transcription(dialog, members))
        _write_traps(session, dialog)
        wavs = session / "sentences" / "wav" / dialog
        for turn, _, _ in members:
            write_wav(wavs / f"{turn}.wav")
    return folder


def _labels(members):
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    for number, (turn, code, _) in enumerate(members):
        lines += [f"[{number}.2901 - {number}.9000]\t{turn}\t{code}\t{DIMENSIONS}", "C-E2:\tNeutral;\t()"]
        lines += ["A-E3:\tval 3; act 2; dom  2;\t(mostly [listening - here])", ""]
    return "\n".join(lines)


def _transcription(dialog, members):
    lines = [f"{turn} [{number:03}.2901-{number:03}.9000]: {words}" for number, (turn, _, words) in enumerate(members)]
    lines[-1] = f"{members[-1][0]}: {members[-1][2]}"  # without a time
    # lines that belong to no labelled turn: without label, without name, empty
    lines[1:1] = [f"{dialog}_MXX0 [001.0000-001.1000]: Mm-hm.", "M: Yeah.", "", "F: [LAUGHTER]"]
    return "\n".join(lines) + "\n"


def _write_traps(session, dialog):
    evaluation, wavs = session / "dialog" / "EmoEvaluation", session / "sentences" / "wav"
    write(evaluation / f"._{dialog}.txt", APPLE_DOUBLE)
    write(session / "dialog" / "transcriptions" / f"._{dialog}.txt", APPLE_DOUBLE)
    write(wavs / f"._{dialog}", APPLE_DOUBLE)
    write(wavs / dialog / f"._{dialog}_F000.wav", APPLE_DOUBLE)
    write(wavs / dialog / ".DS_Store", APPLE_DOUBLE)
    write(evaluation / "Categorical" / f"{dialog}_e1_cat.txt", f"{dialog}_F000 :Neutral state; ()\n")
    write(evaluation / "Attribute" / f"{dialog}_e1_atr.txt", f"{dialog}_F000 :act 2; :val 3; :dom  2; ()\n")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def table_folder(folder: Path, table: str, wavs: Iterable[str] = (), name: str = "users.csv") -> Path:
    """A user's own folder: a table and recordings."""
    write(folder / name, table)
    for wav in wavs:
        write_wav(folder / wav)
    return folder
