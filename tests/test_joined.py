"""Two corpora in one manifest, and their folds: the first's stay what they are, the second is trained on."""

import itertools
import logging
import random

import pandas as pd
import pytest
import yaml

from speechbrain_ser.data import protocols
from speechbrain_ser.data.labels import apply_labels, join
from speechbrain_ser.data.protocols import PARTS, Fold, leakage, make_folds, speaker_overlap
from speechbrain_ser.errors import CorpusError, UserError

SHARED = ("angry", "disgust", "fear", "happy", "neutral", "sad")
SAVEE = ("DC", "JE", "JK", "KL")
EMODB = ("03", "08", "09", "10", "11", "12", "13", "14", "15", "16")


def manifest(corpus, speakers, emotions, takes, session=False):
    rows = [
        (f"{who}_{emotion}{take}", who, emotion, f"S{who[:2]}" if session else "", f"text {take}")
        for who, emotion, take in itertools.product(speakers, emotions, range(takes))
    ]
    columns = ["ID", "speaker", "emotion", "session", "transcript"]
    return pd.DataFrame(rows, columns=columns).assign(corpus=corpus, dialog="", duration=1.5)


@pytest.fixture
def savee():
    return manifest("savee", SAVEE, (*SHARED, "surprise"), 3)


@pytest.fixture
def emodb():
    return manifest("emodb", EMODB, SHARED, 2)


@pytest.fixture
def both(savee, emodb):
    return join(savee, emodb)


def ids(frame, speakers=None, corpus=None) -> set:
    rows = frame if corpus is None else frame[frame["corpus"] == corpus]
    return set(rows["ID"] if speakers is None else rows["ID"][rows["speaker"].isin(speakers)])


def test_rows_of_both(savee, emodb, caplog):
    emodb = emodb.assign(valence="3")
    emodb.loc[0, "speaker"] = ""
    with caplog.at_level(logging.INFO):
        both = join(savee, emodb)
    pd.testing.assert_frame_equal(both.iloc[: len(savee)].drop(columns="valence"), savee)
    rest = both.iloc[len(savee) :].reset_index(drop=True)
    assert rest["ID"].tolist() == ["emodb-" + name for name in emodb["ID"]]
    assert rest["speaker"].tolist() == ["", *("emodb-" + name for name in emodb["speaker"][1:])]
    pd.testing.assert_frame_equal(rest.drop(columns=["ID", "speaker"]), emodb.drop(columns=["ID", "speaker"]))
    assert set(both["valence"][: len(savee)]) == {""} and both["duration"].dtype == float
    assert [record.getMessage() for record in caplog.records] == [
        "savee (84 utterances) joined by emodb (120 utterances); emodb has no utterance of surprise"
    ]


def mapping_line(first, second) -> str:
    """The line that a refusal proposes."""
    with pytest.raises(CorpusError, match="not a class of savee") as error:
        join(first, second)
    return next(line for line in str(error.value).splitlines() if line.startswith("second_labels"))


def test_classes_that_the_first_lacks(savee):
    emodb = manifest("emodb", EMODB, (*SHARED, "boredom", "surprised"), 2)
    with pytest.raises(CorpusError, match=r"\(2\):\n  'boredom': 20 utterances\n.*\(did you mean 'surprise'\?\)"):
        join(savee, emodb)
    with pytest.raises(
        CorpusError, match=r"beside corpus: emodb in second_corpus\nlabels: \{angry: angry, boredom: null"
    ):
        join(savee, emodb, "labels")
    assert mapping_line(savee, emodb) == "second_labels: {angry: angry, boredom: null, disgust: disgust, " + (
        "fear: fear, happy: happy, neutral: neutral, sad: sad}"
    )
    assert mapping_line(savee, manifest("table", ("A",), ("angry", "tired"), 1)).endswith("{angry: angry, tired: null}")
    iemocap = manifest("iemocap", ("01F",), ("angry", "excited", "frustrated"), 2)
    (rules,) = yaml.safe_load(mapping_line(savee, iemocap)).values()  # it works as it is
    assert join(savee, apply_labels(iemocap, rules))["emotion"].iloc[-1] == "happy"


