"""The demo corpus goes through the real preparation, is learnable in principle and always the same."""

import json
from pathlib import Path

import pytest
import soundfile

from speechbrain_ser.cli import main
from speechbrain_ser.data.corpora import espeak, savee
from speechbrain_ser.data.corpora.demo import make_demo_corpus
from speechbrain_ser.data.corpora.demo_sentences import HELD_OUT, SENTENCES
from speechbrain_ser.data.corpora.espeak import Speech, speak
from speechbrain_ser.data.labels import apply_labels
from speechbrain_ser.data.manifest import prepare, read_manifest
from speechbrain_ser.errors import CorpusError

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
    assert frame["emotion"].value_counts()[["happy", "excited", "frustrated", "undecided"]].tolist() == [
        *(98, 98, 10, 10)
    ]
    per_speaker = {f"{n:02}{letter}": 104 if n == 5 else 72 for n in range(1, 6) for letter in "FM"}
    assert four["speaker"].value_counts().to_dict() == per_speaker
    assert four["duration"].between(0.6, 4).all()


def test_rows_are_exact(demo):
    """Speaker, session and dialog as the plan has them, whatever the dialog's own letter is."""
    root, frame = demo
    by_id = frame.set_index("ID")
    row = by_id.loc["Ses05M_script02_1b_F000"]
    assert row[["speaker", "gender", "session", "dialog", "emotion", "transcript"]].tolist() == [
        *("05F", "F", "Ses05", "Ses05M_script02_1b", "sad", SENTENCES[3])
    ]
    for name, row in by_id.iterrows():
        assert row["speaker"] == name[3:5] + name[-4] and row["dialog"] == name[:-5]
    # both speakers, and nearly everything else too, are in both halves of every session
    assert (frame.groupby(frame["dialog"].str[:6])["speaker"].nunique() == 2).all()
    assert (frame.groupby("dialog")["emotion"].nunique() >= 4).all()
    assert all(Path(wav).is_relative_to(root) for wav in frame["wav"])
    assert {soundfile.info(wav).samplerate for wav in frame["wav"]} == {16000}


def test_traps_are_in_it(demo):
    root, _ = demo
    assert len(list(root.rglob("._*"))) == 10
    transcription = (root / "Session1/dialog/transcriptions/Ses01F_impro01.txt").read_text()
    assert "\nM: Yeah.\n" in transcription and "Ses01F_impro01_MXX0 [" in transcription
    assert (root / "Session1/dialog/EmoEvaluation/Categorical").is_dir()


def test_some_sentences_belong_to_held_out_speakers(demo):
    _, frame = demo
    sessions = frame.groupby("transcript")["session"].agg(set)
    assert {text for text, where in sessions.items() if where == {"Ses05"}} == set(HELD_OUT)
    assert len(HELD_OUT) >= len(sessions) / 10 and all(len(sessions[text]) == 5 for text in SENTENCES)
    common = frame[frame["transcript"].isin(SENTENCES) & ~frame["emotion"].isin(["frustrated", "undecided"])]
    assert not common.duplicated(["session", "transcript"]).any()  # by one speaker of a session
    said = common.groupby("speaker")["transcript"].agg(frozenset)
    assert said.nunique() == 10 and set(said.map(len)) == {72}
    held_out = frame[frame["transcript"].isin(HELD_OUT) & ~frame["emotion"].isin(["frustrated", "undecided"])]
    assert set(held_out.replace("excited", "happy").groupby("transcript")["emotion"].nunique()) == {4}
    # known words, so that a model may spell them
    known = set(" ".join(SENTENCES).lower().replace(".", "").replace("?", "").split())
    assert set(" ".join(HELD_OUT).lower().replace(".", "").replace("?", "").split()) <= known


def test_emotions_differ_in_tempo_for_every_speaker(demo):
    _, frame = demo
    common = frame[frame["transcript"].isin(SENTENCES)]
    seconds = apply_labels(common).groupby(["speaker", "emotion"])["duration"].mean().unstack()
    for slower, faster in (("sad", "neutral"), ("neutral", "happy"), ("happy", "angry")):
        assert (seconds[slower] > 1.1 * seconds[faster]).all()


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


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(CorpusError, match="is no demo corpus"):
            make_demo_corpus(out)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    with pytest.raises(CorpusError, match=r"unknown layout 'save' \(did you mean 'savee'\?\)"):
        make_demo_corpus(tmp_path / "new", "save")


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(requests):
        raise CorpusError("no voice")

    monkeypatch.setattr("speechbrain_ser.data.corpora.demo.speak", fail)
    with pytest.raises(CorpusError, match="no voice"):
        make_demo_corpus(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_emodb_layout_goes_through_its_preparation(tmp_path):
    root = make_demo_corpus(tmp_path / "emodb", "emodb", sentences=2)
    frame = read_manifest(prepare("emodb", root, tmp_path / "out"), root)
    assert len(frame) == 10 * 7 * 2 + 2 * 7 * 2
    assert frame["emotion"].nunique() == 7 and frame["speaker"].nunique() == 10
    assert set(frame[frame["dialog"].isin(["b09", "b10"])]["speaker"]) == {"15", "16"}


def test_savee_layout(tmp_path):
    assert main(["demo-corpus", str(tmp_path / "savee"), "--layout=savee"]) == 0
    wavs = sorted((tmp_path / "savee").rglob("*.wav"))
    assert len(wavs) == 350 and {wav.parent.name for wav in wavs} == {"DC", "JE", "JK", "KL"}
    assert {wav.stem.rstrip("0123456789") for wav in wavs} == set(savee.EMOTIONS)
    assert wavs[0].relative_to(tmp_path / "savee").as_posix() == "AudioData/DC/a01.wav"
    assert soundfile.info(wavs[0]).samplerate == 44100
    assert json.loads((tmp_path / "savee" / "demo_corpus.json").read_text())["layout"] == "savee"


def test_command_line(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert main(["demo-corpus", str(tmp_path / "full")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'full'} is no demo corpus")
    for wrong in (["demo-corpus", "x", "--lay=emodb"], ["demo-corpus", "x", "--layout=ravdess"], []):
        with pytest.raises(SystemExit) as end:
            main(wrong)
        assert end.value.code == 2
    assert not Path("x").exists()


def test_unknown_voice_and_missing_espeak(monkeypatch):
    with pytest.raises(CorpusError, match=r"has no voice 'xx\+f1'"):
        speak([Speech("Hello.", "xx+f1")])
    monkeypatch.setitem(espeak.sys.modules, "espeakng_loader", None)
    with pytest.raises(CorpusError, match=r'pip install "speechbrain-ser\[demo\]"'):
        speak([Speech("Hello.")])
