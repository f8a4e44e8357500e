"""Corpora on disk -> manifests: exact rows, and clear errors for what is wrong."""

import itertools
import logging
import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ruamel.yaml
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechbrain_ser.data import audio
from speechbrain_ser.data import manifest as manifest_module
from speechbrain_ser.data.audio import check_audio
from speechbrain_ser.data.corpora import iemocap, savee
from speechbrain_ser.data.corpora.emodb import TEXTS
from speechbrain_ser.data.labels import apply_labels
from speechbrain_ser.data.manifest import COLUMNS, prepare, read_manifest, write_manifest
from speechbrain_ser.errors import CorpusError

from .conftest import EMODB
from .corpus_trees import TRAP_TURNS, iemocap_tree, table_folder, write_wav

needs_emodb = pytest.mark.skipif(not EMODB.is_dir(), reason="real speech: set EMODB_FOLDER to EMO-DB's folder")


@pytest.fixture
def release(tmp_path):
    return iemocap_tree(tmp_path / "IEMOCAP_full_release")


@pytest.fixture
def checked(monkeypatch):
    """Every audio check that prepare asked for, so that a test sees whether it built anything."""
    calls = []

    def check(paths, *arguments):
        calls.append(len(paths))
        return check_audio(paths, *arguments)

    monkeypatch.setattr(manifest_module, "check_audio", check)
    return calls


def error_of(corpus, folder, out, **options):
    """The message of a refused preparation, which must have written nothing."""
    with pytest.raises(CorpusError) as error:
        prepare(corpus, folder, out, **options)
    assert not list(Path(out).glob("*"))
    return str(error.value)


EXPECTED = [  # ID, emotion, speaker, gender, session, dialog, transcript
    ("Ses01F_impro01_F000", "neutral", "01F", "F", "Ses01", "Ses01F_impro01", "Excuse me."),
    ("Ses01F_impro01_F001", "undecided", "01F", "F", "Ses01", "Ses01F_impro01", ""),
    ("Ses01F_impro01_M000", "frustrated", "01M", "M", "Ses01", "Ses01F_impro01", "Yeah."),
    ("Ses01F_impro01_M003", "angry", "01M", "M", "Ses01", "Ses01F_impro01", TRAP_TURNS[3][2]),
    ("Ses01M_script01_1_F000", "happy", "01F", "F", "Ses01", "Ses01M_script01_1", TRAP_TURNS[4][2]),
    ("Ses01M_script01_1_M000", "excited", "01M", "M", "Ses01", "Ses01M_script01_1", "Café, naïve."),
    ("Ses03M_impro05a_F002", "sad", "03F", "F", "Ses03", "Ses03M_impro05a", "NA"),
    ("Ses03M_impro05a_M010", "surprise", "03M", "M", "Ses03", "Ses03M_impro05a", "None"),
    ("Ses05F_impro08_M011", "other", "05M", "M", "Ses05", "Ses05F_impro08", "'Tis."),
    ("Ses05M_script01_1b_F004", "fear", "05F", "F", "Ses05", "Ses05M_script01_1b", "{LG}"),
    ("Ses05M_script01_1b_M004", "disgust", "05M", "M", "Ses05", "Ses05M_script01_1b", "What's that?"),
]


def test_iemocap_rows_are_exact(release, tmp_path):
    frame = read_manifest(prepare("iemocap", release, tmp_path / "out"), release)
    assert list(frame.columns) == [*COLUMNS, "script", "valence", "activation", "dominance", "votes", "recording"]
    columns = ["ID", "emotion", "speaker", "gender", "session", "dialog", "transcript"]
    assert list(frame[columns].itertuples(index=False, name=None)) == EXPECTED
    for row in frame.itertuples():
        folder = release / f"Session{int(row.session[3:])}" / "sentences" / "wav" / row.dialog
        assert Path(row.wav) == folder / f"{row.ID}.wav"
    assert set(frame["duration"]) == {0.02}
    constant = frame[["language", "corpus", "valence", "activation", "dominance"]].drop_duplicates()
    assert constant.values.tolist() == [["en", "iemocap", "2.5", "3.5", "1.3333"]]
    four = apply_labels(frame)  # classes, by default
    assert four["emotion"].tolist() == ["neutral", "angry", "happy", "happy", "sad"]


