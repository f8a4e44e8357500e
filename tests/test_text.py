"""Transcripts as the recognisers see them."""

import itertools
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_ser.data.text import composed, look_alikes, normalise_transcript, spelling, text_identities


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
        ("'Cause I'm thinkin', ya'll", "CAUSE I'M THINKIN YA'LL"),  # as in Cai's transcripts
        ("he said 'no' ' ''twice''", "HE SAID NO TWICE"),
        ("“quoted” «words», ‘all’ of `them´; donʼt", "QUOTED WORDS ALL OF THEM DON'T"),  # noqa: RUF001
        ("Das schwarze Stück Papier", "DAS SCHWARZE STÜCK PAPIER"),
        ("Heute abend könnte ich's", "HEUTE ABEND KÖNNTE ICH'S"),
        ("Straße", "STRASSE"),
        (unicodedata.normalize("NFD", "könnte für"), "KÖNNTE FÜR"),  # an umlaut is one letter however it is written
        *((f"{word}, {word}!", f"{word} {word}") for word in ("नमस्ते", "สวัสดี", "שָׁלוֹם")),  # marks are of their words
        ("in 1990", "IN 1990"),
        ("", ""),
        ("...?!", ""),
    ],
)
def test_normalise(said, seen):
    assert normalise_transcript(said) == seen
    assert normalise_transcript(seen) == seen  # again changes nothing


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Excuse me.", "excuse me {LG}", True),
        ("Clearly. You know, do you have like a supervisor?", "Clearly, you know; do you have a supervisor?", True),
        ("I don't know what to do about it.", "Well, I don't know what to do about it, Kate.", True),
        ("I want to go home now.", "I want to go out now, I do.", False),
        ("No, no, no, no.", "No, no.", False),  # repeated words count
        ("Oh, I don't know.", "I don't know.", False),  # too short to resemble
        ("{LAUGHTER}", "[laughter]", False),
        ("", "", True),
    ],
)
def test_near_duplicates_are_one_text(one, other, same):
    first, second = text_identities([one, other])
    assert (first == second) == same and (first == "") == (one == "")


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=9).map(" ".join), max_size=12))
def test_a_texts_name_depends_on_no_order_and_joins_all_that_overlap(texts):
    names = dict(zip(texts, text_identities(texts), strict=True))
    assert dict(zip(texts[::-1], text_identities(texts[::-1]), strict=True)) == names
    for one, other in itertools.product(map(str.split, texts), repeat=2):
        both, either = Counter(one) & Counter(other), Counter(one) | Counter(other)
        if min(len(one), len(other)) >= 4 and both.total() >= 0.75 * either.total():
            assert names[" ".join(one)] == names[" ".join(other)]


AROUND = st.sampled_from(["", " ", "\u00a0", "\u200b", "\ufeff"])


@given(st.text(), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), AROUND)
def test_what_only_looks_different_has_one_spelling(name, form, around):
    assert spelling(f"{around}{unicodedata.normalize(form, name)}{around}") == spelling(name)
    assert composed(unicodedata.normalize("NFD", name)) == composed(name)


@given(st.integers(0, 10**30), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_numbers_are_one_with_and_without_their_zeros(number, before, after, has_point):
    assert spelling(f"{'0' * before}{number}{'.' * has_point}{'0' * after * has_point}") == str(number)
    assert spelling(f"0{number}.50") == f"{number}.5" != spelling(f"{number}.05")


def test_look_alikes():
    names = [*("anna", "Anna", "Anna", "7", "7.0", "07", "Straße", "STRASSE", "\uff45ve", "eve"), "77", "", "a1", "a01"]
    assert look_alikes(names) == [["Anna", "anna"], ["07", "7", "7.0"], ["STRASSE", "Straße"], ["eve", "\uff45ve"]]
