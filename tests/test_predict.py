"""The command `predict`: what it finds, what it prints, what it writes, how it goes on, and what it refuses."""

# ruff: noqa: F811 (fixtures of other files)
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from praatio.textgrid import openTextgrid

from speechbrain_ser.cli import main as cli
from speechbrain_ser.data.batches import SAMPLE_RATE, load_audio
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import locked
from speechbrain_ser.inference.embed import embed
from speechbrain_ser.inference.formats import csv_text, json_text, origin_of, records_to_csv, results_file
from speechbrain_ser.inference.predict import find_recordings
from speechbrain_ser.inference.recognizer import EmotionRecognizer, Recognition, open_recognizer
from speechbrain_ser.inference.timeline import plan_windows
from speechbrain_ser.inference.turns import follow_turns, read_turns
from speechbrain_ser.lobes.encoder import Encoder
from speechbrain_ser.lobes.pretrained import LayerStatistics
from speechbrain_ser.processing import voice_activity

from .conftest import ROOT
from .test_timeline import long_recording, made, wavs  # noqa: F401 (fixtures)


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
        found = cli(["predict", *map(str, words), f"--model={model}", "--trust-run", "--device=cpu"])
        out, err = capfd.readouterr()
        assert found == status, f"{out}\n{err}"
        return out, err

    return run


def test_files_folders_and_subfolders(recordings, monkeypatch):
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
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(UserError, match="empty list on standard input"):
        find_recordings(["-"])


def test_what_a_folder_has_that_is_passed_over(recordings, caplog):
    for name in ("a.m4a", "b.m4a", "c.WMA", ".d.m4a"):
        (recordings / name).touch()
    (recordings / "linked").symlink_to(recordings / "more")
    find_recordings([str(recordings)])
    assert len(find_recordings([str(recordings)], recursive=True)) == 6
    flat, deep = (record.getMessage() for record in caplog.records)
    assert flat == f"{recordings}: passed over: 2 .m4a ({UNHEARD}), 1 .wma ({UNHEARD})"
    assert deep == f"{flat}, 1 linked folders (name them to look into them)"


UNHEARD = "soundfile does not read it"


def test_a_console_without_the_letters(recordings, run_folder):
    name = shutil.copy(recordings / "0.wav", recordings / "\u5f55\u97f3.wav")
    command = [sys.executable, "-m", "speechbrain_ser.cli", "predict", name, f"--model={run_folder}", "--device=cpu"]
    command.append("--trust-run")
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and rb"\u5f55\u97f3.wav " in done.stdout, done.stderr.decode()


def test_results_are_the_recognizers(predict, recordings, run_folder):
    """The file that is no recording is listed at the end, and nothing else suffers."""
    out, err = predict(recordings, "--format=json", "--batch=2", status=1)
    found = [json.loads(line) for line in out.splitlines()]
    recognizer = EmotionRecognizer.from_run(run_folder, {"device": "cpu"}, min_speech=0.1)
    assert [Path(row["path"]).name for row in found] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    for row in found:
        expected = recognizer.classify_file(row["path"])
        assert (row["emotion"], row["transcript"]) == (expected.emotion, expected.transcript)
        assert row["posteriors"] == pytest.approx(expected.posteriors, abs=1e-4) and row["transcript"]
        assert (row["model"], row["speech_by"]) == (recognizer.model_id, recognizer.speech_by)
        assert row["speech"] == pytest.approx(expected.speech, abs=1e-6) and row["speech"] > 0.5
    assert re.search(r"1 of 5 recordings gave no result:\n  \S+/bad.wav: unreadable recording", err)
    first, (names, *rows) = found[0], predict(recordings, "--recursive", status=1)[0].splitlines()
    assert names.split() == ["recording", "emotion", "posterior", "speech", "transcript"] and len(rows) == 5
    posterior = f"{max(first['posteriors'].values()):.3f}"
    speech = f"{first['speech']:.2f}"
    assert re.split(r"  +", rows[0]) == [first["path"], first["emotion"], posterior, speech, first["transcript"]]
    assert predict(recordings / "0.wav", "--no-transcript")[0].splitlines()[0].split()[-1] == "speech"