def test_repeated_preparation_gives_the_same_bytes(release, tmp_path):
    first, second = (prepare("iemocap", release, tmp_path / out) for out in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert re.fullmatch(r"iemocap-[0-9a-f]{8}\.csv", first.name) and first.name == second.name
    assert b"\r" not in first.read_bytes()
    assert sorted(path.suffix for path in (tmp_path / "a").iterdir()) == [".csv", ".json"]
    moved = release.rename(tmp_path / "moved")
    assert all(Path(wav).is_file() for wav in read_manifest(first, moved)["wav"])
    assert str(tmp_path) not in first.read_text(encoding="utf-8")


def test_unchanged_corpus_is_skipped(release, tmp_path, checked, caplog):
    path = prepare("iemocap", release, tmp_path / "out")
    before = path.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert prepare("iemocap", release, tmp_path / "out") == path
    assert checked == [11] and path.stat().st_mtime_ns == before
    assert "is unchanged: 11 utterances" in caplog.text


def test_changes_are_noticed(release, tmp_path, checked):
    def first_row():
        return read_manifest(prepare("iemocap", release, tmp_path / "out"), release).iloc[0]

    first_row()
    wav = release / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    whole = wav.read_bytes()
    write_wav(wav, seconds=0.03)
    assert first_row()["duration"] == 0.03
    wav.write_bytes(whole)
    for file, before, after, column, value in (
        ("EmoEvaluation", "\tneu\t", "\tsad\t", "emotion", "sad"),
        ("transcriptions", "Excuse me", "Excuse us", "transcript", "Excuse us."),
    ):
        path = release / f"Session1/dialog/{file}/Ses01F_impro01.txt"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(before, after), encoding="utf-8")
        assert first_row()[column] == value
        path.write_text(text, encoding="utf-8")
    shutil.rmtree(release / "Session5")
    first_row()
    assert checked == [11, 11, 11, 11, 8]


@pytest.mark.parametrize("suffix, text", [(".csv", "ID,wav\n"), (".json", "{"), (".json", "[]"), (".json", None)])
def test_damaged_manifest_is_made_anew(release, tmp_path, checked, suffix, text):
    path = prepare("iemocap", release, tmp_path / "out")
    good = path.read_bytes()
    damaged = path.with_suffix(suffix)
    damaged.unlink() if text is None else damaged.write_text(text)
    prepare("iemocap", release, tmp_path / "out")
    assert path.read_bytes() == good and checked == [11, 11]


def test_iemocap_lists_everything_that_is_missing(release, tmp_path):
    one, three, five = (release / f"Session{number}" for number in (1, 3, 5))
    for turn in ("F000", "M003"):
        (one / f"sentences/wav/Ses01F_impro01/Ses01F_impro01_{turn}.wav").unlink()
    shutil.rmtree(one / "sentences/wav/Ses01M_script01_1")
    (three / "dialog/transcriptions/Ses03M_impro05a.txt").unlink()
    (five / "dialog/EmoEvaluation/Ses05F_impro08.txt").unlink()
    words = five / "dialog/transcriptions/Ses05M_script01_1b.txt"
    words.write_text("".join(line for line in words.open() if "F004" not in line))
    (release / "Session4").mkdir()
    wavs = "  Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01"
    assert error_of("iemocap", release, tmp_path / "out").splitlines() == [
        f"IEMOCAP in {release}: incomplete or damaged",
        *("turn without its wav (2):", f"{wavs}_F000.wav", f"{wavs}_M003.wav"),
        *("dialog without its wav folder (1):", "  Session1: Ses01M_script01_1 (found its label file, transcription)"),
        *("dialog without its transcription (1):", "  Session3: Ses03M_impro05a (found its label file, wav folder)"),
        *("session without dialogs (1):", "  Session4 (expected dialog/EmoEvaluation/Ses…_….txt)"),
        *("dialog without its label file (1):", "  Session5: Ses05F_impro08 (found its transcription, wav folder)"),
        "turn without a line in its transcription (1):",
        "  Ses05M_script01_1b_F004 (Session5/dialog/transcriptions/Ses05M_script01_1b.txt)",
    ]


def test_iemocap_lists_bad_label_lines(release, tmp_path):
    labels = release / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    text = labels.read_text().replace("\txxx\t", "\tbor\t").replace("Ses01F_impro01_M003", "Ses01F_impro02_M003")
    labels.write_text(text + "[9.2901 - 9.90")
    other = release / "Session3/dialog/EmoEvaluation/Ses03M_impro05a.txt"
    other.write_text(other.read_text().splitlines()[0])

    message = error_of("iemocap", release, tmp_path / "out")
    where = "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    known = "known: neu hap exc ang sad fru sur fea dis oth xxx"
    assert f"unknown emotion code ({known}) (1):\n  {where}, line 11: Ses01F_impro01_F001 is 'bor'" in message
    assert f"that is not of this dialog (1):\n  {where}, line 15: Ses01F_impro02_M003" in message
    assert f"(1):\n  {where}, line 18: '[9.2901 - 9.90'" in message
    assert "without a valid label (1):\n  Session3/dialog/EmoEvaluation/Ses03M_impro05a.txt" in message


