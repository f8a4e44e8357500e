"""EMO-DB (Burkhardt et al. 2005, "A database of German emotional speech") -> rows of a manifest.

Everything is in the file name: `03a01Fa.wav` is speaker 03, text a01, Freude (happiness), take a.
"""

import os
import re
from pathlib import Path

from speechbrain_ser.data.corpora import other_folder
from speechbrain_ser.errors import CorpusError, Offenders

EMOTIONS = {
    "W": "angry",  # Wut
    "L": "boredom",  # Langeweile
    "E": "disgust",  # Ekel
    "A": "fear",  # Angst
    "F": "happy",  # Freude
    "T": "sad",  # Trauer
    "N": "neutral",
}
DEFAULT_LABELS = {name: name for name in EMOTIONS.values()}
OFFICIAL = {"recordings": 535}
OTHER_RELEASES = " (release 2.0, --corpus=emodb2, has more: figures on it are no figures on EMO-DB as published)"
TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
GENDERS = {
    **dict.fromkeys(("03", "10", "11", "12", "15"), "M"),
    **dict.fromkeys(("08", "09", "13", "14", "16"), "F"),
}
NAME = re.compile(r"(?P<speaker>\d\d)(?P<text>[ab]\d\d)(?P<emotion>[A-Z])(?P<take>[a-z])\.wav")


def find_utterances(data_folder: str | os.PathLike) -> list[dict]:
    """Return a row of the manifest, without its duration, for each recording in the folder's `wav`."""
    root = Path(data_folder)
    if not root.is_dir():
        raise CorpusError(f"EMO-DB: no such folder: {root}")
    if not (root / "wav").is_dir():
        message = f"EMO-DB in {root}: expected a folder wav in it, found none"
        raise other_folder(message, root, ["wav"], root.resolve().name == "wav")
    offenders = Offenders(f"EMO-DB in {root}: names should be like 03a01Fa.wav (speaker, text, emotion, take)")
    names = sorted(name for name in os.listdir(root / "wav") if name.lower().endswith(".wav") and name[0] != ".")
    rows = [row for name in names if (row := _row(name, offenders))]
    offenders.raise_any()
    if not rows:
        raise CorpusError(f"EMO-DB in {root}: expected recordings such as wav/03a01Fa.wav, found none")
    return rows


def _row(name: str, offenders: Offenders) -> dict | None:
    parts = NAME.fullmatch(name)
    if not parts:
        offenders.add("name that cannot be read", name)
        return None
    known = {"speaker": GENDERS, "text": TEXTS, "emotion": EMOTIONS}
    strange = [part for part, values in known.items() if parts[part] not in values]
    for part in strange:
        offenders.add(f"unknown {part} (known: {' '.join(known[part])})", f"{name}: {parts[part]!r}")
    if strange:
        return None
    return {
        "ID": name.removesuffix(".wav"),
        "wav": f"{{data_root}}/wav/{name}",
        "emotion": EMOTIONS[parts["emotion"]],
        "speaker": parts["speaker"],
        "gender": GENDERS[parts["speaker"]],
        "session": "",
        "dialog": parts["text"],
        "transcript": TEXTS[parts["text"]],
        "text": parts["text"],
        "language": "de",
        "corpus": "emodb",
    }
