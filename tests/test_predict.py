"""The command `predict`: what it finds, what it prints, what it writes, how it goes on, and what it refuses."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from speechbrain_ser.cli import main as cli
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import lock_path, locked
from speechbrain_ser.inference.formats import Csv, JsonLines, ResultsFile
from speechbrain_ser.inference.predict import find_recordings
from speechbrain_ser.inference.recognizer import EmotionRecognizer, Recognition

from .conftest import ROOT

CLASSES = ["angry", "sad"]


@pytest.fixture
def run_folder(trained) -> Path:
    return trained("--pooling=sum", yaml="cai_mtl")


@pytest.fixture
def recordings(small, tmp_path) -> Path:
    """A folder of six recordings, two of them in a subfolder, one of them no recording, and other files."""
    folder = tmp_path / "recordings"
    (folder / "more").mkdir(parents=True)
    for k, wav in enumerate(sorted((small.corpus("emodb") / "wav").iterdir())[:5]):
        shutil.copy(wav, folder / ("more" if k > 3 else "") / f"{k}.wav")
    (folder / "bad.wav").write_text("no recording")
    (folder / "notes.txt").write_text("notes")
    return folder


@pytest.fixture
def predict(run_folder, capfd):
    """The command's exit status, output and errors."""

    def run(*words, model=run_folder, status=0):
        capfd.readouterr()
        found = cli(["predict", *map(str, words), f"--model={model}", "--device=cpu"])
        out, err = capfd.readouterr()
        assert found == status, f"{out}\n{err}"
        return out, err

    return run


# ------------------------------------------------------------------ what is found


def test_files_folders_and_subfolders(recordings):
    names = [Path(path).name for path in find_recordings([str(recordings)])]
    assert names == ["0.wav", "1.wav", "2.wav", "3.wav", "bad.wav"]
    (recordings / ".hidden.wav").touch()
    (recordings / "UPPER.FLAC").touch()
    deep = find_recordings([str(recordings / "2.wav"), str(recordings)], recursive=True)
    names = [os.path.relpath(path, recordings) for path in deep]
    assert names == ["2.wav", "0.wav", "1.wav", "3.wav", "UPPER.FLAC", "bad.wav", "more/4.wav"]  # each once
    assert find_recordings([f"{recordings}/./notes.txt"]) == [f"{recordings}/notes.txt"]  # named, so it is tried
    (recordings / "empty").mkdir()
    with pytest.raises(UserError, match="empty: expected a folder of audio files"):
        find_recordings([str(recordings / "empty")])


