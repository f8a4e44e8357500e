"""Any system takes any corpus, or says which line it needs; what it then trains on is told before it does."""

import json
import re

import pandas as pd
import pytest

from speechbrain_ser.data import manifest
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.calibration import calibrate, logit_table
from speechbrain_ser.training.config import read_config
from speechbrain_ser.training.run import prepare

from .conftest import ROOT

SYSTEMS = ("cai_mtl", "ha_speaker_norm", "hsu_pretrain", "hsu_mtl", "fu_cross_lingual", "probe")
NO_TEXTS = {"cai_mtl": ["--alpha=0"], "ha_speaker_norm": ["--alpha=0"], "hsu_mtl": ["--a_CTC=0"]}
NO_SPEAKERS = {
    "ha_speaker_norm": ["--beta=0"],
    "hsu_pretrain": ["--omega=0"],
    "hsu_mtl": ["--a_S=0"],
    "fu_cross_lingual": ["--theta=0"],
}
NEITHER = {system: [*NO_SPEAKERS.get(system, []), *NO_TEXTS.get(system, [])] for system in SYSTEMS}
CORPORA = {  # the lines that each system needs
    "emodb": {},
    "demo": {},
    "savee": NO_TEXTS,
    "whole": {},
    "some": {},
    "notext": NO_TEXTS,
    "laughter": NO_TEXTS,
    "nospeaker": NO_SPEAKERS,
    "onespeaker": NO_SPEAKERS,
    "neither": NEITHER,
}


@pytest.fixture(scope="module")
def tables(small, tmp_path_factory):
    """Tables of one demo corpus: with all it has, and without some of it."""
    folder = tmp_path_factory.mktemp("tables")  # a process may come back to this module, and make them again
    path = manifest.prepare("emodb", small.corpus("emodb"), small.folder / "manifests")
    whole = manifest.read_manifest(path, small.corpus("emodb"))[["wav", "emotion", "speaker", "transcript"]]
    frames = {
        "whole": whole,
        "some": whole.assign(transcript=whole["transcript"].where(whole.index % 2 == 0, "")),
        "notext": whole.drop(columns="transcript"),
        "laughter": whole.assign(transcript="[LAUGHTER]"),
        "cyrillic": whole.assign(transcript="привет"),
        "nospeaker": whole.drop(columns="speaker"),
        "onespeaker": whole.assign(speaker="me"),
        "neither": whole[["wav", "emotion"]],
    }
    for name, frame in frames.items():
        (folder / name).mkdir()
        frame.to_csv(folder / name / f"{name}.csv", index=False)
    return folder


def lines_of(small, tables, corpus: str) -> list[str]:
    layouts = {"demo": "iemocap", "emodb": "emodb", "savee": "savee"}
    folder = small.corpus(layouts[corpus]) if corpus in layouts else tables / corpus
    protocol = "random" if corpus in ("nospeaker", "onespeaker", "neither") else "speaker"
    return [
        f"--corpus={corpus if corpus in layouts else 'table'}",
        f"--data_folder={folder}",
        f"--manifest_folder={small.folder / 'manifests'}",
        f"--results_folder={small.folder / 'nowhere'}",
        f"--protocol={protocol}",
    ]


def prepared(system: str, *lines: str):
    return prepare(read_config([str(ROOT / "hparams" / f"{system}.yaml"), *lines], ROOT / "hparams"))


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("system", SYSTEMS)
def test_any_system_takes_any_corpus_or_names_the_line(small, tables, system, corpus):
    """All that is wrong with the data is told before the encoder is looked for, which is nowhere here."""
    given, said = lines_of(small, tables, corpus), ""
    given += ["--encoder=no/such"] * (system in ("cai_mtl", "ha_speaker_norm", "hsu_mtl", "probe"))
    found = ["--pretrain=False"] * (system == "hsu_mtl")
    expected = [*found, *CORPORA[corpus].get(system, [])]
    for _ in expected or [""]:
        try:
            prepared(system, *given, *found)
        except UserError as error:
            said = str(error)
            found += re.findall(r"--\w+=0", said)
    assert found == expected, said
    if "--encoder=no/such" in given:
        with pytest.raises(UserError, match="no/such"):
            prepared(system, *given, *found)
    else:
        assert prepared(system, *given, *found).labels["emotion"]


