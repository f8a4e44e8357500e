"""Who is in train, valid, seen and test: pure functions over a manifest.

``speaker``, ``session`` and ``speaker_folds`` never let a test speaker into training and assert it, ``speaker_text``
and ``session_text`` no test text either; ``half_session``, ``random`` and ``random_plain`` do, and are called leaky
wherever their numbers appear; ``given`` and ``official`` are judged by their content. But for the leaky ones and a
split that is given nobody who is trained on validates; where nobody can be spared, nobody does.
"""

import inspect
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold

from speechbrain_ser.data.corpora import CORPORA
from speechbrain_ser.data.text import composed, spelling
from speechbrain_ser.errors import UserError, counted, nearest

TEXT_DISJOINT = ("speaker_text", "session_text")
SPEAKER_DISJOINT = ("speaker", "session", "speaker_folds", "speaker_fewer", *TEXT_DISJOINT)
LINES = {"text_folds": 2, "speaker_folds": 3}  # of a YAML, which protocols have as arguments -> the smallest number
N_RANDOM_FOLDS = 5
PARTS = ("train", "valid", "seen", "test", "second")
MANY = 12  # training speakers, from which on a tenth of them validates, not one
FOLD_COLUMN = "split_"  # begins the name of a column that has the parts of one fold of several
SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """The utterance IDs of one fold, each part sorted.

    ``valid`` may be empty. ``seen`` holds held-out utterances of the training speakers; it may be the same set as
    ``test`` (protocols whose test speakers are known), and is never trained on. ``second`` holds the test utterances
    of the second corpus; ``test`` has none of them.
    """

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    seen: tuple[str, ...]
    test: tuple[str, ...]
    second: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Split:
    """What a protocol decides: the test IDs, and the validation IDs, if any."""

    name: str
    test: frozenset
    valid: frozenset
    seen_is_test: bool = False
    unused: frozenset = frozenset()


def make_folds(
    frame: pd.DataFrame,
    protocol: str,
    seen_fraction: float = 0.1,
    split_seed: int = 0,
    second: str | Sequence[str] = (),
    text_folds: int = 5,
    speaker_folds: int = 5,
) -> dict[str, Fold]:
    """Return all folds of a protocol over the utterances of a manifest (after label selection), by name, in order.

    Arguments
    ---------
    seen_fraction : float
        Share of the training speakers' utterances that is held out as ``seen``.
    split_seed : int
        Of everything drawn here; apart from the training seed, so that seeds share their folds.
    second : str or list of str
        The corpora in `frame` that are only joined to the other one. Each one's folds are dealt to the first's: of n,
        fold k holds out its folds k, k + n, k + 2n, … as ``second``. All else of it is trained on, but for its share of
        ``seen``; none validates. The first corpus's utterances are in the same parts with and without others.
    text_folds : int
        Groups that texts are dealt to, where a protocol leaves texts out.
    speaker_folds : int
        Groups that speakers are dealt to, under the protocol of this name.

    Example
    -------
    >>> frame = pd.DataFrame(
    ...     {"ID": list("abcd"), "speaker": ["1", "1", "2", "2"], "emotion": ["x", "y"] * 2,
    ...      "session": "", "dialog": "", "corpus": "table", "transcript": ""})
    >>> other = frame.assign(ID=list("efgh"), speaker=["3", "4", "5", "6"], corpus="emodb")
    >>> fold = make_folds(pd.concat([frame, other]), "speaker", seen_fraction=0, second="emodb")["2"]
    >>> fold.train, fold.test, fold.second
    (('a', 'b', 'e', 'g'), ('c', 'd'), ('f', 'h'))
    """
    if protocol not in PROTOCOLS:
        raise UserError(
            f"protocol '{protocol}' does not exist{nearest(protocol, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}"
        )
    if not 0 <= seen_fraction < 1:
        raise UserError(f"seen_fraction must be in [0, 1), found {seen_fraction}")
    if split_seed < 0:
        raise UserError(f"split_seed must be >= 0, found {split_seed}")
    if frame.empty:
        raise UserError("no utterance is left after label selection")
    lines = {"text_folds": text_folds, "speaker_folds": speaker_folds}
    for line, n in lines.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < LINES[line]:
            raise UserError(f"{line} must be a whole number >= {LINES[line]}, found {n!r}")
    first, *others = _told_apart(frame, protocol, [second] if isinstance(second, str) else list(second or ()))
    options = {line: n for line, n in lines.items() if line not in unread_lines(protocol)}
    splits = PROTOCOLS[protocol](first, split_seed, **options)
    theirs = [(other, PROTOCOLS[protocol](other, split_seed, **options)) for other in others]
    folds = {}
    for k, split in enumerate(splits):
        fold = _complete(split, first, seen_fraction, split_seed)
        for other, of in theirs:
            fold = _with_second(fold, other, of[k :: len(splits)], split.seen_is_test, seen_fraction, split_seed)
        fold = _judged_by_labels(fold, frame)
        _check(fold, frame, protocol)
        if fold.name in folds:
            raise UserError(f"protocol '{protocol}' has two folds of the name '{fold.name}': rename a speaker")
        folds[fold.name] = fold
    return folds


