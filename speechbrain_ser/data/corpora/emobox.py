"""EmoBox's metadata of a corpus (Ma et al. 2024), with its folds -> rows of a manifest, for the protocol ``given``.

`data/emodb/fold_1/emodb_train_fold_1.jsonl`, …: a line a recording, whose path begins in EmoBox's own folder. Who
speaks and what is said is not in it; for some corpora the recordings' names tell.
"""

import os
from pathlib import Path

import pandas as pd

from speechbrain_ser.data.corpora.table import rows_of
from speechbrain_ser.data.protocols import FOLD_COLUMN
from speechbrain_ser.data.splits import read_splits
from speechbrain_ser.errors import CorpusError, Offenders

DEFAULT_LABELS = None  # whatever is found
FACTS = ("emotion", "speaker", "session", "script", "transcript", "text")
KEYS = {"ID": "key", "wav": "wav", "emotion": "emo"}


def find_utterances(data_folder: str | os.PathLike, file: str | None = None) -> list[dict]:
    """Return a row of the manifest, without its duration, for each recording; a column `split_fold_1`, … for each fold.

    Arguments
    ---------
    data_folder : path
        Where EmoBox's paths begin (its own folder, which has `downloads/emodb/wav/…`), or a corpus's folder, which has
        only their end (`wav/…`).
    file : str, optional
        The metadata's folder, from `data_folder` (`data/emodb`) or absolute; by default the only one in `data`.
    """
    root = Path(data_folder)
    folder = _metadata_folder(root, file)
    offenders = Offenders(f"EmoBox's {folder}")
    (split,) = read_splits(_fold_files(folder))
    rows = split.rows.assign(fold=split.rows["fold"].str.removeprefix(f"{folder.name}_"))
    rows["emotion"] = rows["emotion"].str.lower()  # its maps say "Neutral" where its lists say "neutral"
    _check(rows, offenders)
    parts = rows.pivot(index="ID", columns="fold", values="part").fillna("").add_prefix(FOLD_COLUMN)
    facts = rows.drop_duplicates("ID").set_index("ID", drop=False)
    known = [name for name in FACTS if name != "script" or facts[name].any()]
    facts = facts.assign(wav=_below(root, facts["path"]))[["ID", "wav", *known]].join(parts)
    records = dict(zip(facts["ID"], facts.to_dict("records"), strict=True))
    return rows_of(records, {name: KEYS.get(name, name) for name in facts}, root, offenders, corpus="emobox")


def _metadata_folder(root: Path, file: str | None) -> Path:
    if file is not None:
        return (root / file).resolve()
    found = sorted(fold.parent.resolve() for fold in root.glob("data/*/fold_1"))
    if len(found) == 1:
        return found[0]
    message = f"EmoBox in {root}: expected one folder of metadata in {root / 'data'}, found {len(found)}"
    if (root / "fold_1").is_dir():
        way_out = "data_folder is where the recordings' paths begin"
        raise CorpusError(f"{message}: {way_out}; this one is --table_file={root.resolve()}")
    raise CorpusError(f"{message}: name one, --table_file=data/emodb ({', '.join(path.name for path in found)})")


def _fold_files(folder: Path) -> list[Path]:
    """The lists that EmoBox's own reader takes: older ones of other names may lie beside them."""
    found = sorted(folder.glob(f"fold_*/{folder.name}_*_fold_*.jsonl"))
    if not found:
        expected = f"fold_1/{folder.name}_train_fold_1.jsonl"
        raise CorpusError(f"EmoBox's {folder}: expected lists such as {expected}, found none")
    return found


def _check(rows: pd.DataFrame, offenders: Offenders) -> None:
    """One part of a fold, and one label and path, an utterance; whole recordings."""
    for fold, name in rows[rows.duplicated(["fold", "ID"])][["fold", "ID"]].to_numpy():
        offenders.add("twice in a fold", f"{fold}: {name}")
    differing = rows.groupby("ID")[["emotion", "path"]].nunique().gt(1).any(axis=1)
    for name in differing.index[differing]:
        offenders.add("another label or path in another fold", name)
    for name in rows["ID"][rows["start"] != ""].unique():
        offenders.add("segment of a recording (not supported: expected a recording an utterance)", name)
    offenders.raise_any()


def _below(root: Path, paths: pd.Series) -> pd.Series:
    """Paths without the folders that `root` is already in: `wav/03a01Fa.wav` of `downloads/emodb/wav/03a01Fa.wav`."""
    parts = Path(paths.iloc[0]).parts
    depth = next((k for k in range(len(parts)) if root.joinpath(*parts[k:]).is_file()), 0)
    return paths.map(lambda path: Path(*Path(path).parts[depth:]).as_posix())
