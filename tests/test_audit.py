"""Published splits, made small in their documented forms: what leaks is found, and nothing else."""

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
import soundfile

from speechbrain_ser.cli import main
from speechbrain_ser.data.manifest import COLUMNS
from speechbrain_ser.data.protocols import make_folds
from speechbrain_ser.files import write_csv, write_json

PARTS = ("train", "valid", "test")


def clean(n_folds: int = 1) -> pd.DataFrame:
    """Three speakers in a session each, 0, 1 and 2, say what nobody else says and feel everything."""
    of = [(s, e, t) for s in range(3) for e in ("angry", "sad") for t in range(2)]
    frame = pd.DataFrame({"file": [f"s{s}/{s}{e}{t}.wav" for s, e, t in of], "label": [e for _, e, _ in of]})
    frame["text"], frame["duration"] = [f"of{s} is {e} take{t}" for s, e, t in of], [1 + s + t / 7 for s, _, t in of]
    frame["speaker"], frame["session"] = [f"s{s}" for s, *_ in of], [f"S{s}" for s, *_ in of]
    names = ["split"] if n_folds == 1 else [f"fold{k}" for k in range(n_folds)]
    return frame.assign(**{name: [PARTS[(s + k) % 3] for s, *_ in of] for k, name in enumerate(names)})


def judged(capsys, *arguments) -> tuple[int, dict]:
    """The status, and by check the verdict of the only split."""
    status = main(["audit", *map(str, arguments), "--format=json"])
    (found,) = json.loads(capsys.readouterr().out)
    return status, {each["check"]: each for each in found["verdicts"]} | {"all": found}


def wrong(found: dict) -> list[str]:
    return [c for c, each in found.items() if c != "all" and each["verdict"] in ("LEAKS", "FAULT")]


@pytest.mark.parametrize(("n_folds", "separator"), [(1, ","), (3, "\t")])
def test_a_clean_split_is_called_clean(tmp_path, capsys, n_folds, separator):
    clean(n_folds).to_csv(tmp_path / "split.csv", index=False, sep=separator)
    status, found = judged(capsys, tmp_path / "split.csv")
    assert status == 0 and found["all"]["unknown"] == ["near-duplicates"]
    assert sum(each.get("verdict") == "PASS" for each in found.values()) == 7
    assert main(["audit", str(tmp_path / "split.csv")]) == 0
    assert "verdict: clean; unknown: near-duplicates" in capsys.readouterr().out
    if n_folds > 1:
        frame = clean(3)
        frame.loc[0, "fold2"], frame.loc[4, "fold0"] = "train", "test"  # never tested; tested once more
        frame.to_csv(tmp_path / "split.csv", index=False)
        said = judged(capsys, tmp_path / "split.csv")[1]["coverage"]["said"]
        assert said.count("1 are ") == 2 and "never tested, e.g. s0/0angry0.wav" in said


TRAINED, VALIDATED, TESTED = 0, 4, 8  # rows of the clean split


@pytest.mark.parametrize(
    ("check", "row", "changed"),
    [
        ("speakers", TESTED, {"speaker": "s0"}),
        ("sessions", TESTED, {"session": "S0"}),
        ("texts", TESTED, {"text": "Of0 is; ANGRY, take0!"}),
        ("recordings", TESTED, {"file": "x/0angry0.flac", "duration": 1}),
        ("validation", VALIDATED, {"speaker": "s2"}),
        ("validation", VALIDATED, {"text": "of2 is sad take1"}),
        ("classes", slice(TESTED + 2, None), {"label": "angry"}),
        ("classes", slice(VALIDATED, VALIDATED + 2), {"label": "sad"}),
        ("coverage", TESTED + 1, {"file": "s2/2angry0.wav", "text": "of2 is angry take0", "duration": 3.0}),
    ],
)
def test_each_leak_is_found_alone(tmp_path, capsys, check, row, changed):
    frame = clean()
    frame.loc[row, list(changed)] = list(changed.values())
    frame.to_csv(tmp_path / "split.csv", index=False)
    status, found = judged(capsys, tmp_path / "split.csv")
    assert status == 1 and wrong(found) == [check], found[check]["said"]
    if check in ("speakers", "sessions", "texts", "recordings"):
        assert (found[check]["shared"], found[check]["tested"]) == (1, 4) and found[check]["folds"] == {"": 1}
        other = changed.get("file", "s2/2angry0.wav")
        assert f"{other} in test, s0/0angry0.wav in train" in found[check]["said"]