def test_letters_that_no_transcript_has(small, tables):
    with pytest.raises(UserError, match=r"no letter of the transcripts \(ВЕИПРТ …\): --tokens=characters"):
        prepared("cai_mtl", *lines_of(small, tables, "cyrillic"))


def test_two_speakers_leave_one_to_train_on(small, tables):
    two = manifest.pd.read_csv(tables / "whole" / "whole.csv")
    two = two[two["speaker"].isin(sorted(set(two["speaker"]))[:2])]
    (tables / "two").mkdir()
    two.to_csv(tables / "two" / "two.csv", index=False)
    with pytest.raises(UserError, match=r"two speakers at least in the training part of fold 3, found 8: --theta=0"):
        prepared("fu_cross_lingual", *lines_of(small, tables, "two"))


def test_some_cells_are_empty(train, tables, tmp_path):
    """They have no CTC loss, no word errors, and their count stands in the log; what is trained on is told, too."""
    from speechbrain_ser.evaluation.metrics import word_errors

    lines = ["--corpus=table", f"--data_folder={tables / 'some'}", "--seen_fraction=0", "--dropout=0", "--layerdrop=0"]
    out = train(*lines, "--micro_batch_size=1", "--eval_batch_size=1")
    assert "WER" in out
    said = "asr: utterances without a transcript have no CTC loss and no WER: train 42, valid 4, test 3"
    (folder,) = (path.parent for path in (tmp_path / "results").glob("**/metrics.json"))
    log = (folder / "log.txt").read_text()
    assert said in log
    found = json.loads((folder / "metrics.json").read_text())
    assert found["data"]["train"]["utterances"] == 84 and found["data"]["train"]["speakers"] == 8
    assert set(found["data"]["test"]["classes"].values()) == {1} and found["data"]["test"]["minutes"] > 0
    table = r"\n +train +valid +test\nutterances +84 +7 +7\nspeakers +8 +1 +1\nminutes .*\nangry +12 +1 +1\n"
    assert re.search(table, log)
    rows = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
    silent = rows["transcript"] == ""
    errors = word_errors(rows["transcript"], rows["hypothesis"].where(~silent, "what nobody said"))
    assert silent.sum() == 3 and not errors[silent].to_numpy().any()
    assert found["selections"]["last"]["all"]["WER"] == errors["word_errors"].sum() / errors["words"].sum()
    # the same loss in any batch
    train(*lines, "--micro_batch_size=8", "--eval_batch_size=8", f"--results_folder={tmp_path / 'again'}")
    epochs = [pd.read_csv(next((tmp_path / r).glob("**/epochs.csv"))) for r in ("results", "again")]
    for column in ("train_loss_asr", "valid_loss_asr", "valid_loss"):
        assert epochs[0][column].tolist() == pytest.approx(epochs[1][column].tolist(), rel=1e-4)


def test_what_occurs_once_is_listed_and_what_nobody_has_refused(train, tables, tmp_path):
    frame = pd.read_csv(tables / "whole" / "whole.csv", dtype=str)
    frame.loc[0, ["emotion", "speaker"]] = "sadd", "o8"
    (tables / "once").mkdir()
    frame.to_csv(tables / "once" / "once.csv", index=False)
    lines = ["--corpus=table", f"--data_folder={tables / 'once'}", "--alpha=0", "--fold=03"]
    train(*lines)
    (path,) = (tmp_path / "results").glob("**/log.txt")
    assert "1 emotion with one utterance alone: sadd (did you mean 'sad'?)" in path.read_text()
    assert "1 speaker with one utterance alone: o8" in path.read_text()
    said = train(*lines, "--labels={agry: angry, '*': other}", code=2)
    assert "no utterance has the emotion (1):\n  'agry' (did you mean 'angry'?)" in said


