"""Described corpora: what the release and a common copy of it give, and every known trap."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from speechbrain_ser.data.corpora import PRESETS, corpus_module
from speechbrain_ser.data.corpora.presets import PRESETS as DESCRIBED
from speechbrain_ser.data.labels import apply_labels
from speechbrain_ser.data.manifest import COLUMNS, prepare, read_manifest
from speechbrain_ser.data.protocols import PROTOCOLS
from speechbrain_ser.errors import CorpusError

from .conftest import ROOT
from .corpus_trees import APPLE_DOUBLE, write_wav


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_oddly(path: Path) -> None:
    """As TESS and RAVDESS have them: stereo, at 96 kHz, AIFF in .wav; by the name's first digit."""
    write_wav(path)
    samples = soundfile.read(path)[0]
    rate, options = {"0": (48_000, {}), "O": (96_000, {}), "Y": (24_414, {"format": "AIFF"})}[path.name[0]]
    soundfile.write(path, np.column_stack([samples, samples / 2]) if rate == 48_000 else samples, rate, **options)


def tree(root: Path, names, files: dict | None = None) -> Path:
    """Recordings, other files, and what file systems and archives add."""
    for name in names:
        write_wav(root / name)
        write((root / name).with_name(f"._{Path(name).name}"), APPLE_DOUBLE)
    write_wav(root / "__MACOSX" / Path(names[0]).name)
    write_wav(root / ".cache" / Path(names[0]).name)
    for name, content in (files or {}).items():
        write(root / name, content)
    return root


# ------------------------------------------------------------------ of each preset: the release, a copy, its rows

MELD_HEAD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season\n"


def meld(*rows: str) -> str:
    return MELD_HEAD + "".join(f"1,{row},1\n" for row in rows)


