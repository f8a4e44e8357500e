"""Two corpora in one manifest, because someone asked for it: nothing of theirs is taken for the same by accident."""

import io
import logging
import math

import pandas as pd
import ruamel.yaml

from .errors import CorpusError, Offenders, nearest
from .labels import REST, default_labels
from .registry import CORPORA

logger = logging.getLogger(__name__)


def join(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """One manifest of two corpora; the classes are those of the first.

    Arguments
    ---------
    first, second : pandas.DataFrame
        Manifests after label selection, each of one corpus.

    Returns
    -------
    pandas.DataFrame
        The first's rows as they are, then the second's, whose `ID` and `speaker` begin with its corpus's name
        (`03` -> `emodb-03`; a speaker who is not known stays so); numbered from 0. `corpus` tells them apart. Columns
        that only one of them has are empty in the other's rows.

    Raises
    ------
    CorpusError
        The same corpus twice, no utterance left in one of them, or classes of the second that the first does not have:
        each with its count, the nearest known class and the line that maps them.

    Example
    -------
    >>> first = pd.DataFrame({"ID": ["DC_a01"], "speaker": "DC", "emotion": "angry", "corpus": "savee"})
    >>> second = pd.DataFrame({"ID": ["03a01Wa"], "speaker": "03", "emotion": "angry", "corpus": "emodb"})
    >>> join(first, second)[["ID", "speaker"]].values.tolist()
    [['DC_a01', 'DC'], ['emodb-03a01Wa', 'emodb-03']]
    """
    name, other = _corpus_of(first, "first"), _corpus_of(second, "second")
    if name == other:
        raise CorpusError(f"expected two corpora to join, found {name} twice")
    classes = first["emotion"].unique().tolist()
    _refuse_unknown_classes(name, other, classes, second)
    second = second.assign(ID=other + "-" + second["ID"], speaker=_prefixed(second["speaker"], other + "-"))
    _refuse_clashes(name, other, first, second)
    columns = list(dict.fromkeys([*first.columns, *second.columns]))
    parts = [part.reindex(columns=columns, fill_value="") for part in (first, second)]
    lacking = sorted(set(classes) - set(second["emotion"]))
    without = f"; {other} has no utterance of {', '.join(lacking)}" if lacking else ""
    logger.info("%s (%d utterances) joined by %s (%d utterances)%s", name, len(first), other, len(second), without)
    return pd.concat(parts, ignore_index=True)


def _corpus_of(frame, place):
    corpora = sorted(frame["corpus"].unique())
    if not corpora:
        raise CorpusError(f"the {place} corpus has no utterance left after label selection")
    if len(corpora) > 1:
        raise CorpusError(f"expected one corpus as the {place} to join, found {', '.join(corpora)}")
    return corpora[0]


def _prefixed(names, prefix):
    return names.where(names == "", prefix + names)


def _refuse_unknown_classes(name, other, classes, second):
    where = f"{other} has classes that {name} does not have (it has: {', '.join(sorted(classes))})"
    offenders = Offenders(f"{where}. Map them or leave them out, e.g.\n{_mapping_line(other, classes, second)}")
    for emotion, count in second["emotion"].value_counts().sort_index().items():
        if emotion not in classes:
            offenders.add(f"not a class of {name}", f"{emotion!r}: {count} utterances{nearest(emotion, classes)}")
    offenders.raise_any()


def _mapping_line(corpus, classes, second):
    """A line that works as it is: every emotion of the corpus has a rule, as labels must."""
    rules = default_labels(corpus) if corpus in CORPORA else None
    if rules is None:
        rules = {emotion: emotion for emotion in sorted(second["emotion"].unique())}
    rules = {emotion: target if target in classes else None for emotion, target in rules.items()}
    ends = {REST: rules.pop(REST)} if REST in rules else {}
    return _flow_yaml({"second_labels": dict(sorted(rules.items())) | ends})


def _flow_yaml(mapping):
    yaml, text = ruamel.yaml.YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output, yaml.width = True, False, math.inf
    yaml.dump(mapping, text)
    return text.getvalue().strip().removeprefix("{").removesuffix("}")


def _refuse_clashes(name, other, first, second):
    """A table may well call somebody `emodb-03` itself."""
    offenders = Offenders(f"{other} cannot be joined to {name}: names that {name} uses already")
    for column in ("ID", "speaker"):
        for clash in sorted(set(first[column]) & set(second[column]) - {""}):
            offenders.add(f"the same {column}", clash)
    offenders.raise_any()