def test_wrong_folder(release, tmp_path):
    (release / "Session2").mkdir()
    for corpus, folder, hint in [
        ("iemocap", tmp_path / "nowhere", "no such folder"),
        ("iemocap", release.parent, f"Give the folder inside it: {release}"),
        ("iemocap", release / "Session1", f"Give the folder that holds it: {release}"),
        ("iemocap", release / "Session2", "found nothing. Give the folder that holds it"),
        ("iemocap", release / "Session1/dialog", "expected Session1 … Session5, found EmoEvaluation, transcriptions"),
        ("emodb", tmp_path / "nowhere", "no such folder"),
        ("emodb", release / "Session2", "expected recordings such as wav/03a01Fa.wav, found none"),
        (
            "savee",
            release / "Session2",
            "expected recordings such as AudioData/DC/a01.wav (or ALL/DC_a01.wav), found none",
        ),
    ]:
        assert hint in error_of(corpus, folder, tmp_path / "out")


def test_iemocap_partial_copies_only_warn(release, tmp_path, caplog):
    write_wav(release / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F009.wav")
    prepare("iemocap", release, tmp_path / "out")
    assert "Session1, Session3, Session5 only, the full release has 5 sessions" in caplog.text
    assert "1 wavs without a label, e.g. Ses01F_impro01_F009.wav" in caplog.text
    assert "11 labelled turns; the official release has 10039" in caplog.text
    assert "5 turns in the default four classes; the official release has 5531" in caplog.text


def test_iemocaps_old_characters_end_no_line(release):
    path = release / "Session1/dialog/transcriptions/Ses01F_impro01.txt"
    path.write_bytes(path.read_bytes().replace(b"Excuse me.", b"Excuse\x85 \xe9 me."))
    assert iemocap.find_utterances(release)[0]["transcript"] == "Excuse\x85 é me."
    path.write_text(path.read_text(encoding="latin-1"), encoding="utf-16")
    with pytest.raises(CorpusError, match=r"Ses01F_impro01\.txt: expected UTF-8 text, found UTF-16"):
        iemocap.find_utterances(release)


def test_an_incomplete_or_larger_release_is_said_every_time(tmp_path, caplog):
    write_wav(tmp_path / "EMO-DB/wav/03a01Fa.wav")
    for _ in range(2):
        caplog.clear()
        prepare("emodb", tmp_path / "EMO-DB", tmp_path / "out")
        assert "emodb: 1 recordings; the official release has 535" in caplog.text


@needs_emodb
def test_real_emodb(tmp_path, caplog):
    frame = read_manifest(prepare("emodb", EMODB, tmp_path), EMODB)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(frame) == len(apply_labels(frame)) == 535 and list(frame.columns) == [*COLUMNS, "recording"]
    assert frame["emotion"].value_counts().to_dict() == {
        **{"angry": 127, "boredom": 81, "neutral": 79, "happy": 71, "fear": 69, "sad": 62, "disgust": 46}
    }
    assert sorted(frame["speaker"].unique()) == ["03", "08", "09", *map(str, range(10, 17))]
    assert set(frame[frame["gender"] == "M"]["speaker"]) == {"03", "10", "11", "12", "15"}
    assert frame.groupby("dialog")["transcript"].nunique().to_dict() == dict.fromkeys(TEXTS, 1)
    first = frame.iloc[0]
    assert (first["ID"], first["duration"], first["transcript"]) == ("03a01Fa", 1.89825, TEXTS["a01"])


def test_emodb_bad_names_are_listed(tmp_path):
    root = tmp_path / "EMO-DB"
    for name in ("03a01Fa", "03a01F", "99a01Fa", "03a99Xa", "copy of 03a01Fa"):
        write_wav(root / "wav" / f"{name}.wav")
    (root / "wav" / "._03a01Fa.wav").write_bytes(b"\0")
    message = error_of("emodb", root, tmp_path / "out")
    assert "name that cannot be read (expected one like wav/03a01Fa.wav) (1):\n  wav/03a01F.wav" in message
    assert "doubled under another name (1):\n  wav/copy of 03a01Fa.wav (another wav/03a01Fa.wav)" in message
    assert "unknown speaker (known: 03 10 11 12 15 08 09 13 14 16) (1):\n  wav/99a01Fa.wav: '99'" in message
    assert "unknown text" in message and "03a99Xa.wav: 'a99'" in message
    assert "unknown emotion (known: W L E A F T N) (1):\n  wav/03a99Xa.wav: 'X'" in message


def savee_tree(root: Path, layout: str = "AudioData/{}/{}.wav") -> Path:
    """All 480 recordings; beside them what the release and file systems add."""
    for speaker, take in itertools.product(("DC", "JE", "JK", "KL"), savee.TEXTS):
        path = write_wav(root / layout.format(speaker, take), rate=44100)
    (path.parent / "Info.txt").write_text("SAVEE")
    (path.parent / "._a01.wav").write_bytes(b"\0")
    return root


@pytest.fixture
def copy(tmp_path):
    return savee_tree(tmp_path / "SAVEE")


def test_savee_rows(copy, tmp_path, caplog):
    frame = read_manifest(prepare("savee", copy, tmp_path / "out"), copy)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert list(frame.columns) == [*COLUMNS, "recording"] and len(frame) == len(apply_labels(frame)) == 480
    counts = dict.fromkeys(("angry", "disgust", "fear", "happy", "sad", "surprise"), 60) | {"neutral": 120}
    assert frame["emotion"].value_counts().to_dict() == counts
    assert frame["speaker"].value_counts().to_dict() == dict.fromkeys(("DC", "JE", "JK", "KL"), 120)
    row = frame.set_index("ID").loc["JK_su03"]
    assert Path(row["wav"]) == copy / "AudioData/JK/su03.wav" and row["duration"] == 0.02
    values = ("surprise", "JK", "M", "", "", "", "common-03", "en", "savee")
    assert tuple(row[[column for column in COLUMNS if column not in ("ID", "wav", "duration")]]) == values


def test_savees_layouts_give_the_same_rows_up_to_the_path(copy, tmp_path):
    flat = savee_tree(tmp_path / "flat", "ALL/{}_{}.wav")
    both = [savee.find_utterances(root) for root in (copy, flat)]
    assert [rows[0]["wav"] for rows in both] == [
        f"{{data_root}}/{name}.wav" for name in ("AudioData/DC/a01", "ALL/DC_a01")
    ]
    first, second = ([row | {"wav": ""} for row in rows] for rows in both)
    assert first == second and len(first) == 480


def test_every_fault_of_savee_is_listed(copy, tmp_path):
    for take in ("a07", "n30"):
        (copy / f"AudioData/DC/{take}.wav").unlink()
    for name in ("f01 (2)", "b01", "f16"):
        os.link(copy / "AudioData/JE/f01.wav", copy / f"AudioData/JE/{name}.wav")
    shutil.rmtree(copy / "AudioData/KL")
    lines = error_of("savee", copy, tmp_path / "out").splitlines()
    assert lines[:3] == [
        *(f"SAVEE in {copy}", "doubled under another name (1):"),
        "  AudioData/JE/f01 (2).wav (another AudioData/JE/f01.wav)",
    ]
    assert lines[3:5] == ["unknown emotion (known: a d f h n sa su) (1):", "  AudioData/JE/b01.wav: 'b'"]
    assert lines[6:12] == [
        *("  AudioData/JE/b01.wav: 'b01'", "  AudioData/JE/f16.wav: 'f16'"),
        *("missing (122):", "  DC_a07", "  DC_n30", "  KL_a01"),
    ]


PLAIN = "wav,emotion\na/one.wav,happy\nb/two.wav,NA\n"


def rows_of(folder, out, **options):
    return read_manifest(prepare("table", folder, out, **options), folder)


def test_mapped_columns_tabs_and_semicolons(tmp_path):
    outside = write_wav(tmp_path / "elsewhere" / "three.wav")
    table = (
        "\ufeffpath\tlabel\twho\tpart\tage\twords\tnote\n"
        f'{tmp_path}/own/one.wav\tangry\t03\ttrain\t07\t Ja,  {{data_root}} """so"""\tx\n'
        "two words.wav\tNone\ttrue\ttest\t\t\ty\n"
        "\n"
        f"{outside}\tsad\t03\tvalid\t1e3\t\tz\n"
    )
    folder = table_folder(tmp_path / "own", table, ["one.wav", "two words.wav"], "t.tsv")
    columns = {"wav": "path", "emotion": "label", "speaker": "who", "split": "part", "transcript": "words"}
    frame = rows_of(folder, tmp_path / "out", columns=columns)
    assert list(frame.columns) == [*COLUMNS, "split", "recording"]
    outside_id = outside.with_suffix("").as_posix().lstrip("/").replace("/", "_")
    assert sorted(frame[["ID", "emotion", "speaker", "split", "transcript"]].values.tolist()) == sorted(
        [
            ["one", "angry", "03", "train", 'Ja, {data_root} """so"""'],
            ["two_words", "None", "true", "test", ""],
            [outside_id, "sad", "03", "valid", ""],
        ]
    )
    assert str(outside) in set(frame["wav"]) and all(Path(wav).is_file() for wav in frame["wav"])
    table_folder(folder, "wav;ID;emotion;speaker;valence\none.wav;03;a,b;1;4\ntwo words.wav;3;b;2;\n")
    frame = rows_of(folder, tmp_path / "out", file="users.csv")
    assert frame[["ID", "emotion", "speaker", "valence"]].values.tolist() == [
        ["03", "a,b", "1", "4"],
        ["3", "b", "2", ""],
    ]


def test_table_lists_all_bad_rows(tmp_path):
    table = (
        "ID,wav,emotion,speaker\n"
        "1,a.wav,happy,A\n1,b.wav,sad,B\n,a.wav,sad,B\n4,,sad,B\n5,a.wav,,B\n6,a.wav,sad,\n"
        "7,gone.wav,sad,B\n8,a.wav\n9,far/gone.wav,sad,B\n"
    )
    folder = table_folder(tmp_path / "own", table, ["a.wav", "b.wav"])
    assert error_of("table", folder, tmp_path / "out").splitlines() == [
        f"table {folder / 'users.csv'}",
        *("line that has not 4 cells (1):", "  line 9: 2"),
        *("empty cell in column 'wav' (1):", "  line 5"),
        *("empty cell in column 'emotion' (1):", "  line 6"),
        *("empty cell in column 'ID' (1):", "  line 4"),
        *("empty cell in column 'speaker' (1):", "  line 7"),
        *("no such recording (2):", f"  line 8: {folder / 'gone.wav'}", f"  line 10: {folder / 'far/gone.wav'}"),
        *("duplicate ID (1):", "  1: line 2, line 3"),
    ]


@pytest.mark.parametrize(
    ("content", "options", "messages"),
    [
        (b"", {}, ["empty; expected a header"]),
        (b"wav,emotion\n", {}, ["no rows below its header"]),
        (b"wav,emotion,wav\na.wav,x,y\n", {}, ["its header has more than once: 'wav'"]),
        (b"wav,emotion\na.wav,fr\xf6hlich\n", {}, ["expected UTF-8 text, found byte 20 otherwise"]),
        (b"wav,emotion\na/b.wav,x\na_b.wav,y\n", {}, ["an ID column would help) (1):\n  a_b: line 2, line 3"]),
        (PLAIN, {"file": "user.csv"}, ["no such file", "(did you mean 'users.csv'?)"]),
        (None, {}, ["expected one .csv or .tsv", "found none"]),
        (
            "path,label,emotions\na.wav,x,y\n",
            {"columns": {"emotoin": "label", "wav": "pth"}},
            [
                "it has path, label, emotions",
                "'emotoin' (did you mean 'emotion'?)",
                "'pth', wanted as wav (did you mean 'path'?)",
                "'emotion', wanted as emotion (did you mean 'emotions'?)",
            ],
        ),
    ],
)
def test_tables_that_do_not_fit(tmp_path, content, options, messages):
    folder = table_folder(tmp_path / "own", content or b"", ["a.wav"], "none.txt" if content is None else "users.csv")
    message = error_of("table", folder, tmp_path / "out", **options)
    assert all(said in message for said in messages), message


QUOTES = 'wav,emotion,transcript\na.wav,x,"Nein\na.wav,y,Ja\na.wav,z,{}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (QUOTES.format("Ja"), "takes whole lines into its cell: remove it (1):\n  lines 2 to 4: a.wav,x"),
        (QUOTES.format('"Ja'), "  lines 2 to 4: a.wav,x"),
        (QUOTES.format('Ja"'), "  lines 2 to 4: a.wav,x"),  # a whole cell to CSV
        (f'sep=;\nwav;emotion\na.wav;x\na.wav;"{"y" * 140_000}"\n', "line 4: field larger than field limit (131072)"),
        ("wav,emotion\na.wav,x\n".encode("utf-16"), "found UTF-16, or zero bytes: save it as UTF-8"),
        ("wav,emotion\na.wav,x\n".encode("utf-16-le"), "found UTF-16, or zero bytes: save it as UTF-8"),
        (b"wav,emotion\na.wav,x\nb.wav,\xe4\n", "found byte 26 otherwise, in line 3"),
        ('wav,emotion,transcript\na.wav,x,"one\n\ntwo"\ngone.wav,x,"a\nb"\n', "lines 5 to 6: {folder}/gone.wav"),
        (f"wav,emotion\n{'long' * 99}.wav,x\n", "no such recording (1):\n  line 2"),
        ("wav,emotion\nA.WAV,x\n", "line 2: {folder}/A.WAV (there is '{folder}/a.wav')"),
    ],
)
def test_tables_that_would_lose_rows(tmp_path, content, message):
    folder = table_folder(tmp_path / "own", content, ["a.wav"])
    assert message.format(folder=folder) in error_of("table", folder, tmp_path / "out")


