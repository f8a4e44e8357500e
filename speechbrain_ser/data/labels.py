"""From a corpus's emotions to the classes of an experiment: choosing, merging, joining two corpora."""

import io
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import ruamel.yaml

from speechbrain_ser.data.corpora import CORPORA, corpus_module
from speechbrain_ser.data.text import composed, look_alikes, spelling
from speechbrain_ser.errors import CorpusError, Offenders, UserError, nearest

logger = logging.getLogger(__name__)

REST = "*"  # the rule for every emotion that has none of its own
MISSING = ("nan", "none", "null", "na", "n/a", "<na>", "-", "?", "unknown")  # how a cell that is not known is written
UNKNOWN = -1  # the index of a label that nobody of the training part has
UNDECIDED = "undecided"  # the emotion of utterances on which raters do not agree
DIMENSIONS = ("valence", "activation", "dominance")  # columns of ratings; activation is arousal


def apply_labels(
    frame: pd.DataFrame, labels: Mapping[str, str | None] | Iterable[str] | None = None, by_votes: bool = False
) -> pd.DataFrame:
    """Keep a manifest's utterances of the wanted emotions, give them their class names, and number them from 0.

    Arguments
    ---------
    labels : mapping, list or None
        Emotion -> class name, or -> None, which leaves its utterances out; the key "*" is the rule for all
        emotions that are not listed. A list of emotions keeps their names; no other emotion may occur then.
        None takes the corpus's own default.
    by_votes : bool
        Also keep, without a label (``""``), what is :data:`UNDECIDED` and has votes for a class; raters' ``votes``
        (``angry; sad; sad``) are for classes then, too.

    Example
    -------
    >>> frame = pd.DataFrame({"ID": ["a", "b", "c"], "emotion": ["happy", "excited", "fear"], "corpus": "iemocap"})
    >>> list(apply_labels(frame, {"happy": "joy", "excited": "joy", "*": None})["emotion"])
    ['joy', 'joy']
    """
    if labels is None:
        groups = frame.groupby("corpus", sort=False)
        parts = [_apply(part, corpus_module(corpus).DEFAULT_LABELS, by_votes) for corpus, part in groups]
        chosen = pd.concat(parts).sort_index() if parts else frame
    else:
        chosen = _apply(frame, labels, by_votes)
        _refuse_unknown(frame, _rules(labels))
    if chosen.empty:
        wanted = "of the corpus's default" if labels is None else sorted(_rules(labels))
        found = ", ".join(f"{emotion} {count}" for emotion, count in frame["emotion"].value_counts().items())
        raise CorpusError(f"no utterance has one of the wanted emotions {wanted}; found: {found or 'no rows'}")
    _doubt_classes(chosen["emotion"], _rules(frame["emotion"].unique() if labels is None else labels), labels is None)
    return chosen.reset_index(drop=True)


def to_classes(
    frame: pd.DataFrame, classes: Iterable[str], labels: Mapping[str, str | None] | None = None
) -> pd.DataFrame:
    """Keep a manifest's utterances whose emotion a model can tell, and name it as the model does.

    `labels` is as in :func:`apply_labels`, its values are some of the model's classes. Without them the emotions of
    the corpus's default find the classes that are spelled alike; where emotions and classes are left over on both
    sides, some may be the same: CorpusError with a line to fill in.

    Example
    -------
    >>> frame = pd.DataFrame({"ID": ["a", "b"], "emotion": ["sad", "fear"], "corpus": "table"})
    >>> list(to_classes(frame, ["Sad"])["emotion"])
    ['Sad']
    """
    classes = list(classes)
    chosen = apply_labels(frame, labels)
    found = dict.fromkeys(chosen["emotion"])
    if labels is not None:
        offenders = Offenders(f"labels: the model has the classes {', '.join(classes)}")
        for name in sorted(set(found) - set(classes)):
            offenders.add("no class of the model", f"{name!r}{nearest(name, classes)}")
        offenders.raise_any()
        return chosen
    doubtful = {name for group in look_alikes(classes) for name in group}
    by_spelling = {spelling(name): name for name in classes if name not in doubtful}
    same = {emotion: by_spelling.get(spelling(emotion)) for emotion in found}
    lacking, unused = [e for e in same if same[e] is None], [c for c in classes if c not in same.values()]
    if lacking and unused:
        usual = dict(zip(frame.set_index("ID")["emotion"][chosen["ID"]], chosen["emotion"], strict=True))
        rules = {emotion: same.get(usual.get(emotion)) for emotion in frame["emotion"]}
        raise CorpusError(
            f"labels: which emotion is which class of the model? Without an emotion of its name: {', '.join(unused)}; "
            f"without a class: {', '.join(lacking)}. Put classes for nulls, or leave them, which leaves out:\n"
            f"--labels='{yaml_line('labels', rules).removeprefix('labels: ')}'"
        )
    chosen = chosen.assign(emotion=chosen["emotion"].map(same))
    return chosen[chosen["emotion"].notna()].reset_index(drop=True)


