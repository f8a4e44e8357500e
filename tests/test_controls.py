"""What the words alone would give, and that the protocols without test texts leave nothing of it."""

import itertools

import pandas as pd

from speechbrain_ser.data.corpora import iemocap, savee
from speechbrain_ser.data.manifest import _with_texts as prepared
from speechbrain_ser.data.protocols import make_folds
from speechbrain_ser.evaluation.controls import control_predictions, lookup, told_by_texts
from speechbrain_ser.evaluation.runs import in_words_of_texts

from .corpus_trees import iemocap_tree, write_wav


def table(**columns):
    frame = pd.DataFrame(columns)
    return frame.assign(ID=[str(k) for k in frame.index], transcript=frame.get("transcript", ""))


def test_lookup_and_what_texts_tell():
    train = table(emotion=["sad", "joy", "joy", "fear", "sad"], text=["1", "1", "2", "2", ""])
    assert lookup(train, ["1", "2", "3", ""]) == ["joy", "fear", "joy", "joy"]  # of equally many the alphabet's first
    test = table(emotion=["joy", "joy", "sad", "sad"], text=["1", "2", "3", ""])
    assert told_by_texts(train, test) == {"known": 0.75, "heard": 2 / 3, "told": 0.5}
    assert told_by_texts(train, test.tail(1)) == {"known": 0.0, "heard": None, "told": None}
    assert "texts are not known" in in_words_of_texts(told_by_texts(train, test.tail(1)))
    said = "67% of the test utterances whose text is known (75% of all) say a text heard in training, and those"
    assert in_words_of_texts(told_by_texts(train, test)).startswith(said)


def test_controls_without_texts_or_words():
    train = table(emotion=["sad", "joy"], text=["", ""])
    assert list(control_predictions(train, train)) == ["ID", "majority"]
    train = table(emotion=["sad", "joy"], text=["1", "2"], transcript=["[SIGH]", "yes"])  # words of one class only
    assert list(control_predictions(train, train, ["", ""])) == ["ID", "majority", "lookup"]


def told(frame, protocol, **options):
    folds = make_folds(frame, protocol, **options).values()
    return [told_by_texts(frame.loc[list(f.train)], frame.loc[list(f.test)]) for f in folds]


def test_savees_sentences_tell_its_emotions_to_who_has_heard_them(tmp_path):
    for speaker, code in itertools.product(savee.SPEAKERS, savee.EMOTIONS):
        for number in range(1, savee.RECORDINGS[code] + 1):
            write_wav(tmp_path / "AudioData" / speaker / f"{code}{number:02}.wav")
    frame = pd.DataFrame(savee.find_utterances(tmp_path)).assign(script="")
    frame = frame.set_axis(frame["ID"].tolist())
    assert frame["text"].nunique() == 3 + 6 * (2 + 10) + 15 and frame.groupby("text").size().ge(4).all()
    assert all(found["heard"] > 0.95 for found in told(frame, "speaker"))
    of_one = frame.groupby("text")["emotion"].transform("nunique") == 1
    assert all(found["told"] == 1 for found in told(frame[of_one], "speaker"))
    assert all(found["heard"] == 0 for found in told(frame, "speaker_text"))
    assert all(found["heard"] > 0.7 for found in told(frame, "speaker_fewer"))


def test_a_script_is_played_by_five_pairs_of_actors(tmp_path):
    """Who says a line more or less still plays the scene, and short answers join no scripts."""
    lines = ["I told you that I never wanted this.", "Well, what do you want me to do now?", "Yeah.", "Oh, come on."]
    turns = []
    for session, letter, (k, line) in itertools.product((1, 2, 3), "FM", enumerate(lines)):
        adlib = ["", " Really.", " You know."][session - 1] if k < 2 else ""
        script = f"script0{1 + (letter == 'M')}_1" + "b" * (session == 3)  # each letter plays in another scene
        for dialog, words in (
            (script, f"{line[:-1]}{adlib} {'' if k else letter}"),
            ("impro01", f"{line} {k} {letter}"),
        ):
            turns.append((f"Ses0{session}{letter}_{dialog}_{letter}00{k}", ("neu", "ang", "sad", "hap")[k], words))
    frame = pd.DataFrame(prepared(iemocap.find_utterances(iemocap_tree(tmp_path, turns))))
    frame = frame.assign(emotion=frame["emotion"]).set_axis(frame["ID"].tolist())
    assert set(frame["script"]) == {"", "script01_1", "script02_1"}
    told_you = frame[frame["transcript"].str.startswith("I told you") & (frame["script"] == "script01_1")]
    assert told_you["text"].nunique() == 1 and told_you["transcript"].nunique() == 3
    assert all(found["heard"] > 0.5 for found in told(frame, "session"))
    for fold in make_folds(frame, "session_text", text_folds=2).values():
        train, test = frame.loc[list(fold.train)], frame.loc[list(fold.test)]
        assert told_by_texts(train, test)["heard"] == 0
        assert not (set(train["script"]) & set(test["script"])) - {""}