def unread_lines(protocol: str) -> set[str]:
    """Return which of :data:`LINES` change nothing under a protocol."""
    return set(LINES) - set(inspect.signature(PROTOCOLS[protocol]).parameters if protocol in PROTOCOLS else LINES)


def choose_fold(folds: dict[str, Fold], name: str | int, line: str = "fold") -> Fold:
    """Return the fold a user asked for; ``first`` is the first one, and 3 (a number to YAML) is ``03`` again.

    `line` is the one to type, of which the error has an example.
    """
    name = composed(str(name))
    if name == "first":
        return next(iter(folds.values()))
    if name in folds:
        return folds[name]
    same = [fold for fold in folds if spelling(fold) == spelling(name)]
    if len(same) == 1:
        return folds[same[0]]
    known = f"folds: {', '.join(folds)} (such as --{line}={next(iter(folds))})"
    raise UserError(f"fold '{name}' does not exist{nearest(name, folds)}; {known}")


def speaker_overlap(frame: pd.DataFrame, fold: Fold) -> list[str]:
    """Return the speakers (qualified by corpus) who are both in train and in a test part of a fold, sorted."""
    who = frame.set_index("ID")
    who = who["corpus"] + ":" + who["speaker"]
    return sorted(set(who[list(fold.train)]) & set(who[[*fold.test, *fold.second]]))


def leakage(frame: pd.DataFrame, fold: Fold) -> str | None:
    """Say what leaks from train into the test parts, by corpus; None where no speaker does."""
    is_joined = frame["corpus"].nunique() > 1
    if unknown := sorted(set(frame["corpus"][frame["speaker"] == ""])):
        of_whom = f" of {' and '.join(unknown)}" if is_joined else ""
        return f"speakers{of_whom} are not known, so the test speakers may be in training"
    shared = speaker_overlap(frame, fold)
    if not shared:
        return None
    if not is_joined:
        return f"{len(shared)} test speakers are also trained on ({', '.join(shared[:12])})"
    by_corpus = {c: [who for who in shared if who.startswith(f"{c}:")] for c in sorted(set(frame["corpus"]))}
    found = [f"{len(whom)} of {corpus} ({', '.join(whom[:12])})" for corpus, whom in by_corpus.items() if whom]
    return f"{len(shared)} test speakers are also trained on: {', '.join(found)}"


def train_on_all(fold: Fold, utterances: Iterable[str]) -> Fold:
    """Train on all IDs of the corpus but those of `seen`: leaky, as Hsu et al. 2023 must have pre-trained.

    Where `seen` is the test part itself, nothing is left out.
    """
    kept = () if fold.seen == fold.test else fold.seen
    return replace(fold, train=tuple(sorted(set(utterances) - set(kept))))


