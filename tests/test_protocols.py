"""Who is in train, valid, seen and test: every protocol on small hand-made manifests."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from speechbrain_ser.data import protocols
from speechbrain_ser.data.protocols import (
    PARTS,
    Fold,
    choose_fold,
    leakage,
    make_folds,
    never_trained,
    speaker_overlap,
    text_heard,
    who_validates,
    why_none_validates,
)
from speechbrain_ser.errors import UserError

EMOTIONS = ("angry", "happy", "neutral", "sad")


def manifest(rows, corpus):
    columns = ["ID", "speaker", "emotion", "session", "dialog", "transcript"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(text=frame["transcript"], corpus=corpus)


@pytest.fixture
def iemocap():
    """Three sessions of a woman and a man; both speak in both dialogs, named after who wore the markers."""
    rows = []
    for session, markers, turn, k in itertools.product(("01", "02", "03"), "FM", "FM", range(8)):
        dialog = f"Ses{session}{markers}_impro01"
        rows.append(
            (f"{dialog}_{turn}{k:03d}", session + turn, EMOTIONS[k % 4], f"Ses{session}", dialog, f"text {k} {markers}")
        )
    return manifest(rows, "iemocap")


@pytest.fixture
def emodb():
    rows = []
    for speaker, emotion, k in itertools.product(("03", "08", "09", "16"), EMOTIONS, range(5)):
        rows.append((f"{speaker}a0{k}{emotion}", speaker, emotion, "", "", f"Satz {k}"))
    return manifest(rows, "emodb")


def parts(fold: Fold) -> dict[str, set]:
    return {p: set(getattr(fold, p)) for p in PARTS}


def speakers(frame, ids) -> set:
    return set(frame.loc[frame["ID"].isin(ids), "speaker"])


@pytest.mark.parametrize("protocol", ["speaker", "session", "half_session", "random", "random_plain"])
def test_no_utterance_is_in_two_parts_and_none_is_lost(iemocap, protocol):
    folds = make_folds(iemocap, protocol)
    everything = set(iemocap["ID"])
    tested = [i for fold in folds.values() for i in fold.test]
    assert sorted(tested) == sorted(everything)  # each is tested exactly once
    for name, fold in folds.items():
        assert fold.name == name
        p = parts(fold)
        assert all(list(getattr(fold, part)) == sorted(p[part]) for part in PARTS)
        assert not p["train"] & (p["valid"] | p["seen"] | p["test"])
        assert not p["valid"] & p["test"]
        assert set.union(*p.values()) == everything


def one_says_disgust(frame):
    rare = frame[frame["speaker"] == "08"].head(3)
    return pd.concat([frame, rare.assign(ID=rare["ID"] + "x", emotion="disgust")])


@pytest.mark.parametrize(
    ("corpus", "change", "validates"),  # who validates when whom is tested
    [
        ("iemocap", lambda f: f, {"01F": "01M", "02M": "02F"}),  # the session's other speaker
        ("iemocap", lambda f: f[f["speaker"] != "02F"], {"02M": "03F", "01M": "01F"}),  # alone in it: the next one
        ("emodb", lambda f: f, {"03": "08", "08": "09", "09": "16", "16": "03"}),
        ("emodb", one_says_disgust, {"03": "09", "08": "09", "16": "03"}),  # without 08 nobody would train disgust
        ("emodb", lambda f: f[f["speaker"] < "09"], {"03": "", "08": ""}),
        ("emodb", lambda f: f.assign(emotion=f["speaker"]), dict.fromkeys(("03", "08", "09", "16"), "")),
    ],
)
def test_who_validates_under_speaker(request, corpus, change, validates):
    frame = change(request.getfixturevalue(corpus))
    folds = make_folds(frame, "speaker")
    assert list(folds) == sorted(set(frame["speaker"]))
    for name, other in validates.items():
        fold = folds[name]
        assert set(fold.test) == set(frame["ID"][frame["speaker"] == name])
        assert speakers(frame, fold.valid) == {other} - {""}
        assert speakers(frame, fold.train) == set(frame["speaker"]) - {name, other} >= speakers(frame, fold.seen)
        assert abs(len(fold.seen) - 0.1 * (len(fold.seen) + len(fold.train))) <= 0.5
        said = f"{other}; trained on of these: nobody" if other else f"none ({why_none_validates('speaker')})"
        trained, judged = (set(frame["emotion"][frame["ID"].isin(ids)]) for ids in (fold.train, fold.valid))
        lost = sorted(trained - judged) if other else []
        said += f"; without {', '.join(lost)}, which training has" if lost else ""
        assert who_validates(frame, fold, "speaker").endswith(said)


def many_speakers(rng, n):
    """Speakers of whom each says some of six emotions; 'rare' is said by two of them."""
    rows = []
    for speaker in range(n):
        said = rng.sample(EMOTIONS, rng.randint(1, 4)) + ["rare"] * (speaker in (1, n // 2))
        rows += [
            (f"{speaker:03}{e}{k}", f"{speaker:03}", e, "", "", "") for e in said for k in range(rng.randint(1, 4))
        ]
    return manifest(rows, "table")


def test_of_many_speakers_a_tenth_validates_in_every_emotion():
    for seed in range(8):
        rng = random.Random(seed)
        n = rng.choice((13, 14, 24, 40))
        frame = many_speakers(rng, n)
        folds = make_folds(frame, "speaker", 0.1, seed)
        assert folds == make_folds(frame.sample(frac=1, random_state=1), "speaker", 0.1, seed)
        emotion = frame.set_index("ID")["emotion"]
        for name, fold in folds.items():
            training = frame[frame["speaker"] != name]
            who, said = speakers(frame, fold.valid), set(emotion[list(fold.valid)])
            assert who and name not in who and not who & speakers(frame, fold.train)
            assert max(1, (n - 1) // 10) <= len(who) <= (n - 1) // 3
            trained = emotion[[*fold.train, *fold.seen]]
            assert set(trained) == set(training["emotion"])  # training loses none
            can = training.groupby("emotion")["speaker"].nunique() > 1
            assert said == set(can.index[can])  # and all that it can spare validate


def test_of_many_speakers_all_validate_alike_often():
    rows = [(f"{s:02}{e}", f"{s:02}", e, "", "", "") for s in range(24) for e in EMOTIONS]
    folds = make_folds(manifest(rows, "table"), "speaker")
    times = pd.Series([who for fold in folds.values() for who in {i[:2] for i in fold.valid}]).value_counts()
    assert len(times) == 24 and set(times) == {2}
    assert make_folds(manifest(rows, "table"), "speaker", split_seed=1)["00"].valid != folds["00"].valid


@pytest.mark.parametrize("session_of", [lambda s, e: "1", lambda s, e: str((s + (e == "sad")) % 4)])
def test_sessions_that_speakers_do_not_have_to_themselves_tell_nobody_who_validates(session_of):
    rows = [(f"{s}{e}", str(s), e, session_of(s, e), "", "") for s in range(4) for e in EMOTIONS]
    frame = manifest(rows, "table")
    for name, fold in make_folds(frame, "speaker").items():
        assert fold.valid and name not in speakers(frame, fold.valid)
        assert not speakers(frame, fold.valid) & speakers(frame, fold.train)


def test_session_validates_on_the_next_session(iemocap):
    folds = make_folds(iemocap, "session", seen_fraction=0)
    assert list(folds) == ["Ses01", "Ses02", "Ses03"]
    found = [speakers(iemocap, getattr(folds["Ses03"], part)) for part in ("test", "valid", "train", "seen")]
    assert found == [{"03F", "03M"}, {"01F", "01M"}, {"02F", "02M"}, set()]


def test_half_session_goes_by_dialog_not_by_speaker(iemocap):
    folds = make_folds(iemocap, "half_session")
    assert list(folds) == ["Ses01F", "Ses01M", "Ses02F", "Ses02M", "Ses03F", "Ses03M"]
    fold = folds["Ses01M"]
    assert set(fold.test) == {i for i in iemocap["ID"] if i.startswith("Ses01M_")}
    assert fold.valid == () and fold.seen == fold.test and len(fold.train) == len(iemocap) - len(fold.test)
    assert speaker_overlap(iemocap, fold) == ["iemocap:01F", "iemocap:01M"]


@pytest.mark.parametrize("protocol", ["random", "random_plain"])
def test_random_validates_on_the_next_fold(iemocap, protocol):
    folds = make_folds(iemocap, protocol)
    assert list(folds) == ["r0", "r1", "r2", "r3", "r4"]
    assert sorted(len(fold.test) for fold in folds.values()) == [19, 19, 19, 19, 20]
    assert all(fold.seen == fold.test for fold in folds.values())
    assert [folds[f"r{k}"].valid for k in range(5)] == [folds[f"r{(k + 1) % 5}"].test for k in range(5)]
    emotion = iemocap.set_index("ID")["emotion"]
    counts = [emotion[list(f.test)].value_counts().reindex(EMOTIONS, fill_value=0) for f in folds.values()]
    assert (max(c.max() - c.min() for c in counts) > 1) == (protocol == "random_plain")  # 24 of each over five folds


@pytest.mark.parametrize("protocol", ["random", "random_plain", "speaker"])
def test_drawing_depends_on_the_split_seed_alone_not_on_the_rows_order(iemocap, protocol):
    shuffled = iemocap.sample(frac=1, random_state=3)
    assert make_folds(iemocap, protocol) == make_folds(shuffled, protocol)
    assert make_folds(iemocap, protocol, split_seed=1) != make_folds(iemocap, protocol)


def regular(n_speakers, n_emotions, n_takes, neutral=None):
    """Every speaker says every emotion alike often; `neutral`, the first, less often."""
    takes = {e: neutral if e == 0 and neutral else n_takes for e in range(n_emotions)}
    rows = [
        (f"{s:02}-{e}-{k:02}", f"{s:02}", str(e), "", "", "")
        for s in range(n_speakers)
        for e in takes
        for k in range(takes[e])
    ]
    return manifest(rows, "table")


def assert_share(frame, share, seed, of_a_speaker=1.0):
    """Of every emotion and of every speaker's emotion the share, but for less than one utterance."""
    chosen = frame["ID"].isin(protocols._stratified_share(frame, share, seed))
    for by, most in ((["emotion"], 1), (["speaker", "emotion"], 1), (["speaker"], of_a_speaker)):
        found, expected = (each.groupby([frame[c] for c in by]).sum() for each in (chosen, chosen * 0 + share))
        assert (abs(found - expected) < most - 1e-9).all(), (by, seed)
    assert abs(chosen.sum() - share * len(frame)) <= 0.5 + 1e-9