def test_what_is_unknown_is_not_called_clean(tmp_path, capsys):
    frame = clean()[["file", "label", "split"]]
    frame.to_csv(tmp_path / "split.csv", index=False)
    status, found = judged(capsys, tmp_path / "split.csv")
    assert status == 0 and found["all"]["unknown"] == ["speakers", "sessions", "texts", "near-duplicates", "validation"]
    assert main(["audit", str(tmp_path / "split.csv")]) == 0
    assert "verdict: undecided; unknown: speakers, sessions, texts" in capsys.readouterr().out
    status, found = judged(capsys, tmp_path / "split.csv", "--speaker=^s([012])/")
    assert found["speakers"]["verdict"] == "PASS"
    frame["file"] = [f"x/{name[3:]}" for name in frame["file"]]
    frame.loc[TESTED, "file"] = "y/0ANGRY0.flac"  # of no known length
    frame.assign(label="angry").to_csv(tmp_path / "split.csv", index=False)
    assert judged(capsys, tmp_path / "split.csv")[1]["recordings"]["verdict"] == "LEAKS"
    clean().assign(speaker=["s0"] * 4 + [""] * 8).to_csv(tmp_path / "split.csv", index=False)
    found = judged(capsys, tmp_path / "split.csv")[1]["speakers"]
    assert found["verdict"] == "UNKNOWN" and "unknown for 4 of 8 rows" in found["said"]


def test_a_speaker_of_two_spellings_is_one(tmp_path, capsys):
    frame = clean()
    frame.loc[TESTED, "speaker"] = "S0"
    frame.to_csv(tmp_path / "split.csv", index=False)
    status, found = judged(capsys, tmp_path / "split.csv")
    assert status == 1 and "speakers" in wrong(found)


def test_columns_of_other_names_and_folds_in_turn(tmp_path, capsys):
    """A class may be missing in the test part of a fold, but in no training part."""
    frame = clean().drop(columns="split").rename(columns={"label": "intended", "speaker": "SPK_ID", "session": "fold"})
    for rows, verdict in ((8, "PASS"), (slice(8, 9), "PASS"), (slice(4, 9), "FAULT")):  # speaker 2; and speaker 1
        frame.loc[rows, "intended"] = "sad"
        frame.to_csv(tmp_path / "split.tsv", index=False, sep="\t")
        status, found = judged(capsys, tmp_path / "split.tsv", "--columns={label: intended}")
        assert found["classes"]["verdict"] == verdict and status == (verdict == "FAULT")
    assert "test of S2 has no angry" in found["classes"]["said"] and found["speakers"]["verdict"] == "PASS"
    assert "is tested once" in found["coverage"]["said"] and [*found["all"]["folds"]] == ["S0", "S1", "S2"]


def test_recordings_are_heard(tmp_path, capsys):
    frame, rng = clean(), np.random.default_rng(0)
    for k, file in enumerate(frame["file"]):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        moving = np.sin(np.arange(8000 + 10 * k) / rng.integers(200, 900))
        soundfile.write(tmp_path / file, np.clip(rng.normal(size=len(moving)) * moving / 5, -1, 1), 16000)
    first, rate = soundfile.read(tmp_path / frame["file"][TRAINED])
    frame.to_csv(tmp_path / "split.csv", index=False)
    arguments = (tmp_path / "split.csv", f"--data_folder={tmp_path}")
    assert judged(capsys, *arguments)[1]["all"]["unknown"] == []
    soundfile.write(tmp_path / frame["file"][TESTED], first, rate)
    assert wrong(judged(capsys, *arguments)[1]) == ["recordings"]
    soundfile.write(tmp_path / frame["file"][TESTED], first * 0.4, rate)  # the same, quieter
    assert wrong(judged(capsys, *arguments)[1]) == ["near-duplicates"]
    (tmp_path / frame["file"][TESTED]).unlink()
    assert main(["audit", *map(str, arguments)]) == 2
    assert "s2/2angry0.wav" in capsys.readouterr().err