def test_tables_as_excel_writes_them(tmp_path, caplog):
    table = '\ufeffsep=;\r\nwav;emotion;transcript\r\na.wav;x;"Ja,\r\n""so"", gut"\r\nb.wav;y;Nein "so" "\r\n'
    folder = table_folder(tmp_path / "own", table, ["a.wav", "b.wav"])
    frame = rows_of(folder, tmp_path / "out")
    assert frame[["ID", "emotion", "transcript"]].values.tolist() == [
        ["a", "x", 'Ja, "so", gut'],
        ["b", "y", 'Nein "so" "'],
    ]
    assert "lines 3 to 4: one row, a cell of which has line breaks" in caplog.text


def test_a_recording_is_found_by_any_unicode_form_of_its_name(tmp_path):
    names = [unicodedata.normalize(form, "Größe/ä b.wav") for form in ("NFC", "NFD")]
    for k, (table, disk) in enumerate(itertools.permutations(names)):
        folder = table_folder(tmp_path / f"{k}", f"wav,emotion\n{table},x\n", [disk], f"{disk[-6]}.csv")
        frame = rows_of(folder, tmp_path / "out", file=f"{table[-6]}.csv")
        assert frame["wav"].tolist() == [str(folder / disk)] and frame["ID"].tolist() == ["Größe_ä_b"]


