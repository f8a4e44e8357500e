"""The demo corpus goes through the real preparation, is learnable in principle and always the same."""

import re
from pathlib import Path

import pytest
import soundfile

from speechbrain_ser.cli import main
from speechbrain_ser.data.corpora import espeak
from speechbrain_ser.data.corpora.demo import HELD_OUT, SENTENCES, make_demo_corpus
from speechbrain_ser.data.corpora.espeak import Speech, speak
from speechbrain_ser.data.labels import apply_labels
from speechbrain_ser.data.manifest import prepare, read_manifest
from speechbrain_ser.errors import CorpusError

from .corpus_trees import write_wav

pytest.importorskip("espeakng_loader", reason='eSpeak NG is missing: pip install "speechbrain-ser[demo]"')


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The whole corpus, made by the preparation itself, and its manifest."""
    root = tmp_path_factory.mktemp("demo") / "demo_corpus"
    return root, read_manifest(prepare("demo", root, root.parent / "manifests"), root)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_counts(demo):
    _, frame = demo
    assert len(frame) == 804 and set(frame["corpus"]) == {"demo"}
    four = apply_labels(frame)
    assert four["emotion"].value_counts().to_dict() == dict.fromkeys(("neutral", "happy", "angry", "sad"), 196)
    counts = frame["emotion"].value_counts()
    assert counts[["happy", "excited", "frustrated", "undecided"]].tolist() == [98, 98, 10, 10]
    per_speaker = {f"{n:02}{letter}": 104 if n == 5 else 72 for n in range(1, 6) for letter in "FM"}
    assert four["speaker"].value_counts().to_dict() == per_speaker
    assert four["duration"].between(0.6, 4).all()
    seconds = four[four["transcript"].isin(SENTENCES)].groupby(["speaker", "emotion"])["duration"].mean().unstack()
    for slower, faster in (("sad", "neutral"), ("neutral", "happy"), ("happy", "angry")):
        assert (seconds[slower] > 1.1 * seconds[faster]).all()  # for every speaker: it can be learnt


def test_rows_are_exact(demo):
    """Speaker, session and dialog as the plan has them, whatever the dialog's own letter is."""
    root, frame = demo
    row = frame.set_index("ID").loc["Ses05M_script02_1b_F000"]
    assert row[["speaker", "gender", "session", "dialog", "emotion", "transcript"]].tolist() == [
        *("05F", "F", "Ses05", "Ses05M_script02_1b", "sad", SENTENCES[3])
    ]
    assert (frame["speaker"] == frame["ID"].str[3:5] + frame["ID"].str[-4]).all()
    # both speakers, and nearly everything else too, are in both halves of every session
    assert (frame.groupby(frame["dialog"].str[:6])["speaker"].nunique() == 2).all()
    assert (frame.groupby("dialog")["emotion"].nunique() >= 4).all()
    assert all(Path(wav).is_relative_to(root) for wav in frame["wav"])
    assert {soundfile.info(wav).samplerate for wav in frame["wav"]} == {16000}


def test_some_sentences_belong_to_held_out_speakers(demo):
    _, frame = demo
    sessions = frame.groupby("transcript")["session"].agg(set)
    assert {text for text, where in sessions.items() if where == {"Ses05"}} == set(HELD_OUT)
    assert len(HELD_OUT) >= len(sessions) / 10 and all(len(sessions[text]) == 5 for text in SENTENCES)
    four = apply_labels(frame)
    common, held_out = four[four["transcript"].isin(SENTENCES)], four[four["transcript"].isin(HELD_OUT)]
    assert not common.duplicated(["session", "transcript"]).any()  # by one speaker of a session
    said = common.groupby("speaker")["transcript"].agg(frozenset)
    assert said.nunique() == 10 and set(said.map(len)) == {72}
    assert set(held_out.groupby("transcript")["emotion"].nunique()) == {4}
    known, new = (set(re.findall(r"\w+", " ".join(texts).lower())) for texts in (SENTENCES, HELD_OUT))
    assert new <= known  # so that a model may spell them


def test_seed_gives_the_bytes(tmp_path):
    first, again, other = (
        contents(make_demo_corpus(tmp_path / name, sentences=1, seed=seed))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first.keys() == other.keys() and first != other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_complete_corpus_is_left_as_it_is(tmp_path, monkeypatch):
    out = make_demo_corpus(tmp_path / "demo", sentences=1)
    monkeypatch.setattr("speechbrain_ser.data.corpora.demo.speak", None)
    assert make_demo_corpus(out, sentences=1) == out
    with pytest.raises(CorpusError, match=r"another demo corpus \(seed 0 instead of 1\)"):
        make_demo_corpus(out, sentences=1, seed=1)
    # the preparation takes the demo corpus that is there, unless it is asked for another
    assert len(read_manifest(prepare("demo", out, tmp_path / "out"), out)) == 68
    assert len(read_manifest(prepare("demo", out, tmp_path / "out", seed=0), out)) == 68
    with pytest.raises(CorpusError, match=r"another demo corpus \(seed 0 instead of 2"):
        prepare("demo", out, tmp_path / "out", seed=2)


def test_foreign_folders_are_refused_and_failure_leaves_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        assert main(["demo-corpus", str(out)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {out} is no demo corpus")
    with pytest.raises(CorpusError, match=r"unknown layout 'save' \(did you mean 'savee'\?\)"):
        make_demo_corpus(tmp_path / "new", "save")
    for wrong in (["demo-corpus", "x", "--lay=emodb"], ["demo-corpus", "x", "--layout=ravdess"], []):
        with pytest.raises(SystemExit) as end:
            main(wrong)
        assert end.value.code == 2
    with pytest.raises(CorpusError, match=r"has no voice 'xx\+f1'"):
        speak([Speech("Hello.", "xx+f1")])
    monkeypatch.setitem(espeak.sys.modules, "espeakng_loader", None)
    with pytest.raises(CorpusError, match=r'pip install "speechbrain-ser\[demo\]"'):
        make_demo_corpus(tmp_path / "demo")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"] and not Path("x").exists()


@pytest.mark.parametrize(
    ("layout", "n", "speakers", "rate"),
    [("emodb", 10 * 7 + 2 * 7 * 2, 10, 16000), ("savee", 4 * 7 + 7 * 2, 4, 44100)],  # two texts more are held out
)
def test_other_layouts_go_through_their_preparation(tmp_path, caplog, layout, n, speakers, rate):
    root = make_demo_corpus(tmp_path / layout, layout, sentences=1)
    frame = read_manifest(prepare(layout, root, tmp_path / "out"), root)
    assert len(frame) == n and f"{n} recordings; the official release has" in caplog.text
    assert frame["emotion"].value_counts().to_dict() == dict.fromkeys(frame["emotion"], n // 7)
    assert frame["speaker"].nunique() == speakers and soundfile.info(frame["wav"][0]).samplerate == rate
    n_of = frame["speaker"].value_counts()
    assert set(n_of.index[n_of == 21]) == ({"15", "16"} if layout == "emodb" else {"KL"})
    if layout == "savee":
        write_wav(root / "AudioData/JE/su1.wav")
        with pytest.raises(CorpusError, match=r"unknown take .*\n  AudioData/JE/su1.wav: 'su1'"):
            prepare("savee", root, tmp_path / "out")