def test_segments_on_the_console(predict, run_folder, long_recording):
    expected = EmotionRecognizer.from_run(run_folder, {"device": "cpu"}, min_speech=0.1).timeline(long_recording)
    rows = list(csv.DictReader(io.StringIO(predict(long_recording, "--window", "--format=csv")[0])))
    assert [(float(r["start"]), float(r["end"]), r["emotion"], r["transcript"]) for r in rows] == [
        (s.start, s.end, s.emotion or "", expected.text_of(s)) for s in expected.segments
    ]
    content = json.loads(predict(long_recording, "--window=4", "--step=2", "--format=json")[0])
    assert content == {**expected.to_dict(), "model": rows[0]["model"], "speech_by": rows[0]["speech_by"]}
    table = [re.split("  +", line) for line in predict(long_recording, "--window")[0].splitlines()]
    assert table[0] == ["recording", "start", "end", "emotion", "posterior", "speech", "transcript"]
    assert len(table) == 1 + len(rows) and table[1][1:3] == ["0.00", f"{expected.segments[0].end:.2f}"]


@pytest.mark.parametrize("kind", ["silero-vad", "energy"])
def test_what_holds_no_speech_gets_no_emotion(predict, recordings, tmp_path, monkeypatch, caplog, kind):
    """By energy, noise passes for speech, which is said."""
    if kind == "energy":
        monkeypatch.setattr(voice_activity, "_silero", lambda: None)
    else:
        pytest.importorskip("silero_vad")
    rng, times = np.random.default_rng(0), np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    clicks = np.zeros_like(times)
    clicks[::8000] = 0.9
    sounds = {
        "clicks": clicks,
        "hum": 0.3 * np.sin(100 * np.pi * times),
        "noise": 0.1 * rng.standard_normal(len(times)),
    }
    for name, samples in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, SAMPLE_RATE)
    out, _ = predict(*(tmp_path / f"{name}.wav" for name in sounds), recordings / "0.wav", "--format=json")
    *strange, speech = map(json.loads, out.splitlines())
    assert {row["speech_by"] for row in (*strange, speech)} == {kind} and ("by energy" in caplog.text) == (
        kind == "energy"
    )
    assert speech["emotion"] and speech["speech"] > 0.5
    assert [row["emotion"] is None for row in strange] == [True] + 2 * [kind == "silero-vad"]
    assert f"{1 if kind == 'energy' else 3} of 4 recordings hold no speech" in caplog.text
    assert json.loads(predict(tmp_path / "clicks.wav", "--min-speech=0", "--format=json")[0])["emotion"]
    rows = csv.DictReader(io.StringIO(predict(tmp_path / "clicks.wav", "--window", "--format=csv")[0]))
    assert [(row["start"], row["end"], row["emotion"]) for row in rows] == [("0.0", "2.0", "")]


@pytest.fixture
def conversation(recordings) -> tuple[Path, list[Path]]:
    """Three utterances with pauses in a recording, its RTTM beside it: B says the first and the last."""
    wavs, samples, lines = [recordings / f"{k}.wav" for k in range(3)], [], []
    for wav, speaker in zip(wavs, "BAB", strict=True):
        samples += [np.zeros(SAMPLE_RATE), soundfile.read(wav)[0]]
        start = sum(map(len, samples[:-1])) / SAMPLE_RATE
        lines.append(f"SPEAKER talk 1 {start} {len(samples[-1]) / SAMPLE_RATE} <NA> <NA> {speaker} <NA> <NA>\n")
    path = recordings / "more" / "talk.wav"
    soundfile.write(path, np.concatenate(samples), SAMPLE_RATE)
    path.with_suffix(".rttm").write_text("".join(lines))
    return path, wavs