NAME = st.text("aA7.0ßé", min_size=1, max_size=4)
FORMS = st.sampled_from([str, str.upper, str.title, "{}\u200b".format, "0{}".format, "{}.0".format])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAME, NAME, FORMS, st.sampled_from(["NFC", "NFD", "NFKD"]))
def test_a_speaker_is_one_however_written(tmp_path, name, other, form, normal):
    """The same, or two, or refused with a line that makes them one."""
    for second in (unicodedata.normalize(normal, form(name)), other):
        table = f"wav,emotion,speaker\na.wav,x,{name}\nb.wav,x,{second}\n"
        folder = table_folder(tmp_path, table, [] if (tmp_path / "a.wav").exists() else ["a.wav", "b.wav"])
        expected = {unicodedata.normalize("NFC", each) for each in (name, second)}
        try:
            found = set(rows_of(folder, tmp_path / "out")["speaker"])
        except CorpusError as error:
            assert all(f"{who!r} (1 utterances, first " in str(error) for who in expected) and len(expected) == 2
            (line,) = (line for line in str(error).splitlines() if line.startswith("table_names: "))
            names = ruamel.yaml.YAML(typ="safe").load(line)["table_names"]
            assert len(rows_of(folder, tmp_path / "out", names=names)["speaker"].unique()) == 1
        else:
            assert found == expected and len(manifest_module.look_alikes(found)) == 0