@pytest.mark.parametrize("design", [(23, 8, 8, 4), (24, 8, 8), (10, 7, 10), (3, 7, 15, 30), (20, 6, 20), (5, 5, 3)])
def test_seen_has_its_share_of_every_emotion_and_speaker(design):
    """Also where the design's period meets that of the share (24 actors, 8 emotions, 8 takes each)."""
    frame = regular(*design)
    for share, seed in itertools.product((0.05, 0.1, 0.125, 0.2), range(4)):
        assert_share(frame, share, seed)


SHARES = st.sampled_from([0.05, 0.1, 0.125, 0.2, 0.3, 0.5])


@drawn(st.integers(1, 24), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), SHARES, st.integers(0, 99))
def test_seen_has_its_share_of_designs_with_a_period(actors, emotions, statements, repetitions, share, seed):
    """Sorted by ID each emotion comes every so many utterances, whichever comes first in the ID."""
    design = itertools.product(range(actors), range(emotions), range(statements), range(repetitions))
    rows = [(f"{s:02}-{r}-{t}-{e}", f"{s:02}", str(e), "", "", str(t)) for s, e, t, r in design]
    assert_share(manifest(rows, "table"), share, seed)


SIZES = st.lists(st.lists(st.integers(0, 12), min_size=6, max_size=6), min_size=1, max_size=30)


