"""Which corpora there are, each found by its name: a module, or a description in `presets.py`."""

import codecs
import importlib
from pathlib import Path
from typing import Any

from speechbrain_ser.errors import CorpusError, nearest

# Each has find_utterances(data_folder, **options) -> rows without durations, and DEFAULT_LABELS.
# EMOTIONS (code -> emotion, when they are known beforehand) and OFFICIAL (totals that only warn) may follow.
PRESETS = ("cremad", "emodb2", "emovo", "esd", "meld", "msp_podcast", "nemo", "ravdess", "tess")
CORPORA = ("demo", "emodb", "iemocap", "savee", *PRESETS, "table", "audformat", "emobox")
DEMO_MARKER = "demo_corpus.json"  # in the folder of a spoken corpus, whose layout is a real one's


def corpus_module(name: str) -> Any:
    """Import the module of a corpus, or the description that is used as one."""
    if name not in CORPORA:
        raise CorpusError(f"unknown corpus {name!r}{nearest(name, CORPORA)}; known: {', '.join(CORPORA)}")
    if name in PRESETS:
        return importlib.import_module(f"{__package__}.presets").PRESETS[name]
    return importlib.import_module(f"{__package__}.{name}")


def read_text(path: Path, otherwise: str | None = None) -> str:
    """Read a text file of a corpus: UTF-8, or the encoding `otherwise`; UTF-16 is told, not taken for either."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        way_out = 'save it as UTF-8 (Excel: "CSV UTF-8"; elsewhere: iconv -f UTF-16 -t UTF-8)'
        raise CorpusError(f"{path}: expected UTF-8 text, found UTF-16, or zero bytes: {way_out}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if otherwise:
            return data.decode(otherwise)
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path}: expected UTF-8 text, found byte {error.start} otherwise, in line {line}") from error
