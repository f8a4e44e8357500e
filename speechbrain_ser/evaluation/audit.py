"""Does a published split test what it says? Who, which words and which recordings are on both sides of it."""

import hashlib
import json
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from speechbrain_ser.data.audio import BadAudioError, cores, opened
from speechbrain_ser.data.splits import Split, read_splits
from speechbrain_ser.data.text import connected
from speechbrain_ser.errors import CorpusError, Offenders, UserError, printable
from speechbrain_ser.evaluation.controls import control_predictions, lookup

WORDS_FOR = 5000  # training utterances of a split that bags of words are fitted on, in whole folds, one at least
SAME_LENGTH = 1.5 / 16_000  # seconds between recordings of equal length
ALIKE = 0.97  # correlation of two recordings' band energies, from which on they are near-duplicates
#: check -> what two parts must not share, the columns that tell it, and what to do where they are empty
SHARED = {
    "speakers": ("speaker", ["speaker"], ": give --columns='{speaker: …}' or --speaker=REGEX"),
    "sessions": ("session", ["session"], ""),
    "scripts": ("script", ["script"], ""),
    "texts": ("text", ["text"], ": give --columns='{text: …}'"),
    "recordings": ("recording", ["unit", "named", "sound"], ""),
    "near-duplicates": ("near-duplicate", ["alike"], ": give --data_folder=… to hear the recordings"),
}
Folds = Mapping[str, Mapping[str, np.ndarray]]  # fold -> part -> places of its rows


def audit(paths: Sequence[str], data_folder: str | None = None, form: str = "text", **options) -> int:
    """Print what leaks in published splits, which :func:`read_splits` reads; return 1 where anything does, else 0."""
    try:
        found = [judge(split, data_folder) for split in read_splits(paths, **options)]
    except CorpusError as error:  # its exit status would say that something leaks
        raise UserError(str(error)) from error
    in_words = _in_words if len(found) < 4 else _in_a_line
    said = json.dumps(found, indent=2, ensure_ascii=False) if form == "json" else "\n\n".join(map(in_words, found))
    print(said if form == "json" else printable(said))
    return int(any(each["wrong"] for each in found))


def judge(split: Split, data_folder: str | None = None) -> dict:
    """Return the verdicts on a split, over all its folds, and figures of each fold, as plain data.

    A verdict is PASS, LEAKS (something of training or validation is tested), FAULT (a class is missing, folds do not
    cover) or UNKNOWN, which is none of these.
    """
    rows = _with_recordings(split.rows, data_folder)
    places, none = rows.groupby(["fold", "part"]).indices, np.array([], int)
    folds = {f: {p: places.get((f, p), none) for p in ("train", "valid", "test")} for f in rows["fold"].unique()}
    checks = [check for check in SHARED if check != "scripts" or rows["script"].any()]
    verdicts = [{"check": check, **_shared(rows, folds, check)} for check in checks]
    verdicts[checks.index("texts")] |= _told(rows, folds)
    verdicts += [_validation(rows, folds), _classes(rows, folds), _coverage(rows, len(folds))]
    return {
        "split": split.name,
        "notes": [*split.notes],
        "utterances": rows["unit"].nunique(),
        "classes": sorted(set(rows["emotion"])),
        "wrong": [v["check"] for v in verdicts if v["verdict"] in ("LEAKS", "FAULT")],
        "unknown": [v["check"] for v in verdicts if v["verdict"] == "UNKNOWN"],
        "verdicts": verdicts,
        "folds": {fold: {part: len(of[part]) for part in of} for fold, of in folds.items()},
    }


def _shared(rows: pd.DataFrame, folds: Folds, check: str, part: str = "train") -> dict:
    """Judge whether test utterances have a speaker, text, … of another part; with their number in each fold."""
    noun, columns, advice = SHARED[check]
    codes = [pd.factorize(rows[c].where(rows[c] != ""))[0] for c in columns]  # -1: unknown
    leaky = {}
    for fold, of in folds.items():
        on = np.zeros(len(of["test"]), bool)
        for code in codes:
            there = np.zeros(code.max() + 2, bool)
            there[code[of[part]]] = True
            there[-1] = False
            on |= there[code[of["test"]]]
        leaky[fold] = of["test"][on]
    both = np.concatenate([of[p] for of in folds.values() for p in (part, "test")])
    lacking = int(np.all([code[both] == -1 for code in codes], axis=0).sum())
    n, n_tested = sum(map(len, leaky.values())), sum(len(of["test"]) for of in folds.values())
    of_part = f"a {noun} of the {'training' if part == 'train' else 'validation'} part"
    if n:
        n_leaky = sum(len(places) > 0 for places in leaky.values())
        where = f"in {n_leaky} of {len(folds)} folds, " if len(folds) > 1 else ""
        first = next((fold, places[0]) for fold, places in leaky.items() if len(places))
        example = _example(rows, folds, first, part, columns)
        said = f"{n:,} of {n_tested:,} test utterances ({n / n_tested:.0%}) have {of_part}, {where}e.g. {example}"
    else:
        said = f"no {noun} is known{advice}" if lacking == len(both) else f"no test utterance has {of_part}"
    said += f"; unknown for {lacking:,} of {len(both):,} rows" * (0 < lacking < len(both))
    verdict = "LEAKS" if n else "UNKNOWN" if lacking else "PASS"
    counts = {fold: None if lacking == len(both) else len(places) for fold, places in leaky.items()}
    return {"verdict": verdict, "said": said, "tested": n_tested, "shared": n, "folds": counts}


