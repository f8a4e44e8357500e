"""SAVEE (Haq and Jackson 2009, "Speaker-dependent audio-visual emotion recognition"), described for `preset.py`.

Four English men, 480 recordings. Everything is in the name: `DC/a01.wav` (or `DC_a01.wav`) is speaker DC, anger,
recording 01. The sentences are TIMIT's and do not come with the recordings: transcript and dialog are empty.

Who shares a sentence the documentation tells: the four speakers say the same; of an emotion's 15 sentences 3 are common
to all emotions, 2 are the emotion's own and are also said neutrally, 10 are said in that emotion alone; of the 30
neutral ones 3 are the common ones, 2 x 6 the emotions' own, 15 are said neutrally alone. It lists them in this order,
the emotions in the alphabet's; the release itself has no texts by which the numbers could be checked.
"""

from speechbrain_ser.data.corpora.preset import Preset

SPEAKERS = ("DC", "JE", "JK", "KL")
EMOTIONS = {
    **{"a": "angry", "d": "disgust", "f": "fear", "h": "happy", "n": "neutral"},
    **{"sa": "sad", "su": "surprise"},
}
DEFAULT_LABELS = {name: name for name in EMOTIONS.values()}
OFFICIAL = {"recordings": 480}
RECORDINGS = {code: 30 if code == "n" else 15 for code in EMOTIONS}  # of each speaker
COMMON, OWN = 3, 2  # sentences of all emotions, and of one emotion and neutral


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


TEXTS = {take: text_of(take) for code, n in RECORDINGS.items() for take in (f"{code}{k:02}" for k in range(1, n + 1))}

find_utterances = Preset(
    corpus="savee",
    title="SAVEE",
    example="AudioData/DC/a01.wav (or ALL/DC_a01.wav)",
    licence="published for research",
    language="en",
    name=r"(?:.*/)?(?P<speaker>[a-z]+)[/_](?P<take>(?P<emotion>[a-z]+)\d+)",
    id="{speaker}_{take}",
    parts={"emotion": EMOTIONS, "speaker": dict.fromkeys(SPEAKERS, "M"), "take": TEXTS},
    tell=lambda facts: {"text": TEXTS.get(facts["take"].lower(), "")},
    grid=("speaker", "take"),
    is_whole=True,
).find_utterances