MELD_TRAIN = ('"Oh, it\x92s you.",Joey,joy,positive,0,0', "No!,All,anger,negative,125,3")
MELD_TABLES = {
    "train_sent_emo.csv": meld(*MELD_TRAIN),
    "dev_sent_emo.csv": meld("What?,Monica,surprise,negative,0,0", "Yes.,Ross,fear,negative,110,7"),
    "test_sent_emo.csv": meld('"I said ""no"".",The Waiter,sadness,negative,0,0'),
}
MSP_TABLE = """FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set
MSP-PODCAST_0001_0008.wav,N,2.2,4.0,2.6,30,Male,Train
MSP-PODCAST_0001_0009.wav,X,3.5,3.25,3.0,Unknown,Unknown,Development
MSP-PODCAST_0002_0001.wav,C,3.0,2.0,4.0,31,Female,Test1
MSP-PODCAST_0002_0002_0001.wav,O,3.0,2.0,4.0,Unknown,Female,Test2
"""
NEMO_TABLE = """file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage
SB0_anger_001.wav\tanger\tChodź tu!\tchodź tu\tSB0\tfemale\t21
PK1_surprised_090.wav\tsurprised\tNaprawdę?\tnaprawdę\tPK1\tmale\t30
"""
GOLD = "file,emotion,emotion.confidence,emotion.naturalness\nwav/{}.wav,anger,0.95,0.9\n"
EMODB2_TABLES = {
    "db.emotion.categories.train.gold_standard.csv": GOLD.format("03a01Wa"),
    "db.emotion.categories.test.gold_standard.csv": GOLD.format("12b02Fb"),
}
LAYOUTS = {  # recordings of the release and of a copy, in the order of their IDs, and other files of both
    "ravdess": (
        ["Actor_01/03-01-08-02-01-02-01.wav", "Actor_12/03-01-01-01-02-01-12.wav"],
        ["Audio/happy/03-01-08-02-01-02-01.WAV", "Audio/03-01-01-01-02-01-12.wav"],
        {},
    ),
    "cremad": (
        ["AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1040_ITH_SAD_X.wav"],
        ["happy/1001_dfa_ang_xx.wav", "1040_ITH_SAD_X.WAV"],
        {},
    ),
    "tess": (
        ["OAF_back_angry.wav", "OA_bite_neutral.wav", "YAF_king_ps.wav"],
        ["OAF_Fear/oaf_back_angry.wav", "OAF_neutral/OA_bite_neutral.wav", "YAF_sad/YAF_KING_PS.WAV"],
        {},
    ),
    "meld": (
        [
            f"{part}/dia0_utt0.wav"
            for part in ("dev_splits_complete", "output_repeated_splits_test", "train/train_splits")
        ],
        ["dev/dia0_utt0.flac", "Test/DIA0_UTT0.wav", "train/dia0_utt0.mp3"],
        MELD_TABLES,
    ),
    "msp_podcast": (
        [f"Audios/MSP-PODCAST_{k}.wav" for k in ("0001_0008", "0001_0009", "0002_0001", "0002_0002_0001")],
        [f"Audio/msp-podcast_{k}.flac" for k in ("0001_0008", "0001_0009", "0002_0001", "0002_0002_0001")],
        {
            "Labels/labels_consensus.csv": MSP_TABLE,
            "Transcripts/MSP-PODCAST_0001_0008.txt": "Well,\nhello.\n",
            "Previous_releases_information/labels_consensus.csv": MSP_TABLE.replace("Train", "Test1"),
        },
    ),
    "esd": (
        ["0001/Angry/0001_000351.wav", "0001/Neutral/0001_000050.wav", "0011/Surprise/0011_001451.wav"],
        ["0001/Angry/evaluation/0001_000351.wav", "0001/test/0001_000050.wav", "Happy/0011_001451.WAV"],
        {
            "0001/0001.txt": "0001_000050\t打开门。\t中立\n0001_000351\t他来了。\t生气\n".encode("gb18030"),
            "0011/0011.txt": "0011_001451\tThe nine the eggs, I keep.\tSurprise\n".encode("utf-16"),
        },
    ),
    "emovo": (
        ["f1/dis-f1-b1.wav", "m3/tri-m3-n5.wav"],
        ["EMOVO/gioia/DIS-F1-B1.WAV", "tri-m3-n5.wav"],
        {},
    ),
    "nemo": (
        ["samples/PK1_surprised_090.wav", "samples/SB0_anger_001.wav"],
        ["PK1_surprised_090.WAV", "wav/SB0_anger_001.flac"],
        {"data.tsv": NEMO_TABLE},
    ),
    "emodb2": (
        ["wav/03a01Na.wav", "wav/03a01Wa.wav", "wav/12b02Fb.wav"],
        ["audio/03a01Naxx.wav", "03a01wa.WAV", "12b02Fb.wav"],
        EMODB2_TABLES,
    ),
}
KEPT = ["ID", "emotion", "speaker", "gender", "dialog", "transcript", "text", "language"]
ROWS = {  # of these columns, and of what the preset adds
    "ravdess": """
        03-01-08-02-01-02-01|surprise|01|M||Kids are talking by the door|01|en|strong
        03-01-01-01-02-01-12|neutral|12|F||Dogs are sitting by the door|02|en|normal""",
    "cremad": """
        1001_DFA_ANG_XX|angry|1001|M||Don't forget a jacket.|DFA|en|XX
        1040_ITH_SAD_X|sad|1040|M||I think I have a doctor's appointment.|ITH|en|X""",
    "tess": """
        OAF_back_angry|angry|OAF|F||Say the word back.|back|en
        OAF_bite_neutral|neutral|OAF|F||Say the word bite.|bite|en
        YAF_king_ps|surprise|YAF|F||Say the word king.|king|en""",
    "meld": """
        dev_dia0_utt0|surprise|Monica|F|dev_dia0|What?|WHAT|en|valid
        test_dia0_utt0|sad|The Waiter||test_dia0|I said "no".|I SAID NO|en|test
        train_dia0_utt0|happy|Joey|M|train_dia0|Oh, it\N{RIGHT SINGLE QUOTATION MARK}s you.|OH IT'S YOU|en|train""",
    "msp_podcast": """
        MSP-PODCAST_0001_0008|neutral|30|M|MSP-PODCAST_0001|Well, hello.|WELL HELLO|en|4.0|2.2|2.6|Train|train
        MSP-PODCAST_0001_0009|no agreement|||MSP-PODCAST_0001|||en|3.25|3.5|3.0|Development|valid
        MSP-PODCAST_0002_0001|contempt|31|F|MSP-PODCAST_0002|||en|2.0|3.0|4.0|Test1|test
        MSP-PODCAST_0002_0002_0001|other||F|MSP-PODCAST_0002|||en|2.0|3.0|4.0|Test2|""",
    "esd": """
        0001_000351|angry|0001|F||他来了。|zh-001|zh|valid
        0001_000050|neutral|0001|F||打开门。|zh-050|zh|test
        0011_001451|surprise|0011|M||The nine the eggs, I keep.|en-051|en|train""",
    "emovo": """
        dis-f1-b1|disgust|f1|F||Gli operai si alzano presto.|b1|it
        tri-m3-n5|sad|m3|M||Uno quarantatré dieci mille cinquantasette venti.|n5|it""",
    "nemo": """
        PK1_surprised_090|surprise|PK1|M||Naprawdę?|NAPRAWDĘ|pl
        SB0_anger_001|angry|SB0|F||Chodź tu!|CHODŹ TU|pl""",
    "emodb2": """
        03a01Na|neutral (ambiguous)|03|M|a01|Der Lappen liegt auf dem Eisschrank.|a01|de|train
        03a01Wa|angry|03|M|a01|Der Lappen liegt auf dem Eisschrank.|a01|de|train
        12b02Fb|happy|12|M|b02|Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.|b02|de|test""",
}


