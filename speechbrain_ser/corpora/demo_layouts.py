"""Who says what in the demo corpus, and the files around it: IEMOCAP's, SAVEE's and EMO-DB's layouts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import emodb, iemocap, savee
from .acting import FEMALE, MALE, Voice
from .demo_sentences import HELD_OUT, SENTENCES


@dataclass(frozen=True)
class Turn:
    """One utterance: its file (from the corpus's root), who says it, how, and what."""

    wav: str
    speaker: str
    emotion: str
    text: str


@dataclass(frozen=True)
class Plan:
    """Everything that is spoken, and what writes the files beside it."""

    turns: list[Turn]
    voices: dict[str, Voice]
    voice_language: str
    sample_rate: int
    write_texts: Callable[[Path, dict[str, float]], None] = field(default=lambda root, durations: None)


# IEMOCAP: two speakers a session; the letter of a dialog says nothing about who speaks in it
IEMOCAP_DIALOGS = ("{0}F_impro01", "{0}M_impro02a", "{0}F_script01_1", "{0}M_script02_1b")
IEMOCAP_VOICES = {
    f"{session:02}{gender}": voice
    for session, pair in enumerate(zip(FEMALE, MALE, strict=True), 1)
    for gender, voice in zip("FM", pair, strict=True)
}
HELD_OUT_SESSION = 5
BLOCKS = (1, 2, 3, 4, 6)  # of sentences, which a session's woman and man take in turn: ten different halves
IEMOCAP_CODES = {emotion: code for code, emotion in iemocap.EMOTIONS.items()}
# valence, activation, dominance as raters would give them
DIMENSIONS = {
    "neutral": (2.5, 2.5, 2.5),
    "happy": (4.0, 3.5, 3.0),
    "excited": (4.5, 4.0, 3.5),
    "angry": (1.5, 4.0, 4.5),
    "sad": (2.0, 1.5, 1.5),
    "frustrated": (2.0, 3.0, 3.5),
    "undecided": (2.5, 3.0, 2.5),
}


def iemocap_layout(sentences: int | None = None) -> Plan:
    """IEMOCAP's four classes (happy: every other one excited), label files, transcriptions and its traps.

    A session says every sentence once, half of them by each speaker, each in one emotion, another one in most sessions.
    Session 5 also says those that are held out: both speakers, each in two of the emotions.

    Arguments
    ---------
    sentences : int, optional
        A small corpus: so many sentences that everybody says, and two that are held out, each in all four emotions.

    Returns
    -------
    Plan
        16 kHz.

    Example
    -------
    >>> plan = iemocap_layout()
    >>> len(plan.turns), plan.turns[1].wav
    (804, 'Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M000.wav')
    """
    turns = [turn for session in range(1, 6) for turn in _session_turns(session, sentences)]
    return Plan(turns, IEMOCAP_VOICES, "en-us", 16000, lambda root, seconds: _write_dialogs(root, turns, seconds))


def _session_turns(session, sentences):
    said = _halves(session) if sentences is None else _in_all_emotions(session, sentences)
    counts = {}
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


def _turn(session, dialog, letter, emotion, text, counts):
    dialog = dialog.format(f"Ses{session:02}")
    place = counts[dialog, letter] = counts.get((dialog, letter), -1) + 1
    wav = f"Session{session}/sentences/wav/{dialog}/{dialog}_{letter}{place:03}.wav"
    return Turn(wav, f"{session:02}{letter}", emotion, text)


def _halves(session):
    """What a session's woman says, turn by turn, and its man."""
    block = BLOCKS[session - 1]
    said = [[text for k, text in enumerate(SENTENCES) if k // block % 2 == half] for half in (0, 1)]
    if session == HELD_OUT_SESSION:  # the man begins with the second: he says each in the other two emotions
        for texts, held_out in zip(said, (HELD_OUT, (*HELD_OUT[1:], HELD_OUT[0])), strict=True):
            texts += [text for text in held_out for _ in range(2)]
    return said


def _in_all_emotions(session, sentences):
    texts = [*SENTENCES[:sentences], *(HELD_OUT[:2] if session == HELD_OUT_SESSION else ())]
    return [[text for text in texts for _ in range(4)]] * 2


def _write_dialogs(root, turns, durations):
    dialogs = {}
    for turn in turns:
        dialogs.setdefault(Path(turn.wav).parent, []).append(turn)
    for folder, members in dialogs.items():
        texts = root / folder.parts[0] / "dialog"
        labels, transcript, clock = [_LABEL_HEADER], [], 6.0
        for turn in members:
            start, clock = clock, clock + durations[turn.wav]
            labels.append(_label(turn, start, clock))
            transcript.append(f"{Path(turn.wav).stem} [{start:08.4f}-{clock:08.4f}]: {turn.text}")
            clock += 0.5
        _write(texts / "EmoEvaluation" / f"{folder.name}.txt", "\n".join(labels))
        transcript += _transcript_traps(folder.name, clock)
        _write(texts / "transcriptions" / f"{folder.name}.txt", "\n".join(transcript) + "\n")
    for session in sorted({folder.parts[0] for folder in dialogs}):
        _write_traps(root / session, f"Ses{int(session[-1]):02}")


_LABEL_HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"


def _label(turn, start, end):
    code = IEMOCAP_CODES[turn.emotion]
    valence, activation, dominance = DIMENSIONS[turn.emotion]
    head = f"[{start:.4f} - {end:.4f}]\t{Path(turn.wav).stem}\t{code}"
    rater = f"val {valence:.0f}; act {activation:.0f}; dom  {dominance:.0f};"
    return (
        f"{head}\t[{valence:.4f}, {activation:.4f}, {dominance:.4f}]\n"
        f"C-E1:\t{turn.emotion.capitalize()};\t()\nA-E1:\t{rater}\t()\n"
    )


def _transcript_traps(dialog, clock):
    """The release's lines that belong to no labelled turn."""
    return [f"{dialog}_MXX0 [{clock:08.4f}-{clock + 1:08.4f}]: Mm-hm.", "M: Yeah."]


def _write_traps(session, name):
    """The release's files that are no label files."""
    evaluation = session / "dialog" / "EmoEvaluation"
    first = IEMOCAP_DIALOGS[0].format(name)
    _write(evaluation / f"._{first}.txt", "\0\5\26\7 Mac OS X \xb0")
    _write(session / "sentences" / "wav" / first / f"._{first}_F000.wav", "\0\5\26\7 Mac OS X \xb0")
    _write(evaluation / "Categorical" / f"{first}_e1_cat.txt", f"{first}_F000 :neutral; ()\n")
    _write(evaluation / "Attribute" / f"{first}_e1_atr.txt", f"{first}_F000 :act 2; :val 3; :dom  2; ()\n")


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


SAVEE_VOICES = dict(zip(savee.SPEAKERS, MALE, strict=False))


def savee_layout(sentences: int | None = None) -> Plan:
    """`AudioData/DC/a01.wav`: speaker, emotion, number of the sentence; seven emotions.

    What is said is no part of this layout, so all say the same: twelve sentences, KL two more.

    Arguments
    ---------
    sentences : int, optional
        How many sentences everybody says; 12 by default.

    Returns
    -------
    Plan
        44.1 kHz.

    Example
    -------
    >>> len(savee_layout().turns)
    350
    """
    turns = []
    for speaker in SAVEE_VOICES:
        numbered = list(enumerate(SENTENCES[:12], 1))[:sentences]
        if speaker == "KL":
            numbered += list(enumerate(HELD_OUT[:2], 13))
        for code, emotion in savee.EMOTIONS.items():
            for number, text in numbered:
                turns.append(Turn(f"AudioData/{speaker}/{code}{number:02}.wav", speaker, emotion, text))
    return Plan(turns, SAVEE_VOICES, "en-us", 44100)


EMODB_HELD_OUT = ("b09", "b10")
EMODB_HELD_OUT_SPEAKERS = ("15", "16")


def emodb_layout(sentences: int | None = None) -> Plan:
    """`wav/03a01Fa.wav`: speaker, text, emotion, take; seven emotions, the corpus's own German texts.

    Arguments
    ---------
    sentences : int, optional
        How many texts a speaker says in an emotion; 7 of the 8 common ones by default, in turn.

    Returns
    -------
    Plan
        16 kHz.

    Example
    -------
    >>> len(emodb_layout().turns)
    518
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
