"""SAVEE on disk -> a manifest: both layouts, and every way in which a copy is not complete."""

import logging
import os
from pathlib import Path

import pytest

from speechbrain_ser.data.corpora import savee
from speechbrain_ser.data.corpora.demo import make_demo_corpus
from speechbrain_ser.data.labels import apply_labels
from speechbrain_ser.data.manifest import COLUMNS, prepare, read_manifest
from speechbrain_ser.errors import CorpusError

from .corpus_trees import write_wav

TAKES = [f"{code}{n:02}" for code in ("a", "d", "f", "h", "sa", "su") for n in range(1, 16)]
TAKES += [f"n{n:02}" for n in range(1, 31)]


def savee_tree(root: Path, layout: str = "AudioData/{}/{}.wav") -> Path:
    """All 480 names of one recording, which is quick; beside them what the release and file systems add."""
    original = write_wav(root / "original.wav", rate=44100)
    for speaker in ("DC", "JE", "JK", "KL"):
        for take in TAKES:
            path = root / layout.format(speaker, take)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(original, path)
    original.unlink()
    (path.parent / "Info.txt").write_text("SAVEE")
    (path.parent / "._a01.wav").write_bytes(b"\0")
    return root


@pytest.fixture
def tree(tmp_path):
    return savee_tree(tmp_path / "SAVEE")


def error_of(root) -> str:
    with pytest.raises(CorpusError) as error:
        savee.find_utterances(root)
    return str(error.value)


def test_manifest_of_a_complete_copy(tree, tmp_path, caplog):
    paths = [prepare("savee", tree, tmp_path / out) for out in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    frame = read_manifest(paths[0], tree)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert list(frame.columns) == list(COLUMNS) and len(frame) == 480
    counts = dict.fromkeys(("angry", "disgust", "fear", "happy", "sad", "surprise"), 60) | {"neutral": 120}
    assert frame["emotion"].value_counts().to_dict() == counts
    assert frame["speaker"].value_counts().to_dict() == dict.fromkeys(("DC", "JE", "JK", "KL"), 120)
    assert len(apply_labels(frame)) == 480
    row = frame.set_index("ID").loc["JK_su03"]
    assert Path(row["wav"]) == tree / "AudioData/JK/su03.wav" and row["duration"] == 0.02
    assert row.drop(["wav", "duration"]).to_dict() == {
        **{"emotion": "surprise", "speaker": "JK", "gender": "M", "session": "", "dialog": "", "transcript": ""},
        **{"language": "en", "corpus": "savee"},
    }


def test_both_layouts_give_the_same_rows_up_to_the_path(tree, tmp_path):
    flat = savee_tree(tmp_path / "flat", "ALL/{}_{}.wav")
    rows = {
        "{data_root}/AudioData/DC/a01.wav": savee.find_utterances(tree),
        "{data_root}/DC/a01.wav": savee.find_utterances(tree / "AudioData"),
        "{data_root}/ALL/DC_a01.wav": savee.find_utterances(flat),
        "{data_root}/DC_a01.wav": savee.find_utterances(flat / "ALL"),
    }
    assert [found[0]["wav"] for found in rows.values()] == list(rows)
    without = [[row | {"wav": ""} for row in found] for found in rows.values()]
    assert all(found == without[0] for found in without) and len(without[0]) == 480


@pytest.mark.parametrize("layout", ["AudioData/{}/{}.wav", "ALL/{}_{}.wav"])
def test_every_fault_is_listed(tmp_path, layout):
    root = savee_tree(tmp_path / "SAVEE", layout)

    def path(speaker, take):
        return root / layout.format(speaker, take)

    def name(speaker, take):
        return Path(layout.format(speaker, take)).relative_to(Path(layout).parts[0]).as_posix()

    for take in ("a07", "n30"):
        path("DC", take).unlink()
    path("JE", "sa05").rename(path("JE", "SA5"))
    os.link(path("JE", "f01"), path("JE", "f01 (2)"))
    os.link(path("JE", "f01"), path("JE", "b01"))
    os.link(path("JE", "f01"), path("JE", "f16"))
    for take in TAKES:
        path("KL", take).unlink()
    folder = root / Path(layout).parts[0]
    assert [line.split(" (did you mean")[0] for line in error_of(root).splitlines()] == [
        f"SAVEE in {folder}: not the 480 recordings it should hold",
        "renamed (1):",
        f"  {name('JE', 'SA5')} (expected {name('JE', 'sa05')})",
        f"unknown (expected names like {name('DC', 'a01')}) (2):",
        f"  {name('JE', 'b01')}",
        f"  {name('JE', 'f16')}",
        "doubled (1):",
        f"  {name('JE', 'f01 (2)')} (another {name('JE', 'f01')})",
        "missing of DC's 120 (2):",
        f"  {name('DC', 'a07')}",
        f"  {name('DC', 'n30')}",
        "speaker without any recording (1):",
        f"  KL (expected 120: {name('KL', 'a01')} … {name('KL', 'su15')})",
    ]


def test_which_folder_is_meant(tree, tmp_path):
    assert f"no such folder: {tmp_path / 'no'}" in error_of(tmp_path / "no")
    assert f"Give the folder inside it: {tree}" in error_of(tmp_path)
    assert f"Give the folder that holds it: {tree / 'AudioData'}" in error_of(tree / "AudioData" / "DC")
    (tmp_path / "empty").mkdir()
    assert "expected AudioData/DC/a01.wav" in error_of(tmp_path / "empty")
    savee_tree(tree, "ALL/{}_{}.wav")
    assert f"twice. Give one of {tree / 'AudioData'} and {tree / 'ALL'}" in error_of(tree)
    os.link(tree / "ALL/DC_a01.wav", tree / "AudioData/DC_a01.wav")
    assert "found speakers' folders and files like DC_a01.wav" in error_of(tree / "AudioData")


def test_a_demo_corpus_has_fewer(tmp_path, caplog):
    pytest.importorskip("espeakng_loader", reason='eSpeak NG is missing: pip install "speechbrain-ser[demo]"')
    root = make_demo_corpus(tmp_path / "demo", "savee", sentences=1)
    frame = read_manifest(prepare("savee", root, tmp_path / "out"), root)
    assert "42 recordings; the official release has 480" in caplog.text
    assert frame["speaker"].value_counts().to_dict() == {"DC": 7, "JE": 7, "JK": 7, "KL": 21}
    assert frame["emotion"].value_counts().to_dict() == dict.fromkeys(savee.EMOTIONS.values(), 6)
    assert len(savee.find_utterances(root / "AudioData")) == 42
    write_wav(root / "AudioData/JE/su1.wav")
    assert "doubled (1):\n  JE/su1.wav (another JE/su01.wav)" in error_of(root)