@pytest.fixture(params=sorted(LAYOUTS))
def name(request):
    return request.param


def test_every_preset_is_described_and_tried():
    assert sorted(PRESETS) == sorted(DESCRIBED) == sorted(LAYOUTS) == sorted(ROWS)
    assert all(corpus_module(name) is described for name, described in DESCRIBED.items())


def test_the_release_and_a_copy_give_the_same_rows_twice_the_same_bytes(tmp_path, name, caplog):
    caplog.set_level(logging.INFO)
    rows = [line.strip().split("|") for line in ROWS[name].strip().splitlines()]
    for layout in (0, 1):
        names = LAYOUTS[name][layout]
        root = tree(tmp_path / f"{layout}", names, LAYOUTS[name][2])
        paths = [prepare(name, root, root / out) for out in (".a", ".b")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        frame = read_manifest(paths[0], root)
        assert len(frame) == len(rows) and set(frame["corpus"]) == {name} and set(frame["session"]) == {""}
        frame = frame.set_index("ID", drop=False).loc[[row[0] for row in rows]]
        kept = [*KEPT, *(column for column in frame if column not in (*COLUMNS, "recording"))]
        assert frame[kept].to_numpy().tolist() == rows
        assert frame["wav"].tolist() == [str(root / wav) for wav in names]
    assert caplog.text.count(DESCRIBED[name].licence) == 4


def error_of(name, root):
    with pytest.raises(CorpusError) as error:
        prepare(name, root, root / ".out")
    return str(error.value)


def test_a_folder_of_something_else(tmp_path, name):
    assert error_of(name, tmp_path / "none").endswith(f"no such folder: {tmp_path / 'none'}")
    write(tmp_path / "corpus" / "readme.txt", "")
    message = error_of(name, tmp_path / "corpus")
    assert "found none" in message and ("expected its table" in message or DESCRIBED[name].example in message)


# ------------------------------------------------------------------ traps


def test_ravdess_traps(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = LAYOUTS["ravdess"][0]
    root = tree(tmp_path / "RAVDESS", [*names, *(f"Actor_01/0{k}-01-01-01-01-01.wav" for k in ("3-02", "1-01"))])
    write_oddly(root / names[0])
    shutil.copytree(root / "Actor_01", root / "audio_speech_actors_01-24" / "Actor_01")  # as on Kaggle
    os.symlink(root, root / "Actor_12" / "again")
    frame = read_manifest(prepare("ravdess", root, tmp_path / "out"), root)
    assert frame["wav"].tolist() == [str(root / wav) for wav in sorted(names, reverse=True)]
    for said in (
        *("2 songs are left out", "2 videos are left out"),
        "1 copy of recordings left out, byte for byte or in another format, e.g. audio_speech_actors_01-24/Actor_01/03",
        "1438 recordings are missing: 03-01-01-01-01-01-01, 03-01-01-01-01-01-02, ",
        "ravdess: 2 recordings; the official release has 1440",
    ):
        assert said in caplog.text
    write_wav(root / "other" / Path(names[0]).name)
    for strange in ("03-01-09-01-02-01-12", "Copy of 03-01-08-02-01-02-01", "03-01-03-01-02-01-12 (1)", "mine"):
        write_wav(root / "Actor_12" / f"{strange}.wav")
    assert error_of("ravdess", root).splitlines() == [
        f"RAVDESS in {root}",
        "renamed (1):",
        "  Actor_12/03-01-03-01-02-01-12 (1).wav (expected 03-01-03-01-02-01-12)",
        "doubled under another name (1):",
        f"  Actor_12/Copy of 03-01-08-02-01-02-01.wav (another {names[0]})",
        "name that cannot be read (expected one like Actor_12/03-01-06-01-02-01-12.wav) (1):",
        "  Actor_12/mine.wav",
        *("doubled, with other bytes (expected each once) (1):", f"  other/{Path(names[0]).name} (another {names[0]})"),
        "unknown emotion (known: 01 02 03 04 05 06 07 08) (1):",
        "  Actor_12/03-01-09-01-02-01-12.wav: '09'",
    ]


def test_unreadable_recordings_are_listed(tmp_path, name):
    names = LAYOUTS[name][0]
    root = tree(tmp_path / "corpus", names, LAYOUTS[name][2])
    write(root / names[-1], b"")
    assert f"empty recording (expected at least one sample) (1):\n  {root / names[-1]}: 0 bytes" in error_of(name, root)


def test_cremads_silent_recording_is_left_out_and_any_other_refused(tmp_path, caplog):
    root = tree(tmp_path / "CREMA-D", [*LAYOUTS["cremad"][0], "AudioMP3/1001_DFA_ANG_XX.mp3"])
    soundfile.write(root / "AudioWAV/1076_MTI_SAD_XX.wav", np.zeros(320), 16_000)
    assert len(read_manifest(prepare("cremad", root, tmp_path / "out"), root)) == 2
    assert "1076_MTI_SAD_XX is left out: it is silent" in caplog.text
    assert "1 copy of recordings left out, byte for byte or in another format, e.g. AudioMP3/1001" in caplog.text
    soundfile.write(root / "AudioWAV/1076_MTI_SAD_HI.wav", np.zeros(320), 16_000)
    assert "silent: all samples are the same" in error_of("cremad", root)


def test_tess_traps(tmp_path, caplog):
    names = LAYOUTS["tess"][0]
    root = tree(tmp_path / "TESS", names)
    write_oddly(root / names[0])
    write_oddly(root / names[2])
    shutil.copytree(root, root / "TESS Toronto emotional speech set data")
    frame = read_manifest(prepare("tess", root, tmp_path / "out"), root)
    assert frame["ID"].tolist() == ["OAF_back_angry", "OAF_bite_neutral", "YAF_king_ps"]
    assert "3 copies of recordings left out" in caplog.text
    assert "39 recordings are missing: OAF_back_disgust, OAF_back_fear" in caplog.text  # of 2 x 3 x 7


def test_meld_traps(tmp_path, caplog):
    names = LAYOUTS["meld"][0]
    root = tree(tmp_path / "MELD.Raw", names, MELD_TABLES)
    write_wav(root / "output_repeated_splits_test" / "final_videos_testdia0_utt0.wav")
    write_wav(root / "train/train_splits/dia9_utt9.wav")
    write((root / names[2]).with_suffix(".mp4"), b"video")
    prepare("meld", root, tmp_path / "out")
    assert "train_dia125_utt3 is left out: its video is broken" in caplog.text
    assert "dev_dia110_utt7 is left out: the release lacks it" in caplog.text
    assert "2 recordings that its tables have no row of are left out, e.g. output_rep" in caplog.text
    (root / names[2]).unlink()
    (root / names[1]).unlink()
    more = ("Hi.,joey,joy,positive,0,1", "Hi.,Joey,joy,positive,0,1", "Hi.,Joey,glad,positive,9,9")
    write(root / "train_sent_emo.csv", meld(*MELD_TRAIN, *more))
    message = error_of("meld", root)
    for said in (
        "row of a recording that has one already (1):\n  train_sent_emo.csv, line 5: as train_sent_emo.csv, line 4",
        "row without its recording (expected one like train_splits/dia0_utt0.wav) (2):\n  test_dia0_utt0\n  train",
        'ffmpeg -i "$v" -vn -ac 1 -ar 16000 "${v%.mp4}.wav"; done) (1):\n  train/train_splits/dia0_utt0.mp4',
        "unknown emotion (known: anger disgust fear joy neutral sadness surprise) (1):",
    ):
        assert said in message
    write(root / "old" / "dev_sent_emo.csv", MELD_HEAD)
    assert "found a table twice" in error_of("meld", root)
    (root / "train_sent_emo.csv").unlink()
    assert "expected its table train_sent_emo.csv, found none" in error_of("meld", root)


def test_a_speaker_of_a_table_is_one_however_written(tmp_path, caplog):
    rows = meld(*MELD_TRAIN, "Hi.,joey,joy,positive,0,1", "So.,Joey,joy,positive,0,2")
    names = [*LAYOUTS["meld"][0], "train/train_splits/dia0_utt1.wav", "train/train_splits/dia0_utt2.wav"]
    root = tree(tmp_path / "MELD", names, {**MELD_TABLES, "train_sent_emo.csv": rows})
    frame = read_manifest(prepare("meld", root, tmp_path / "out"), root)
    assert frame["speaker"].value_counts()["Joey"] == 3 and "the speaker 'joey' is taken for 'Joey'" in caplog.text


def test_msp_podcasts_undecided_are_left_out_or_kept_by_labels(tmp_path):
    root = tree(tmp_path / "MSP", LAYOUTS["msp_podcast"][0], LAYOUTS["msp_podcast"][2])
    frame = read_manifest(prepare("msp_podcast", root, tmp_path / "out"), root)
    assert apply_labels(frame)["emotion"].tolist() == ["neutral", "contempt"]
    labels = {"no agreement": "none", "neutral": "neutral", "*": None}
    assert apply_labels(frame, labels)["emotion"].tolist() == ["neutral", "none"]
    table = root / "Labels/labels_consensus.csv"
    write(table, MSP_TABLE.replace("EmoVal", "EmoValence"))
    assert "no such column (it has FileName, EmoClass, EmoAct, EmoValence, " in error_of("msp_podcast", root)
    write(table, MSP_TABLE.replace("Test1", "Test9") + "other.wav,N,1,1,1,1,Male,Train\n")
    message = error_of("msp_podcast", root)
    assert "unknown split (known: Train Development Validation Test1 Test2 Test3) (1)" in message
    assert "row of a name that cannot be read (expected one like Audios/MSP-" in message
    assert "(1):\n  labels_consensus.csv, line 6" in message


def test_emodb2s_gold_subset_is_the_default(tmp_path, caplog):
    root = tree(tmp_path / "emodb", [*LAYOUTS["emodb2"][0], "laryngo/03a01Na.wav"], EMODB2_TABLES)
    frame = read_manifest(prepare("emodb2", root, tmp_path / "out"), root)
    assert apply_labels(frame)["ID"].tolist() == ["03a01Wa", "12b02Fb"] and len(frame) == 3
    assert "emodb2: 3 recordings; the official release has 816" in caplog.text
    assert "emodb2: 2 of the gold subset; the official release has 535" in caplog.text


@pytest.mark.parametrize("name", ["ravdess", "emovo", "tess"])
def test_a_whole_release_lacks_nothing(tmp_path, name, caplog):
    """Nothing of the recordings is read to find utterances."""
    described = DESCRIBED[name]
    words = {"text": [f"word{chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(200)]} if name == "tess" else {}
    grid = np.array(np.meshgrid(*[list(words.get(part) or described.parts[part]) for part in described.grid])).T
    for facts in grid.reshape(-1, len(described.grid)):
        file = f"{described.id.format(**dict(zip(described.grid, facts, strict=True)))}.wav"
        if not file.startswith("03-01-01-02"):
            (tmp_path / file).touch()
    rows = described.find_utterances(tmp_path)
    assert len(rows) == described.OFFICIAL["recordings"] and all(
        record.levelno < logging.WARNING for record in caplog.records
    )
    speakers = [row["speaker"] for row in rows]
    assert {speakers.count(speaker) for speaker in speakers} == {len(rows) // len(described.parts["speaker"])}


def test_each_has_the_four_classes_of_the_table_across_corpora():
    corpora = yaml.safe_load((ROOT / "hparams" / "tables" / "cross_corpus.yaml").read_text())["corpora"]
    assert {*PRESETS} < {*corpora}
    for name, lines in corpora.items():
        every = [*corpus_module(name).EMOTIONS.values()]
        frame = pd.DataFrame({"ID": every, "emotion": every, "corpus": name})
        found = apply_labels(frame, lines.get("labels") or corpus_module(name).DEFAULT_LABELS)
        assert {*found["emotion"]} == {"angry", "happy", "neutral", "sad"}, name
        assert lines.get("protocol", "speaker") in PROTOCOLS
