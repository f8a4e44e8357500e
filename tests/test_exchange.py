"""Corpora in others' forms, read and written: audformat, EmoBox, SpeechBrain's JSON."""

import json
import shutil
import sys
from pathlib import Path

import audformat
import pandas as pd
import pytest
import yaml
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_ser.cli import main
from speechbrain_ser.data.manifest import prepare, read_manifest
from speechbrain_ser.data.protocols import leakage, make_folds
from speechbrain_ser.errors import CorpusError, UserError
from speechbrain_ser.files import write_json

from .corpus_trees import table_folder, write_wav

NAMES = [f"{who}{text}{code}a" for who in ("03", "08", "10") for text in ("a01", "b02") for code in "WT"]
EMOTIONS, EMO = {"W": "anger", "T": "sadness"}, {"W": "anger", "T": "neutral"}


def rows_of(corpus, folder, out, **options) -> pd.DataFrame:
    """The manifest, by recording."""
    frame = read_manifest(prepare(corpus, folder, out, **options), folder)
    return frame.set_axis([Path(wav).stem for wav in frame["wav"]])


def column(database, table, name, values, scheme=None):
    database[table][name] = audformat.Column(scheme_id=scheme or name)
    database[table][name].set(values)


@pytest.fixture
def database(tmp_path):
    """As audb's emodb: speakers in a misc table, texts as a scheme's labels, gold standards that have a split."""
    wavs = [write_wav(tmp_path / "db" / "wav" / f"{name}.wav").relative_to(tmp_path / "db") for name in NAMES]
    found = audformat.Database("emodb", languages=["de"])
    found["speaker"] = audformat.MiscTable(pd.Index([3, 8, 10], dtype="Int64", name="speaker"))
    found.schemes["gender"] = audformat.Scheme(labels=["female", "male"])
    column(found, "speaker", "gender", ["male", "female", "male"])
    found.schemes["speaker"] = audformat.Scheme("int", labels="speaker")
    found.schemes["transcription"] = audformat.Scheme(labels={"a01": "Der Lappen.", "b02": "Sie haben es."})
    found.schemes["emotion"] = audformat.Scheme(labels=["anger", "sadness"])
    found.splits |= {"train": audformat.Split("train"), "test": audformat.Split("test")}
    index = audformat.filewise_index(list(map(str, wavs)))
    emotions = [EMOTIONS[name[5]] for name in NAMES]
    for table, rows in {"train": slice(8), "test": slice(8, 12)}.items():
        found[f"{table}.gold"] = audformat.Table(index[rows], split_id=table)
        column(found, f"{table}.gold", "emotion", emotions[rows])
    found["desired"], found["files"] = audformat.Table(index), audformat.Table(index)
    column(found, "desired", "emotion", emotions)
    column(found, "files", "speaker", [int(name[:2]) for name in NAMES])
    column(found, "files", "transcription", [name[2:5] for name in NAMES])
    found.save(tmp_path / "db", storage_format="parquet")
    return found


def test_a_database_is_read_by_its_schemes(tmp_path, database):
    frame = rows_of("audformat", tmp_path / "db", tmp_path / "out")
    assert list(frame.index) == sorted(NAMES) and list(frame["emotion"]) == [EMOTIONS[name[5]] for name in frame.index]
    told = frame.loc["08b02Ta", ["ID", "speaker", "gender", "transcript", "split"]]
    assert list(told) == ["wav_08b02Ta", "8", "F", "Sie haben es.", "train"]
    (fold,) = make_folds(frame, "official", 0).values()
    assert fold.name == "official" and leakage(frame, fold) is None and len(fold.test) == 4


def test_tables_are_chosen_and_segments_refused(tmp_path, database, caplog):
    folder, out = tmp_path / "db", tmp_path / "out"
    del database.tables["test.gold"]
    database.save(folder, storage_format="csv")
    assert "split" not in rows_of("audformat", folder, out) and "4 of 12 files are in no split" in caplog.text
    column(database, "desired", "emotion", ["sadness", *database["desired"].df["emotion"][1:]])
    database.save(folder, storage_format="csv")
    with pytest.raises(CorpusError, match=r"several emotions: choose tables.*\n  wav/03a01Wa.wav: \w+ in \S+, \w+ in"):
        rows_of("audformat", folder, out)
    frame = rows_of("audformat", folder, out, columns={"emotion": "d*/emotion", "transcript": "files/speaker"})
    assert frame["emotion"]["03a01Wa"] == "sadness" and frame["transcript"]["08a01Wa"] == "8" and "split" not in frame
    assert len(rows_of("audformat", folder, out, columns={"emotion": "*.gold/emotion"})) == 8
    with pytest.raises(CorpusError, match=r"'files/emotoin', wanted as emotion \(did you mean 'emotion'"):
        rows_of("audformat", folder, out, columns={"emotion": "files/emotoin"})
    with pytest.raises(CorpusError, match="'fiels/speaker', wanted as speaker"):
        rows_of("audformat", folder, out, columns={"speaker": "fiels/speaker"})

    for end, ok in {"20ms": True, "NaT": True, "15ms": False}.items():  # recordings are 20 ms long
        index = audformat.segmented_index([f"wav/{name}.wav" for name in NAMES[:2]], ["0s", "0s"], ["20ms", end])
        for table in ("train.gold", "desired"):
            database[table] = audformat.Table(index)
            column(database, table, "emotion", ["anger", "sadness"])
        database.save(folder, storage_format="csv")
        if ok:
            assert list(rows_of("audformat", folder, out).index) == NAMES[1::-1]
    with pytest.raises(CorpusError, match=r"segment of a recording.*\n  wav/03a01Ta.wav: 0 .* to 0 days"):
        rows_of("audformat", folder, out)