def test_names_of_a_table_that_are_another(tmp_path):
    folder = table_folder(
        tmp_path / "own", "wav,emotion,speaker\na.wav,x,7\nb.wav,x,07\nc.wav,x,8\n", ["a.wav", "b.wav", "c.wav"]
    )
    message = error_of("table", folder, tmp_path / "out")
    assert "table_names: {speaker: {'7': '07'}}" in message
    assert "the same speaker? (1):\n  '07' (1 utterances, first b) and '7' (1 utterances, first a)" in message
    frame = rows_of(folder, tmp_path / "out", names={"speaker": {7: "seven"}})
    assert frame["speaker"].tolist() == ["seven", "07", "8"]
    message = error_of("table", folder, tmp_path / "none", names={"speaker": {9: "x"}, "session": {"a": "b"}})
    assert "no such name (2):\n  speaker: '9'\n  session: 'a'" in message
    assert "expected {column: {name: new name}}" in error_of("table", folder, tmp_path / "none", names={"speaker": "7"})


def test_a_speaker_who_is_not_known_is_nobody(tmp_path):
    folder = table_folder(
        tmp_path / "own", "wav,emotion,speaker\na.wav,x,NaN\nb.wav,x,nan\nc.wav,x,8\n", ["a.wav", "b.wav", "c.wav"]
    )
    one = {"speaker": {"NaN": "nan"}}  # the other refusal's
    message = error_of("table", folder, tmp_path / "out", names=one)
    assert "speaker that reads like a missing value (1):\n  'nan' (2 utterances)" in message
    assert "table_names: {speaker: {nan: somebody}}" in message
    both = {"speaker": dict.fromkeys(["NaN", "nan"], "somebody")}
    assert rows_of(folder, tmp_path / "out", names=both)["speaker"].tolist() == ["somebody", "somebody", "8"]


def test_which_file_is_the_table(tmp_path):
    folder = table_folder(tmp_path / "own", PLAIN, ["a/one.wav", "b/two.wav"])
    table_folder(folder, PLAIN, name="test.tsv")
    assert "found test.tsv, users.csv: name one by --table_file=…" in error_of("table", folder, tmp_path / "out")
    assert len(rows_of(folder, tmp_path / "out", file=str(folder / "users.csv"))) == 2