def test_segments_of_speakers_are_what_single_files_are(predict, run_folder, conversation, tmp_path):
    talk, wavs = conversation
    by_rttm = (talk, f"--segments={talk.with_suffix('.rttm')}")
    found = json.loads(predict(*by_rttm, "--format=json")[0])
    recognizer = EmotionRecognizer.from_run(run_folder, {"device": "cpu"}, min_speech=0.1)
    assert [segment["speaker"] for segment in found["segments"]] == ["B", "A", "B"]
    for segment, expected in zip(found["segments"], recognizer.classify_files(wavs), strict=True):
        assert (segment["emotion"], segment["transcript"]) == (expected.emotion, expected.transcript)
        assert segment["posteriors"] == pytest.approx(expected.posteriors, abs=1e-4)
    predict(*by_rttm, "--format=textgrid", f"--out={tmp_path / 'grids'}", f"--picture={tmp_path / 'pictures'}")
    grid = openTextgrid(str(tmp_path / "grids" / "talk.TextGrid"), includeEmptyIntervals=False)
    assert {"emotion of A", "emotion of B"} <= {*grid.tierNames} and (tmp_path / "pictures" / "talk.png").is_file()
    predict(*by_rttm, "--format=srt", f"--out={tmp_path / 'srt'}")
    again = read_turns(tmp_path / "srt" / "talk.srt", "talk")
    assert [turn.start for turn in again] == pytest.approx([s["start"] for s in found["segments"]], abs=1e-3)
    assert again[1].text.startswith(f"A: {found['segments'][1]['emotion']} 0.")
    rows = list(csv.DictReader(io.StringIO(predict(talk, "--segments=vad", "--format=csv")[0])))
    assert len(rows) == 3 and {row["segments_by"] for row in rows} == {"vad"}
    for row, segment in zip(rows, found["segments"], strict=True):
        assert float(row["start"]) < segment["end"] and float(row["end"]) > segment["start"]


def test_a_segment_without_an_answer_has_the_same_columns(predict, conversation, tmp_path):
    """The first second of the recording is digital silence."""
    talk, _ = conversation
    table = tmp_path / "turns.csv"
    table.write_text(f"file,start,end\n{talk.name},0.2,0.8\n{talk.name},1.0,1.6\n")
    silent, speech = csv.DictReader(io.StringIO(predict(talk, f"--segments={table}", "--format=csv")[0]))
    assert {silent["segments_by"], speech["segments_by"]} == {table.name} and list(silent) == list(speech)
    assert [silent[name] == "" for name in ("emotion", "posterior_angry", "speech")] == [True] * 3
    assert 0 < float(speech["posterior_angry"]) < 1
    assert len(predict(talk, f"--segments={table}")[0].splitlines()) == 3