def _apply(frame: pd.DataFrame, labels, by_votes: bool) -> pd.DataFrame:
    if labels is None and not by_votes:
        return frame
    if labels is None:
        labels = {emotion: None if emotion == UNDECIDED else emotion for emotion in frame["emotion"]}
    rules = _rules(labels)
    _refuse_uncovered(frame, rules)
    classes = [rules.get(emotion, rules.get(REST)) for emotion in frame["emotion"]]
    if by_votes:
        frame, classes = _with_undecided(frame, rules, classes)
    chosen = frame.assign(emotion=pd.Series(classes, index=frame.index, dtype=object))
    return chosen[chosen["emotion"].notna()].astype({"emotion": frame["emotion"].dtype})


def _with_undecided(frame: pd.DataFrame, rules: dict, classes: list) -> tuple[pd.DataFrame, list[str | None]]:
    """Votes for classes alone, and no class ("") for what is undecided and has some."""
    if "votes" not in frame:
        raise CorpusError(f"votes: {frame['corpus'].iloc[0]} has no column of votes (angry; sad; sad)")
    of_rows = [[rules.get(vote, rules.get(REST)) for vote in votes_of(cell)] for cell in frame["votes"]]
    votes = ["; ".join(filter(None, row)) for row in of_rows]
    kept = (emotion == UNDECIDED and bool(said) for emotion, said in zip(frame["emotion"], votes, strict=True))
    return frame.assign(votes=votes), ["" if k and c is None else c for k, c in zip(kept, classes, strict=True)]


def votes_of(cell: str) -> list[str]:
    """Return the names in a cell of raters' votes.

    Example
    -------
    >>> votes_of("angry; very sad;")
    ['angry', 'very sad']
    """
    return [name.strip() for name in cell.split(";") if name.strip()]


def vote_shares(frame: pd.DataFrame, classes: Sequence[str]) -> dict[str, list[float]]:
    """Return the share that each class has of an utterance's votes, by ID; where nobody voted, all is its label's.

    Example
    -------
    >>> rows = {"ID": ["a", "b"], "emotion": ["", "sad"], "votes": ["angry; sad; sad; sad", ""]}
    >>> vote_shares(pd.DataFrame(rows), ["angry", "sad"])
    {'a': [0.25, 0.75], 'b': [0.0, 1.0]}
    """
    said = [votes_of(votes) or [emotion] for votes, emotion in zip(frame["votes"], frame["emotion"], strict=True)]
    return {i: [of.count(name) / len(of) for name in classes] for i, of in zip(frame["ID"], said, strict=True)}


def _rules(labels) -> dict[str, str | None]:
    if isinstance(labels, str | int | float):
        line = f"--labels=\"{{{labels}: {labels}, '*': null}}\""
        raise CorpusError(f"labels: expected a mapping or a list of emotions, found {labels!r}: {line}")
    pairs = labels.items() if isinstance(labels, Mapping) else ((label, label) for label in labels)
    # YAML reads unquoted 1 as a number; manifests hold text
    rules = {composed(str(emotion)): None if name is None else composed(str(name)) for emotion, name in pairs}
    if joined := [emotion for emotion, name in rules.items() if name is None and re.search(r"\w:\w", emotion)]:
        raise CorpusError(
            f"labels: a colon needs a space behind it, found '{joined[0]}': {joined[0].replace(':', ': ')}"
        )
    return rules


def _doubt_classes(classes: pd.Series, rules: dict, is_default: bool) -> None:
    """Refuse classes that differ in spelling alone; name those that read like a missing value, if nobody chose them."""
    same = {name: group[0] for group in look_alikes(classes) for name in group}
    missing = {name for name in classes.unique() if is_default and spelling(name) in MISSING}
    rules = {emotion: same.get(name, name) for emotion, name in rules.items() if emotion == REST or name not in missing}
    line = yaml_line("labels", rules | dict.fromkeys(missing))
    offenders = Offenders(f"labels: names that are probably not meant. One line maps them, e.g.\n{line}")
    for group in look_alikes(classes):
        offenders.add("classes that differ in spelling alone", ", ".join(f"{n!r} ({sum(classes == n)})" for n in group))
    if missing:
        found = ", ".join(f"{name!r} ({sum(classes == name)})" for name in sorted(missing))
        logger.warning("labels: %s reads like a missing value; without it: %s", found, line)
        offenders.add("reads like a missing value", found)
    if same:
        offenders.raise_any()


def _refuse_uncovered(frame: pd.DataFrame, rules: dict) -> None:
    if REST in rules:
        return
    line = yaml_line("labels", {**rules, REST: None}).removeprefix("labels: ")
    said = "labels: the corpus holds emotions that labels say nothing about (None leaves one out). All of them:"
    offenders = Offenders(f'{said}\n--labels="{line}"')
    for emotion, part in frame.groupby("emotion", sort=True):
        if emotion not in rules:
            examples = ", ".join(part["ID"].head(3)) + (", …" if len(part) > 3 else "")
            offenders.add("not covered", f"{emotion!r}: {len(part)} utterances, {examples}{nearest(emotion, rules)}")
    offenders.raise_any()