def _example(rows: pd.DataFrame, folds: Folds, place: tuple, part: str, columns: Sequence[str]) -> str:
    fold, tested, others = place[0], rows.iloc[place[1]], rows.iloc[folds[place[0]][part]]
    other = next(same for c in columns if tested[c] and len(same := others[others[c] == tested[c]])).iloc[0]
    value = textwrap.shorten(tested[columns[0]], 60, placeholder=" …") if len(columns) == 1 else "one recording"
    return f"{value}: {tested['ID']} in test, {other['ID']} in {part}" + f" ({fold})" * bool(fold)


def _told(rows: pd.DataFrame, folds: Folds) -> dict:
    """What heard texts tell, and a bag of words, beside the training part's most frequent class: shares."""
    tables, left = {}, WORDS_FOR
    for fold, of in folds.items():
        train, test = (rows.iloc[of[part]] for part in ("train", "test"))
        found = pd.DataFrame({"told": lookup(train, test["text"]), "majority": lookup(train, [""])[0]}, test.index)
        if len(train) <= left or left == WORDS_FOR:
            found["words"] = control_predictions(train, test).set_index(test.index).get("words")
            left -= len(train)
        right = found.eq(test["emotion"], axis=0).astype(float).where(found.notna())
        tables[fold] = right.assign(heard=test["text"].isin(set(train["text"]) - {""}))
    every = pd.concat(tables, names=["fold"])
    heard, worded = every[every["heard"]], every[every.get("words", every["told"] * np.nan).notna()]
    found, said = {}, []
    if len(heard):
        found |= {"told": heard["told"].mean(), "majority_of_heard": heard["majority"].mean()}
        found["told_in_folds"] = heard.groupby("fold")["told"].mean().to_dict()
        said.append("the same text's emotion is right in {told:.0%} of these (majority class: {majority_of_heard:.0%})")
    if len(worded):
        found |= {"words": worded["words"].mean(), "majority": worded["majority"].mean(), "worded": len(worded)}
        said.append("a bag of words is right in {words:.0%} of {worded:,} tested (majority class: {majority:.0%})")
    return {**found, "tells": "; ".join(said).format(**found)}


def _validation(rows: pd.DataFrame, folds: Folds) -> dict:
    if not any(len(of["valid"]) for of in folds.values()):
        said = "no part validates: what chooses epochs and settings is not said"
        return {"check": "validation", "verdict": "UNKNOWN", "said": said}
    found = [_shared(rows, folds, check, "valid") for check in ("speakers", "texts", "recordings")]
    worst = next(v for v in ("LEAKS", "UNKNOWN", "PASS") if any(each["verdict"] == v for each in found))
    said = "; ".join(each["said"] for each in found if each["verdict"] == worst)
    return {"check": "validation", "verdict": worst, "said": said}


def _classes(rows: pd.DataFrame, folds: Folds) -> dict:
    """Every training part has all classes; of several folds, what is tested (and what validates) all together."""
    every, lacking = set(rows["emotion"]), []
    for fold, of in folds.items():
        for part in (part for part in of if len(of[part])):
            if lost := every - set(rows["emotion"].iloc[of[part]]):
                lacking.append((part, f"{part} of {fold or 'the split'} has no {', '.join(sorted(lost))}"))
    tested = set(rows["emotion"][rows["part"] == "test"])
    is_wrong = tested < every or any(part == "train" or len(folds) == 1 for part, _ in lacking)
    more = f"; … and {len(lacking) - 3} more" * (len(lacking) > 3)
    said = "" if is_wrong else f"all {len(every)} are in every training part and in all that is tested"
    said = "; ".join(filter(None, [said, *(words for _, words in lacking[:3])])) + more
    return {"check": "classes", "verdict": "FAULT" if is_wrong else "PASS", "said": said}


def _coverage(rows: pd.DataFrame, n_folds: int) -> dict:
    """Folds test every utterance once; a single split only some, but none twice."""
    times = rows.assign(n=rows["part"] == "test").groupby("unit", sort=False).agg({"n": "sum", "ID": "first"})
    wrong = {"tested more than once": times["n"] > 1, "never tested": (times["n"] == 0) & (n_folds > 1)}
    found = [f"{w.sum():,} are {what}, e.g. {times['ID'][w].iloc[0]}" for what, w in wrong.items() if w.any()]
    said = "; ".join(found) or f"every utterance is tested {'once' if n_folds > 1 else 'at most once'}"
    return {"check": "coverage", "verdict": "FAULT" if found else "PASS", "said": said}