def test_nothing_of_a_database_is_executed(tmp_path, database, monkeypatch):
    folder, out = tmp_path / "db", tmp_path / "out"
    expected = rows_of("audformat", folder, out)
    for table in ("files", "desired"):
        touch = f"cposix\nsystem\n(S'touch {tmp_path}/executed'\ntR."
        (folder / f"db.{table}.pkl").write_bytes(touch.encode())  # newer than the tables
    assert rows_of("audformat", folder, tmp_path / "again").equals(expected) and not (tmp_path / "executed").exists()
    (folder / "db.files.parquet").unlink()
    with pytest.raises(CorpusError, match=f"{folder}: expected .* can be read: No file found for table .*db.files"):
        rows_of("audformat", folder, out)
    header = yaml.safe_load((folder / "db.yaml").read_text()) | {"description": "X"}
    (folder / "db.yaml").write_text(yaml.safe_dump(header).replace("X", "!!python/name:os.system"))
    with pytest.raises(CorpusError, match="could not determine a constructor"):
        rows_of("audformat", folder, out)
    with pytest.raises(CorpusError, match=f"expected db.yaml in {out}, found none"):
        rows_of("audformat", out, out)
    monkeypatch.setitem(sys.modules, "audformat", None)  # as if it were not installed
    with pytest.raises(UserError, match=r'audformat is not installed: pip install "speechbrain-ser\[audb\]"'):
        rows_of("audformat", folder, out)


@pytest.fixture
def emobox(tmp_path):
    """EmoBox's own folder with the recordings where its lists look for them; two folds, older lists beside them."""
    root = tmp_path / "EmoBox"
    for k, test in {1: "a01", 2: "b02"}.items():
        for part in ("train", "test"):
            names = [name for name in NAMES if (name[2:5] == test) == (part == "test")]
            wavs = {name: f"downloads/emodb/wav/{name}.wav" for name in names}
            lines = [{"key": f"emodb-{n}", "wav": w, "length": 0.02, "emo": EMO[n[5]]} for n, w in wavs.items()]
            write_lines(lines, root / f"data/emodb/fold_{k}/emodb_{part}_fold_{k}.jsonl")
            write_lines(lines[:3], root / f"data/emodb/fold_{k}/emodb_{part}_fold{k}.jsonl")
    for name in NAMES:
        write_wav(root / f"downloads/emodb/wav/{name}.wav")
    write_json({"anger": "Angry", "Neutral": "Neutral"}, root / "data/emodb/label_map.json")
    return root