def test_long_segments_are_heard_in_windows(run_folder, conversation, tmp_path, monkeypatch):
    """Those of a cut-out file, moved to where the segment begins."""
    (talk, wavs), longest = conversation, 0.5
    monkeypatch.setattr("speechbrain_ser.inference.turns.WHOLE", longest)
    recognizer = EmotionRecognizer.from_run(run_folder, {"device": "cpu"}, min_speech=0.1)
    turns = read_turns(talk.with_suffix(".rttm"), "talk")
    found = follow_turns(recognizer, talk, turns, plan_windows(recognizer, 0.4, 0.2), "talk.rttm")
    assert found.by == "talk.rttm" and min(turn.end - turn.start for turn in turns) > longest
    for turn, alone in zip(turns, recognizer.timelines(wavs, 0.4, 0.2), strict=True):
        here = [segment for segment in found.segments if turn.start <= segment.start < turn.end]
        assert {segment.speaker for segment in here} == {turn.speaker}
        ends = [(segment.start - turn.start, segment.end - turn.start, segment.emotion) for segment in here]
        expected = [(segment.start, segment.end, segment.emotion) for segment in alone.segments]
        assert np.array(ends)[:, :2].astype(float) == pytest.approx(np.array(expected)[:, :2].astype(float), abs=1e-6)
        assert [emotion for *_, emotion in ends] == [emotion for *_, emotion in expected]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.rttm", "SPEAKER talk 1 x 2 <NA> <NA> A <NA> <NA>\n\nhello\n", r"line 1: .*\n  line 3: 'hello'"),
        (
            "a.rttm",
            "SPEAKER talk 1 1 99 <NA> <NA> A <NA> <NA>\n",
            r"beyond the recording's end.*\n  line 1: 1 to 100 s",
        ),
        ("a.rttm", "SPEAKER talk 1 1 0 <NA> <NA> A <NA> <NA>\n", r"empty segments.*\n  line 1"),
        (
            "a.rttm",
            "".join(f"SPEAKER talk 1 {k} 1.5 <NA> <NA> A\n" for k in (0, 1)),
            r"same speaker.*\n  line 2.*line 1",
        ),
        ("a.rttm", "SPEAKER x 1 1 1 <NA> <NA> A\nSPEAKER y 1 1 1 <NA> <NA> A\n", "of talk, found those of x, y"),
        ("a.csv", "from,to\n1,2\n", "missing .*\n  start, end"),
        ("a.csv", "start,end\n1,2\n3,\n", "line 3: '3', ''"),
        ("a.srt", "1\n00:00:01,0 --> 2\nHi\n", "line 2: '00:00:01,0 --> 2'"),
        ("a.TextGrid", "none", "no TextGrid"),
        ("a.txt", "", "expected vad, or a file .rttm, .textgrid, .csv, .srt"),
        ("a.rttm", "", "expected segments, found none"),
    ],
)
def test_segments_that_cannot_be(predict, conversation, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    _, err = predict(conversation[0], f"--segments={tmp_path / name}", status=2)
    assert re.search(said, err), err


def test_shares_of_speech_whatever_the_blocks(recordings):
    wav = load_audio(recordings / "0.wav")
    threads = torch.get_num_threads()
    found = [voice_activity.VoiceActivity() for _ in range(2)]
    heard = [torch.cat([*each.hear(wav.split(size))]) for each, size in zip(found, (len(wav), 1_111), strict=True)]
    assert torch.equal(heard[1], wav) and (found[0].frames == found[1].frames).all()
    assert len(found[0].frames) == -(-len(wav) // voice_activity.FRAME) and torch.get_num_threads() == threads
    frames = found[0].frames[:2].mean()
    assert found[0].shares([0, 1024, len(wav)])[0] == pytest.approx(frames)


def test_as_a_program(recordings, run_folder):
    """Results on stdout alone, the rest on stderr; names of any encoding and line ends; a reader that leaves early."""
    name = os.fsdecode(b"M\xe4rz 1.wav")
    shutil.copy(recordings / "0.wav", recordings / name)
    words = ("predict", "-", f"--model={run_folder}", "--trust-run", "--device=cpu")
    command = [sys.executable, "-m", "speechbrain_ser.cli", *words]
    names = "\r\n\n".join(os.fspath(recordings / n) for n in (name, "bad.wav", "gone.wav"))
    done = subprocess.run([*command, "--format=csv"], input=os.fsencode(names), capture_output=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr.decode()
    header, row = done.stdout.splitlines()
    assert header.startswith(b"path,emotion,posterior_") and row.startswith(os.fsencode(recordings / name) + b",")
    assert b"executing" in done.stderr  # the YAML of a run
    assert b"gone.wav: no such recording" in done.stderr and b"bad.wav: unreadable" in done.stderr

    process = subprocess.Popen([*command, "--batch=1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    process.communicate(os.fsencode(recordings / "0.wav"))
    assert process.returncode == 1


@pytest.mark.parametrize("name", ["results.csv", "results.json"])
def test_a_second_call_goes_on(predict, recordings, tmp_path, name, monkeypatch):
    out = tmp_path / "new" / name
    lines = out if name.endswith("json") else Path(f"{out}.jsonl")
    predict(recordings / "1.wav", recordings / "2.wav", f"--out={out}")
    assert len(paths_in(out)) == 2
    lines.write_text(lines.read_text()[:-20])  # a process that was killed
    asked = []
    stream = EmotionRecognizer._stream
    monkeypatch.setattr(EmotionRecognizer, "_stream", lambda s, p, *a: asked.extend(p) or stream(s, p, *a))
    said = predict(recordings, "--recursive", f"--out={out}", status=1)[1]
    assert f"1 of 6 recordings are in {out} already" in said and "1 of 6 recordings gave no result" in said
    assert [Path(path).name for path in asked] == ["0.wav", "2.wav", "3.wav", "bad.wav", "4.wav"]
    assert [Path(path).name for path in paths_in(out)] == ["1.wav", "0.wav", "2.wav", "3.wav", "4.wav"]
    (recordings / "bad.wav").unlink()
    asked.clear()
    predict(recordings, "--recursive", f"--out={out}")
    assert not asked


def paths_in(out: Path) -> list[str]:
    frame = pd.read_csv(out) if out.suffix == ".csv" else pd.read_json(out, lines=True)
    assert frame.notna().all(axis=None)
    return frame["path"].tolist()


@pytest.mark.parametrize("name", ["results.csv", "results.json"])
def test_ctrl_c_leaves_what_there_is(predict, recordings, tmp_path, monkeypatch, name):
    stream = EmotionRecognizer._stream

    def interrupted(recognizer, paths, *rest):
        yield from stream(recognizer, paths[:2], *rest)
        raise KeyboardInterrupt

    out = tmp_path / name
    monkeypatch.setattr(EmotionRecognizer, "_stream", interrupted)
    _, said = predict(recordings, f"--out={out}", status=130)
    assert "the same command goes on" in said and len(paths_in(out)) == 2
    with locked(out if out.suffix == ".json" else f"{out}.jsonl"):  # nobody has it any more
        pass


NAMES = ["a.wav", 'b, "c".wav', "line\nend.wav", os.fsdecode(b"\xe4\xff.wav"), "ä.wav"]
KINDS = {
    "whole": lambda name: Recognition(name, "sad", {"angry": 0.25, "sad": 0.75}, "SO IST ES"),
    "timeline": made,
}


def record_of(kind: str, name: str = "a.wav", **changes) -> dict:
    return {**KINDS[kind](name).to_dict(), "model": "c0ffee", **changes}


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere_a_file_is_repaired(tmp_path, kind):
    """Names with commas, quotes, line ends and wrong bytes among them."""
    records = {name: record_of(kind, name) for name in NAMES}
    path, origin = tmp_path / "results", origin_of(records["a.wav"])
    with results_file(path, origin) as results:
        for record in records.values():
            results.add(record)
    whole = path.read_bytes()
    for end in range(0, len(whole) + 1, 1 + len(whole) // 200):
        path.write_bytes(whole[:end])
        with results_file(path, origin) as results:
            left = [name for name in NAMES if name not in results.done]
            assert left == NAMES[len(NAMES) - len(left) :]
            for name in left:
                results.add(records[name])
            assert list(results.records()) == list(records.values())
        assert path.read_bytes() == whole, end


@pytest.mark.parametrize(("kind", "rows"), [("whole", 1), ("timeline", 3)])
def test_a_csv_file_is_one_for_other_programs(tmp_path, kind, rows):
    path = tmp_path / "results.csv"
    records_to_csv((record_of(kind, name) for name in NAMES), path)
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        found = list(csv.DictReader(file))
    assert [row["path"] for row in found] == [name for name in NAMES for _ in range(rows)]
    assert (found[0]["posterior_sad"], found[0]["model"], found[0]["transcript"]) == ("0.75", "c0ffee", "SO IST ES")
    if kind == "timeline":
        assert [*found[1].values()] == (
            ["a.wav", "4.0", "6.0", "12.5", "", "0.5", "0.5", 'EIN "WORT", JA', "4.0", "2.0", "c0ffee"]
        )


def test_textgrids_and_pictures_resume_and_overwrite_nothing(predict, recordings, long_recording, tmp_path):
    """Two recordings of one name in two folders, one of them long, and one that is none."""
    for path in recordings.glob("*.wav"):
        path.rename(recordings / "more" / "a.wav") if path.name == "0.wav" else path.unlink()
    (recordings / "more" / "4.wav").write_text("no recording")
    shutil.copy(long_recording, recordings / "a.flac")
    grids, pictures = tmp_path / "grids", tmp_path / "new" / "pictures"
    grids.mkdir()
    (grids / "a.TextGrid").write_text("my own annotation")
    words = [recordings, "--recursive", "--format=textgrid", f"--out={grids}", f"--picture={pictures}"]
    predict(*words, status=1)
    index = grids / "index.TextGrid.jsonl"
    assert {path.name for path in grids.iterdir()} == {"a.TextGrid", "a-2.TextGrid", "a-3.TextGrid", index.name}
    assert {path.name for path in pictures.iterdir()} == {"a.png", "a-2.png", "index.png.jsonl"}
    assert (grids / "a.TextGrid").read_text() == "my own annotation"
    assert all((pictures / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "a-2.png"))
    for record in map(json.loads, index.read_text().splitlines()):
        grid = openTextgrid(str(grids / record["file"]), includeEmptyIntervals=True)
        assert grid.maxTimestamp == pytest.approx(len(load_audio(record["path"])) / SAMPLE_RATE, abs=1e-4)
        assert grid.tierNames == ("emotion", "transcript")

    before = {path: path.stat().st_mtime_ns for path in (*grids.glob("*.TextGrid"), *pictures.glob("*.png"))}
    lost = pictures / "a.png"
    lost.unlink()
    _, said = predict(*words, status=1)
    assert "1 of 3 recordings are in" in said and lost.exists()  # the picture alone is made again
    assert [path for path, then in before.items() if path.stat().st_mtime_ns != then] == [lost]
    _, said = predict(*words, "--window=3", status=2)
    assert "windows of 4 s every 2 s" in said and "windows of 3 s every 1.5 s" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json_text(record_of("whole", model="decaf")), r"\(c0ffee, with .* another \(decaf, with transcripts\)"),
        (json_text(Recognition("a.wav", "sad", {"sad": 1.0}).to_dict() | {"model": "c0ffee"}), "without transcripts"),
        (json_text(record_of("timeline", window=8.0)), r"another \(c0ffee, windows of 8 s every 2 s, with"),
        *((text, "expected results in line 1 of") for text in ("my notes\n", "my notes", "{}\n", '"', "[1]\n")),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content, said):
    path, origin = tmp_path / "results", origin_of(record_of("whole"))
    path.write_text(content)
    with pytest.raises(UserError, match=f"(?s){said}.*give another file"), results_file(path, origin):
        pass
    assert path.read_text() == content


def test_another_models_file_and_one_in_use_are_refused(predict, recordings, tmp_path):
    out, strangers = tmp_path / "results.csv", tmp_path / "mine.csv"
    predict(recordings / "0.wav", f"--out={out}")
    before = out.read_bytes()
    said = predict(recordings / "1.wav", f"--out={out}", "--uncalibrated", status=2)[1]
    name = r"\(\w{16}(-temperature=[\d.]+)?, speech by [\w-]+, with transcripts\)"
    assert re.search(rf"expected results of this model {name} in line 1 of \S+, found those of another {name}", said)
    strangers.write_bytes(before)
    assert f"{strangers} alone: give another file" in predict(recordings / "1.wav", f"--out={strangers}", status=2)[1]
    assert out.read_bytes() == strangers.read_bytes() == before
    with locked(f"{out}.jsonl"):
        assert "is in use by another process" in predict(recordings / "0.wav", f"--out={out}", status=2)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out=results.txt"], "give --format=json or --format=csv"),
        (["--out=/dev/null/results.csv"], "expected a file that can be written"),
        (["--format=textgrid", "--out=/dev/null/grids"], "expected a file that can be written"),
        (["--format=textgrid"], "expected a folder for the files"),
        (["--step=9"], "step: expected"),
        (["--batch=0"], "batch_size: expected a whole number >= 1"),
        (["--device=toaster"], "toaster"),
        (["--model=nowhere"], "nowhere: expected the folder of a finished run"),
    ],
)
def test_wrong_words(run_folder, recordings, capfd, words, said):
    options = [f"--model={run_folder}", "--device=cpu", "--trust-run", *words]
    assert cli(["predict", str(recordings / "0.wav"), *options]) == 2
    assert said in capfd.readouterr().err


def test_strangers_names_neither_command_a_terminal_nor_compute(predict, recordings, tmp_path):
    """What a spreadsheet would compute is read back by taking an apostrophe away; numbers stay numbers."""
    names = ["a\x1b[2Jb\nc.wav", "=2+3.wav", "'@x.wav", "'cause.wav"]
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        shutil.copy(recordings / "0.wav", folder / name)
    (folder / "\x1b]0;bad.wav").write_text("no recording")
    out, err = predict(folder, status=1)
    assert "\x1b" not in out + err and r"a\x1b[2Jb\nc.wav" in out and r"\x1b]0;bad.wav: unreadable" in err
    assert len(out.splitlines()) == 1 + len(names)
    row = {"path": "", "emotion": "sad", "posteriors": {"sad": -0.5}, "model": "c0ffee"}
    for path, cell in {"=2+3.wav": "'=2+3.wav", "'@x.wav": "''@x.wav", "'cause.wav": "'cause.wav"}.items():
        assert next(csv.reader([csv_text(row | {"path": path})])) == [cell, "sad", "-0.5", "c0ffee"]


def test_a_strangers_run_is_not_executed(run_folder, recordings, tmp_path, monkeypatch, capfd):
    """Wherever it is given; one's own below ./results is, which stderr says before."""
    wav, run = str(recordings / "0.wav"), tmp_path / "elsewhere"
    shutil.copytree(run_folder, run)
    yaml = (run / "hyperparams.yaml").read_text()
    canary = tmp_path / "canary"
    (run / "hyperparams.yaml").write_text(yaml.replace("model:", f"x: !apply:os.mkdir [{canary}]\nmodel:", 1))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "link").symlink_to(run)
    for command in (
        *(["predict", wav, f"--model={folder}"] for folder in (run, "results/link", "results/../elsewhere")),
        *(["serve", f"--model={run}", "--port=0"], ["export", str(run), "out"]),
        *(["decompose", str(run), wav], ["convert", str(run), wav, "b.wav", "--swap=pitch"]),
    ):
        assert cli(command) == 2
        err = capfd.readouterr().err
        assert "executing" not in err and f"speechbrain-ser {shlex.join(command)} --trust-run\n" in err
    with pytest.raises(UserError, match=r"whose hyperparams\.yaml is code"):
        open_recognizer(run)
    assert not canary.exists()
    shutil.copytree(run_folder, "results/mine")
    assert cli(["predict", wav, "--model=results/mine", "--device=cpu"]) == 0


def test_vectors_of_a_model_are_what_its_head_reads(run_folder, recordings, tmp_path, capfd):
    out = tmp_path / "new" / "vectors.csv"
    command = ["embed", str(recordings), f"--model={run_folder}", "--trust-run", f"--out={out}", "--device=cpu"]
    assert cli(command) == 1 and "bad.wav has no vector: " in capfd.readouterr().err
    found = pd.read_csv(out, index_col="path")
    assert [Path(path).name for path in found.index] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    recognizer = EmotionRecognizer.from_run(run_folder, run_opts={"device": "cpu"})
    for path, vector in found.iterrows():
        np.testing.assert_allclose(vector, recognizer.classify_file(path, embedding=True).embedding, atol=1e-5)


def test_vectors_of_a_layer_are_mean_and_deviation(small, run_folder, recordings, tmp_path):
    lobe = Encoder(str(small.backbone()), freeze=True).eval()
    wav = recordings / "0.wav"
    expected = LayerStatistics(lobe).extract(load_audio(wav)).numpy()
    for k, options in [(-1, {}), (0, {"layer": 0}), (1, {"layer": 1})]:
        embed([str(wav)], str(tmp_path / "x.npz"), encoder=str(small.backbone()), device="cpu", **options)
        found = np.load(tmp_path / "x.npz")
        assert found["path"].tolist() == [str(wav)] and found["embedding"].dtype == np.float32
        np.testing.assert_allclose(found["embedding"], expected[[k]], atol=1e-6)
    options = {"out": str(tmp_path / "y.npz"), "device": "cpu", "trust_run": True, "layer": 1}
    assert embed([str(wav)], model=str(run_folder), **options) == 0  # fine-tuned: another encoder
    assert np.load(tmp_path / "y.npz")["embedding"].shape == found["embedding"].shape


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"out": "x.txt"}, r"--out: expected a name that ends in .npz or .csv, found x.txt"),
        ({}, "expected one of --model=… .* and --encoder=…"),
        ({"encoder": "a", "model": "b"}, "expected one of"),
        ({"encoder": "tiny", "layer": 9}, "--layer: expected a whole number from 0 to 1, found 9"),
    ],
)
def test_vectors_that_cannot_be(small, recordings, options, said):
    if options.get("encoder") == "tiny":
        options = options | {"encoder": str(small.backbone())}
    with pytest.raises(UserError, match=said):
        embed([str(recordings / "0.wav")], **{"out": "x.npz"} | options)
