"""`speechbrain-ser stress`: what a model answers where recordings are changed, and whether all are served alike.

Every change of :data:`~speechbrain_ser.processing.perturbations.TABLE` is made to every utterance, and two checks are
made of it: the share of decisions that stay as they were, and the change in UA. Then groups of utterances are compared.
What is asked for, and why, is in :data:`ASKED` and :data:`WHY`; the anchor are audEERING's ser-tests (Derington et al.
2023, arXiv:2312.06270).
"""

import logging
from collections.abc import Mapping, Sequence
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

logger = logging.getLogger(__name__)

CLEAN = "as recorded"
PART = 16  # utterances that are in memory at a time
N_SIMULATED, LEVEL = 1_000, 0.95
GAP = 0.05  # that groups may always differ by
#: severity -> least share of decisions that stay, and most UA that may be lost; of SEVERE ones: more than chance
ASKED = {SMALL: (0.95, 0.05), MODERATE: (0.80, 0.05)}
WHY = (
    "Small changes are hardly to be heard: 95 % of the decisions must stay. Moderate ones are what a telephone, a "
    "codec, an office or noise 20 dB below speech does every day: 80 % must stay. Of both, UA may lose 5 points. "
    "Severe ones leave little to hear: both figures must only be better than those of 95 of 100 models that give the "
    "same answers to the utterances at random (simulated 1,000 times).",
    "Groups differ by chance, and the worst of many most of all: a gap fails where 95 of 100 models whose errors fall "
    "on these utterances at random, class by class, have a smaller one (simulated 1,000 times), never up to 5 points.",
)
WHOSE = {
    True: "Intervals of changes in UA (95 %) are by speaker: they hold for other speakers.",
    False: "Intervals of changes in UA (95 %) are by utterance, there being one speaker, or some who are not known: "
    "they say nothing of others.",
}


def stress(model: str, corpus: str, data_folder: str, out: str = "stress", seed: int = 0, **options) -> Report:
    """Test a model on changed recordings of a labelled corpus, as ``speechbrain-ser stress --help`` says it.

    The folder `out` gets the page, stress.csv and groups.csv (two checks a row, one a row), decisions.csv and
    stress.json; `options` are those of :func:`~speechbrain_ser.inference.evaluate.open_subject`. What is random is a
    function of (`seed`, utterance, change): neither order nor batches change it.
    """
    if model.endswith(".csv"):
        raise UserError(
            f"{model}: expected a model, found posteriors of recordings as they are: nothing can be changed"
        )
    subject = open_subject(model, corpus, data_folder, **options)
    if subject.frame["emotion"].nunique() < 2:
        raise UserError(f"{model} on {subject.where}: expected utterances of two classes at the least")
    # the longest first: what a model has no positions for is known early
    frame = subject.frame.sort_values(["duration", "ID"], ascending=[False, True], ignore_index=True)
    voices = Voices(subject.every)
    changes, missing = possible(TABLE, voices)
    for said in missing:  # before the minutes that follow
        logger.warning(said)
    posteriors = heard(subject, frame, changes, voices, seed)
    clean = subject.judged.table(frame, posteriors.pop(CLEAN))
    thirds = pd.qcut(frame["duration"], 3, duplicates="drop")
    clean["length"] = [f"{x.left:.1f} to {x.right:.1f} s" if isinstance(x, pd.Interval) else "" for x in thirds]
    answers = pd.DataFrame(
        {name: np.asarray(subject.judged.classes)[each.argmax(1)] for name, each in posteriors.items()}, dtype=object
    )
    checks = check_changes(changes, clean, answers, subject.judged.classes, seed)
    groups, alone = check_groups(clean, answers, seed)
    if alone:
        missing.append(f"NOT COMPARED, having fewer than two groups of {LEAST} utterances: {', '.join(alone)}.")
    return _verdict(subject, clean, answers, checks, groups, missing, seed, Path(out))


def possible(table: Sequence[Perturbation], voices: Voices) -> tuple[list[Perturbation], list[str]]:
    """Return the changes that can be made here, and in words which cannot, and why."""
    lacking = {NO_ROOMS: [p for p in table if p.lacks]}
    lacking["babble needs other utterances"] = [p for p in table if p.is_babble and len(voices.rows) < 2]
    said = [f"NOT TESTED: {', '.join(p.name for p in each)}: {why}." for why, each in lacking.items() if each]
    return [p for p in table if not any(p in each for each in lacking.values())], said