def test_too_little_gives_no_temperature(monkeypatch):
    monkeypatch.setattr("speechbrain_ser.evaluation.calibration.FEWEST", 30)

    def found(n, classes=("a", "b")):
        rows = pd.DataFrame({"ID": [str(k) for k in range(n)], "speaker": "s", "emotion": ["a", "b"] * (n // 2)})
        logits = {i: [5.0, 0.0, 0.0][: len(classes)] for i in rows["ID"]}
        table = logit_table(rows, logits, classes)
        return calibrate(table, table, classes)

    assert found(30)["temperature"] == 20 and "reason" not in found(30)
    few, lacking = found(28), found(40, ("a", "b", "c"))
    assert few["temperature"] is lacking["temperature"] is None
    assert few["reason"] == "the validation part has 28 utterances, expected 30 at least"
    assert lacking["reason"] == "the validation part has no c" and few["unused"] == 20
    assert set(few["figures"]["test"]) == {"uncalibrated"} and few["thresholds"][0]["coverage"] == 1


def test_tables_have_names_and_any_number_of_corpora_is_joined(train, small, tables, tmp_path):
    path = manifest.prepare("savee", small.corpus("savee"), small.folder / "manifests")
    frame = manifest.read_manifest(path, small.corpus("savee"))[["wav", "emotion", "speaker"]]
    frame[frame["emotion"].isin(["angry", "sad"])].to_csv(tables / "sa.csv", index=False)
    lines = [line for line in lines_of(small, tables, "whole") if "results" not in line]
    lines += ["--alpha=0", "--seen_fraction=0", f"--results_folder={tmp_path}"]
    of_table = f"corpus: table, data_folder: {tables}, table_file: sa.csv"
    twice = f"--second_corpus=[{{{of_table}, table_name: whole}}]"
    with pytest.raises(UserError, match=r"found whole twice; --table_name=… names a table"):
        prepared("cai_mtl", *lines, twice)
    with pytest.raises(UserError, match=r"no line tabel_file \(did you mean 'table_file'\?\)"):
        prepared("cai_mtl", *lines, twice.replace("table_file", "tabel_file"))
    with pytest.raises(UserError, match=r"table_name: expected a name .* found 'emodb'"):
        prepared("cai_mtl", *lines, "--table_name=emodb")
    several = f"--second_corpus=[{{{of_table}}}, {{corpus: demo, data_folder: {small.corpus('iemocap')}}}]"
    out = train(*lines, several)
    (path,) = tmp_path.glob("cai_mtl/whole-speaker/*second_corpus=sa+demo*/03/1/metrics.json")
    found = json.loads(path.read_text())
    assert found["corpus"] == "whole" and found["second_corpus"] == "sa and demo"
    last = found["selections"]["last"]
    sizes = {name: each["n"] for name, each in last["seconds"].items()}
    assert set(sizes) == {"sa", "demo"} and all(sizes.values())
    assert sum(sizes.values()) == last["second"]["n"] == found["utterances"]["second"]
    for name, n in {**sizes, "sa and demo": sum(sizes.values())}.items():
        assert re.search(rf"last epoch +1 +{name} +{n} ", out), out
    # renamed, it is another folder; and by its own name what it was
    named = prepared("cai_mtl", *lines, "--table_name=calls", f"--encoder={small.backbone()}")
    plain = prepared("cai_mtl", *lines, f"--encoder={small.backbone()}")
    assert named.folder.parts[-4] == "calls-speaker" and plain.folder.parts[-4] == "whole-speaker"
    assert named.science == plain.science
    # another table of its name
    (tables / "sub").mkdir()
    pd.read_csv(tables / "whole" / "whole.csv", dtype=str)[:-1].to_csv(tables / "sub" / "whole.csv", index=False)
    other = [line.replace(str(tables / "whole"), str(tables / "sub")) for line in lines]
    assert "--table_name=… tells two tables of one name apart" in train(*other, several, code=2)
