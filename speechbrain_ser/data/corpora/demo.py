"""A corpus for trying things out: speech that eSpeak NG acts, on disk as the real corpora are."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from speechbrain_ser.data.audio import cores
from speechbrain_ser.data.corpora import DEMO_MARKER, emodb, iemocap, savee
from speechbrain_ser.data.corpora.espeak import Speech, speak
from speechbrain_ser.errors import CorpusError, UserError, nearest
from speechbrain_ser.files import folder_written_whole, write_text

# what is said: sentences of all, and known words in new orders for held-out speakers: what a model spells, not knows
SENTENCES, HELD_OUT = (
    tuple(re.findall(r"\w[^.?]*[.?]", text.replace("\n", " ")))
    for text in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split("\n\n")
)
logger = logging.getLogger(__name__)

EMOTIONS, DEFAULT_LABELS = iemocap.EMOTIONS, iemocap.DEFAULT_LABELS
VERSIONS = {"iemocap": 3, "savee": 3, "emodb": 2}  # raise one when the corpus of a seed changes


def find_utterances(data_folder: str | os.PathLike, seed: int | None = None) -> list[dict]:
    """Return a row of the manifest for each turn of the demo corpus, which is made when it is absent.

    One that is there must have the seed that is given.
    """
    found = _made_from(Path(data_folder))
    if found is None or found.get("layout") != "iemocap" or seed not in (None, found.get("seed")):
        make_demo_corpus(data_folder, "iemocap", seed or 0)
    return [{**row, "corpus": "demo"} for row in iemocap.find_utterances(data_folder)]


def make_demo_corpus(
    out: str | os.PathLike, layout: str = "iemocap", seed: int = 0, sentences: int | None = None
) -> Path:
    """Speak a corpus, and return its folder. The same seed gives the same bytes; a complete one is left as it is.

    Arguments
    ---------
    layout : str
        iemocap (ten speakers, English), savee (four men, English) or emodb (ten speakers, German).
    sentences : int, optional
        How many everybody says, for a small corpus; as many as the layout has by default. Some more are said only by
        the speakers of IEMOCAP's Session 5, SAVEE's KL, EMO-DB's 15 and 16.
    """
    if layout not in LAYOUTS:
        raise CorpusError(f"unknown layout {layout!r}{nearest(layout, LAYOUTS)}; known: {', '.join(LAYOUTS)}")
    out = Path(out)
    wanted = {"layout": layout, "seed": seed, "sentences": sentences, "version": VERSIONS[layout]}
    if _is_there(out, wanted):
        logger.info("%s is there already", out)
        return out
    plan = LAYOUTS[layout](sentences)
    logger.info("%s: speaking %d utterances", out, len(plan.turns))
    try:
        with folder_written_whole(out) as unfinished:
            spoken = _speak_all(plan, unfinished, seed)
            plan.write_texts(unfinished, spoken, seed)
            write_text(json.dumps(wanted, sort_keys=True, indent=1) + "\n", unfinished / DEMO_MARKER)
    except UserError:
        if not _is_there(out, wanted):  # else another process was quicker, with the same result
            raise
    logger.info("%s: %d utterances, %.1f minutes", out, len(spoken), sum(s.seconds for s in spoken.values()) / 60)
    return out


def _is_there(out: Path, wanted: dict) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = _made_from(out)
    if found is None:
        what = "a file" if out.is_file() else f"a folder without {DEMO_MARKER}"
        raise CorpusError(f"{out} is no demo corpus but {what}: give a new or an empty folder")
    changed = [f"{key} {found.get(key)!r} instead of {w!r}" for key, w in wanted.items() if found.get(key) != w]
    if changed:
        raise CorpusError(f"{out} holds another demo corpus ({', '.join(changed)}): give another folder or remove it")
    return True


def _made_from(folder: Path) -> dict | None:
    try:
        found = json.loads((folder / DEMO_MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _speak_all(plan: "Plan", root: Path, seed: int) -> dict[str, "Spoken"]:
    """Speakers in parallel, each in a process of its own; every turn by its wav."""
    spoken = {}
    with ThreadPoolExecutor(cores()) as pool, tqdm(desc="speech", total=len(plan.turns), disable=None) as bar:
        seeds = [[seed, number] for number in range(len(plan.voices))]
        for found in pool.map(lambda name, seed: _speak_one(plan, name, seed, root, bar.update), plan.voices, seeds):
            spoken.update(found)
    return spoken


def _speak_one(plan: "Plan", name: str, seed: list[int], root: Path, update: Callable) -> dict[str, "Spoken"]:
    random = np.random.default_rng(seed)
    turns = [turn for turn in plan.turns if turn.speaker == name]
    voice = plan.voices[name]
    speeches = [_act(turn.text, plan.voice_language, voice, turn.emotion, random) for turn in turns]
    spoken = {}
    for turn, speech, (samples, rate) in zip(turns, speeches, speak(speeches), strict=True):
        # as int16 soxr would dither, at random
        samples = np.rint(soxr.resample(samples.astype(np.float64), rate, plan.sample_rate))
        path = root / turn.wav
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.clip(samples, -32768, 32767).astype(np.int16), plan.sample_rate, subtype="PCM_16")
        spoken[turn.wav] = Spoken(len(samples) / plan.sample_rate, speech)
        update()
    return spoken


@dataclass(frozen=True)
class Voice:
    """One speaker: an eSpeak variant with its own habits."""

    variant: str
    pitch: int = 0  # added to every emotion's
    rate: float = 1.0  # multiplies every emotion's


FEMALE = (Voice("f1", 2), Voice("f2", -3, 0.97), Voice("f3", 4, 1.03), Voice("f4", 0, 1.02), Voice("f5", -2, 0.98))
MALE = (Voice("m1", 0, 1.02), Voice("m2", 3, 0.98), Voice("m3", -2), Voice("m4", 4, 1.03), Voice("m7", 1, 0.97))
# Rate and range differ for every pair, so an emotion can be told from a voice never heard before; the volumes
# overlap once they vary.
STYLES = {  # what an emotion does to any voice (see `Speech` for the units)
    "neutral": dict(rate=150, pitch=44, range=36, volume=70),
    "happy": dict(rate=184, pitch=76, range=88, volume=78),
    "excited": dict(rate=190, pitch=82, range=96, volume=82),
    "angry": dict(rate=240, pitch=46, range=66, volume=86),
    "sad": dict(rate=110, pitch=34, range=6, volume=54),
    "fear": dict(rate=250, pitch=80, range=14, volume=62),
    "disgust": dict(rate=125, pitch=28, range=75, volume=74),
    "boredom": dict(rate=140, pitch=40, range=4, volume=64),
    "surprise": dict(rate=150, pitch=82, range=99, volume=80),
    "frustrated": dict(rate=205, pitch=38, range=55, volume=84),
    "undecided": dict(rate=180, pitch=52, range=48, volume=72),
}
# standard deviations of the seeded variation: rate and volume relative, pitch and range in eSpeak's units
VARIATION = {"rate": 0.04, "pitch": 2.5, "range": 4.0, "volume": 0.18}
BOUNDS = {"rate": (80, 450), "pitch": (0, 99), "range": (0, 99), "volume": (25, 95)}


def _act(text: str, language: str, voice: Voice, emotion: str, random: np.random.Generator) -> Speech:
    """Return one utterance, never twice the same: four normal numbers make the variation."""
    style = STYLES[emotion]
    rate, pitch, pitch_range, volume = random.standard_normal(4)
    values = {
        "rate": style["rate"] * voice.rate * (1 + VARIATION["rate"] * rate),
        "pitch": style["pitch"] + voice.pitch + VARIATION["pitch"] * pitch,
        "range": style["range"] + VARIATION["range"] * pitch_range,
        "volume": style["volume"] * np.exp(VARIATION["volume"] * volume),
    }
    values = {name: round(float(np.clip(value, *BOUNDS[name]))) for name, value in values.items()}
    return Speech(text, f"{language}+{voice.variant}", **values)


@dataclass(frozen=True)
class Turn:
    """One utterance: its file (from the corpus's root), who says it, how, and what."""

    wav: str
    speaker: str
    emotion: str
    text: str


@dataclass(frozen=True)
class Spoken:
    """How a turn was said."""

    seconds: float
    speech: Speech


@dataclass(frozen=True)
class Plan:
    """Everything that is spoken, and what writes the files beside it."""

    turns: list[Turn]
    voices: dict[str, Voice]
    voice_language: str
    sample_rate: int
    write_texts: Callable[[Path, dict[str, Spoken], int], None] = field(default=lambda root, spoken, seed: None)


# IEMOCAP: two speakers a session; the letter of a dialog says nothing about who speaks in it
IEMOCAP_DIALOGS = ("{0}F_impro01", "{0}M_impro02a", "{0}F_script01_1", "{0}M_script02_1b")
HELD_OUT_SESSION = 5
BLOCKS = (1, 2, 3, 4, 6)  # of sentences, which a session's woman and man take in turn: ten different halves
IEMOCAP_CODES = {emotion: code for code, emotion in iemocap.EMOTIONS.items()}
# valence and dominance, 1 to 5; activation is eSpeak's own: how much of each makes a 1, and a 5
FELT = {
    "neutral": (2.5, 2.5),
    "happy": (4.0, 3.0),
    "excited": (4.5, 3.5),
    "angry": (1.5, 4.5),
    "sad": (2.0, 1.5),
    "frustrated": (2.0, 3.5),
    "undecided": (2.5, 2.5),
}
ACTIVE = {"rate": (100, 250), "pitch": (30, 90), "volume": (45, 95)}
RATERS, DISAGREEMENT = 3, 0.5  # how many there are, and the standard deviation of their ratings
DISSENT = 0.3  # how often the third rater chooses another emotion


def _iemocap(sentences: int | None) -> Plan:
    """IEMOCAP's four classes (happy: every other one excited), label files and transcriptions.

    A session says every sentence once, half of them by each speaker. Session 5 also says those that are held out: both
    speakers, each in two of the emotions. A small corpus has so many that everybody says in all emotions, and two more.
    """
    turns = [turn for session in range(1, 6) for turn in _session_turns(session, sentences)]
    pairs = enumerate(zip(FEMALE, MALE, strict=True), 1)
    voices = {f"{session:02}{sex}": voice for session, pair in pairs for sex, voice in zip("FM", pair, strict=True)}
    return Plan(turns, voices, "en-us", 16000, partial(_write_dialogs, turns))


def _session_turns(session: int, sentences: int | None) -> Iterator[Turn]:
    said, counts = _said(session, sentences), {}
    for number, texts in enumerate(zip(*said, strict=True)):
        happy = "happy" if number // 4 % 2 else "excited"
        emotion = ("neutral", happy, "angry", "sad")[number % 4]
        # of four turns in a row each is in another dialog, so that every dialog has all emotions of both speakers
        dialog = IEMOCAP_DIALOGS[(number // 4 + number) % 4]
        for letter, text in zip("FM", texts, strict=True):
            yield _turn(session, dialog, letter, emotion, text, counts)
    for letter, texts in zip("FM", said, strict=True):
        others = zip(("frustrated", "undecided"), dict.fromkeys(texts), IEMOCAP_DIALOGS, strict=False)
        for emotion, text, dialog in others:  # labels that the four classes leave out
            yield _turn(session, dialog, letter, emotion, text, counts)


def _turn(session: int, dialog: str, letter: str, emotion: str, text: str, counts: dict) -> Turn:
    dialog = dialog.format(f"Ses{session:02}")
    place = counts[dialog, letter] = counts.get((dialog, letter), -1) + 1
    wav = f"Session{session}/sentences/wav/{dialog}/{dialog}_{letter}{place:03}.wav"
    return Turn(wav, f"{session:02}{letter}", emotion, text)


def _said(session: int, sentences: int | None) -> list[list[str]]:
    """What a session's woman says, turn by turn, and its man."""
    if sentences is not None:
        texts = [*SENTENCES[:sentences], *(HELD_OUT[:2] if session == HELD_OUT_SESSION else ())]
        return [[text for text in texts for _ in range(4)]] * 2
    block = BLOCKS[session - 1]
    said = [[text for k, text in enumerate(SENTENCES) if k // block % 2 == half] for half in (0, 1)]
    if session == HELD_OUT_SESSION:  # the man begins with the second: he says each in the other two emotions
        for texts, held_out in zip(said, (HELD_OUT, (*HELD_OUT[1:], HELD_OUT[0])), strict=True):
            texts += [text for text in held_out for _ in range(2)]
    return said


def _write_dialogs(turns: list[Turn], root: Path, spoken: dict[str, Spoken], seed: int) -> None:
    dialogs, random = {}, np.random.default_rng(seed)
    for turn in turns:
        dialogs.setdefault(Path(turn.wav).parent, []).append(turn)
    for folder, members in dialogs.items():
        texts = root / folder.parts[0] / "dialog"
        labels, transcript, clock = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"], [], 6.0
        for turn in members:
            start, clock = clock, clock + spoken[turn.wav].seconds
            labels.append(_label(turn, start, clock, spoken[turn.wav].speech, random))
            transcript.append(f"{Path(turn.wav).stem} [{start:08.4f}-{clock:08.4f}]: {turn.text}")
            clock += 0.5
        write_text("\n".join(labels), texts / "EmoEvaluation" / f"{folder.name}.txt")
        write_text("\n".join(transcript) + "\n", texts / "transcriptions" / f"{folder.name}.txt")


def _label(turn: Turn, start: float, end: float, speech: Speech, random: np.random.Generator) -> str:
    """The label of a turn, the mean of the ratings, and what each rater says."""
    ratings, votes = _ratings(turn.emotion, speech, random), _votes(turn.emotion, random)
    means = ", ".join(f"{mean:.4f}" for mean in ratings.mean(0))
    lines = [f"[{start:.4f} - {end:.4f}]\t{Path(turn.wav).stem}\t{IEMOCAP_CODES[turn.emotion]}\t[{means}]"]
    lines += [f"C-E{rater}:\t{vote.capitalize()};\t()" for rater, vote in enumerate(votes, 1)]
    lines += [f"A-E{rater}:\tval {v}; act {a}; dom  {d};\t()" for rater, (v, a, d) in enumerate(ratings, 1)]
    return "\n".join(lines) + "\n"


def _ratings(emotion: str, speech: Speech, random: np.random.Generator) -> np.ndarray:
    """Whole numbers from 1 to 5 [raters, valence activation dominance]."""
    valence, dominance = FELT[emotion]
    shares = [(getattr(speech, name) - low) / (high - low) for name, (low, high) in ACTIVE.items()]
    truth = [valence, 1 + 4 * np.mean(shares), dominance]
    return np.clip(np.rint(random.normal(truth, DISAGREEMENT, (RATERS, len(truth)))), 1, 5).astype(int)


def _votes(emotion: str, random: np.random.Generator) -> list[str]:
    """An emotion of each rater: two choose the label; where there is none, each another one."""
    others = random.permutation([name for name in FELT if name not in (emotion, "undecided")])
    if emotion == "undecided":
        return [str(name) for name in others[:RATERS]]
    return [emotion, emotion, str(others[0]) if random.random() < DISSENT else emotion]


def _savee(sentences: int | None) -> Plan:
    """`AudioData/DC/a01.wav`: speaker, emotion, number of the sentence; seven emotions.

    All say the same, with SAVEE's own structure: which sentence a number is differs between emotions but for some
    (:func:`savee.text_of`). Twelve an emotion, or as many as are wanted; KL also the last two.
    """
    said: dict[str, str] = {}  # by the sentence's name
    turns = []
    for speaker in savee.SPEAKERS:
        for code, emotion in savee.EMOTIONS.items():
            *common, first, second = range(1, savee.RECORDINGS[code] + 1)
            held_out = (first, second) if speaker == "KL" else ()
            for number in (*common[: 12 if sentences is None else sentences], *held_out):
                take = f"{code}{number:02}"
                name = savee.text_of(take)
                pool = HELD_OUT if number >= first else SENTENCES
                text = said.setdefault(name, pool[sum(text in pool for text in said.values())])
                turns.append(Turn(f"AudioData/{speaker}/{take}.wav", speaker, emotion, text))
    return Plan(turns, dict(zip(savee.SPEAKERS, MALE, strict=False)), "en-us", 44100)


EMODB_HELD_OUT, EMODB_HELD_OUT_SPEAKERS = ("b09", "b10"), ("15", "16")


def _emodb(sentences: int | None) -> Plan:
    """`wav/03a01Fa.wav`: speaker, text, emotion, take; seven emotions, the corpus's own German texts.

    A speaker says 7 of the 8 common texts in an emotion, in turn, or as many as are wanted.
    """
    women, men = iter(FEMALE), iter(MALE)
    speakers = sorted(emodb.GENDERS)
    voices = {name: next(women if emodb.GENDERS[name] == "F" else men) for name in speakers}
    common = [text for text in emodb.TEXTS if text not in EMODB_HELD_OUT]
    turns = []
    for place, speaker in enumerate(speakers):
        held_out = EMODB_HELD_OUT if speaker in EMODB_HELD_OUT_SPEAKERS else ()
        for shift, (code, emotion) in enumerate(emodb.EMOTIONS.items()):
            # every (speaker, emotion) leaves out another text, as the real corpus has gaps
            begin = (place + shift) % len(common)
            texts = [*(common[begin:] + common[:begin])[: 7 if sentences is None else sentences], *held_out]
            for text in sorted(texts):
                turns.append(Turn(f"wav/{speaker}{text}{code}a.wav", speaker, emotion, emodb.TEXTS[text]))
    return Plan(turns, voices, "de", 16000)


LAYOUTS = {"iemocap": _iemocap, "savee": _savee, "emodb": _emodb}