def heard(
    subject: Subject, frame: pd.DataFrame, changes: Sequence[Perturbation], voices: Voices, seed: int
) -> dict[str, np.ndarray]:
    """Return posteriors [utterances, classes] by name of the change; each recording is read once."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in (CLEAN, *(p.name for p in changes))}
    steps = [(start, change) for start in range(0, len(frame), PART) for change in (None, *changes)]
    for start, change in followed(steps, "changed recordings, in parts", len(steps)):
        rows = frame[start : start + PART]
        if change is None:
            wavs = [load_audio(path).numpy() for path in rows["wav"]]
            found[CLEAN].append(subject.judged.hear(rows["ID"], wavs))
            continue
        changed, names = [], [f"{name} ({change.name})" for name in rows["ID"]]
        for name, wav in zip(rows["ID"], wavs, strict=True):
            rng = generator(seed, name, change.name)
            changed.append(change(wav, rng, voices.read(voices.draw(name, rng)) if change.is_babble else ()))
        found[change.name].append(subject.judged.hear(names, changed))
    return {name: np.concatenate(parts) for name, parts in found.items()}


# ------------------------------------------------------------------ checks of changes


def check_changes(
    changes: Sequence[Perturbation], clean: pd.DataFrame, answers: pd.DataFrame, classes: Sequence[str], seed: int
) -> pd.DataFrame:
    """Return a row a change: ``unchanged`` and ``UA_change``, of each its ``_limit``, and whether it has ``_passed``.

    `clean` has ID, speaker, emotion and ``predicted`` of the recordings as they are, `answers` a column a change. The
    change in UA has an interval, ``UA_low`` to ``UA_high``, paired by speaker, or by utterance where there is one
    speaker or not all are known. `seed` is that of the simulation.
    """
    clean = clean if _by_speaker(clean) else clean.assign(speaker=clean["ID"])
    sums, rows = speaker_sums(clean, classes, ["UA"])["UA"], []
    for change in changes:
        answered = answers[change.name].to_numpy()
        found = speaker_difference(sums, speaker_sums(clean.assign(predicted=answered), classes, ["UA"])["UA"])
        asked = ASKED.get(change.severity) or by_chance(clean, answered, generator(seed, change.name))
        row = {"change": change.name, "severity": change.severity, "UA_low": found.low, "UA_high": found.high}
        values = {"unchanged": (answered == clean["predicted"]).mean(), "UA_change": found.difference}
        for (name, value), limit in zip(values.items(), (asked[0], -asked[1]), strict=True):
            passed = value > limit + 1e-9 if change.severity == SEVERE else value >= limit - 1e-9
            row |= {name: float(value), f"{name}_limit": limit, f"{name}_passed": bool(passed)}
        rows.append(row)
    return pd.DataFrame(rows)


def _by_speaker(rows: pd.DataFrame) -> bool:
    return (rows["speaker"] != "").all() and rows["speaker"].nunique() > 1


def by_chance(clean: pd.DataFrame, answered: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return what chance alone reaches: a share of decisions that stay, and a loss of UA.

    Random models give the same answers to the utterances in any order; of 100 of them 95 have less decisions that stay,
    and 95 a greater loss.
    """
    predicted, emotion = clean["predicted"].to_numpy(), clean["emotion"]
    random = rng.permuted(np.tile(answered, (N_SIMULATED, 1)), axis=1)  # [models, utterances]
    loss = _recall((predicted == emotion.to_numpy())[None], emotion) - _recall(random == emotion.to_numpy(), emotion)
    return float(np.quantile((random == predicted).mean(1), LEVEL)), float(np.quantile(loss, 1 - LEVEL))


def _recall(right: np.ndarray, emotion: pd.Series) -> np.ndarray:
    """UA of whether utterances are right [models, utterances]."""
    return np.mean([right[:, rows].mean(1) for rows in _places(emotion)], axis=0)


def _places(values: pd.Series) -> list[np.ndarray]:
    return [np.flatnonzero(values == value) for value in sorted(set(values))]


# ------------------------------------------------------------------ checks of groups