def test_what_cannot_be_joined(savee, emodb):
    table = savee.assign(corpus="table", speaker="emodb-03")
    table.loc[0, "ID"] = "emodb-03_angry0"
    for first, second, message in [
        (savee, savee, "expected two corpora to join, found savee twice"),
        (savee, emodb.head(0), "the second corpus has no utterance left"),
        (savee.head(0), emodb, "the first corpus has no utterance left"),
        (savee, pd.concat([savee, emodb]), "one corpus as the second to join, found savee, emodb"),
        (join(savee, emodb), emodb, "expected two corpora to join, found emodb twice$"),
        (table, emodb, r"same ID \(1\):\n  emodb-03_angry0\nthe same speaker \(1\):\n  emodb-03$"),
    ]:
        with pytest.raises(CorpusError, match=message):
            join(first, second)


def test_leave_one_speaker_out_membership(both):
    folds = make_folds(both, "speaker", second="emodb")
    dealt = {"DC": ("03", "11", "15"), "JE": ("08", "12", "16"), "JK": ("09", "13"), "KL": ("10", "14")}
    validates = dict(zip(SAVEE, SAVEE[1:] + SAVEE[:1], strict=True))
    assert list(folds) == list(dealt)
    for name, speakers in dealt.items():
        fold, held = folds[name], {"emodb-" + speaker for speaker in speakers}
        assert set(fold.test) == ids(both, {name}) and set(fold.second) == ids(both, held)
        assert set(fold.valid) == ids(both, {validates[name]})
        assert {*fold.train, *fold.seen} == ids(both) - ids(both, held | {name, validates[name]})
        assert leakage(both, fold) is None


def test_what_leaks_is_told_by_corpus(both):
    fold = make_folds(both, "random_plain", second="emodb")["r0"]
    assert set(fold.seen) == {*fold.test, *fold.second} and len(fold.second) == 24
    shared = speaker_overlap(both, fold)
    emodb, savee = ([who for who in shared if who.startswith(corpus)] for corpus in ("emodb", "savee"))
    assert savee == [f"savee:{speaker}" for speaker in SAVEE] and emodb
    assert leakage(both, fold) == (
        f"{len(shared)} test speakers are also trained on: {len(emodb)} of emodb ({', '.join(emodb)}), "
        f"4 of savee ({', '.join(savee)})"
    )
    unknown = both.assign(speaker=both["speaker"].where(both["corpus"] == "savee", ""))
    assert leakage(unknown, fold) == "speakers of emodb are not known, so the test speakers may be in training"


def random_corpus(rng, corpus):
    speakers = [f"{k:02}" for k in range(rng.randint(3, 8))]
    rows = []
    for speaker in speakers:
        for k in range(rng.randint(5, 12)):
            rows.append((f"{speaker}x{k}", speaker, "ab"[k % 2], f"S{int(speaker) % 3}", "", ""))
    columns = ["ID", "speaker", "emotion", "session", "dialog", "transcript"]
    return pd.DataFrame(rows, columns=columns).assign(corpus=corpus)