@drawn(SIZES, SHARES, st.integers(0, 9))
def test_seen_has_its_share_in_irregular_designs(sizes, share, seed):
    rows = [(f"{s}-{e}-{k}", str(s), str(e), "", "", "") for (s, e), n in np.ndenumerate(sizes) for k in range(n)]
    assert_share(manifest(rows, "table"), share, seed, of_a_speaker=2)


@settings(max_examples=20)
@drawn(st.integers(13, 26), st.integers(2, 8), st.integers(1, 4), st.integers(0, 99))
def test_all_emotions_validate_in_designs_with_a_period(n, n_emotions, said, seed):
    """Speaker k says the emotions k, k + 1, …: a tenth in any fixed step would meet the same ones."""
    said = min(said, n_emotions)
    rows = [(f"{s:02}-{k}", f"{s:02}", str((s + k) % n_emotions), "", "", "") for s in range(n) for k in range(said)]
    frame = manifest(rows, "table")
    for name, fold in make_folds(frame, "speaker", 0.1, seed).items():
        rest = frame[frame["speaker"] != name]
        spared = rest.groupby("emotion")["speaker"].nunique() > 1
        judged = set(frame["emotion"][frame["ID"].isin(fold.valid)])
        assert judged <= set(spared.index[spared]) and name not in speakers(frame, fold.valid)
        assert set(frame["emotion"][frame["ID"].isin([*fold.train, *fold.seen])]) == set(rest["emotion"])
        if (n - 1) // 3 * said >= 2 * n_emotions:
            assert judged == set(rest["emotion"]), name


