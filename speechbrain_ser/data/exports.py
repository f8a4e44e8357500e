"""A manifest in the forms that others read: SpeechBrain's JSON and audformat's tables."""

import os
import tempfile
from pathlib import Path

import pandas as pd

from speechbrain_ser.data.corpora.audformat import GENDERS, library
from speechbrain_ser.data.manifest import DATA_ROOT, given_options, prepare, read_manifest
from speechbrain_ser.data.protocols import SPLIT_NAMES
from speechbrain_ser.data.text import spelling
from speechbrain_ser.files import write_json, write_text

SPLITS = {"train": "train", "valid": "dev", "test": "test"}  # our part -> audformat's type of split
OURS_ALONE = ("wav", "duration", "emotion", "recording", "corpus")  # columns that no column of audformat's tables has


def export_manifest(
    out: str | os.PathLike,
    corpus: str,
    data_folder: str | os.PathLike,
    table_file: str | None = None,
    table_columns: str = "{}",
    table_names: str = "{}",
) -> list[Path]:
    """Read and check a corpus; write its manifest in three forms, and return the files.

    `<corpus>-….csv` is ours; `speechbrain.json` is read by SpeechBrain's `DynamicItemDataset.from_json` with
    `replacements={"data_root": data_folder}`; `audformat/` becomes a database when what it has is put into the data
    folder.

    Arguments
    ---------
    table_file, table_columns, table_names : str
        As the YAML lines of these names.
    """
    library()  # what it lacks is known before a corpus is read
    options = given_options(corpus, table_file, table_columns, table_names)
    path = prepare(corpus, data_folder, out, **options)
    frame = read_manifest(path, DATA_ROOT)  # the paths as they stand in it
    by_name = frame.rename(columns={"duration": "length"}).set_index("ID").to_dict("index")
    return [path, write_json(by_name, Path(out) / "speechbrain.json"), *_write_audformat(frame, Path(out))]


def _write_audformat(frame: pd.DataFrame, out: Path) -> list[Path]:
    """Write a database's files, the header last: a folder with one is whole."""
    with tempfile.TemporaryDirectory() as folder:
        _database(frame).save(folder, storage_format="csv")
        (out / "audformat").mkdir(exist_ok=True)
        files = sorted(Path(folder).iterdir(), key=lambda file: (file.suffix == ".yaml", file.name))
        return [write_text(file.read_text(encoding="utf-8"), out / "audformat" / file.name) for file in files]


def _database(frame: pd.DataFrame):
    """Tables `emotion` (or one a part of the corpus's split) and `files`, which has all else that is known."""
    audformat = library()
    files = audformat.filewise_index(frame["wav"].str.removeprefix(DATA_ROOT))
    frame = frame.set_axis(files)
    database = audformat.Database(frame["corpus"].iloc[0], usage="other", description="written by speechbrain-ser")
    database.schemes["emotion"] = audformat.Scheme("str", labels=sorted(set(frame["emotion"])))
    for part, rows in _parts(frame).items():
        name = f"emotion.{SPLITS[part]}" if part else "emotion"
        if part:
            database.splits[SPLITS[part]] = audformat.Split(type=SPLITS[part])
        database[name] = audformat.Table(rows.index, split_id=SPLITS.get(part))
        database[name]["emotion"] = audformat.Column(scheme_id="emotion")
        database[name]["emotion"].set(rows["emotion"].to_numpy())
    facts = frame.drop(columns=[*OURS_ALONE, "split"], errors="ignore")
    facts["gender"] = facts["gender"].replace({ours: theirs for theirs, ours in GENDERS.items()})
    database["files"] = audformat.Table(files)
    for name in facts.columns[(facts != "").any()]:
        database.schemes[name] = audformat.Scheme("str")
        database["files"][name] = audformat.Column(scheme_id=name)
        database["files"][name].set(facts[name].to_numpy())
    return database


def _parts(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each part of the column split; of all, under "", where there is none that is known."""
    part = frame.get("split", pd.Series("", index=frame.index)).map(spelling).map(SPLIT_NAMES)
    return dict([*frame.groupby(part)]) if part.notna().all() else {"": frame}