def test_every_bad_recording_is_listed(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 50000)
    write_wav(tmp_path / "good.wav")
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("<html>not found</html>")
    write_wav(tmp_path / "silent.wav", seconds=0)
    write_wav(tmp_path / "short.wav", seconds=1)
    soundfile.write(tmp_path / "short.flac", noise, 16000)
    for name in ("short.wav", "short.flac"):
        os.truncate(tmp_path / name, (tmp_path / name).stat().st_size // 2)
    for name, value, subtype in (("nan.wav", np.nan, "FLOAT"), ("inf.wav", np.inf, "DOUBLE")):
        noise[12345] = value
        soundfile.write(tmp_path / name, noise, 16000, subtype=subtype)
    bad = {
        "missing.wav": "no such recording (1):\n  {path}",
        "zero.wav": "{path}: 0 bytes",
        "silent.wav": "{path}: a header, 0 samples",
        "text.wav": "The file begins with b'<html>not found<'",
        "short.wav": "{path}: header: 32000 bytes of samples, file: 15978",
        "nan.wav": "{path}: first at 0.772 s",
        "inf.wav": "{path}: first at 0.772 s",
        "short.flac": "{path}: ",
    }
    with pytest.raises(CorpusError) as error:
        check_audio([tmp_path / name for name in ("good.wav", *bad)], "corpus x")
    message = str(error.value)
    assert message.startswith("corpus x\n") and "good.wav" not in message
    for name, said in bad.items():
        assert said.format(path=tmp_path / name) in message
    for kind in ("empty recording (expected at least one sample) (2)", "NaN or infinite samples (2)"):
        assert kind in message


def test_processes_see_what_threads_see(tmp_path, monkeypatch):
    """Many short recordings are looked at by processes, in the same order and with the same errors."""
    paths = [write_wav(tmp_path / f"{k}.wav", seconds=0.01 + k / 1000) for k in range(150)]
    looks = check_audio(paths)
    monkeypatch.setattr(audio, "MANY", 1)
    monkeypatch.setattr(audio, "ThreadPoolExecutor", None)
    assert check_audio(paths) == looks and len({look.seconds for look in looks}) == 150
    with pytest.raises(CorpusError, match=rf"empty recording .*\n  {paths[99]}: 0 bytes"):
        paths[99].write_bytes(b"")
        check_audio(paths)


def test_a_bad_recording_stops_a_preparation(release, tmp_path):
    (release / "Session5/sentences/wav/Ses05F_impro08/Ses05F_impro08_M011.wav").write_bytes(b"")
    assert "Ses05F_impro08_M011.wav: 0 bytes" in error_of("iemocap", release, tmp_path / "out")


def test_a_recording_in_several_rows_is_refused(tmp_path):
    """Under one name or several, as a link, and in another format."""
    rows = [f"u{k},{name},sad,{who}" for k, (name, who) in enumerate(zip(DOUBLES, "abcad", strict=True))]
    table = "\n".join(["ID,wav,emotion,speaker", *rows])
    folder = table_folder(tmp_path / "own", table, ["1.wav", "4.wav"])
    samples, rate = soundfile.read(folder / "1.wav")
    soundfile.write(folder / "2.flac", np.stack([samples, samples], 1), rate, "PCM_24")
    (folder / "3.wav").symlink_to(folder / "1.wav")
    message = error_of("table", folder, tmp_path / "out")
    assert "one recording in several rows (expected each once) (1):\n" in message and "4.wav" not in message
    assert all(f"u{k} (speaker {who}, sad: {DOUBLES[k].strip('./')})" in message for k, who in enumerate("abca"))


DOUBLES = ("1.wav", "2.flac", "3.wav", "./1.wav", "4.wav")


def test_any_format_is_accepted(tmp_path):
    formats = {"24.wav": "PCM_24", "float.wav": "FLOAT", "law.wav": "ULAW", "a.ogg": None}
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (22050, 2))
    for name, subtype in formats.items():
        soundfile.write(tmp_path / name, noise, 44100, subtype=subtype)
    data = bytearray(write_wav(tmp_path / "streamed.wav", seconds=0.5).read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"  # what is written into a pipe has no length in its header
    (tmp_path / "streamed.wav").write_bytes(data)
    looks = check_audio([tmp_path / name for name in (*formats, "streamed.wav")])
    assert [look.seconds for look in looks] == [0.5] * 5


def row(name="a", **values):
    return {**dict.fromkeys(COLUMNS, "x"), "ID": name, "duration": "1.5", **values}


def test_text_stays_text(tmp_path):
    rows = [
        row("03", transcript="", speaker="NA", gender="None"),
        row("1e5", transcript="{data_root} ,\"' é\n", split="null"),
        row("-1", transcript="nan", emotion="None", wav="{data_root}/{x}/{data_root}.wav"),
    ]
    write_manifest(rows, tmp_path / "m.csv")
    frame = read_manifest(tmp_path / "m.csv", "/data")
    assert frame[["ID", "transcript", "split", "speaker", "gender"]].values.tolist() == [
        ["-1", "nan", "", "x", "x"],
        ["03", "", "", "NA", "None"],
        ["1e5", "{data_root} ,\"' é\n", "null", "x", "x"],
    ]
    assert list(frame["wav"]) == [str(Path("/data/{x}/{data_root}.wav")), "x", "x"]
    assert frame["duration"].dtype == float and not frame.isna().any().any()


def test_bad_rows_are_listed_and_nothing_is_written(tmp_path):
    rows = [row("a"), row("a", wav="y"), row("b", emotion=" "), row(""), row("c", duration="0")]
    rows += [row("d", duration="long"), {"ID": "e", "wav": "w"}]
    (tmp_path / "m.csv").write_text("ID,path\na,b\n")
    with pytest.raises(CorpusError) as error:
        write_manifest(rows, tmp_path / "m.csv")
    for said in (
        "empty emotion (1):\n  b",
        "empty ID (1):\n  x",
        "positive number of seconds (2):\n  c: '0'\n  d: 'long'",
        "row without a column (1):\n  e: duration, emotion",
        "duplicate ID (1):\n  a: x, y",
    ):
        assert said in str(error.value)
    with pytest.raises(CorpusError, match="at least one utterance"):
        write_manifest([], tmp_path / "m.csv")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["ID,path\na,b\n"]
    with pytest.raises(CorpusError, match=r"is no manifest: it has no column wav, duration"):
        read_manifest(tmp_path / "m.csv", "")


def test_unknown_corpus_and_option(release, tmp_path):
    message = error_of("iemocp", release, tmp_path / "out")
    assert message.startswith("unknown corpus 'iemocp' (did you mean 'iemocap'?); known: demo, emodb, iemocap, savee, ")
    message = error_of("table", release, tmp_path / "out", colums={})
    assert "has no option colums (did you mean 'columns'?); it has: file, columns, names" in message
    assert "it has: none" in error_of("iemocap", release, tmp_path / "out", seed=1)


def labelled(*emotions, corpus="iemocap"):
    ids = [f"u{number}" for number in range(len(emotions))]
    return pd.DataFrame({"ID": ids, "emotion": emotions, "corpus": corpus}, dtype=str)


def test_labels_choose_and_merge(caplog):
    frame = labelled("happy", "excited", "fear", "sad")
    chosen = apply_labels(frame, {"happy": "up", "fear": None, "*": "rest"})
    assert chosen["emotion"].tolist() == ["up", "rest", "rest"]
    assert chosen.index.tolist() == [0, 1, 2] and chosen["ID"].tolist() == ["u0", "u1", "u3"]
    assert list(frame["emotion"]) == ["happy", "excited", "fear", "sad"]
    assert apply_labels(frame, ["happy", "excited", "fear", "sad"])["emotion"].tolist() == list(frame["emotion"])
    both = pd.concat([labelled("excited", "fear"), labelled("fear", corpus="emodb")], ignore_index=True)
    assert apply_labels(both)["emotion"].tolist() == ["happy", "fear"]  # each corpus's own default
    table = labelled("1", "None", corpus="table")
    assert apply_labels(table)["emotion"].tolist() == ["1", "None"]
    assert apply_labels(table, {1: "one", "None": None})["emotion"].tolist() == ["one"]
    with pytest.raises(CorpusError, match=r"no utterance has the emotion \(1\):\n  'non' \(did you mean 'None'\?\)"):
        apply_labels(table, {"non": "x", "*": "rest"})
    assert apply_labels(frame, {"neutral": "calm", "*": "rest"}).shape  # IEMOCAP has it, if not these rows of it


def test_classes_that_are_probably_not_meant(caplog):
    table = labelled("Angry", "angry", "angry", "sad", "nan", "ang ry", corpus="table")
    with pytest.raises(CorpusError) as error:
        apply_labels(table)
    line = "labels: {Angry: angry, ang ry: ang ry, angry: angry, nan: null, sad: sad}"
    assert str(error.value).splitlines()[1:] == [
        *(line, "classes that differ in spelling alone (1):", "  'angry' (2), 'Angry' (1)"),
        *("reads like a missing value (1):", "  'nan' (1)"),
    ]
    assert apply_labels(table, ruamel.yaml.YAML(typ="safe").load(line)["labels"])["emotion"].nunique() == 3
    caplog.clear()
    assert apply_labels(labelled("sad", "nan", corpus="table"))["emotion"].tolist() == ["sad", "nan"]
    assert "'nan' (1) reads like a missing value; without it: labels: {nan: null, sad: sad}" in caplog.text
    caplog.clear()
    apply_labels(labelled("sad", "nan", corpus="table"), ["sad", "nan"])  # who says it means it
    assert not caplog.text
    froh = apply_labels(labelled("fröhlich", corpus="table"), {"fro\u0308hlich": "froh"})
    assert froh["emotion"].tolist() == ["froh"]


@pytest.mark.parametrize(
    ("emotions", "labels", "message"),
    [
        (["happy", "sad"], {"hapy": "happy", "*": None}, r"does not know .*\n.*\n  'hapy' \(did you mean 'happy'\?\)"),
        (["fear", "fear"], None, r"no utterance has .*default; found: fear 2"),
        (["fear"], "fear", "expected a mapping or a list"),
        (
            ["happy", *["fear"] * 4, "disgust"],
            {"happy": "h", "fair": "f"},
            r"not covered \(2\):\n  'disgust': 1 utterances, u5\n  'fear': 4 utterances, u1, u2, u3, … \(did",
        ),
        (["fear"], ["fair"], r"not covered \(1\)"),
    ],
)
def test_labels_that_do_not_fit(emotions, labels, message):
    with pytest.raises(CorpusError, match=message):
        apply_labels(labelled(*emotions), labels)