@drawn(st.integers(2, 24), st.integers(2, 8), st.integers(3, 9), st.integers(0, 99))
def test_random_folds_have_each_emotions_share(n_speakers, n_emotions, n_takes, seed):
    frame = regular(n_speakers, n_emotions, n_takes)
    for fold in make_folds(frame, "random", split_seed=seed).values():
        for part in (fold.test, fold.valid):
            counts = frame["emotion"][frame["ID"].isin(part)].value_counts()
            assert len(counts) == n_emotions and (abs(counts - n_speakers * n_takes / 5) < 1).all()


def test_an_emotion_of_one_speaker_is_tested_and_never_trained(emodb):
    frame = one_says_disgust(emodb)
    folds = make_folds(frame, "speaker")
    assert never_trained(frame, folds["08"]) == "disgust is tested, never trained"
    assert never_trained(frame, folds["03"]) is None


def given(frame, **of_speaker):
    return frame.assign(split=frame["speaker"].map(of_speaker), corpus="table")


SPLIT = {"03": "train", "08": "Train ", "09": "dev", "16": "test"}


TAKES = ["test", "valid", "train", "train", "train"]


@pytest.mark.parametrize(
    ("split", "valid", "sizes"),  # who validates, and the sizes of train, valid, seen and test
    [
        (SPLIT, {"09"}, (36, 20, 4, 20)),
        (SPLIT | {"09": "val"}, {"09"}, (36, 20, 4, 20)),
        (SPLIT | {"09": " VALID"}, {"09"}, (36, 20, 4, 20)),
        (SPLIT | {"09": "train"}, {"03"}, (36, 20, 4, 20)),  # without a validation part a training speaker is left out
        (SPLIT | {"08": "valid"}, {"08", "09"}, (18, 40, 2, 20)),
        (TAKES, {"03", "08", "09", "16"}, (48, 16, 16, 16)),  # known test speakers: the test part is `seen`
        (["test", *["train"] * 4], set(), (64, 0, 16, 16)),  # and nobody is a stranger to validate on
        ([*TAKES[:1] * 60, *["train"] * 20], set(), (18, 0, 2, 60)),
    ],
)
def test_given(emodb, split, valid, sizes):
    column = emodb["speaker"].map(split) if isinstance(split, dict) else [split[k % len(split)] for k in range(80)]
    frame = emodb.assign(split=column, corpus="table")
    fold = make_folds(frame, "given")["given"]
    assert speakers(frame, fold.valid) == valid
    assert tuple(len(getattr(fold, part)) for part in ("train", "valid", "seen", "test")) == sizes
    tested = speakers(frame, fold.test)
    if tested <= speakers(frame, fold.train):
        assert fold.seen == fold.test and "4 test speakers are also trained on" in leakage(frame, fold)
    else:
        assert leakage(frame, fold) is None and speakers(frame, fold.seen) == speakers(frame, fold.train)