@pytest.mark.parametrize("protocol", ["speaker", "session", "random", "random_plain"])
def test_properties(protocol):
    for seed in range(12):
        rng = random.Random(f"{protocol} {seed}")
        share = rng.choice((0, 0.1, 0.3))
        first = random_corpus(rng, rng.choice(("savee", "table")))
        second = random_corpus(rng, "emodb")
        if rng.random() < 0.5 and protocol != "session":
            first = first.assign(session="")
        both = join(pd.concat([first, first.assign(ID=first["ID"] + "y", emotion="a")]), second)
        folds = make_folds(both, protocol, share, seed, second="emodb")
        shuffled = both.sample(frac=1, random_state=seed)
        assert folds == make_folds(shuffled, protocol, share, seed, second="emodb")
        mine, theirs = ids(both) - ids(both, corpus="emodb"), ids(both, corpus="emodb")
        alone = make_folds(both[both["corpus"] != "emodb"], protocol, share, seed)
        assert list(folds) == list(alone)
        for name, fold in folds.items():
            # the first's utterances are where they would be without a second corpus
            found = {part: tuple(i for i in getattr(fold, part) if i in mine) for part in PARTS}
            assert Fold(name, **found) == alone[name] and fold.test == alone[name].test
            train, held = set(fold.train), set(fold.second)
            assert held <= theirs and not train & {*fold.valid, *fold.seen, *fold.test, *held}
            assert {*fold.train, *fold.valid, *fold.seen, *fold.second} >= theirs and train & theirs
            assert not held & {*fold.valid, *fold.test}
            if protocol in ("speaker", "session"):
                assert speaker_overlap(both, fold) == []
                kept = theirs - train - held
                assert abs(len(kept) - share * len(theirs - held)) < 1 and kept == set(fold.seen) & theirs
            assert not set(fold.valid) & theirs
        tested = [i for fold in folds.values() for i in fold.second]
        assert sorted(tested) == sorted(theirs)


def test_leaks_are_caught_in_both(both, monkeypatch):
    def leaking(frame, seed):
        speakers = sorted(set(frame["speaker"]))
        parts = [frozenset(frame["ID"][frame["speaker"] == s]) for s in speakers]
        if "emodb" in set(frame["corpus"]):
            parts[0] = frozenset(sorted(parts[0])[1:])  # one utterance of hers stays in training
        return [protocols._Split(s, part, frozenset()) for s, part in zip(speakers, parts, strict=True)]

    monkeypatch.setitem(protocols.PROTOCOLS, "speaker", leaking)
    with pytest.raises(AssertionError, match=r"fold 'DC' is not speaker-disjoint: \['emodb:emodb-03'\]"):
        make_folds(both, "speaker", 0, second="emodb")


@pytest.mark.parametrize(
    ("part", "message"), [("train", "train and second share"), ("test", "second and valid or test share")]
)
def test_parts_that_share_utterances_are_caught(both, monkeypatch, part, message):
    good = make_folds(both, "speaker", second="emodb")["DC"]
    bad = protocols.replace(good, **{part: (*getattr(good, part), good.second[0])})
    monkeypatch.setattr(protocols, "_with_second", lambda *arguments: bad)
    with pytest.raises(AssertionError, match=message):
        make_folds(both, "speaker", second="emodb")


def test_one_recording_in_two_corpora(savee, emodb):
    """Whatever it is called: one would be tested, the other trained on."""
    first, second = (f.assign(recording=[f"{c}{k}" for k in range(len(f))]) for c, f in (("s", savee), ("e", emodb)))
    assert len(join(first, second)) == len(savee) + len(emodb)
    second.loc[second.index[5], "recording"] = "s3"
    with pytest.raises(
        UserError, match=rf"the same recording .*\n  {first['ID'].iloc[3]} = emodb-{second['ID'].iloc[5]}"
    ):
        join(first, second)


def test_what_the_second_cannot_do(both, savee, emodb):
    demo = savee.assign(corpus="demo", dialog="Ses0" + (savee.index % 3).astype(str) + "F_impro01")
    of_savee_alone = both.assign(session=both["speaker"].where(both["corpus"] == "savee", ""))
    one_speaker = join(savee, emodb[emodb["speaker"] == "03"])
    for frame, protocol, second, message in [
        (both, "half_session", "emodb", "published one; found corpus"),
        (join(demo, emodb), "half_session", "emodb", r"published one; found corpus \['emodb'\]"),
        (of_savee_alone, "session", "emodb", r"needs a session for every utterance; 120 of 120 .*emodb-03"),
        (both, "given", "emodb", "'given' knows no second corpus"),
        (one_speaker, "speaker", "emodb", "fold 'DC': nothing of the second corpus, emodb, is left to train on"),
        (both, "speaker", "iemocap", "expected a corpus and, joined to it, iemocap; found emodb, savee"),
    ]:
        with pytest.raises(UserError, match=message):
            make_folds(frame, protocol, second=second)