def write_folds(folds: Iterable, of: dict, write) -> None:
    """Let `write` put the rows of utterances in each fold's files: `of` says which fold tests an utterance."""
    for fold in folds:
        for part in ("train", "test"):
            write(fold, part, [name for name in of if (of[name] == fold) == (part == "test")])


def test_emobox(tmp_path, capsys):
    """`fold_k/<corpus>_<part>_fold_k.jsonl` beside the same as .json; no speaker, no text: EMO-DB's names tell both."""

    def write(fold, part, names):
        rows = [{"key": f"emodb-{n}", "dataset": "emodb", "wav": f"downloads/emodb/wav/{n}.wav"} for n in names]
        rows = [{**row, "length": 1.5, "emo": "anger" if "W" in row["key"] else "sadness"} for row in rows]
        file = tmp_path / "emodb" / f"fold_{fold}" / f"emodb_{part}_fold_{fold}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(map(json.dumps, rows)))
        write_json({row.pop("key"): row for row in rows}, file.with_suffix(".json"))

    write_folds((1, 2), {f"{who}{text}{code}a": k for k, who in ((1, "03"), (2, "08"))
                         for text in ("a01", "b02") for code in "WT"}, write)  # fmt: skip
    (tmp_path / "emodb" / "emodb.jsonl").write_text("{}")  # all of them: no part
    write_json({"anger": "Angry", "sadness": "Sad"}, tmp_path / "emodb" / "label_map.json")
    status, found = judged(capsys, tmp_path)
    assert status == 1 and wrong(found) == ["texts"] and found["all"]["classes"] == ["Angry", "Sad"]
    assert list(found["all"]["folds"]) == ["emodb_fold_1", "emodb_fold_2"]
    assert (found["texts"]["told"], found["texts"]["majority_of_heard"]) == (0.5, 0.5)


TURNS = [
    f"Ses0{session}{half}_{dialog}_{who}00{k}"
    for session in (1, 2) for half in "FM" for dialog in ("impro01", "script02_1b") for who in "FM" for k in range(2)
]  # fmt: skip


def test_superb(tmp_path, capsys):
    """Its column speaker is the dialog, in which two speak; a script is played in every session."""

    def write(session, part, turns):
        rows = [{"path": f"Session{t[4]}/sentences/wav/{t[:-5]}/{t}.wav", "speaker": t[:6]} for t in turns]
        rows = [row | {"label": ("neu", "ang")[k % 2]} for k, row in enumerate(rows)]
        (tmp_path / f"Session{session}").mkdir(exist_ok=True)
        content = {"labels": {"neu": 0, "ang": 1}, "meta_data": rows}
        write_json(content, tmp_path / f"Session{session}" / f"{part}_meta_data.json")

    write_folds("12", {turn: turn[4] for turn in TURNS}, write)
    status, found = judged(capsys, tmp_path)
    assert status == 1 and wrong(found) == ["scripts"] and found["texts"]["verdict"] == "UNKNOWN"
    assert list(found["all"]["folds"]) == ["Session1", "Session2"]
    assert "'Ses01F' is 01F and 01M by these names" in found["all"]["notes"][1]


def test_cai(tmp_path, capsys):
    """Folds by dialog prefix: both speakers of a session are trained on and tested."""

    def write(fold, part, turns):
        said = [f"{t} HERE ." if "impro" in t else f"THE SAME FOR E{t[-1]} ." for t in turns]
        rows = {"file": [f"/path_to_wavs/{t}.wav" for t in turns], "emotion": [f"e{t[-1]}" for t in turns]}
        write_csv(pd.DataFrame({**rows, "text": said}), tmp_path / f"iemocap_{fold}.{part}.csv")

    write_folds(folds := ["01F", "01M", "02F", "02M"], {turn: turn[3:6] for turn in TURNS}, write)
    status, found = judged(capsys, tmp_path)
    assert status == 1 and wrong(found) == ["speakers", "sessions", "scripts", "texts"]
    assert (found["speakers"]["shared"], found["texts"]["shared"]) == (32, 16)
    assert found["texts"]["told"] == 1 and found["texts"]["words"] > 0.5
    assert [*found["all"]["folds"]] == [f"iemocap_{fold}" for fold in folds]