def test_given_in_several_folds(emodb):
    """A column a fold, named after it, empty cells in no part of it; or a column of folds, each tested once."""
    columns = {"split_a": SPLIT, "split_b 2": SPLIT | {"03": "test", "08": "", "16": "train"}}
    frame = emodb.assign(corpus="table", **{c: emodb["speaker"].map(s) for c, s in columns.items()}, fold="")
    folds = make_folds(frame, "given", 0)
    one = make_folds(given(frame, **SPLIT), "given", 0)  # a column split is what it was before there were others
    assert [*folds] == ["a", "b 2"] and one == {"given": replace(folds["a"], name="given")}
    told = {part: speakers(frame, ids) for part, ids in parts(folds["b 2"]).items() if ids}
    assert told == {"train": {"16"}, "valid": {"09"}, "test": {"03"}}
    with pytest.raises(UserError, match=r"fold 'a': split_a must be train, valid or test, found \['eval'\]"):
        make_folds(frame.assign(split_a="eval"), "given")

    frame = emodb.assign(corpus="table", fold=emodb["speaker"].map({"03": "A", "08": "A", "09": "B", "16": "C"}))
    folds = make_folds(frame, "given", 0)
    assert [speakers(frame, folds[name].test) for name in "ABC"] == [{"03", "08"}, {"09"}, {"16"}]
    assert leakage(frame, folds["B"]) is None and speakers(frame, folds["B"].valid) == {"03"}
    assert not folds["A"].valid  # two speakers are left: nobody can be spared
    leaky = make_folds(frame.assign(fold=[str(k % 5) for k in range(80)]), "given")
    assert [*leaky] == list("01234") and all("4 test speakers" in leakage(frame, fold) for fold in leaky.values())
    with pytest.raises(UserError, match="needs a fold for every utterance; 2 of 80 have none"):
        make_folds(without(frame, "fold", 3, 7), "given")


def test_official_is_a_corpus_of_its_own_split(emodb):
    frame = emodb.assign(split=emodb["speaker"].map(SPLIT))
    (fold,) = make_folds(frame, "official").values()
    assert fold == replace(make_folds(frame, "given")["given"], name="official")
    for unfit, also in ((emodb, ""), (frame.assign(corpus="table"), ", given")):
        expected = rf"{unfit['corpus'][0]} has no official split; .* do: speaker, speaker_text, .*, random_plain{also}$"
        with pytest.raises(UserError, match=expected):
            make_folds(unfit, "official")


OF_SPEAKERS = st.lists(st.tuples(st.sampled_from(["F", "M", ""]), st.integers(1, 9)), min_size=1, max_size=30)


