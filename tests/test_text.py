"""Transcripts as the recognisers see them."""

import unicodedata

import pytest

from speechbrain_ser.data.text import heard_texts, normalise_transcript


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("Excuse me.", "EXCUSE ME"),
        ("I don't know -- well, OK?", "I DON'T KNOW WELL OK"),
        ("don’t", "DON'T"),  # noqa: RUF001
        ("{LAUGHTER} no [BREATHING] way <LG>!", "NO WAY"),
        ("{LAUGHTER}", ""),
        ("  two\t spaces\n", "TWO SPACES"),
        ("twenty-one", "TWENTY ONE"),
        ("'cause I'm goin'", "'CAUSE I'M GOIN'"),
        ("he said 'no' ' twice", "HE SAID NO TWICE"),
        ("“quoted” «words»", "QUOTED WORDS"),
        ("Das schwarze Stück Papier", "DAS SCHWARZE STÜCK PAPIER"),
        ("Heute abend könnte ich's", "HEUTE ABEND KÖNNTE ICH'S"),
        ("Straße", "STRASSE"),
        ("in 1990", "IN 1990"),
        ("", ""),
        ("...?!", ""),
    ],
)
def test_normalise(said, seen):
    assert normalise_transcript(said) == seen
    assert normalise_transcript(seen) == seen  # again changes nothing


def test_an_umlaut_is_one_letter_however_it_is_written():
    decomposed = unicodedata.normalize("NFD", "könnte für")
    assert len(decomposed) == 12
    assert normalise_transcript(decomposed) == "KÖNNTE FÜR"


@pytest.mark.parametrize("word", ["नमस्ते", "สวัสดี", "שָׁלוֹם"])
def test_words_of_other_scripts_stay_whole(word):
    assert len(normalise_transcript(f"{word}, {word}!").split()) == 2


def test_heard_texts():
    said = ["excuse me {LG}", "Excuse you", "sieben, stunden!", "", "{BREATH}"]
    assert heard_texts(["Excuse me.", "{LAUGH}", "Sieben Stunden"], said) == [True, False, True, False, False]
    assert heard_texts([], ["a"]) == [False] and heard_texts(["a"], []) == []
