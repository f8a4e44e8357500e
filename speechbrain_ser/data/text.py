"""Transcripts as recognisers see them, which of them say the same, and the tokens that spell them; and names."""

import io
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.files import read_json, write_text

TAG = re.compile(r"\{[^}]*\}|\[[^\]]*\]|<[^>]*>")
APOSTROPHES = re.compile("[‘’ʼ`´]")  # noqa: RUF001
NUMBER = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]*))?")


def composed(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), in which all that is compared enters."""
    return unicodedata.normalize("NFC", text)


def spelling(name: str) -> str:
    """Return what two names share that only look different: form, case, spaces and a number's zeros do not count.

    Example
    -------
    >>> spelling(" ANNA  B") == spelling("anna b"), spelling("07"), spelling("7.0"), spelling("7.01")
    (True, '7', '7', '7.01')
    """
    name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = (str(unicodedata.decimal(c, c)) for c in name if unicodedata.category(c) != "Cf")  # Cf: zero-width spaces …
    name = " ".join("".join(seen).split())
    if not (number := NUMBER.fullmatch(name)):
        return name
    whole, part = number[2].lstrip("0") or "0", (number[3] or "").rstrip("0")
    return f"{number[1].strip('+')}{whole}" + (f".{part}" if part else "")


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of different names that have one spelling, the commonest name of each first."""
    counts, groups = Counter(names), defaultdict(list)
    for name in sorted(set(counts) - {""}, key=lambda name: (-counts[name], name)):
        groups[spelling(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def normalise_transcript(text: str) -> str:
    """Return a transcript in upper case (Cai et al. 2021), without tags and without punctuation but the apostrophe.

    Example
    -------
    >>> normalise_transcript("I don’t {LAUGHTER} know -- über-all, OK?")
    "I DON'T KNOW ÜBER ALL OK"
    """
    # composed, so that an umlaut is one character however the file writes it
    text = composed(APOSTROPHES.sub("'", TAG.sub(" ", text)).upper())
    kept = "".join(c if c == "'" or _in_word(c) else " " for c in text)
    # at a word's edge it may be a quotation mark; Cai's transcripts have none there ('cause is CAUSE)
    return " ".join(filter(None, (word.strip("'") for word in kept.split())))


def _in_word(character: str) -> bool:
    """Letters, digits, and the marks that many scripts write vowels with."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


OVERLAP = 0.75  # of the words of two texts, from which on they are one
FEWEST_WORDS = 4  # of a text that others resemble; what is shorter ("I don't know") many say by chance


def text_identities(transcripts: Sequence[str]) -> list[str]:
    """Return, for each transcript, one name of all that says the same; ``""`` where nothing is known.

    Equal but for spelling is the same, and so are texts of four or more words that share three quarters of them
    (repeated words count, their order does not: ``|A ∩ B| / |A ∪ B|``), transitively: a scripted line with an ad-lib
    more. The name is the shortest of them, the first in the alphabet of equally short ones. What has no words
    (``[LAUGHTER]``) is named by its tags.

    Example
    -------
    >>> text_identities(["I didn't say that, you did.", "Oh, I didn't say that, you did!", "I did.", "[LAUGHTER]", ""])
    ["I DIDN'T SAY THAT YOU DID", "I DIDN'T SAY THAT YOU DID", 'I DID', '[LAUGHTER]', '']
    """
    own = [normalise_transcript(text) or " ".join(text.upper().split()) for text in transcripts]
    texts = sorted(set(own) - {""}, key=lambda text: (len(text), text))
    bags = [Counter(text.split()) for text in texts]
    group = connected(len(texts), _resembling(bags))
    first = {}  # of each group: the shortest, as they are sorted
    for text, k in zip(texts, group.tolist(), strict=True):
        first.setdefault(k, text)
    name = {"": "", **{text: first[k] for text, k in zip(texts, group.tolist(), strict=True)}}
    return [name[text] for text in own]


def connected(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return a number for each of `n` things, the same for those that pairs connect, directly or through others."""
    rows, columns = np.array(list(pairs), dtype=int).reshape(-1, 2).T
    return connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n)), directed=False)[1]


def _resembling(bags: Sequence[Counter]) -> Iterable[tuple[int, int]]:
    """Yield the pairs of bags of words that overlap enough.

    Of two such bags each has one of its rarest words in common with the other's (prefix filtering: Chaudhuri et al.
    2006), so that 100,000 texts need no 5 billion comparisons.
    """
    # a word said twice is two: the first and the second
    parts = [[(w, k) for w, times in bag.items() for k in range(times)] for bag in bags]
    frequency = Counter(part for each in parts for part in each)
    those_with = defaultdict(list)
    for number, each in enumerate(parts):
        if len(each) < FEWEST_WORDS:
            continue
        each.sort(key=lambda part: (frequency[part], part))
        rare = each[: len(each) - int(np.ceil(OVERLAP * len(each) - 1e-9)) + 1]
        mine = set(each)
        for other in dict.fromkeys(k for part in rare for k in those_with[part]):
            if min(len(each), len(parts[other])) < OVERLAP * max(len(each), len(parts[other])):
                continue
            common = len(mine.intersection(parts[other]))
            if common >= OVERLAP * (len(mine) + len(parts[other]) - common):
                yield number, other
        for part in rare:
            those_with[part].append(number)