def _refuse_unknown(frame: pd.DataFrame, rules: dict) -> None:
    """A mistyped key beside "*" would leave out a whole class without a word."""
    corpora = [corpus_module(name) for name in frame["corpus"].unique() if name in CORPORA]
    known = {*frame["emotion"]}.union(*(getattr(module, "EMOTIONS", {}).values() for module in corpora))
    offenders = Offenders(f"labels: emotions that the corpus does not know (known: {', '.join(sorted(known))})")
    for emotion in sorted(set(rules) - known - {REST}):
        offenders.add("no utterance has the emotion", f"{emotion!r}{nearest(emotion, known)}")
    offenders.raise_any()


def join(first: pd.DataFrame, second: pd.DataFrame, line: str = "second_labels") -> pd.DataFrame:
    """Make one manifest of two corpora after label selection; the classes are those of the first, itself joined or not.

    `line` is the YAML's that maps the second's emotions.

    Its rows stay as they are. Then come the second's, whose `ID` and `speaker` begin with its corpus's name (`03` ->
    `emodb-03`; a speaker who is not known stays so). Columns that only one has are empty in the other's rows.
    """
    for place, frame in (("first", first), ("second", second)):
        if frame.empty:
            raise CorpusError(f"the {place} corpus has no utterance left after label selection")
    names, (other, *more) = [*first["corpus"].unique()], second["corpus"].unique()
    if more:
        raise CorpusError(f"expected one corpus as the second to join, found {', '.join([other, *more])}")
    if other in names:
        line = "; --table_name=… names a table" if other not in CORPORA else ""
        raise CorpusError(f"expected two corpora to join, found {other} twice{line}")
    name = " and ".join(names)
    classes = set(first["emotion"]) - {""}
    _refuse_unknown_classes(name, other, classes, second, line)
    speaker = second["speaker"]
    second = second.assign(ID=f"{other}-" + second["ID"], speaker=speaker.where(speaker == "", f"{other}-" + speaker))
    _refuse_clashes(name, other, first, second)
    columns = list(dict.fromkeys([*first.columns, *second.columns]))
    lacking = sorted(classes - set(second["emotion"]))
    without = f"; {other} has no utterance of {', '.join(lacking)}" if lacking else ""
    logger.info("%s (%d utterances) joined by %s (%d utterances)%s", name, len(first), other, len(second), without)
    return pd.concat([part.reindex(columns=columns, fill_value="") for part in (first, second)], ignore_index=True)


def _refuse_unknown_classes(name: str, other: str, classes: set, second: pd.DataFrame, line: str) -> None:
    where = f"{other} has classes that {name} does not have (it has: {', '.join(sorted(classes))})"
    beside = "" if line == "second_labels" else f" beside corpus: {other} in second_corpus"
    rules = _mapping_line(other, classes, second, line)
    offenders = Offenders(f"{where}. Map them or leave them out, e.g.{beside}\n{rules}")
    for emotion, count in second["emotion"].value_counts().sort_index().items():
        if emotion not in (*classes, ""):
            offenders.add(f"not a class of {name}", f"{emotion!r}: {count} utterances{nearest(emotion, classes)}")
    offenders.raise_any()


def _mapping_line(corpus: str, classes: set, second: pd.DataFrame, line: str) -> str:
    """A line that works as it is: every emotion of the corpus has a rule, as labels must."""
    default = corpus_module(corpus).DEFAULT_LABELS if corpus in CORPORA else None
    rules = default or {emotion: emotion for emotion in second["emotion"].unique()}
    rules = {emotion: target if target in classes else None for emotion, target in rules.items()}
    return yaml_line(line, rules)


def yaml_line(key: str, rules: Mapping) -> str:
    """Write a mapping as the line of a YAML, "*" last."""
    rules = dict(sorted(rules.items(), key=lambda rule: (rule[0] == REST, rule[0])))
    yaml, text = ruamel.yaml.YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output, yaml.width = True, False, math.inf
    yaml.allow_unicode = True
    yaml.dump({key: rules}, text)
    return text.getvalue().strip().removeprefix("{").removesuffix("}")


def yaml_mapping(text: str, expected: str) -> dict:
    """Read a mapping from a command line; the error begins with what was expected."""
    try:
        found = ruamel.yaml.YAML(typ="safe", pure=True).load(text)
    except ruamel.yaml.error.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{expected}, found {text!r}")
    return found


def _refuse_clashes(name: str, other: str, first: pd.DataFrame, second: pd.DataFrame) -> None:
    """A table may well call somebody `emodb-03` itself, or have EMO-DB's recordings under other names."""
    offenders = Offenders(f"{other} cannot be joined to {name}: {name} has already")
    for column in ("ID", "speaker"):
        for clash in sorted(set(first[column]) & set(second[column]) - {""}):
            offenders.add(f"the same {column}", clash)
    if "recording" in first and "recording" in second:
        for one, again in first.merge(second, on="recording")[["ID_x", "ID_y"]].to_numpy():
            offenders.add("the same recording (one would be tested, the other trained on)", f"{one} = {again}")
    offenders.raise_any()