def check_groups(clean: pd.DataFrame, answers: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """Return the worst group against all, by speaker, gender, …: UA as recorded, and decisions that stay.

    A row has the ``gap`` of the ``worst`` of the ``groups``, its ``limit`` and whether it has ``passed``. Also what
    could not be compared. A group has :data:`LEAST` utterances at the least.
    """
    stay = np.mean([answers[name] == clean["predicted"] for name in answers], axis=0)
    measures = {"UA as recorded": ((clean["predicted"] == clean["emotion"]).to_numpy(float), clean["emotion"])}
    measures["decisions that stay"] = (stay, pd.Series("", clean.index))
    rows, alone = [], []
    for by in [*GROUPED, "length"]:
        known = clean[by].fillna("").astype(str) if by in clean else pd.Series("", clean.index)
        sizes = known[known != ""].value_counts()
        groups = {name: (known == name).to_numpy() for name in sorted(sizes.index[sizes >= LEAST])}
        if len(groups) < 2:
            alone.append(by)
            continue
        for measure, (values, emotion) in measures.items():
            (gap,), (worst,) = _gaps(values[None], emotion, groups)
            limit = max(GAP, worst_by_chance(values, emotion, groups, generator(seed, by, measure)))
            row = {"by": by, "measure": measure, "groups": len(groups), "worst": worst, "gap": float(gap)}
            rows.append(row | {"limit": limit, "passed": bool(gap <= limit + 1e-9)})
    return pd.DataFrame(rows, columns=["by", "measure", "groups", "worst", "gap", "limit", "passed"]), alone


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


def failed_checks(report: Report) -> int:
    """Return how many checks a verdict says have failed."""
    tables = [table.values for table in report.tables.values()]
    return sum(int((~t[column].astype(bool)).sum()) for t in tables for column in t if column.endswith("passed"))


def _verdict(
    subject: Subject,
    clean: pd.DataFrame,
    answers: pd.DataFrame,
    checks: pd.DataFrame,
    groups: pd.DataFrame,
    missing: Sequence[str],
    seed: int,
    out: Path,
) -> Report:
    order = checks["severity"].map([SMALL, MODERATE, SEVERE].index)
    checks, of_clean = checks.loc[order.sort_values(kind="stable").index], metrics(clean, subject.judged.classes)
    passed = {f"{s} changes": each.filter(like="_passed") for s, each in checks.groupby("severity", sort=False)}
    passed = {name: each.to_numpy(bool).ravel() for name, each in passed.items()}
    passed |= {"groups": groups["passed"].to_numpy(bool)}
    n, failed = sum(map(len, passed.values())), int(sum((~each).sum() for each in passed.values()))
    verdict = f"FAILS {failed} of {counted(n, 'check')}" if failed else f"passes all {n} checks"
    title = f"{subject.model} {verdict}: {subject.where}" + (". LEAKY" if subject.leak else "")
    lead = [
        "; ".join(f"{name}: {each.sum()} of {len(each)} pass" for name, each in passed.items()) + ".",
        f"As recorded: WA {printed(of_clean['WA'])} %, UA {printed(of_clean['UA'])} %.",
        *(*notes_of(subject, clean), *WHY, WHOSE[_by_speaker(clean)]),
    ]
    tables = [Table("stress", "Changed recordings: two checks each", _printed(checks, of_clean["UA"]), checks)]
    if len(groups):
        tables.append(Table("groups", "The worst group against all", _printed_groups(groups), groups))
    said = answers[checks["change"]].assign(**{CLEAN: clean["predicted"]})[[CLEAN, *checks["change"]]]
    shares = said.apply(lambda column: column.value_counts(normalize=True)).T.reindex(columns=subject.judged.classes)
    drawn = {
        "changes": (plot_changes(checks, subject.model), "Left: decisions that stay. Right: the change in UA."),
        "answers": (plot_answers(shares.fillna(0.0), subject.model), "What is answered: % of all utterances."),
    }
    write_csv(clean.drop(columns="text_heard").join(answers).sort_values("ID"), out / "decisions.csv")
    report = write_report(title, lead, subject.leak, missing, tables, drawn, out)
    facts = {"kind": "stress", "model": subject.model, "model_id": subject.judged.model_id, "seed": seed}
    facts |= {"tested_on": subject.where, "leak": subject.leak, "classes": subject.judged.classes, "missing": missing}
    facts |= {"libsndfile": soundfile.__libsndfile_version__, "checks": n, "failed": failed, "as_recorded": of_clean}
    facts |= {t.name: t.values.astype(object).where(t.values.notna(), None).to_dict("records") for t in tables}
    write_json(facts, out / "stress.json")  # last: its presence says that all is there
    return report


def _printed(checks: pd.DataFrame, clean_ua: float) -> pd.DataFrame:
    rows = []
    for row in checks.to_dict("records"):
        ends = None if pd.isna(row["UA_low"]) else (row["UA_low"], row["UA_high"])
        failed = [said for said, name in (("decisions", "unchanged"), ("UA", "UA_change")) if not row[f"{name}_passed"]]
        least = ">" if row["severity"] == SEVERE else "≥"
        cells = {
            "change": row["change"],
            "severity": row["severity"],
            "decisions that stay %": printed(row["unchanged"]),
        }
        cells |= {"asked": f"{least} {printed(row['unchanged_limit'])}", "UA %": printed(clean_ua + row["UA_change"])}
        cells |= {"change in UA, points": with_interval(signed, row["UA_change"], ends)}
        cells |= {"asked of it": f"{least} {signed(row['UA_change_limit'])}"}
        rows.append(cells | {"verdict": f"FAILS: {', '.join(failed)}" if failed else "passes"})
    return pd.DataFrame(rows)


def _printed_groups(groups: pd.DataFrame) -> pd.DataFrame:
    text = groups[["by", "measure", "groups", "worst"]].astype(str)
    text["below all, points"], text["asked"] = groups["gap"].map(printed), "≤ " + groups["limit"].map(printed)
    return text.assign(verdict=groups["passed"].map({True: "passes", False: "FAILS"}))