def write_lines(lines, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_emobox_is_read_with_its_folds(tmp_path, emobox):
    """Speakers and texts from EMO-DB's names; a label's case, which EmoBox's map mistakes, matters not."""
    frame = rows_of("emobox", emobox, tmp_path / "out")
    assert list(frame.index) == sorted(NAMES) and (frame["speaker"] == [name[:2] for name in frame.index]).all()
    assert list(frame.filter(like="split")) == ["split_fold_1", "split_fold_2"]
    told = frame.loc["08b02Ta", ["ID", "emotion", "text", "split_fold_1", "split_fold_2", "corpus"]]
    assert list(told) == ["emodb-08b02Ta", "neutral", "b02", "train", "test", "emobox"]
    assert set(frame["emotion"]) == {"angry", "neutral"}
    folds = make_folds(frame, "given")
    assert [*folds] == ["fold_1", "fold_2"] and {i[8:11] for i in folds["fold_2"].test} == {"b02"}
    assert leakage(frame, folds["fold_1"]) == "3 test speakers are also trained on (emobox:03, emobox:08, emobox:10)"
    released = tmp_path / "EMO-DB"
    shutil.copytree(emobox / "downloads/emodb/wav", released / "wav")
    again = rows_of("emobox", released, tmp_path / "out", file=str(emobox / "data/emodb"))
    pd.testing.assert_frame_equal(again.drop(columns="wav"), frame.drop(columns="wav"))
    assert again["wav"]["03a01Wa"] == str(released / "wav/03a01Wa.wav")


def test_emobox_what_is_wrong(tmp_path, emobox):
    def error(root=emobox, **options) -> str:
        with pytest.raises(CorpusError) as found:
            rows_of("emobox", root, tmp_path / "out", **options)
        return str(found.value)

    assert f"this one is --table_file={emobox / 'data/emodb'}" in error(emobox / "data/emodb")
    assert "expected lists such as fold_1/iemocap_train_fold_1.jsonl, found none" in error(file="data/iemocap")
    (emobox / "downloads/emodb/wav/03a01Wa.wav").unlink()
    assert "no such recording (1):\n  emodb-03a01Wa: " in error()
    path = emobox / "data/emodb/fold_2/emodb_test_fold_2.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"key": "emodb-03a01Wa", "wav": "downloads/emodb/wav/03a01Wa.wav"}  # which fold 2 trains on
    lines[1]["emo"], lines[2]["start_time"] = "anger", 0.5
    write_lines(lines, path)
    assert error().splitlines()[1:] == [
        "twice in a fold (1):", "  fold_2: emodb-03a01Wa", "another label or path in another fold (1):",
        "  emodb-03b02Ta", "segment of a recording (not supported: expected a recording an utterance) (1):",
        "  emodb-08b02Wa",
    ]  # fmt: skip
    shutil.copytree(emobox / "data/emodb", emobox / "data/savee")
    assert "expected one folder of metadata" in error() and "--table_file=data/emodb (emodb, savee)" in error()


def test_a_table_has_columns_of_several_folds(tmp_path):
    lines = ["wav,emotion,cv1,split_b,fold", "0.wav,x,train,test,A", "1.wav,y,test,,B"]
    folder = table_folder(tmp_path / "mine", "\n".join(lines), ["0.wav", "1.wav"])
    frame = rows_of("table", folder, tmp_path / "out", columns={"split_a": "cv1"})
    told = frame[["split_a", "split_b", "fold"]].to_dict("list")
    assert told == {"split_a": ["train", "test"], "split_b": ["test", ""], "fold": ["A", "B"]}
    table_folder(folder, "\n".join([*lines[:2], "1.wav,y,test,train,"]))
    with pytest.raises(CorpusError, match=r"empty cell in column 'fold'.*\n  line 3"):
        rows_of("table", folder, tmp_path / "out")


def test_a_manifest_in_three_forms(tmp_path, capsys):
    """Both are read back as they were, by SpeechBrain and as a corpus; the same corpus gives the same bytes again."""
    rows = [("03", "M", "train", "train"), ("03", "M", "train", ""), ("08", "F", "dev", "test"), ("10", "", "test", "")]
    cells = [(f"w/{k}.wav", "ab"[k % 2], *row, f'Say "{k}", ü') for k, row in enumerate(rows)]
    columns = ["wav", "emotion", "speaker", "gender", "split", "split_1", "transcript"]
    folder = tmp_path / "mine"
    table_folder(folder, pd.DataFrame(cells, columns=columns).to_csv(index=False), [cell[0] for cell in cells])
    out, files = tmp_path / "out", ["--table_file=users.csv", f"--data_folder={folder}"]
    arguments = ["manifest", str(out), "--corpus=table", *files]
    assert main(arguments) == 0
    written = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert main(arguments) == 0 and {path: path.read_bytes() for path in out.rglob("*.*")} == written
    frame = rows_of("table", folder, out, file="users.csv", columns={})
    dataset = DynamicItemDataset.from_json(out / "speechbrain.json", {"data_root": str(folder)})
    dataset.set_output_keys(["id", "wav", "length", "transcript"])
    assert [[*each.values()] for each in dataset] == frame[["ID", "wav", "duration", "transcript"]].to_numpy().tolist()
    for path in (out / "audformat").iterdir():
        shutil.copy(path, folder)
    assert sorted(audformat.Database.load(folder).splits) == ["dev", "test", "train"]
    again = rows_of("audformat", folder, tmp_path / "again").replace({"split": {"valid": "dev"}})
    pd.testing.assert_frame_equal(again[frame.columns].drop(columns="corpus"), frame.drop(columns="corpus"))
    assert main([*arguments, "--table_columns=[wav]"]) == 2
    assert "--table_columns: expected a YAML mapping" in capsys.readouterr().err
