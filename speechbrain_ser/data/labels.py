"""From a corpus's emotions to the classes of an experiment: choosing, merging, joining two corpora."""

import io
import logging
import math
from collections.abc import Iterable, Mapping

import pandas as pd
import ruamel.yaml

from speechbrain_ser.data.corpora import CORPORA, corpus_module
from speechbrain_ser.errors import CorpusError, Offenders, nearest

logger = logging.getLogger(__name__)


REST = "*"  # the rule for every emotion that has none of its own


def apply_labels(frame: pd.DataFrame, labels: Mapping[str, str | None] | Iterable[str] | None = None) -> pd.DataFrame:
    """Keeps the utterances of the wanted emotions and gives them their class names.

    Arguments
    ---------
    frame : pandas.DataFrame
        A manifest.
    labels : mapping, list or None
        Emotion -> class name, or -> None, which leaves its utterances out; the key "*" is the rule for all
        emotions that are not listed. A list of emotions keeps their names; no other emotion may occur then.
        None takes the corpus's own default.

    Returns
    -------
    pandas.DataFrame
        The chosen rows with class names in `emotion`, numbered from 0.

    Raises
    ------
    CorpusError
        Emotions that `labels` says nothing about, emotions in `labels` that the corpus does not know, or
        nothing left: each with its count, some IDs and the nearest known name.

    Example
    -------
    >>> frame = pd.DataFrame(
    ...     {"ID": ["a", "b", "c"], "emotion": ["happy", "excited", "fear"], "corpus": "iemocap"}
    ... )
    >>> list(apply_labels(frame, {"happy": "joy", "excited": "joy", "*": None})["emotion"])
    ['joy', 'joy']
    >>> list(apply_labels(frame)["emotion"])
    ['happy', 'happy']
    """
    if labels is None:
        parts = [_apply(part, default_labels(corpus)) for corpus, part in frame.groupby("corpus", sort=False)]
        chosen = pd.concat(parts).sort_index() if parts else frame
    else:
        chosen = _apply(frame, labels)
    if chosen.empty:
        raise CorpusError(f"no utterance has one of the wanted emotions {_names(labels)}; found: {_found(frame)}")
    return chosen.reset_index(drop=True)


def default_labels(corpus: str) -> dict[str, str | None] | None:
    """What a corpus's emotions are called when nothing else is asked for.

    Arguments
    ---------
    corpus : str
        Its name.

    Returns
    -------
    dict or None
        Emotion -> class name; None keeps whatever is found.

    Example
    -------
    >>> default_labels("iemocap")["excited"]
    'happy'
    """
    return corpus_module(corpus).DEFAULT_LABELS


def _apply(frame, labels):
    if labels is None:
        return frame
    rules = _rules(labels)
    _refuse_uncovered(frame, rules)
    _refuse_unknown(frame, rules)
    rest = rules.get(REST)
    classes = [rules.get(emotion, rest) for emotion in frame["emotion"]]
    chosen = frame.assign(emotion=pd.Series(classes, index=frame.index, dtype=object))
    return chosen[chosen["emotion"].notna()].astype({"emotion": frame["emotion"].dtype})


def _rules(labels):
    if isinstance(labels, str):
        raise CorpusError(f"labels: expected a mapping or a list of emotions, found the text {labels!r}")
    pairs = labels.items() if isinstance(labels, Mapping) else ((label, label) for label in labels)
    # YAML reads unquoted 1 as a number; manifests hold text
    return {str(emotion): None if name is None else str(name) for emotion, name in pairs}


def _refuse_uncovered(frame, rules):
    if REST in rules:
        return
    offenders = Offenders("labels: the corpus holds emotions that labels say nothing about (None leaves one out)")
    for emotion, part in frame.groupby("emotion", sort=True):
        if emotion not in rules:
            examples = ", ".join(part["ID"].head(3)) + (", …" if len(part) > 3 else "")
            offenders.add("not covered", f"{emotion!r}: {len(part)} utterances, {examples}{nearest(emotion, rules)}")
    offenders.raise_any()


def _refuse_unknown(frame, rules):
    """A mistyped key beside "*" would leave out a whole class without a word."""
    corpora = [corpus_module(name) for name in frame["corpus"].unique() if name in CORPORA]
    present = set(frame["emotion"])
    known = present.union(*(getattr(module, "EMOTIONS", {}).values() for module in corpora))
    strange = sorted(set(rules) - known - {REST})
    lines = [f"{emotion!r}{nearest(emotion, known)}" for emotion in strange]
    closed = corpora and all(hasattr(module, "EMOTIONS") for module in corpora)
    if lines and closed:
        offenders = Offenders(f"labels: emotions that the corpus does not know (known: {', '.join(sorted(known))})")
        for line in lines:
            offenders.add("unknown", line)
        offenders.raise_any()
    for line in lines:
        logger.warning("labels: no utterance has the emotion %s", line)


def _names(labels):
    return "of the corpus's default" if labels is None else sorted(map(str, _rules(labels)))


def _found(frame):
    return ", ".join(f"{emotion} {count}" for emotion, count in frame["emotion"].value_counts().items()) or "no rows"


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