def who_validates(frame: pd.DataFrame, fold: Fold, protocol: str) -> str:
    """Say whose utterances choose the epoch and the temperature, or why nobody's do."""
    if not fold.valid:
        return f"none ({why_none_validates(protocol)})"
    speaker = frame.set_index("ID")["speaker"]
    speakers = sorted(set(speaker[list(fold.valid)]) - {""})
    if not speakers:
        return f"{len(fold.valid)} utterances of unknown speakers"
    n_known = len({*speakers} & {*speaker[list(fold.train)]})
    listed = ", ".join(speakers[:12]) + (" …" if len(speakers) > 12 else "")
    said = f"{len(fold.valid)} utterances of {listed}; trained on of these: {n_known or 'nobody'}"
    if n_known == len(speakers):
        said += " (all: what it chooses suits known voices)"
    lacking = ", ".join(_lacking(frame, fold.valid, fold.train))
    return f"{said}; without {lacking}, which training has" if lacking else said


def validates_weakly(frame: pd.DataFrame, fold: Fold) -> bool:
    """Whether who validates lacks emotions that training has, or is trained on without exception."""
    speaker = frame.set_index("ID")["speaker"]
    all_known = set(speaker[list(fold.valid)]) <= set(speaker[list(fold.train)])
    return bool(fold.valid) and (all_known or bool(_lacking(frame, fold.valid, fold.train)))


def never_trained(frame: pd.DataFrame, fold: Fold) -> str | None:
    """Say which emotions are tested that training lacks; None where there are none."""
    lacking = _lacking(frame, fold.train, [*fold.test, *fold.second])
    return f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} tested, never trained" if lacking else None


def _lacking(frame: pd.DataFrame, ids: Iterable[str], others: Iterable[str]) -> list[str]:
    """The emotions that one part lacks and another has."""
    emotion = frame.set_index("ID")["emotion"]
    return sorted(set(emotion[list(others)]) - {"", *emotion[list(ids)]})


def why_none_validates(protocol: str) -> str:
    """Say why a validation part is empty."""
    if protocol in ("half_session", "random", "random_plain"):
        return f"protocol {protocol} has no validation part"
    return (
        f"protocol {protocol} finds no training speaker to leave out for it: too few of them are known and not "
        "tested, or an emotion would be lost to training"
    )


def text_heard(frame: pd.DataFrame, fold: Fold, part: str = "test") -> pd.Series:
    """Return, by ID of a fold's test part or of another, whether a training utterance says its text; None: unknown."""
    text, ids = frame.set_index("ID")["text"], list(getattr(fold, part))
    trained_on = set(text[list(fold.train)])
    return pd.Series([t in trained_on if t else None for t in text[ids]], index=ids, dtype=object)


def _told_apart(frame: pd.DataFrame, protocol: str, seconds: list[str]) -> list[pd.DataFrame]:
    """The first corpus's rows and each other's."""
    corpora = sorted(set(frame["corpus"]))
    if seconds and (len(corpora) != 1 + len(seconds) or not set(seconds) <= set(corpora)):
        which = f"expected a corpus and, joined to it, {', '.join(seconds)}"
        raise UserError(f"{which}; found {', '.join(corpora)}")
    if seconds and protocol in ("given", "official", "speaker_fewer", *TEXT_DISJOINT):
        raise UserError(f"protocol '{protocol}' knows no second corpus: --protocol=speaker does")
    return [frame[~frame["corpus"].isin(seconds)], *(frame[frame["corpus"] == name] for name in seconds)]


def _with_second(
    fold: Fold, second: pd.DataFrame, dealt: list[_Split], seen_is_test: bool, seen_fraction: float, seed: int
) -> Fold:
    held_out = frozenset().union(*(split.test for split in dealt))
    rest = second[~second["ID"].isin(held_out)]
    train, seen = _train_and_seen(rest, held_out, seen_is_test, seen_fraction, seed)
    if not train:
        name = second["corpus"].iloc[0]
        raise UserError(f"fold '{fold.name}': nothing of the second corpus, {name}, is left to train on")
    train, seen = (tuple(sorted([*ours, *theirs])) for ours, theirs in ((fold.train, train), (fold.seen, seen)))
    return replace(fold, train=train, seen=seen, second=tuple(sorted({*fold.second, *held_out})))