def _with_recordings(rows: pd.DataFrame, data_folder: str | None) -> pd.DataFrame:
    """Add what tells a recording: its path, its name with its length (else with all that is known), its samples."""
    start, path = "@" + rows["start"], rows["path"].where(rows["path"] != "", rows["ID"])
    stem = path.str.extract(r"([^/\\]*?)(?:\.[A-Za-z]\w*)?$")[0].str.lower()
    length = pd.to_numeric(rows["length"], errors="coerce").round(4)
    known = rows["speaker"] + "|" + rows["emotion"] + "|" + rows["transcript"]
    rows = rows.assign(unit=path + start, named=stem + start + "|" + known.where(length.isna(), length.astype(str)))
    if data_folder is None:
        return rows.assign(sound="", alike="")
    unique = path.drop_duplicates()
    heard = pd.DataFrame(_heard(unique, Path(data_folder)), unique, ["sound", "length", "bands"])
    group = pd.Series(connected(len(heard), _near_duplicates(heard)).astype(str), heard.index)
    # copies of one recording are the same, not nearly the same
    several = heard["sound"].groupby(group).transform("nunique") > 1
    group = group.where(several, group.index)
    return rows.assign(sound=path.map(heard["sound"]) + start, alike=path.map(group) + start)


def _heard(paths: Iterable[str], root: Path) -> list[tuple[str, float, np.ndarray]]:
    """SHA-1 of a recording's samples, its seconds, and how the energies of 16 bands move over 32 parts of it."""
    by_stem, offenders = defaultdict(list), Offenders(f"recordings in {root}", UserError)
    for file in root.rglob("[!.]*"):
        if file.suffix[1:].upper() in soundfile.available_formats():
            by_stem[file.stem].append(file)

    def hear(path):
        file = max(by_stem[Path(path).stem], key=lambda f: f.parent.name == Path(path).parent.name, default=root / path)
        try:
            with opened(file) as recording:
                mono, rate = np.concatenate([block.mean(1) for block in recording.samples()]), recording.samplerate
        except BadAudioError as defect:
            offenders.add(defect.kind, f"{file}: {defect.found}" if defect.found else file)
            return None
        return hashlib.sha1(mono.tobytes()).hexdigest(), len(mono) / rate, _bands(mono, rate)

    with ThreadPoolExecutor(cores()) as pool:
        found = list(pool.map(hear, paths))
    offenders.raise_any()
    return found


def _bands(mono: np.ndarray, rate: int) -> np.ndarray:
    """[512], without mean over time, of length 1: independent of level, sample rate and coding."""
    pieces = np.pad(mono, (0, -len(mono) % 32)).reshape(32, -1)
    power = np.abs(np.fft.rfft(pieces)) ** 2
    frequency, edges = np.fft.rfftfreq(pieces.shape[1], 1 / rate)[:, None], np.linspace(100, 3900, 17)
    energy = power @ ((frequency >= edges[:-1]) & (frequency < edges[1:]))
    level = np.log(energy + 1e-5 * energy.max() + 1e-20)
    level -= level.mean(0)
    return level.ravel() / (np.linalg.norm(level) + 1e-20)


def _near_duplicates(heard: pd.DataFrame) -> Iterator[tuple[int, int]]:
    """Pairs of recordings of equal length whose bands move alike."""
    order = np.argsort(heard["length"].to_numpy(), kind="stable")
    lengths, bands = heard["length"].to_numpy()[order], np.stack(heard["bands"])[order]
    for k, end in enumerate(np.searchsorted(lengths, lengths + SAME_LENGTH, side="right")):
        yield from ((order[k], order[k + 1 + j]) for j in np.flatnonzero(bands[k + 1 : end] @ bands[k] > ALIKE))


def _in_words(found: dict) -> str:
    facts = f"folds: {len(found['folds'])}, utterances: {found['utterances']:,}, classes: {', '.join(found['classes'])}"
    lines = [found["split"], *(f"  {line}" for line in (facts, *found["notes"]))]
    for each in found["verdicts"]:
        said = "; ".join(filter(None, [each["said"], each.get("tells")]))
        first = f"  {each['verdict']:8} {each['check']:16}"
        lines.append(textwrap.fill(said, 118, initial_indent=first, subsequent_indent=" " * len(first)))
    if len(found["folds"]) > 1:
        counts = {each["check"]: each["folds"] for each in found["verdicts"] if "folds" in each}
        table = pd.DataFrame(found["folds"]).T.join(pd.DataFrame(counts, dtype="Int64").dropna(axis=1, how="all"))
        lines += ["  utterances of each fold, and how many of its test share what with training:"]
        lines += [f"    {line}" for line in table.to_string(max_rows=10, show_dimensions=False).split("\n")]
    return "\n".join([*lines, _in_a_line({**found, "split": "verdict"})])


def _in_a_line(found: dict) -> str:
    clean = "undecided" if {"speakers", "texts"} & {*found["unknown"]} else "clean"
    told = f"NOT CLEAN: {', '.join(found['wrong'])}" if found["wrong"] else clean
    return f"{found['split']}: {told}" + (f"; unknown: {', '.join(found['unknown'])}" if found["unknown"] else "")