@drawn(OF_SPEAKERS, st.integers(0, 5), st.integers(3, 6))
def test_groups_of_speakers(of_speakers, seed, n_groups):
    """Everybody is tested once and never trained on then; genders, and numbers of speakers, differ by one at most."""
    rows = [(f"{s:02}", gender, k) for s, (gender, n) in enumerate(of_speakers) for k in range(n)]
    frame = pd.DataFrame(rows, columns=["speaker", "gender", "k"])
    frame["ID"] = frame["speaker"] + frame["k"].astype(str)
    frame = frame.assign(emotion=[EMOTIONS[k % 4] for k in range(len(rows))], session="", corpus="table")
    options = {"split_seed": seed, "speaker_folds": n_groups, "seen_fraction": 0}
    if len(of_speakers) < n_groups:
        way_out = f"--speaker_folds={len(of_speakers)}" if len(of_speakers) > 2 else "--protocol=speaker"
        with pytest.raises(UserError, match=f"{n_groups} groups need as many speakers, .*{way_out}"):
            make_folds(frame, "speaker_folds", **options)
        return
    folds = make_folds(frame, "speaker_folds", **options)
    assert folds == make_folds(frame.sample(frac=1, random_state=seed), "speaker_folds", **options)
    assert [*folds] == [f"g{k + 1}" for k in range(n_groups)]
    assert sorted(i for fold in folds.values() for i in fold.test) == sorted(frame["ID"])
    tested = [speakers(frame, fold.test) for fold in folds.values()]
    assert sorted(s for group in tested for s in group) == sorted(set(frame["speaker"]))
    for k, fold in enumerate(folds.values()):
        assert speakers(frame, fold.valid) == tested[(k + 1) % n_groups]
        assert {*fold.train, *fold.valid, *fold.test} == set(frame["ID"]) and leakage(frame, fold) is None
    gender = {f"{s:02}": gender for s, (gender, _) in enumerate(of_speakers)}
    for counted in [tested] + [[[s for s in group if gender[s] == g] for group in tested] for g in "FM"]:
        assert max(map(len, counted)) - min(map(len, counted)) <= 1


def test_groups_of_speakers_are_alike_in_size_and_said(caplog):
    """Six speakers of 60, 50, … utterances: each group gets a large and a small one; the log says who is where."""
    rows = [(f"{who}{k}", who, EMOTIONS[k % 4]) for n, who in enumerate("fedcba", 1) for k in range(10 * n)]
    frame = pd.DataFrame(rows, columns=["ID", "speaker", "emotion"]).assign(session="", corpus="table", gender="F")
    with caplog.at_level("INFO"):
        folds = make_folds(frame, "speaker_folds", speaker_folds=3)
    assert sorted("".join(sorted(speakers(frame, fold.test))) for fold in folds.values()) == ["af", "be", "cd"]
    assert "speaker_folds, group g1: 2 speakers (2 F), 70 utterances: a, f" in caplog.messages
    for wrong in (2, True, "5"):
        with pytest.raises(UserError, match="speaker_folds must be a whole number >= 3, found"):
            make_folds(frame, "speaker", speaker_folds=wrong)


def without(frame, column, *rows):
    return frame.assign(**{column: frame[column].where(~frame.index.isin(rows), "")})


