"""Which corpora there are: one module each, found by its name."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from speechbrain_ser.errors import CorpusError, nearest

# Each module has find_utterances(data_folder, **options) -> rows without durations, and DEFAULT_LABELS.
# EMOTIONS (code -> emotion, when they are known beforehand) and OFFICIAL (totals that only warn) may follow.
CORPORA = ("demo", "emodb", "iemocap", "savee", "table")
DEMO_MARKER = "demo_corpus.json"  # in the folder of a spoken corpus, whose layout is a real one's


def corpus_module(name: str) -> ModuleType:
    """Import the module of a corpus."""
    if name not in CORPORA:
        raise CorpusError(f"unknown corpus {name!r}{nearest(name, CORPORA)}; known: {', '.join(CORPORA)}")
    return importlib.import_module(f"{__package__}.{name}")


def other_folder(message: str, root: Path, inside: Iterable[str], is_too_deep: bool) -> CorpusError:
    """Return the error for a folder that is not the corpus's, with the one that was probably meant.

    A folder of a pattern `inside` one below shows that it is that one; `is_too_deep` that it is the one above.
    """
    if deeper := sorted(path.parent for pattern in inside for path in root.glob(f"*/{pattern}") if path.is_dir()):
        message += f". Give the folder inside it: {deeper[0]}"
    elif is_too_deep:
        message += f". Give the folder that holds it: {root.resolve().parent}"
    return CorpusError(message)
