"""Corpora that are described, each in a few lines; `preset.py` reads them.

Facts are from the releases' papers, pages and tables; what could not be verified says so.
"""

import codecs
from pathlib import Path

from speechbrain_ser.data.corpora import emodb
from speechbrain_ser.data.corpora.preset import Facts, Preset


def named(pairs: str) -> dict[str, str]:
    """Return names by codes, written one after the other.

    >>> named("01 neutral 02 calm")
    {'01': 'neutral', '02': 'calm'}
    """
    words = pairs.split()
    return dict(zip(words[::2], words[1::2], strict=True))


# Livingstone and Russo 2018. Five recordings are stereo; a copy on Kaggle has all twice (`audio_speech_actors_01-24`).
RAVDESS = Preset(
    corpus="ravdess",
    title="RAVDESS",
    example="Actor_12/03-01-06-01-02-01-12.wav",
    licence="CC BY-NC-SA 4.0",
    language="en",
    name=r"03-01-(?P<emotion>\d\d)-(?P<intensity>\d\d)-(?P<text>\d\d)-(?P<take>\d\d)-(?P<speaker>\d\d)",
    id="03-01-{emotion}-{intensity}-{text}-{take}-{speaker}",
    parts={
        "emotion": named("01 neutral 02 calm 03 happy 04 sad 05 angry 06 fear 07 disgust 08 surprise"),
        "intensity": {"01": "normal", "02": "strong"},
        "text": {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"},
        "take": ("01", "02"),
        "speaker": {f"{k:02}": "FM"[k % 2] for k in range(1, 25)},
    },
    OFFICIAL={"recordings": 1440},
    kept=("intensity",),
    grid=("emotion", "intensity", "text", "take", "speaker"),
    never="03-01-01-02-.*",  # nobody is strongly neutral
    left_out={"songs": r"\d\d-02-\d\d-.*", "videos": r"0[12]-01-\d\d-.*"},
)

# Cao et al. 2014; the actors' sex: VideoDemographics.csv. AudioMP3 holds the same recordings; 1040_ITH_SAD_X has one X.
CREMAD_WOMEN = """02 03 04 06 07 08 09 10 12 13 18 20 21 24 25 28 29 30 37 43 46 47 49 52 53 54 55 56 58 60 61 63 72 73
74 75 76 78 79 82 84 89 91""".split()
CREMAD = Preset(
    corpus="cremad",
    title="CREMA-D",
    example="AudioWAV/1001_DFA_ANG_XX.wav",
    licence="Open Database License 1.0, its contents Database Contents License 1.0",
    language="en",
    name="(?P<speaker>[0-9]+)_(?P<text>[a-z]+)_(?P<emotion>[a-z]+)_(?P<level>[a-z]+)",
    id="{speaker}_{text}_{emotion}_{level}",
    parts={
        "emotion": named("ANG angry DIS disgust FEA fear HAP happy NEU neutral SAD sad"),
        "speaker": {f"10{k:02}": "F" if f"{k:02}" in CREMAD_WOMEN else "M" for k in range(1, 92)},
        "text": {
            "DFA": "Don't forget a jacket.",
            "IEO": "It's eleven o'clock.",
            "IOM": "I'm on my way to the meeting.",
            "ITH": "I think I have a doctor's appointment.",
            "ITS": "I think I've seen this before.",
            "IWL": "I would like a new alarm clock.",
            "IWW": "I wonder what this is about.",
            "MTI": "Maybe tomorrow it will be cold.",
            "TAI": "The airplane is almost full.",
            "TIE": "That is exactly what happened.",
            "TSI": "The surface is slick.",
            "WSI": "We'll stop in a couple of minutes.",
        },
        "level": ("LO", "MD", "HI", "XX", "X"),
    },
    OFFICIAL={"recordings that are not silent": 7441},
    kept=("level",),
    odd={"1076_MTI_SAD_XX": "it is silent"},
)


def _tess(facts: Facts) -> Facts:
    speaker, word = facts["speaker"].upper(), facts["text"].lower()
    return {"speaker": "OAF" if speaker == "OA" else speaker, "text": word, "transcript": f"Say the word {word}."}


# Dupuis and Pichora-Fuller 2010: 200 words, two women; one file is called OA_bite_neutral. One at 96 kHz and two AIFF
# in .wav are read as they are.
TESS = Preset(
    corpus="tess",
    title="TESS",
    example="OAF_back_angry.wav",
    licence="CC BY-NC-ND 4.0",
    language="en",
    name="(?P<speaker>[a-z]+)_(?P<text>[a-z']+)_(?P<emotion>[a-z]+)",
    id="{speaker}_{text}_{emotion}",
    parts={
        # ps: pleasant surprise
        "emotion": named("angry angry disgust disgust fear fear happy happy neutral neutral ps surprise sad sad"),
        "speaker": {"OAF": "F", "YAF": "F"},
    },
    OFFICIAL={"recordings": 2800},
    tell=_tess,
    grid=("speaker", "text", "emotion"),
)


MELD_GENDERS = named("chandler m joey m monica f phoebe f rachel f ross m")  # of those who say most; no table has them
CONTROLS = {k: bytes([k]).decode("cp1252", "ignore") for k in range(0x80, 0xA0)}


def _meld(facts: Facts) -> Facts:
    """Mend what was read as Latin-1 and was Windows-1252 (its apostrophe is then the control character 0x92)."""
    mended = {fact: facts[fact].translate(CONTROLS) for fact in ("transcript", "speaker")}
    gender = MELD_GENDERS.get(mended["speaker"].lower(), "")
    return {**mended, "gender": gender, "dialog": f"{facts['part']}_dia{facts['number']}"}


# Poria et al. 2019, cut from "Friends". Clips of the three parts have the same names: the folder tells the part.
MELD = Preset(
    corpus="meld",
    title="MELD",
    example="train_splits/dia0_utt0.wav",
    licence="GPL-3.0 (the annotation; the recordings are a broadcaster's)",
    language="en",
    name=r"(?:.*/)?[^/]*?(?P<part>train|dev|test)[^/]*/(?:.*/)?dia(?P<number>\d+)_utt(?P<turn>\d+)",
    id="{part}_dia{number}_utt{turn}",
    parts={
        "emotion": named(
            "anger angry disgust disgust fear fear joy happy neutral neutral sadness sad surprise surprise"
        )
    },
    OFFICIAL={"usable recordings": 13_706},
    tables={
        r"train_sent_emo\.csv": {"part": "train", "split": "train"},
        r"dev_sent_emo\.csv": {"part": "dev", "split": "valid"},
        r"test_sent_emo\.csv": {"part": "test", "split": "test"},
    },
    columns=named("emotion Emotion speaker Speaker transcript Utterance number Dialogue_ID turn Utterance_ID"),
    is_listed=True,
    tell=_meld,
    kept=("split",),
    odd={"train_dia125_utt3": "its video is broken", "dev_dia110_utt7": "the release lacks it"},
)


# Lotfian and Busso 2019; readme of release 1.12; each release is larger. Test1 is the test part. Test2's speakers are
# not known, Test3's labels not published: both are in no part of the split (the column `part` has the release's words).
MSP_PODCAST = Preset(
    corpus="msp_podcast",
    title="MSP-Podcast",
    example="Audios/MSP-PODCAST_0001_0008.wav",
    licence="academic licence of the University of Texas at Dallas, not to be passed on",
    language="en",
    name=r"(?P<id>(?P<dialog>msp-podcast_[^_]+)_\w+)",
    id="{id}",
    parts={
        "emotion": named("A angry S sad H happy U surprise F fear D disgust C contempt N neutral O other")
        | {"X": "no agreement"},
        "split": named("Train train Development valid Validation valid Test1 test") | {"Test2": "", "Test3": ""},
    },
    DEFAULT_LABELS={name: name for name in "angry sad happy surprise fear disgust contempt neutral".split()}
    | {"other": None, "no agreement": None},
    tables={r"labels_con[sc]ensus\.csv": {}},  # older releases: concensus
    columns=named("file FileName emotion EmoClass speaker SpkrID gender Gender split Split_Set")
    | named("activation EmoAct valence EmoVal dominance EmoDom"),
    is_listed=True,
    words=lambda files: {
        f.stem.lower(): " ".join(_text(f).split()) for f in files if f.parent.name.lower() == "transcripts"
    },
    tell=lambda facts: {"part": facts["split"], **({"speaker": ""} if facts["speaker"].lower() == "unknown" else {})},
    kept=("valence", "activation", "dominance", "part", "split"),
    skipped=("previous_releases_information",),
)

ESD_MEN = ("0004", "0005", "0006", "0008", "0010", "0011", "0012", "0013", "0014", "0020")


def _esd(facts: Facts) -> Facts:
    emotion, text = divmod(int(facts["number"]) - 1, 350)
    language = "zh" if facts["speaker"] <= "0010" else "en"
    split = "valid" if text < 20 else "test" if text < 50 else "train"
    return {"emotion": f"{emotion}", "text": f"{language}-{text + 1:03}", "language": language, "split": split}


def _esd_words(files: list[Path]) -> dict[str, str]:
    lines = (line.split("\t") for file in files for line in _text(file).splitlines())
    return {cells[0].strip().lower(): cells[1].strip() for cells in lines if len(cells) > 1}


# Zhou et al. 2022: ten speakers of Mandarin, ten of English; the number tells the emotion and, of the speaker's
# language, the text. Of each 350 the first 20 are evaluation's, the next 30 test's: texts are apart, speakers are not.
ESD = Preset(
    corpus="esd",
    title="ESD",
    example="0001/Angry/0001_000351.wav",
    licence="for research alone, by a signed form",
    language="",
    name=r"(?P<speaker>\d{4})_(?P<number>\d{6})",
    id="{speaker}_{number}",
    parts={
        "emotion": named("0 neutral 1 angry 2 happy 3 sad 4 surprise"),  # of 350 numbers each
        "speaker": {f"{k:04}": "M" if f"{k:04}" in ESD_MEN else "F" for k in range(1, 21)},
        "number": [f"{k:06}" for k in range(1, 1751)],
    },
    OFFICIAL={"recordings": 35_000},
    words=_esd_words,
    tell=_esd,
    kept=("split",),
    grid=("speaker", "number"),
)

# Costantini et al. 2014. No licence that comes with it is known to us.
EMOVO = Preset(
    corpus="emovo",
    title="EMOVO",
    example="f1/dis-f1-b1.wav",
    licence="published for research; ask its authors for more",
    language="it",
    name="(?P<emotion>[a-z]+)-(?P<speaker>[a-z][0-9])-(?P<text>[a-z][0-9])",
    id="{emotion}-{speaker}-{text}",
    parts={
        "emotion": named("dis disgust gio happy neu neutral pau fear rab angry sor surprise tri sad"),
        "speaker": {f"{letter}{k}": letter.upper() for letter in "fm" for k in (1, 2, 3)},
        "text": {
            "b1": "Gli operai si alzano presto.",
            "b2": "I vigili sono muniti di pistola.",
            "b3": "La cascata fa molto rumore.",
            "l1": "L'autunno prossimo Tony partirà per la Spagna: nella prima metà di ottobre.",
            "l2": "Ora prendo la felpa di là ed esco per fare una passeggiata.",
            "l3": "Un attimo dopo s'è incamminato... ed è inciampato.",
            "l4": "Vorrei il numero telefonico del Signor Piatti.",
            "n1": "La casa forte vuole col pane.",
            "n2": "La forza trova il passo e l'aglio rosso.",
            "n3": "Il gatto sta scorrendo nella pera.",
            "n4": "Insalata pastasciutta coscia d'agnello limoncello.",
            "n5": "Uno quarantatré dieci mille cinquantasette venti.",
            "d1": "Sabato sera cosa farà?",
            "d2": "Porti con te quella cosa?",
        },
    },
    OFFICIAL={"recordings": 588},
    grid=("emotion", "speaker", "text"),
)

# Christop 2024; the release's page: data.tsv beside samples.
NEMO = Preset(
    corpus="nemo",
    title="nEMO",
    example="samples/SPEAKER_anger_SENTENCE.wav",
    licence="CC BY-NC-SA 4.0",
    language="pl",
    name="(?P<id>[^_]+_[a-z]+_[^_]+)",
    id="{id}",
    parts={"emotion": named("anger angry fear fear happiness happy neutral neutral sadness sad surprised surprise")},
    OFFICIAL={"recordings": 4481},
    tables={r"data\.tsv": {}},
    columns=named("file file_id emotion emotion transcript raw_text speaker speaker_id gender gender"),
    is_listed=True,
)


def _emodb2(facts: Facts) -> Facts:
    split = "test" if facts["speaker"] in ("12", "14", "15", "16") else "train"
    return {"emotion": facts["code"] + ("" if "gold" in facts else "?"), "split": split, "dialog": facts["text"]}


# Release 2.0 of EMO-DB as audb has it, with its tables: the 535 of before are gold; of the 281 new ones fewer than 80 %
# of the listeners heard the emotion that was meant. `laryngo` has the glottis's signal under the same names; the new
# names end in "xx" in its sources. Zenodo's archive was not seen.
EMODB2 = Preset(
    corpus="emodb2",
    title="EMO-DB 2.0",
    example="wav/03a01Fa.wav",
    licence="CC0 1.0",
    language="de",
    name="(?P<speaker>[0-9]{2})(?P<text>[ab][0-9]{2})(?P<code>[a-z])(?P<take>[a-z])(?:xx)?",
    id="{speaker}{text}{code}{take}",
    parts={
        "emotion": {**emodb.EMOTIONS, **{f"{code}?": f"{name} (ambiguous)" for code, name in emodb.EMOTIONS.items()}},
        "code": tuple(emodb.EMOTIONS),
        **emodb.PARTS,
    },
    DEFAULT_LABELS={**emodb.DEFAULT_LABELS, "*": None},
    OFFICIAL={"recordings": 816, "of the gold subset": 535},
    tables={rf"db\.emotion\.categories\.{part}\.gold_standard\.csv": {"gold": "yes"} for part in ("train", "test")},
    columns={"file": "file"},
    tell=_emodb2,
    kept=("split",),
    skipped=("laryngo",),
)


def _text(file: Path) -> str:
    """Read a text in UTF-8, UTF-16 with its mark, or GB 18030: the transcripts of one release are in all of them."""
    data = file.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("gb18030", "replace")


PRESETS = {each.corpus: each for each in (RAVDESS, CREMAD, TESS, MELD, MSP_PODCAST, ESD, EMOVO, NEMO, EMODB2)}