REFUSED = [
    ("iemocap", lambda f: f, "random_plian", r"did you mean 'random_plain'.*half_session"),
    ("emodb", lambda f: f.head(0), "speaker", "label selection"),
    (
        "iemocap",
        lambda f: without(f, "speaker", 1, 5),
        "speaker",
        "2 of 96 have none: Ses.*_F001, Ses.*_F005 .--protocol=random",
    ),
    (
        "emodb",
        lambda f: f[f["speaker"] == "03"],
        "speaker",
        "train part is empty: there is one speaker alone .--protocol=random",
    ),
    ("emodb", lambda f: without(f, "text", 1), "speaker_text", r"needs a text.*1 of 80.*--protocol=speaker needs none"),
    (
        "emodb",
        lambda f: f.assign(text="a"),
        "speaker_text",
        "the same text: .*use --protocol=speaker",
    ),
    ("emodb", lambda f: f.assign(text=f["ID"]), "speaker_text", "no text is said by two speakers: protocol 'speaker'"),
    (
        "emodb",
        lambda f: f.assign(text=f["text"].str.replace("4", "3")),
        "speaker_fewer",
        "found 4: --text_folds=4",
    ),
    ("iemocap", lambda f: f.assign(text=""), "session_text", "--protocol=session needs none"),
    ("iemocap", lambda f: f[f["session"] < "Ses03"], "session", r"three sessions.*Ses01.*Ses02"),
    ("iemocap", lambda f: f.replace({"01F": "anna", "03F": "anna"}), "session", "in several: anna"),
    ("iemocap", lambda f: f.assign(speaker=""), "session", "needs a speaker"),
    ("emodb", lambda f: f, "half_session", "emodb"),
    ("iemocap", lambda f: f.assign(dialog=""), "half_session", "needs a dialog"),
    ("iemocap", lambda f: f.assign(emotion=["rare"] * 2 + EMOTIONS_94), "random", "found 2 of 'rare'"),
    ("iemocap", lambda f: f.head(3), "random_plain", "found 3"),
    ("emodb", lambda f: f, "given", r"needs a split.*80 of 80"),
    ("emodb", lambda f: without(given(f, **SPLIT), "split", 3, 7), "given", "2 of 80 have none: 03a03angry, "),
    ("emodb", lambda f: given(f, **{**SPLIT, "08": "held out", "09": "eval"}), "given", "'eval', 'held out'"),
    ("emodb", lambda f: given(f, **{**SPLIT, "16": "dev"}), "given", "no utterance has split 'test'"),
    ("emodb", lambda f: given(f, **dict.fromkeys(SPLIT, "test")), "given", "train part is empty"),
]
EMOTIONS_94 = list(itertools.islice(itertools.cycle(EMOTIONS), 94))


@pytest.mark.parametrize(("corpus", "change", "protocol", "message"), REFUSED)
def test_what_a_protocol_cannot_use(request, corpus, change, protocol, message):
    with pytest.raises(UserError, match=message):
        make_folds(change(request.getfixturevalue(corpus)), protocol)
    for options in ({"seen_fraction": -0.1}, {"seen_fraction": 1}, {"split_seed": -1}):
        with pytest.raises(UserError, match=next(iter(options))):
            make_folds(request.getfixturevalue(corpus), "speaker", **options)


TEXTS = st.lists(st.tuples(*map(st.sampled_from, ("pqr", "xy", "abcdefg", ["", "s", "t"]))), min_size=12, max_size=60)


@drawn(TEXTS, st.integers(0, 5), st.integers(2, 4))
@settings(deadline=None, max_examples=20)
def test_without_texts_and_with_as_few(rows, seed, n_groups):
    """Disjoint in speakers, texts and scripts; everything is tested once; the control has as many of each cell."""
    speaker, emotion, text, script = zip(*rows, strict=True)
    ids = [f"{k:02}" for k in range(len(rows))]
    frame = pd.DataFrame({"ID": ids, "speaker": speaker, "emotion": emotion, "text": text, "script": script})
    frame = frame.assign(session="", corpus="table").set_axis(ids)
    options = {"split_seed": seed, "text_folds": n_groups, "seen_fraction": 0}
    try:
        folds = make_folds(frame, "speaker_text", **options)
    except UserError as error:
        expected = (
            "part is empty: all others say",
            "need as many texts",
            "two speakers",
            "one speaker",
            "the same text",
        )
        assert any(said in str(error) for said in expected)
        return
    assert make_folds(frame.sample(frac=1, random_state=seed), "speaker_text", **options) == folds
    assert sorted(i for fold in folds.values() for i in fold.test) == ids
    for name, fold in folds.items():
        train, test, valid = (frame.loc[list(part)] for part in (fold.train, fold.test, fold.valid))
        assert not set(train["speaker"]) & set(test["speaker"]) and not set(train["text"]) & set(test["text"])
        assert not set(valid["text"]) & set(test["text"])
        assert not (set(train["script"]) & set(test["script"])) - {""}
        fewer = make_folds(frame, "speaker_fewer", **options)[name]
        assert (fewer.test, fewer.valid) == (fold.test, fold.valid)
        cells = [frame.loc[list(f.train)].groupby(["speaker", "emotion"]).size() for f in (fold, fewer)]
        assert cells[0].equals(cells[1])