def _complete(split: _Split, frame: pd.DataFrame, seen_fraction: float, seed: int) -> Fold:
    rest = frame[~frame["ID"].isin(split.test | split.valid | split.unused)]
    train, seen = _train_and_seen(rest, split.test, split.seen_is_test, seen_fraction, seed)
    return Fold(split.name, *(tuple(sorted(part)) for part in (train, split.valid, seen, split.test)))


def _judged_by_labels(fold: Fold, frame: pd.DataFrame) -> Fold:
    """Utterances without a label, on which raters do not agree, are trained on alone."""
    unlabelled = set(frame["ID"][frame["emotion"] == ""])
    kept = {part: tuple(i for i in getattr(fold, part) if i not in unlabelled) for part in PARTS[1:]}
    return replace(fold, **kept) if unlabelled else fold


def _train_and_seen(rest: pd.DataFrame, test: frozenset, seen_is_test: bool, share: float, seed: int) -> tuple:
    seen = test if seen_is_test else _stratified_share(rest, share, seed)
    return set(rest["ID"]) - seen, seen


def _stratified_share(frame: pd.DataFrame, share: float, seed: int) -> frozenset:
    """A share of the utterances at random, but of every emotion its share, and of every speaker as nearly as that goes.

    What an emotion owes beyond whole parts, it takes from the speakers who were passed over most so far, one each.
    """
    rng = np.random.default_rng(seed)
    frame = frame.sort_values("ID")
    frame = frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)
    speaker, emotion = (pd.factorize(frame[name], sort=True)[0] for name in ("speaker", "emotion"))
    counts = np.zeros((speaker.max(initial=-1) + 1, emotion.max(initial=-1) + 1))
    np.add.at(counts, (speaker, emotion), 1)
    expected = share * counts
    of_emotion = _rounded(expected.sum(0), rng)
    taken = np.floor(expected + 1e-9).astype(int)
    owed = np.zeros(len(expected))  # of each speaker, over the emotions so far
    for k in rng.permutation(expected.shape[1]):
        rest = expected[:, k] - taken[:, k]
        owed += rest
        can_give = np.flatnonzero(rest > 1e-9)
        by_debt = can_give[np.lexsort((rng.random(len(can_give)), -owed[can_give].round(9)))]
        chosen = by_debt[: of_emotion[k] - taken[:, k].sum()]
        taken[chosen, k] += 1
        owed[chosen] -= 1
    place = frame.groupby([speaker, emotion]).cumcount()
    return frozenset(frame["ID"][place < taken[speaker, emotion]])


