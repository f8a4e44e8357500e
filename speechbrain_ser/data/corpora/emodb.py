"""EMO-DB (Burkhardt et al. 2005, "A database of German emotional speech"), described for `preset.py`.

Everything is in the file name: `03a01Fa.wav` is speaker 03, text a01, Freude (happiness), take a.
"""

from speechbrain_ser.data.corpora.preset import Preset

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
GENDERS = {**dict.fromkeys(("03", "10", "11", "12", "15"), "M"), **dict.fromkeys(("08", "09", "13", "14", "16"), "F")}
PARTS = {"speaker": GENDERS, "text": TEXTS, "take": "abcdefghijklmnopqrstuvwxyz"}

find_utterances = Preset(
    corpus="emodb",
    title="EMO-DB",
    example="wav/03a01Fa.wav",
    licence="published for research",
    language="de",
    name="(?P<speaker>[0-9]{2})(?P<text>[ab][0-9]{2})(?P<emotion>[a-z])(?P<take>[a-z])",
    id="{speaker}{text}{emotion}{take}",
    parts={"emotion": EMOTIONS, **PARTS},
    tell=lambda facts: {"dialog": facts["text"]},
    skipped=("laryngo", "lablaut", "labsilb", "silb"),
).find_utterances