def test_a_session_without_its_texts(iemocap):
    folds = make_folds(iemocap, "session_text", text_folds=2)
    assert [*folds] == [f"Ses0{k}-t{g}" for k in (1, 2, 3) for g in (1, 2)]
    assert sum(len(fold.test) for fold in folds.values()) == len(iemocap)
    for fold in folds.values():
        assert not text_heard(iemocap, fold).any() and leakage(iemocap, fold) is None
        assert len({who[:2] for who in speakers(iemocap, fold.train)} & {fold.name[3:5]}) == 0


def test_choose_fold(emodb):
    folds = make_folds(emodb, "speaker")
    for name in (3, "3", "03", "03 ", "first"):
        assert choose_fold(folds, name).name == "03"
    assert choose_fold(dict.fromkeys(["J\u00fcrgen"], folds["09"]), "Ju\u0308rgen").name == "09"
    with pytest.raises(UserError, match=r"'091' does not exist.*did you mean '09'.*03, 08, 09, 16"):
        choose_fold(folds, "091")
    with pytest.raises(UserError, match=r"'7' does not exist.*\(such as --folds=03\)"):
        choose_fold(folds, 7, "folds")


@pytest.mark.parametrize("protocol", ["speaker", "session"])
def test_a_leaking_speaker_disjoint_protocol_is_caught(iemocap, protocol, monkeypatch):
    def leaking(frame, seed):
        return [protocols._Split("x", frozenset(frame["ID"].iloc[:3]), frozenset(frame["ID"].iloc[3:6]))]

    monkeypatch.setitem(protocols.PROTOCOLS, protocol, leaking)
    with pytest.raises(AssertionError, match=r"not speaker-disjoint.*01F"):
        make_folds(iemocap, protocol)
    monkeypatch.setitem(protocols.PROTOCOLS, "given", leaking)  # which promises nothing
    assert "1 test speakers" in leakage(iemocap, make_folds(iemocap, "given")["x"])


def test_parts_that_share_utterances_are_caught(iemocap, monkeypatch):
    monkeypatch.setattr(protocols, "_complete", lambda *a: Fold("x", ("a",), ("a",), (), ("b",)))
    with pytest.raises(AssertionError, match="train and valid share"):
        make_folds(iemocap, "speaker")


def test_who_validates(emodb):
    fold = make_folds(emodb, "random")["r0"]
    said = "16 utterances of 03, 08, 09, 16; trained on of these: 4 (all: what it chooses suits known voices)"
    assert who_validates(emodb, fold, "random") == said
    unknown = emodb.assign(speaker="")
    assert "not known" in leakage(unknown, fold)
    assert who_validates(unknown, fold, "random") == "16 utterances of unknown speakers"


def test_text_heard():
    frame = pd.DataFrame({"ID": list("abcd"), "text": ["EXCUSE ME", "EXCUSE ME", "WHY", ""]})
    heard = text_heard(frame, Fold("f", ("a",), (), (), ("b", "c", "d")))
    assert heard.to_dict() == {"b": True, "c": False, "d": None}  # what is not known, nobody can say
    # the training part alone counts: what is validated on was not heard
    assert not text_heard(frame, Fold("f", ("c",), ("a",), ("a",), ("b",)))["b"]