WORD = "|"
# Cai et al. 2021: 26 letters and a few signs, in the order of the published vocabulary (which is wav2vec2-base-960h's)
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", WORD, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]


class CharacterTokens:
    """Characters of a vocabulary, with ``|`` between words and the CTC blank first.

    Example
    -------
    >>> tokens = CharacterTokens(LETTERS)
    >>> tokens.decode(tokens.encode("Über it!"))
    'BER IT'
    """

    blank = 0

    def __init__(self, labels: list[str]):
        self.labels = list(labels)
        self.index = {label: i for i, label in enumerate(self.labels)}

    def __len__(self) -> int:
        return len(self.labels)

    def encode(self, transcript: str) -> list[int]:
        """Return token indices; characters outside the vocabulary are deleted, as in the paper's program."""
        spelled = normalise_transcript(transcript).replace(" ", WORD)
        return [self.index[c] for c in spelled if c in self.index]

    def decode(self, indices: Iterable[int]) -> str:
        """Return the text of token indices (blanks and repetitions already removed)."""
        characters = (self.labels[i] for i in indices)
        return " ".join("".join(c for c in characters if len(c) == 1).replace(WORD, " ").split())

    def deleted(self, transcripts: Iterable[str]) -> Counter:
        """Count the characters of the transcripts outside the vocabulary."""
        spelled = "".join(normalise_transcript(t) for t in transcripts).replace(" ", "")
        return Counter(c for c in spelled if c not in self.index)

    def state(self) -> dict:
        """Return plain data from which :func:`load_tokens` makes this object again."""
        return {"kind": "characters", "labels": self.labels}


class SentencePieceTokens:
    """Unigram pieces learnt from the training transcripts: a serialised model whose padding symbol is the CTC blank."""

    blank = 0

    def __init__(self, model: bytes):
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.labels = [self.processor.id_to_piece(i) for i in range(len(self))]

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def encode(self, transcript: str) -> list[int]:
        """Return token indices."""
        return self.processor.encode(normalise_transcript(transcript))

    def decode(self, indices: Iterable[int]) -> str:
        """Return the text of token indices (blanks and repetitions already removed)."""
        return self.processor.decode([int(i) for i in indices])

    def deleted(self, transcripts: Iterable[str]) -> Counter:
        """Count nothing: an unknown symbol stands for what is unknown."""
        return Counter()

    def state(self) -> dict:
        """Return plain data from which :func:`load_tokens` makes this object again."""
        return {"kind": "sentencepiece", "model": self.model.hex()}


def build_tokens(kind: str, transcripts: Iterable[str], n_pieces: int = 100) -> "CharacterTokens | SentencePieceTokens":
    """Build the tokens that one YAML line names, from the training part's transcripts.

    Arguments
    ---------
    kind : str
        ``letters`` (the paper's 32), ``characters`` (those of the training transcripts: umlauts!) or
        ``sentencepiece``.
    n_pieces : int
        Vocabulary of ``sentencepiece``; lowered, with the library's own limit, for tiny corpora.

    Example
    -------
    >>> build_tokens("characters", ["Grüße", "Hallo du"]).labels
    ['<blank>', '|', 'A', 'D', 'E', 'G', 'H', 'L', 'O', 'R', 'S', 'U', 'Ü']
    """
    if kind == "letters":
        return CharacterTokens(LETTERS)
    words = [w for w in map(normalise_transcript, transcripts) if w]
    if not words:
        raise UserError("no training utterance has a transcript: set alpha to 0, or give transcripts")
    if kind == "characters":
        return CharacterTokens(["<blank>", WORD, *sorted(set("".join(words)) - {" ", WORD})])
    if kind == "sentencepiece":
        return SentencePieceTokens(_train_pieces(words, n_pieces))
    kinds = ("letters", "characters", "sentencepiece")
    raise UserError(f"tokens: '{kind}' is unknown{nearest(kind, kinds)}; known: {', '.join(kinds)}")


def _train_pieces(words: list[str], n_pieces: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words),
            model_writer=model,
            vocab_size=n_pieces,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:  # fewer pieces than characters
        raise UserError(f"tokens: sentencepiece with n_pieces: {n_pieces}: {error}") from None
    return model.getvalue()


def save_tokens(tokens, path: str | os.PathLike) -> None:
    """Write tokens as JSON, whole or not at all."""
    write_text(json.dumps(tokens.state(), ensure_ascii=False), path)


def load_tokens(path: str | os.PathLike):
    """Load tokens written by :func:`save_tokens`; nothing of the file is executed."""
    state = read_json(path)
    if state["kind"] == "sentencepiece":
        return SentencePieceTokens(bytes.fromhex(state["model"]))
    return CharacterTokens(state["labels"])