def _rounded(expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers that add up to the sum's nearest one, by the largest remainder; ties are drawn."""
    whole = np.floor(expected + 1e-9).astype(int)
    missing = int(np.floor(expected.sum() + 0.5 + 1e-9)) - whole.sum()
    order = np.lexsort((rng.random(len(expected)), -(expected - whole).round(9)))
    whole[order[:missing]] += 1
    return whole


def _check(fold: Fold, frame: pd.DataFrame, protocol: str) -> None:
    for part in ("train", "test"):
        if not getattr(fold, part):
            why = f": all others say what {', '.join(fold.test[:10])} say" if protocol in TEXT_DISJOINT else ""
            if frame["speaker"].nunique() == 1:
                why = ": there is one speaker alone (--protocol=random tests who is trained on, and is called leaky)"
            raise UserError(f"protocol '{protocol}', fold '{fold.name}': the {part} part is empty{why}")
    for part in ("valid", "seen", "test", "second"):
        if set(fold.train) & set(getattr(fold, part)):
            raise AssertionError(f"fold '{fold.name}': train and {part} share utterances")
    if set(fold.second) & {*fold.valid, *fold.test}:
        raise AssertionError(f"fold '{fold.name}': second and valid or test share utterances")
    if protocol in SPEAKER_DISJOINT and (shared := speaker_overlap(frame, fold)):
        raise AssertionError(f"protocol '{protocol}', fold '{fold.name}' is not speaker-disjoint: {shared}")
    if protocol in TEXT_DISJOINT and text_heard(frame, fold).any():
        raise AssertionError(f"protocol '{protocol}', fold '{fold.name}' is not text-disjoint")


INSTEAD = {  # of a protocol, where a column is missing
    "speaker": "--protocol=random needs none, and may test who is trained on",
    **dict.fromkeys(("session", "given"), "--protocol=speaker needs none"),
    "half_session": "--protocol=session",
}


def _need(frame: pd.DataFrame, column: str, protocol: str, way_out: str | None = None) -> None:
    """Refuse a manifest whose column is missing or empty somewhere."""
    way_out = way_out or INSTEAD.get(protocol)
    values = frame.get(column, pd.Series("", index=frame.index))
    if (empty := frame["ID"][values == ""]).size:
        raise UserError(
            f"protocol '{protocol}' needs a {column} for every utterance; {empty.size} of {len(frame)} have none: "
            f"{', '.join(empty[:10])}{' …' if empty.size > 10 else ''}" + (f" ({way_out})" if way_out else "")
        )


def _by_speaker(frame: pd.DataFrame, seed: int) -> list[_Split]:
    """Leave one speaker out. Validation: the session's others, where each speaker has one, else those who follow."""
    _need(frame, "speaker", "speaker")
    speakers = _in_turn(frame["speaker"], seed)
    whose = frame.groupby("speaker")["session"].nunique()
    has_sessions = (frame["session"] != "").all() and frame["session"].nunique() > 1 and (whose == 1).all()
    splits = []
    for speaker in sorted(speakers):
        of_test = frame["speaker"] == speaker
        valid = frame["session"].isin(frame["session"][of_test]) & ~of_test
        if not has_sessions or not valid.any():  # a session may have one speaker only
            k = speakers.index(speaker)
            valid = frame["speaker"].isin(_left_out(frame[~of_test], speakers[k + 1 :] + speakers[:k]))
        splits.append(_Split(speaker, _ids(frame, of_test), _ids(frame, valid)))
    return splits


def _in_turn(speakers: Iterable[str], seed: int) -> list[str]:
    """Distinct speakers in the order in which they validate: by name, many of them shuffled."""
    speakers = sorted(set(speakers))
    if len(speakers) > MANY:
        speakers = [speakers[k] for k in np.random.default_rng(seed).permutation(len(speakers))]
    return speakers


def _left_out(training: pd.DataFrame, in_turn: Iterable[str]) -> list[str]:
    """The training speakers who validate; nobody, where that would leave training without one of its emotions.

    One of a few speakers, the first in turn. Of many a tenth: those who add most to the emotions that validate, and
    more of them, a third at most, until all emotions do.
    """
    emotions = {speaker: set() for speaker in training["speaker"]}
    for speaker, emotion in zip(training["speaker"], training["emotion"], strict=True):
        emotions[speaker].add(emotion)
    n_speakers = Counter(itertools.chain(*emotions.values()))  # of each emotion
    are_many = len(emotions) >= MANY
    wanted, most = (round(len(emotions) / 10), len(emotions) // 3) if are_many else (1, 1)
    missing, candidates, chosen = set(n_speakers), list(in_turn), []
    while len(chosen) < wanted or (missing and len(chosen) < most):
        spared = (s for s in candidates if all(n_speakers[e] > 1 for e in emotions[s]))
        if are_many and missing:
            best = max(spared, key=lambda s: len(emotions[s] & missing), default=None)
        else:
            best = next(spared, None)
        if best is None or (len(chosen) >= wanted and not emotions[best] & missing):
            break
        candidates.remove(best)
        chosen.append(best)
        missing -= emotions[best]
        n_speakers.subtract(emotions[best])
    return chosen


def _by_session(frame: pd.DataFrame, seed: int) -> list[_Split]:
    """Leave one session out; the next session, cyclically, validates."""
    _need(frame, "session", "session")
    _need(frame, "speaker", "session")
    n_sessions = frame.groupby("speaker")["session"].nunique()
    if wandering := sorted(n_sessions.index[n_sessions > 1]):
        raise UserError(
            "protocol 'session' keeps speakers apart only if each is in one session; in several: "
            f"{', '.join(wandering)} (protocol 'speaker' leaves out one speaker)"
        )
    ids = {session: _ids(frame, frame["session"] == session) for session in sorted(set(frame["session"]))}
    if len(ids) < 3:
        raise UserError(f"protocol 'session' needs at least three sessions, found {list(ids)}")
    following = [*ids.values()][1:] + [*ids.values()][:1]
    return [_Split(session, test, valid) for (session, test), valid in zip(ids.items(), following, strict=True)]


def _by_speaker_folds(frame: pd.DataFrame, seed: int, speaker_folds: int) -> list[_Split]:
    """Leave out one of some groups of speakers, as many of each gender as of the others; the next one validates."""
    _need(frame, "speaker", "speaker_folds")
    if (n_speakers := frame["speaker"].nunique()) < speaker_folds:
        way_out = f"--speaker_folds={n_speakers}" if n_speakers >= LINES["speaker_folds"] else "--protocol=speaker"
        raise UserError(f"speaker_folds: {speaker_folds} groups need as many speakers, found {n_speakers}: {way_out}")
    gender = frame.get("gender", pd.Series("", index=frame.index)).groupby(frame["speaker"]).max()
    group = frame["speaker"].map(_dealt(frame, frame["speaker"], seed, speaker_folds, gender))
    ids = [_ids(frame, group == k) for k in range(speaker_folds)]
    for k in range(speaker_folds):
        of_group = gender[sorted(set(frame["speaker"][group == k]))]
        genders = ", ".join(f"{n} {g or 'of unknown gender'}" for g, n in sorted(Counter(of_group).items()))
        said = f"{counted(len(of_group), 'speaker')} ({genders}), {len(ids[k])} utterances: {', '.join(of_group.index)}"
        logger.info("speaker_folds, group g%d: %s", k + 1, said)
    return [_Split(f"g{k + 1}", ids[k], ids[(k + 1) % speaker_folds]) for k in range(speaker_folds)]


def _by_speaker_text(frame: pd.DataFrame, seed: int, text_folds: int) -> list[_Split]:
    """Leave out one speaker and, in turn, one of some groups of texts, of everybody."""
    return _without_texts(frame, _by_speaker(frame, seed), seed, text_folds, "speaker")


def _by_session_text(frame: pd.DataFrame, seed: int, text_folds: int) -> list[_Split]:
    """Leave out one session and, in turn, one of some groups of texts, of everybody."""
    return _without_texts(frame, _by_session(frame, seed), seed, text_folds, "session")


def _by_speaker_fewer(frame: pd.DataFrame, seed: int, text_folds: int) -> list[_Split]:
    """Test as ``speaker_text`` does, with as many training utterances of each speaker and emotion, whatever they say.

    What this has more than ``speaker_text`` is due to known texts, what it has less than ``speaker`` to fewer data.
    """
    found = []
    for number, split in enumerate(_by_speaker_text(frame, seed, text_folds)):
        others = frame[~frame["speaker"].isin(frame["speaker"][frame["ID"].isin(split.test | split.valid)])]
        trained_on = others[~others["ID"].isin(split.unused)]
        wanted = Counter(zip(trained_on["speaker"], trained_on["emotion"], strict=True))
        shuffled = others.sort_values("ID").sample(frac=1, random_state=np.random.default_rng([seed, number]))
        of_cell = [wanted[cell] for cell in zip(shuffled["speaker"], shuffled["emotion"], strict=True)]
        kept = _ids(shuffled, shuffled.groupby(["speaker", "emotion"]).cumcount() < of_cell)
        unused = frozenset(frame["ID"]) - kept - split.test - split.valid
        found.append(replace(split, unused=unused))
    return found


def _without_texts(frame: pd.DataFrame, splits: list[_Split], seed: int, n_groups: int, plain: str) -> list[_Split]:
    """Each split once a group of texts: tested are its texts, and nobody's is trained on or validates.

    Scripts are not cut: what belongs to one is tested, and left out, as a whole.
    """
    _need(frame, "text", f"{plain}_text", f"--protocol={plain} needs none")
    script = frame.get("script", pd.Series("", index=frame.index))
    unit = script.where(script != "", frame["text"])
    if (n_texts := unit.nunique()) == 1:
        raise UserError("every utterance says the same text: nothing would be left to train on; use --protocol=speaker")
    if n_texts < n_groups:
        raise UserError(f"text_folds: {n_groups} groups need as many texts, found {n_texts}: --text_folds={n_texts}")
    group = unit.map(_dealt(frame, unit, seed, n_groups))
    if (frame.groupby("text")["speaker"].nunique() < 2).all():
        raise UserError(f"no text is said by two speakers: protocol '{plain}' leaves out what is tested already")
    found = []
    for split in splits:
        of_split = frame["ID"].isin(split.test)
        for number in range(n_groups):
            tested = of_split & (group == number)
            if not tested.any():
                continue
            said = frame["text"].isin(frame["text"][tested]) | ((script != "") & script.isin(script[tested]))
            valid = frame["ID"].isin(split.valid) & ~said
            unused = (said | of_split | frame["ID"].isin(split.valid)) & ~tested & ~valid
            parts = (_ids(frame, rows) for rows in (tested, valid))
            found.append(_Split(f"{split.name}-t{number + 1}", *parts, unused=_ids(frame, unused)))
    return found


def _dealt(frame: pd.DataFrame, unit: pd.Series, seed: int, n_groups: int, kind: pd.Series | None = None) -> dict:
    """Deal units to groups, the largest first, each to where it keeps emotions most even.

    Where units have a `kind`, it is one of the groups with fewest of that kind, and of these with fewest units, so that
    no two groups differ by more than one in either.
    """
    counts = pd.crosstab(unit, frame["emotion"])
    shares = counts / counts.sum()
    shuffled = shares.iloc[np.random.default_rng(seed).permutation(len(shares))]
    order = counts.sum(axis=1)[shuffled.index].sort_values(ascending=False, kind="stable").index
    if kind is not None:  # one after the other: of each kind the groups are filled up evenly
        order = kind[order].sort_values(kind="stable").index
    groups, found = np.zeros((n_groups, shares.shape[1])), {}
    n_units, n_of_kind = np.zeros(n_groups), defaultdict(lambda: np.zeros(n_groups))
    for name in order:
        crowded = ((groups + shares.loc[name].to_numpy()) ** 2).sum(1) - (groups**2).sum(1)
        first = [] if kind is None else [n_units, n_of_kind[kind[name]]]
        found[name] = int(np.lexsort([crowded, *first])[0])
        groups[found[name]] += shares.loc[name].to_numpy()
        for counted_in in first:
            counted_in[found[name]] += 1
    return found


def _by_half_session(frame: pd.DataFrame, seed: int) -> list[_Split]:
    """IEMOCAP as published: dialogs by prefix (Ses01F, Ses01M), which says who wore the markers, not who speaks."""
    if not set(frame["corpus"]) <= {"iemocap", "demo"}:
        found = sorted(set(frame["corpus"]))
        raise UserError(f"protocol 'half_session' is IEMOCAP's published one; found corpus {found}: --protocol=speaker")
    _need(frame, "dialog", "half_session")
    half = frame["dialog"].str[:6]
    return [_Split(h, _ids(frame, half == h), frozenset(), True) for h in sorted(set(half))]


def _random(frame: pd.DataFrame, seed: int) -> list[_Split]:
    """Five folds stratified by emotion, blind to speakers; the next fold validates."""
    smallest = frame["emotion"].value_counts()
    if smallest.min() < N_RANDOM_FOLDS:
        raise UserError(
            f"protocol 'random' needs at least {N_RANDOM_FOLDS} utterances an emotion, found {smallest.min()} of "
            f"'{smallest.idxmin()}'"
        )
    return _rotated(frame, StratifiedKFold(N_RANDOM_FOLDS, shuffle=True, random_state=seed))


def _random_plain(frame: pd.DataFrame, seed: int) -> list[_Split]:
    """Five unstratified folds of about 20 %, blind to speakers (as Fu's tables must have been)."""
    if len(frame) < N_RANDOM_FOLDS:
        raise UserError(f"protocol 'random_plain' needs at least {N_RANDOM_FOLDS} utterances, found {len(frame)}")
    return _rotated(frame, KFold(N_RANDOM_FOLDS, shuffle=True, random_state=seed))


def _rotated(frame: pd.DataFrame, folds: KFold | StratifiedKFold) -> list[_Split]:
    frame = frame.sort_values("ID")
    parts = [frozenset(frame["ID"].iloc[test]) for _, test in folds.split(frame, frame["emotion"])]
    return [_Split(f"r{k}", test, parts[(k + 1) % len(parts)], True) for k, test in enumerate(parts)]


def _given(frame: pd.DataFrame, seed: int) -> list[_Split]:
    """The table's column split; else its columns split_…, a fold each; else its column fold, each value once tested."""
    known = frame.loc[:, (frame != "").any()]
    columns = [name for name in known if name.startswith(FOLD_COLUMN)]
    if "split" not in known and columns:
        return [_of_parts(frame, known[name], name, name.removeprefix(FOLD_COLUMN), seed) for name in columns]
    if "split" not in known and "fold" in known:
        _need(frame, "fold", "given")
        tested = {fold: frame["fold"] == fold for fold in sorted(set(frame["fold"]))}
        return [_of_parts(frame, of.map({True: "test", False: "train"}), "fold", f, seed) for f, of in tested.items()]
    _need(frame, "split", "given")
    return [_of_parts(frame, frame["split"], "split", "given", seed)]


def _official(frame: pd.DataFrame, seed: int) -> list[_Split]:
    """The split that the corpus was released with, which its reader has told in the column split."""
    if not set(frame["corpus"]) <= {*CORPORA} - {"table"} or "split" not in frame or (frame["split"] == "").all():
        which = " and ".join(sorted(set(frame["corpus"])))
        would_do = ", ".join(name for name in PROTOCOLS if name != "official" and _can_make(frame, name, seed))
        raise UserError(f"protocol 'official': {which} has no official split; protocols that would do: {would_do}")
    return [_of_parts(frame, frame["split"], "split", "official", seed)]


def _can_make(frame: pd.DataFrame, protocol: str, seed: int) -> bool:
    try:
        return bool(make_folds(frame, protocol, split_seed=seed))
    except UserError:
        return False


def _of_parts(frame: pd.DataFrame, column: pd.Series, name: str, fold: str, seed: int) -> _Split:
    """A fold of a column of parts; without valid, of three or more training speakers some who are not tested validate.

    An empty cell is in no part.
    """
    split = column.map(spelling)
    if unknown := sorted(set(column[~split.isin([*SPLIT_NAMES, ""])])):
        raise UserError(f"fold '{fold}': {name} must be train, valid or test, found {unknown}")
    part = split.map(SPLIT_NAMES)
    test, valid, training = _ids(frame, part == "test"), _ids(frame, part == "valid"), frame[part == "train"]
    if not test:
        raise UserError(f"fold '{fold}': no utterance has {name} 'test'")
    tested, known = set(frame["speaker"][part == "test"]), set(training["speaker"])
    if not valid and "" not in known and len(known) >= 3:
        left_out = _left_out(training, [s for s in _in_turn(known, seed) if s not in tested])
        valid = _ids(training, training["speaker"].isin(left_out))
    return _Split(fold, test, valid, tested <= known, unused=_ids(frame, split == ""))


def _ids(frame: pd.DataFrame, rows: pd.Series) -> frozenset:
    return frozenset(frame["ID"][rows])


PROTOCOLS: dict[str, Callable[..., list[_Split]]] = {
    "speaker": _by_speaker,
    "session": _by_session,
    "speaker_folds": _by_speaker_folds,
    "speaker_text": _by_speaker_text,
    "session_text": _by_session_text,
    "speaker_fewer": _by_speaker_fewer,
    "half_session": _by_half_session,
    "random": _random,
    "random_plain": _random_plain,
    "given": _given,
    "official": _official,
}