def test_manifest_with_a_protocol_and_runs(tmp_path, capsys):
    frame = clean().rename(columns={"file": "ID", "label": "emotion", "text": "transcript"}).drop(columns="split")
    frame = frame.assign(wav="{data_root}/" + frame["ID"], corpus="table").reindex(columns=COLUMNS, fill_value="")
    (tmp_path / "manifests").mkdir()
    write_csv(frame, tmp_path / "manifests" / "table-12345678.csv")
    status, found = judged(capsys, tmp_path / "manifests" / "table-12345678.csv", "--protocol=random_plain")
    assert status == 1 and "speakers" in wrong(found) and len(found["all"]["folds"]) == 5
    folds = make_folds(frame.assign(text=frame["transcript"]), "speaker")
    lines = f"corpus: table\nprotocol: speaker\nlabels:\nmanifest_folder: {tmp_path / 'manifests'}\n"
    for name in ("s0", "s1"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "hyperparams.yaml").write_text(lines + "model: !new:os.system [exit 1]\n")
        write_csv(pd.DataFrame({"ID": folds[name].test}), run / "predictions.csv")
        write_json({"fold": name}, run / "metrics.json")
    status, found = judged(capsys, tmp_path / "runs")
    assert wrong(found) == ["coverage"] and found["all"]["notes"] == ["2 of the protocol's 3 folds have been run"]
    write_csv(pd.DataFrame({"ID": folds["s0"].test}), tmp_path / "runs" / "s1" / "predictions.csv")
    assert main(["audit", str(tmp_path / "runs")]) == 2 and "--protocol=…" in capsys.readouterr().err
    (tmp_path / "runs" / "s0" / "predictions.csv").unlink()
    assert main(["audit", str(tmp_path / "runs")]) == 2 and "expected a finished run" in capsys.readouterr().err


ROW = "file,label,split\na.wav,sad,train\n"


@pytest.mark.parametrize(
    ("text", "option", "said"),
    [
        (f"{ROW}a,sad,train,x", "", "expected a CSV, TSV, JSON or JSON lines"),
        ("", "", "expected a row an utterance, found none"),
        (f'{ROW}b,"sad,train\nc,sad,test\n', "", 'quotation mark (") that takes whole lines'),  # else rows are lost
        ("file,label,split\n", "", "expected a row an utterance, found none"),
        ("file,label\na.wav,sad\n", "", "is not a split: expected a column split"),
        ("file,mood,split\na.wav,sad,train\n", "", "no emotion (1):\n  name it: --columns='{label: …}'"),
        ("file,mood,split\na.wav,sad,train\n", "--columns={label: moood}", "(did you mean 'mood'?)"),
        (ROW, "--columns={labl: label}", "'labl' (did you mean 'label'?)"),
        (ROW, "--columns=label", "--columns: expected ours: theirs"),
        (ROW, "", "no part that is trained on, or none that is tested"),
        (f"{ROW}b.wav,sad,tset\n", "", "found ['tset']"),
        (f"{ROW}b.wav,,test\n", "", "expected a label in every row, found none in 1"),
        (f"{ROW}a.wav,sad,train\nb.wav,sad,test\n", "", "found 'a.wav' again"),
        (f"{ROW}b.wav,sad,test\n", "--speaker=(", "regular expression"),
        (f"{ROW}b.wav,sad,test\n", "--speaker=(?:x)", "finds nobody in 2 names"),
        (",file,label,split\n0,a.wav,sad,train\n", "", "no part that is trained on, or none that is tested"),
        (f"{ROW}b.wav,sad,test\n", "--speaker=x", "finds nobody in 2 names"),
    ],
)
def test_bad_input(tmp_path, capsys, text, option, said):
    path = tmp_path / "table.csv"
    path.write_text(text)
    assert main(["audit", str(path), *filter(None, [option])]) == 2
    error = capsys.readouterr().err
    assert said in error and ("table.csv" in error or option)
    clean().to_csv(tmp_path / "table_train.csv", index=False)
    assert main(["audit", str(tmp_path / "table_train.csv")]) == 2 and ": train)" in capsys.readouterr().err