def test_standard_input_in_any_encoding(monkeypatch):
    """A Latin-1 name, spaces, Windows line ends, an empty line."""
    lines = b"a.wav\nM\xe4rz 1.wav\r\n\n-b.wav"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert find_recordings(["first.wav", "-"]) == ["first.wav", "a.wav", os.fsdecode(b"M\xe4rz 1.wav"), "-b.wav"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(UserError, match="empty list on standard input"):
        find_recordings(["-"])


# ------------------------------------------------------------------ what is printed


def test_results_are_the_recognizers(predict, recordings, run_folder):
    """In each format; the file that is no recording is listed at the end, and nothing else suffers."""
    out, err = predict(recordings, "--format=json", "--batch=2", status=1)
    found = [json.loads(line) for line in out.splitlines()]
    recognizer = EmotionRecognizer.from_run(run_folder, {"device": "cpu"})
    assert [Path(row["path"]).name for row in found] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    for row in found:
        expected = recognizer.classify_file(row["path"])
        assert (row["emotion"], row["transcript"]) == (expected.emotion, expected.transcript)
        assert row["posteriors"] == pytest.approx(expected.posteriors, abs=1e-4) and row["transcript"]
        assert row["model"] == recognizer.model_id
    assert re.search(r"1 of 5 recordings gave no result:\n  \S+/bad.wav: unreadable recording", err)

    frame = pd.read_csv(io.StringIO(predict(recordings, "--format=csv", status=1)[0]))
    assert frame["emotion"].tolist() == [row["emotion"] for row in found]
    posteriors = frame.filter(like="posterior_").to_numpy()
    assert posteriors == pytest.approx(np.array([list(row["posteriors"].values()) for row in found]), abs=1e-4)

    table = predict(recordings, "--recursive", status=1)[0].splitlines()
    assert table[0].split() == ["recording", "emotion", "posterior", "transcript"] and len(table) == 6
    first = found[0]
    line = re.split(r"  +", table[1])
    assert line == [first["path"], first["emotion"], f"{max(first['posteriors'].values()):.3f}", first["transcript"]]


def test_without_transcripts(predict, recordings):
    out, _ = predict(recordings / "0.wav", "--no-transcript", "--format=json")
    assert "transcript" not in json.loads(out)
    assert predict(recordings / "0.wav", "--no-transcript")[0].splitlines()[0].split()[-1] == "posterior"


def test_as_a_program(recordings, run_folder):
    """Results on stdout alone, the rest on stderr; names of any encoding; a reader that leaves early."""
    name = os.fsdecode(b"M\xe4rz.wav")
    shutil.copy(recordings / "0.wav", recordings / name)
    command = [sys.executable, "-m", "speechbrain_ser.cli", "predict", "-", f"--model={run_folder}", "--device=cpu"]
    names = "\n".join(os.fspath(recordings / n) for n in (name, "bad.wav", "gone.wav"))
    done = subprocess.run([*command, "--format=csv"], input=os.fsencode(names), capture_output=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr.decode()
    header, row = done.stdout.splitlines()
    assert header.startswith(b"path,emotion,posterior_") and row.startswith(os.fsencode(recordings / name) + b",")
    assert b"gone.wav: no such recording" in done.stderr and b"bad.wav: unreadable" in done.stderr

    process = subprocess.Popen([*command, "--batch=1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    process.communicate(os.fsencode(recordings / "0.wav"))
    assert process.returncode == 1


# ------------------------------------------------------------------ what is written, and gone on with


def assert_same_results(one: Path, other: Path):
    """The same lines in some order, but for what rounding makes of other batches: 1e-4 at most."""
    numbers = re.compile(r"\b\d\.[\de-]+")
    lines, expected = (sorted(file.read_text().splitlines()) for file in (one, other))
    assert [numbers.sub("x", line) for line in lines] == [numbers.sub("x", line) for line in expected]
    found, said = ([float(n) for line in many for n in numbers.findall(line)] for many in (lines, expected))
    assert len(found) > 9 and found == pytest.approx(said, abs=1e-4)


@pytest.mark.parametrize("name", ["results.csv", "results.json"])
def test_a_second_call_goes_on(predict, recordings, tmp_path, name, monkeypatch):
    whole, out = tmp_path / f"whole-{name}", tmp_path / "new" / name
    predict(recordings, "--recursive", f"--out={whole}", status=1)
    predict(recordings / "1.wav", recordings / "2.wav", f"--out={out}")
    assert len(out.read_text().splitlines()) == (3 if name.endswith("csv") else 2)
    out.write_text(out.read_text()[:-20])  # a process that was killed
    asked = []
    stream = EmotionRecognizer._stream
    monkeypatch.setattr(EmotionRecognizer, "_stream", lambda s, p, *a: asked.extend(p) or stream(s, p, *a))
    said = predict(recordings, "--recursive", f"--out={out}", status=1)[1]
    assert f"1 of 6 recordings are in {out} already" in said and "1 of 6 recordings gave no result" in said
    assert [Path(path).name for path in asked] == ["0.wav", "2.wav", "3.wav", "bad.wav", "4.wav"]
    assert_same_results(out, whole)
    (recordings / "bad.wav").unlink()
    asked.clear()
    predict(recordings, "--recursive", f"--out={out}")
    assert not asked and not lock_path(out).exists()


def test_results_are_there_before_the_command_ends(predict, recordings, run_folder, tmp_path):
    """Killed in its middle, and gone on with."""
    many = recordings / "many"
    many.mkdir()
    for k in range(400):
        (many / f"{k:03}.wav").symlink_to(recordings / "0.wav")
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "speechbrain_ser.cli", "predict", many, f"--model={run_folder}", f"--out={out}"]
    process = subprocess.Popen([*command, "--device=cpu", "--batch=1"], cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out.is_file() and out.stat().st_size > 1000):
        time.sleep(0.02)
    assert process.poll() is None, "ended before it was killed"
    process.kill()
    process.wait()
    n = len(out.read_bytes().splitlines())
    assert 0 < n < 400
    assert f"{n} of 400 recordings are in" in predict(many, f"--out={out}")[1]
    paths = [json.loads(line)["path"] for line in out.read_text().splitlines()]
    assert len(paths) == len(set(paths)) == 400


def test_ctrl_c_leaves_what_there_is(predict, recordings, tmp_path, monkeypatch):
    stream = EmotionRecognizer._stream

    def interrupted(recognizer, paths, *rest):
        yield from stream(recognizer, paths[:2], *rest)
        raise KeyboardInterrupt

    out = tmp_path / "results.json"
    monkeypatch.setattr(EmotionRecognizer, "_stream", interrupted)
    _, said = predict(recordings, f"--out={out}", status=130)
    assert "the same command goes on" in said and len(out.read_text().splitlines()) == 2 and not lock_path(out).exists()


FORMS = {"csv": Csv, "json": JsonLines}


@pytest.mark.parametrize("form", FORMS)
def test_cut_anywhere_a_file_is_repaired(tmp_path, form):
    """Names with commas, quotes, line ends and wrong bytes among them."""
    names = ["a.wav", 'b, "c".wav', "line\nend.wav", os.fsdecode(b"\xe4\xff.wav"), "ä.wav"]
    form = FORMS[form]("c0ffee", CLASSES, True)
    path = tmp_path / "results"
    with ResultsFile(path, form) as results:
        for name in names:
            results.add(Recognition(name, "sad", {"angry": 0.25, "sad": 0.75}, "SO IST ES"))
    whole = path.read_bytes()
    with ResultsFile(path, form) as results:
        assert results.done == set(names)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with ResultsFile(path, form) as results:
            left = [name for name in names if name not in results.done]
            assert left == names[len(names) - len(left) :]
            for name in left:
                results.add(Recognition(name, "sad", {"angry": 0.25, "sad": 0.75}, "SO IST ES"))
        assert path.read_bytes() == whole, end


def test_a_csv_file_is_one_for_other_programs(tmp_path):
    names = ['b, "c".wav', "line\nend.wav"]
    with ResultsFile(tmp_path / "results.csv", Csv("1e5", CLASSES, True)) as results:
        for name in names:
            results.add(Recognition(name, "sad", {"angry": 0.25, "sad": 0.75}, ""))
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == names and rows[0]["posterior_sad"] == "0.75" and rows[0]["model"] == "1e5"


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, form):
    path, ours = tmp_path / "results", FORMS[form]("c0ffee", CLASSES, True)
    others = {
        "another": FORMS[form]("deadbeef", CLASSES, True),
        "transcript": FORMS[form]("c0ffee", CLASSES, False),
        "expected": FORMS[form]("c0ffee", [*CLASSES, "happy"], True),
    }
    strangers = ["my notes\n", "my notes", "{}\n", "\x00\x01\n\x02", "1\n", '"', "[1]\n"]
    contents = {}
    for said, other in others.items():
        found = Recognition("a.wav", "sad", {c: 0.5 for c in getattr(other, "classes", CLASSES)}, "JA")
        contents[other.header + other.line(found)] = said
    for content in [*contents, *strangers]:
        path.write_text(content)
        with pytest.raises(UserError, match=contents.get(content, "--out: .*give another file")):
            ResultsFile(path, ours)
        assert path.read_text() == content


def test_another_models_file_is_refused(predict, trained, recordings, tmp_path):
    out = tmp_path / "results.csv"
    predict(recordings / "0.wav", f"--out={out}")
    before = out.read_bytes()
    other = trained("--pooling=sum", "--seed=2", yaml="cai_mtl")
    _, said = predict(recordings / "1.wav", f"--out={out}", model=other, status=2)
    name = r"\(\w{16}-temperature=[\d.]+\)"
    assert re.search(rf"expected results of this model {name} in \S+, found those of another {name}", said)
    assert out.read_bytes() == before


def test_two_at_once_are_refused(predict, recordings, tmp_path):
    out = tmp_path / "results.csv"
    with locked(out):
        assert "is in use by another process" in predict(recordings / "0.wav", f"--out={out}", status=2)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out=results.txt"], "give --format=json or --format=csv"),
        (["--out=results.csv", "--format=table"], "give --format=json or --format=csv"),
        (["--out=/dev/null/results.csv"], "expected a file that can be written"),
        (["--batch=0"], "batch_size: expected a whole number >= 1"),
        (["--max-seconds=0"], "max_seconds"),
        (["--device=toaster"], "toaster"),
        (["--model=nowhere"], "nowhere: expected the folder of a finished run"),
    ],
)
def test_wrong_words(run_folder, recordings, capfd, words, said):
    options = [f"--model={run_folder}", "--device=cpu", *words]
    assert cli(["predict", str(recordings / "0.wav"), *options]) == 2
    assert said in capfd.readouterr().err


def test_too_long_and_too_short_are_listed(predict, recordings):
    soundfile.write(recordings / "short.wav", np.zeros(100), 16_000)
    names = [recordings / name for name in ("0.wav", "short.wav")]
    out, err = predict(*names, "--max-seconds=0.5", status=1)
    assert len(out.splitlines()) == 1 and "too long" in err and "too short" in err and "2 of 2 recordings" in err
