"""`speechbrain-ser stress`: what a model answers where recordings are changed, and whether all are served alike.

Every change of :data:`~speechbrain_ser.processing.perturbations.TABLE` is made to every utterance, and two checks are
made of it: the share of decisions that stay as they were, and the change in UA. Then groups of utterances are compared.
What is asked for, and why, is in :data:`ASKED` and :func:`by_chance`; the anchor are audEERING's ser-tests (Derington
et al. 2023, arXiv:2312.06270).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.errors import UserError, counted, followed
from speechbrain_ser.evaluation.compare import speaker_difference
from speechbrain_ser.evaluation.figures import plot_answers, plot_changes
from speechbrain_ser.evaluation.groups import GROUPED, LEAST
from speechbrain_ser.evaluation.intervals import speaker_sums
from speechbrain_ser.evaluation.metrics import metrics, printed, signed, with_interval
from speechbrain_ser.evaluation.report import Report, write_report
from speechbrain_ser.evaluation.tables import Table
from speechbrain_ser.files import write_csv, write_json
from speechbrain_ser.inference.evaluate import Subject, notes_of, open_subject
from speechbrain_ser.processing.perturbations import (
    MODERATE,
    NO_ROOMS,
    SEVERE,
    SMALL,
    TABLE,
    Perturbation,
    Voices,
    generator,
)

CLEAN = "as recorded"
PART = 16  # utterances that are in memory at a time
N_SIMULATED, LEVEL = 1_000, 0.95
GAP = 0.05  # that groups may always differ by
#: severity -> least share of decisions that stay, and most UA that is lost; SEVERE: more than chance
ASKED = {SMALL: (0.95, 0.05), MODERATE: (0.80, 0.05)}
SAID = (
    "Small changes are hardly to be heard: 95 % of the decisions must stay. Moderate ones are what a telephone, a "
    "codec, an office or noise 20 dB below speech does every day: 80 % must stay. Of both, UA may lose 5 points. "
    "Severe ones leave little to hear: both figures must only be better than those of 95 of 100 models that give the "
    "same answers to the utterances at random (simulated 1,000 times).",
    "Groups differ by chance, and the worst of many most of all: a gap fails where 95 of 100 models whose errors fall "
    "on these utterances at random, class by class, have a smaller one (simulated 1,000 times), never up to 5 points.",
)


def stress(model: str, corpus: str, data_folder: str, out: str = "stress", seed: int = 0, **options) -> Report:
    """Test a model on changed recordings of a labelled corpus, as ``speechbrain-ser stress --help`` says it.

    The folder `out` gets the page, stress.csv (a row a check), decisions.csv and stress.json; `options` are those of
    :func:`~speechbrain_ser.inference.evaluate.open_subject`. What is random is a function of (`seed`, utterance,
    change): neither order nor batches change it.
    """
    if model.endswith(".csv"):
        raise UserError(
            f"{model}: expected a model, found posteriors of recordings as they are: nothing can be changed"
        )
    subject = open_subject(model, corpus, data_folder, **options)
    if len(set(subject.frame["emotion"])) < 2:
        raise UserError(f"{model} on {subject.where}: expected utterances of two classes at the least")
    voices, frame = Voices(subject.every), subject.frame.sort_values("ID", ignore_index=True)
    changes, skipped = possible(TABLE, voices)
    said = decisions(subject, frame, changes, voices, seed)
    clean = subject.judged.table(frame, said.pop(CLEAN))
    answers = {name: [subject.judged.classes[k] for k in posteriors.argmax(1)] for name, posteriors in said.items()}
    clean["length"] = _lengths(frame["duration"])
    checks = pd.DataFrame([*changed_checks(changes, clean, answers, subject.judged.classes, seed)])
    of_groups, not_compared = group_checks(clean, answers, seed)
    report = _verdict(subject, clean, answers, checks, pd.DataFrame(of_groups), [*skipped, *not_compared], seed, out)
    return report


def possible(table: Sequence[Perturbation], voices: Voices) -> tuple[list[Perturbation], list[str]]:
    """Return the changes that can be made here, and in words which cannot, and why."""
    found = [p for p in table if not p.lacks and (not p.voices or len(voices.rows) > 1)]
    left_out = [p for p in table if p not in found]
    reasons = {p.group: NO_ROOMS if p.lacks else "babble needs other utterances" for p in left_out}
    counts = {group: sum(p.group == group for p in left_out) for group in reasons}
    return found, [f"NOT TESTED: {group} ({counts[group]} changes): {why}." for group, why in reasons.items()]


def decisions(
    subject: Subject, frame: pd.DataFrame, changes: Sequence[Perturbation], voices: Voices, seed: int
) -> dict[str, np.ndarray]:
    """Return posteriors [utterances, classes] by name of the change; each recording is read once."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in (CLEAN, *(p.name for p in changes))}

    def steps() -> Iterator[None]:
        for start in range(0, len(frame), PART):
            rows = frame[start : start + PART]
            wavs = [load_audio(path).numpy() for path in rows["wav"]]
            for change in (None, *changes):
                heard = wavs
                if change is not None:
                    heard = [_changed(change, *pair, voices, seed) for pair in zip(rows["ID"], wavs, strict=True)]
                name = CLEAN if change is None else change.name
                found[name].append(subject.judged.hear(_named(rows["ID"], name), heard))
                yield

    n = -(-len(frame) // PART) * (len(changes) + 1)
    for _ in followed(steps(), "changed recordings, in parts", n):
        pass
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _changed(change: Perturbation, name: str, wav: np.ndarray, voices: Voices, seed: int) -> np.ndarray:
    rng = generator(seed, name, change.name)
    return change(wav, rng, voices.read(voices.draw(name, rng, change.voices)) if change.voices else ())


def _named(names: Sequence[str], change: str) -> list[str]:
    return list(names) if change == CLEAN else [f"{name} ({change})" for name in names]


def _lengths(seconds: pd.Series) -> pd.Series:
    """Thirds of the utterances by length, named by their ends."""
    first, second = np.quantile(seconds, [1 / 3, 2 / 3])
    names = [f"up to {first:.1f} s", f"{first:.1f} to {second:.1f} s", f"above {second:.1f} s"]
    return (
        pd.cut(seconds, [-np.inf, first, second, np.inf], labels=names, duplicates="drop").astype(str)
        if first < second
        else pd.Series("", seconds.index)
    )


# ------------------------------------------------------------------ checks of changes


def changed_checks(
    changes: Sequence[Perturbation],
    clean: pd.DataFrame,
    answers: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    seed: int,
) -> Iterator[dict]:
    """Give two checks a change, each with ``value``, ``limit`` (it passes from there on) and ``passed``.

    Arguments
    ---------
    changes : sequence of Perturbation
        What was done.
    clean : pandas.DataFrame
        ID, speaker, emotion and ``predicted`` of the recordings as they are.
    answers : mapping of str to sequence of str
        By name of the change, the class that was answered to each row of `clean`.
    classes : sequence of str
        All classes.
    seed : int
        Of the simulation.
    """
    clean = clean.assign(speaker=clean["speaker"] if _by_speaker(clean) else clean["ID"])
    sums = speaker_sums(clean, classes, ["UA"])["UA"]
    for change in changes:
        answered = np.asarray(answers[change.name])
        rows = clean.assign(predicted=answered)
        found = speaker_difference(sums, speaker_sums(rows, classes, ["UA"])["UA"])
        stay, loss = ASKED.get(change.severity) or by_chance(clean, answered, generator(seed, change.name))
        facts = {"check": change.name, "group": change.group, "severity": change.severity, "n": len(clean)}
        unchanged = float((answered == clean["predicted"]).mean())
        yield facts | _check("unchanged", unchanged, stay, change.severity)
        ends = {"low": found.low, "high": found.high}
        yield facts | _check("UA_change", found.difference, -loss, change.severity) | ends


def _check(measure: str, value: float, limit: float, severity: str) -> dict:
    passed = value > limit + 1e-9 if severity == SEVERE else value >= limit - 1e-9
    return {"measure": measure, "value": value, "limit": limit, "passed": bool(passed)}


def _by_speaker(rows: pd.DataFrame) -> bool:
    return (rows["speaker"] != "").all() and rows["speaker"].nunique() > 1


def by_chance(clean: pd.DataFrame, answered: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return what chance alone reaches: a share of decisions that stay, and a loss of UA.

    Random models give the same answers to the utterances in any order; of 100 of them 95 have less decisions that stay,
    and 95 a greater loss.
    """
    order = rng.permuted(np.tile(np.arange(len(clean)), (N_SIMULATED, 1)), axis=1)
    random = answered[order]  # [models, utterances]
    stay = (random == clean["predicted"].to_numpy()).mean(1)
    ua = _recall(random == clean["emotion"].to_numpy(), clean["emotion"])
    now = _recall((clean["predicted"] == clean["emotion"]).to_numpy()[None], clean["emotion"])[0]
    return float(np.quantile(stay, LEVEL)), float(now - np.quantile(ua, LEVEL))


def _recall(right: np.ndarray, emotion: pd.Series) -> np.ndarray:
    """UA of whether utterances are right [models, utterances]."""
    return np.mean([right[:, of].mean(1) for of in _places(emotion)], axis=0)


def _places(values: pd.Series) -> list[np.ndarray]:
    return [np.flatnonzero(values.to_numpy() == value) for value in sorted(set(values))]


# ------------------------------------------------------------------ checks of groups


def group_checks(clean: pd.DataFrame, answers: Mapping[str, Sequence[str]], seed: int) -> tuple[list[dict], list[str]]:
    """Return two checks of the worst group against all, by speaker, gender, …: UA as recorded, decisions that stay.

    Also what could not be compared, in words. A group has :data:`LEAST` utterances at the least.
    """
    right = (clean["predicted"] == clean["emotion"]).to_numpy(float)
    stay = np.mean([np.asarray(said) == clean["predicted"].to_numpy() for said in answers.values()], axis=0)
    found, missing = [], []
    for by in [*GROUPED, "length"]:
        known = clean[by].fillna("") if by in clean else pd.Series("", clean.index)
        sizes = known[known != ""].value_counts()
        groups = {str(name): (known == name).to_numpy() for name in sorted(sizes.index[sizes >= LEAST])}
        if len(groups) < 2:
            missing.append(f"NOT COMPARED: groups by {by}: fewer than two of {LEAST} utterances.")
            continue
        for measure, values, emotion in (
            ("UA_gap", right, clean["emotion"]),
            ("unchanged_gap", stay, pd.Series("", clean.index)),
        ):
            gaps, names = _gaps(values[None], emotion, groups)
            chance = worst_by_chance(values, emotion, groups, generator(seed, by, measure))
            limit = max(GAP, chance)
            facts = {"check": f"worst {by}", "group": "groups", "severity": "", "n": int(sizes.sum())}
            facts |= {"measure": measure, "value": float(gaps[0]), "limit": limit, "passed": bool(gaps[0] <= limit)}
            found.append(facts | {"worst": names[0], "groups": len(groups), "by_chance": chance})
    return found, missing


def _gaps(values: np.ndarray, emotion: pd.Series, groups: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """How far the worst group is below all [models], and which it is; values are [models, utterances]."""
    of_groups = np.stack([_recall(values[:, rows], emotion[rows]) for rows in groups.values()])
    return _recall(values, emotion) - of_groups.min(0), [list(groups)[k] for k in of_groups.argmin(0)]


def worst_by_chance(
    values: np.ndarray, emotion: pd.Series, groups: Mapping[str, np.ndarray], rng: np.random.Generator
) -> float:
    """Return the gap that 95 of 100 models stay below whose values fall on utterances of a class at random."""
    random = np.empty((N_SIMULATED, len(values)))
    for rows in _places(emotion):
        random[:, rows] = rng.permuted(np.tile(values[rows], (N_SIMULATED, 1)), axis=1)
    return float(np.quantile(_gaps(random, emotion, groups)[0], LEVEL))


# ------------------------------------------------------------------ the verdict


def _verdict(subject, clean, answers, checks, of_groups, missing, seed, out) -> Report:
    every = pd.concat([checks, of_groups], ignore_index=True)
    failed = int((~every["passed"]).sum())
    head = f"FAILS {failed} of {counted(len(every), 'check')}" if failed else f"passes all {len(every)} checks"
    title = f"{subject.model} {head}: {subject.where}" + (". LEAKY" if subject.leak else "")
    warnings = [f"LEAKY: {subject.leak}. These figures say little about new speakers."] if subject.leak else []
    of_clean = metrics(clean, subject.judged.classes)
    figures = {name: of_clean[name] for name in ("WA", "UA")}
    lead = [
        *notes_of(subject, clean),
        f"As recorded: WA {printed(figures['WA'])} %, UA {printed(figures['UA'])} %.",
        f"{_passed(checks, SMALL)}; {_passed(checks, MODERATE)}; {_passed(checks, SEVERE)}; "
        f"groups: {int(of_groups['passed'].sum()) if len(of_groups) else 0} of {len(of_groups)} pass.",
        *missing,
        *SAID,
        "Intervals of changes in UA (95 %) are "
        + (
            "by speaker: they hold for other speakers."
            if _by_speaker(clean)
            else "of these utterances: of one speaker, or speakers who are not known, they say nothing of others."
        ),
    ]
    wide = _side_by_side(checks)
    tables = [Table("stress", "Checks of changed recordings", _printed(wide, figures["UA"]), every)]
    if len(of_groups):
        tables.append(Table("groups", "The worst group against all", _printed_groups(of_groups), of_groups))
    shares = pd.DataFrame(
        {
            name: pd.Series(said).value_counts(normalize=True)
            for name, said in {CLEAN: clean["predicted"], **answers}.items()
        }
    ).T
    shares = shares.reindex(index=[CLEAN, *wide["change"]], columns=subject.judged.classes).fillna(0.0)
    drawn = {
        "changes": (plot_changes(wide, title), "Left: decisions that stay. Right: change in UA."),
        "answers": (plot_answers(shares, "answers, % of the utterances"), "What is answered: % of all utterances."),
    }
    write_csv(clean.drop(columns=["text_heard"]).assign(**answers), Path(out, "decisions.csv"))
    report = write_report(title, lead, warnings, tables, drawn, out)
    facts = {"kind": "stress", "model": subject.model, "model_id": subject.judged.model_id, "seed": seed}
    facts |= {"tested_on": subject.where, "leak": subject.leak, "classes": subject.judged.classes, "n": len(clean)}
    facts |= {"passed": not failed, "failed": failed, "clean": of_clean, "missing": missing, "notes": lead}
    facts |= {"libsndfile": soundfile.__libsndfile_version__, "checks": _plain(every)}
    write_json(facts, Path(out, "stress.json"))  # last: its presence says that all is there
    return report


def _passed(checks: pd.DataFrame, severity: str) -> str:
    of = checks[checks["severity"] == severity]["passed"]
    return f"{severity} changes: {int(of.sum())} of {counted(len(of), 'check')} pass"


def _side_by_side(checks: pd.DataFrame) -> pd.DataFrame:
    """A row a change, the small ones first."""
    stay, ua = (checks[checks["measure"] == m].reset_index(drop=True) for m in ("unchanged", "UA_change"))
    wide = stay[["check", "severity"]].rename(columns={"check": "change"})
    for name, of in {"unchanged": stay, "UA_change": ua}.items():
        wide = wide.assign(**{name: of["value"], f"{name}_limit": of["limit"], f"{name}_passed": of["passed"]})
    wide = wide.assign(UA_low=ua["low"], UA_high=ua["high"])
    return wide.sort_values(
        "severity", key=lambda s: s.map([SMALL, MODERATE, SEVERE].index), kind="stable"
    ).reset_index(drop=True)


def _printed(wide: pd.DataFrame, clean_ua: float) -> pd.DataFrame:
    rows = []
    for row in wide.to_dict("records"):
        ends = None if pd.isna(row["UA_low"]) else (row["UA_low"], row["UA_high"])
        failed = [said for said, name in (("decisions", "unchanged"), ("UA", "UA_change")) if not row[f"{name}_passed"]]
        is_least = ">" if row["severity"] == SEVERE else "≥"
        rows.append(
            {
                "change": row["change"],
                "severity": row["severity"],
                "decisions that stay %": printed(row["unchanged"]),
                "asked": f"{is_least} {printed(row['unchanged_limit'])}",
                "UA %": printed(clean_ua + row["UA_change"]),
                "change in UA, points": with_interval(signed, row["UA_change"], ends),
                "asked for": f"{is_least} {signed(row['UA_change_limit'])}",
                "verdict": f"FAILS: {', '.join(failed)}" if failed else "passes",
            }
        )
    return pd.DataFrame(rows)


def _printed_groups(found: pd.DataFrame) -> pd.DataFrame:
    what = {"UA_gap": "UA as recorded", "unchanged_gap": "decisions that stay"}
    return pd.DataFrame(
        {
            "check": [f"{row.check}: {what[row.measure]}" for row in found.itertuples()],
            "groups": found["groups"].astype(str),
            "worst": found["worst"],
            "below all, points": [printed(value) for value in found["value"]],
            "asked": [f"≤ {printed(limit)}" for limit in found["limit"]],
            "verdict": ["passes" if passed else "FAILS" for passed in found["passed"]],
        }
    )


def _plain(rows: pd.DataFrame) -> list[dict]:
    return [{k: v for k, v in row.items() if not pd.isna(v)} for row in rows.to_dict("records")]
