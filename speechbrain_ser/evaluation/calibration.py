"""Whether posteriors mean what they say, and temperature scaling (Guo et al. 2017) from validation utterances."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from speechbrain_ser.errors import UserError, counted
from speechbrain_ser.files import AGAIN, read_json

BINS = 15  # of equal width, as Guo et al. 2017 have them
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the largest posterior, fixed beforehand: none is chosen on a test part
BOUNDS = (0.05, 20.0)  # of a temperature
FEW = 50  # validation utterances, below which the file says how few they are
FEWEST = 30  # below which a temperature is not used
FILES = CALIBRATION, LOGITS, RELIABILITY = "calibration.json", "logits.csv", "reliability.png"


class Bins(NamedTuple):
    """A reliability diagram, [bins] each: utterances by their largest posterior, the lowest bin first.

    ``confidence`` is the mean of the largest posteriors, ``accuracy`` the share that is right; NaN in an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error, ECE (Guo et al. 2017, eq. 3): mean distance, weighted by the counts."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def reliability_bins(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> Bins:
    """Sort utterances by their largest posterior into bins of equal width that include their upper ends."""
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, of, bins) / counts for of in (confidence, right)]
    return Bins(counts, *means)


def chance_error(confidence: Sequence[float], draws: int = 200, seed: int = 0) -> float:
    """Return the ECE to expect if these largest posteriors meant exactly what they say: few utterances have one."""
    confidence, rng = np.asarray(confidence, float), np.random.default_rng(seed)
    drawn = (rng.random(len(confidence)) < confidence for _ in range(draws))
    return float(np.mean([reliability_bins(confidence, right).error for right in drawn]))


def with_temperature(log_posteriors: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """Return log posteriors [utterances, classes] of logits divided by a temperature, or [utterances, 1] of them.

    Log posteriors do as logits do.
    Above 1 a temperature flattens, below 1 it sharpens; the likeliest class stays the same.
    """
    return log_softmax(np.asarray(log_posteriors, float) / temperature, axis=-1)


def utterance_scores(log_posteriors: np.ndarray, true: Sequence[int]) -> pd.DataFrame:
    """Return what calibration is measured by, of log posteriors [utterances, classes] and the true classes' indices.

    Columns: ``confidence``, the largest posterior; ``right``; ``Brier``, the squared error over all classes (0 to 2);
    ``NLL``, the negative log posterior of the true class in nats (infinite for a posterior of 0).
    """
    log_posteriors, true = np.asarray(log_posteriors, float), np.asarray(true, int)
    posteriors, rows = np.exp(log_posteriors), np.arange(len(true))
    one_hot = np.eye(posteriors.shape[1])[true]
    return pd.DataFrame(
        {
            "confidence": posteriors.max(1),
            "right": posteriors.argmax(1) == true,
            "Brier": ((posteriors - one_hot) ** 2).sum(1),
            "NLL": -log_posteriors[rows, true],
        }
    )


def calibration_figures(scores: pd.DataFrame) -> dict[str, float]:
    """Return WA, mean confidence, ECE, Brier score and NLL of the table of :func:`utterance_scores`."""
    error = reliability_bins(scores["confidence"], scores["right"]).error
    found = {"WA": scores["right"].mean(), "confidence": scores["confidence"].mean(), "ECE": error}
    return {k: float(v) for k, v in {**found, "Brier": scores["Brier"].mean(), "NLL": scores["NLL"].mean()}.items()}


def abstention(scores: pd.DataFrame, thresholds: Sequence[float] = THRESHOLDS) -> list[dict]:
    """Return what keeping silent below a largest posterior costs and gives.

    Each threshold has ``n`` answers, ``coverage`` (the share of utterances that get one) and ``WA`` among them, None
    where nothing is answered.
    """
    rows = []
    for threshold in thresholds:
        answered = scores["right"][scores["confidence"] >= threshold]
        row = {"threshold": threshold, "n": len(answered), "coverage": len(answered) / len(scores)}
        rows.append(row | {"WA": float(answered.mean()) if len(answered) else None})
    return rows


def coverage_curve(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage, rising to 1, and accuracy among so many of the surest; equally sure ones come together."""
    by_confidence = scores.groupby("confidence")["right"].agg(["sum", "count"])[::-1].cumsum()
    return (by_confidence["count"] / len(scores)).to_numpy(), (by_confidence["sum"] / by_confidence["count"]).to_numpy()


class Fit(NamedTuple):
    """A temperature, or None; and what must be said of it."""

    temperature: float | None
    remark: str | None = None


def fit_temperature(logits: np.ndarray, true: Sequence[int]) -> Fit:
    """Fit the temperature with the smallest negative log likelihood of the true classes [utterances, classes].

    It is within :data:`BOUNDS`, rounded to four digits behind the point, with a remark where it stands at one of them.
    It is None, with the reason, where no temperature is the best one: no utterances, one class, logits that are not
    finite, or utterances that are all right, whose likelihood grows for ever as the temperature falls.

    Example
    -------
    >>> overconfident = np.array([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0], [5.0, 0.0]])  # 99.3 %, and three of four right
    >>> fit_temperature(overconfident, [0, 0, 0, 1])  # 5 / log(3)
    Fit(temperature=4.5512, remark=None)
    """
    logits, true = np.asarray(logits, float), np.asarray(true, int)
    if reason := _no_temperature(logits, true):
        return Fit(None, reason)
    rows = np.arange(len(true))

    def nll(log_temperature: float) -> float:
        return -with_temperature(logits, math.exp(log_temperature))[rows, true].mean()

    ends = tuple(map(math.log, BOUNDS))
    found = minimize_scalar(nll, bounds=ends, method="bounded", options={"xatol": 1e-7})
    best = min((found.x, *ends), key=nll)  # the search comes near a bound but never stands on it
    temperature = round(math.exp(best), 4)
    at_bounds = {
        BOUNDS[1]: f"at its upper bound, {BOUNDS[1]:g}: these logits tell the utterances no better than chance",
        BOUNDS[0]: f"at its lower bound, {BOUNDS[0]:g}: these logits are very small",
    }
    return Fit(temperature, at_bounds.get(temperature))


def cross_fitted(logits: np.ndarray, true: Sequence[int], groups: Sequence[str], n_folds: int = 10) -> np.ndarray:
    """Return a temperature for each utterance [utterances], fitted on utterances of other groups (speakers) alone.

    So none is judged by what it was fitted on. It is 1 where there is none to fit.

    Example
    -------
    >>> cross_fitted(np.array([[5.0, 0.0]] * 5), [0, 0, 0, 1, 0], ["a", "a", "a", "a", "b"]).tolist()
    [1.0, 1.0, 1.0, 1.0, 4.5512]
    """
    from sklearn.model_selection import GroupKFold  # not for who recognises, and only reads a temperature

    true, temperatures = np.asarray(true, int), np.ones(len(true))
    for others, part in GroupKFold(min(n_folds, len(set(groups)))).split(logits, groups=groups):
        temperatures[part] = fit_temperature(logits[others], true[others]).temperature or 1.0
    return temperatures


def _no_temperature(logits: np.ndarray, true: np.ndarray) -> str | None:
    if len(true) == 0:
        return "there are no validation utterances"
    if not np.isfinite(logits).all():
        return f"the logits of {(~np.isfinite(logits)).any(1).sum()} utterances are not finite"
    if np.ptp(logits, axis=1).max() == 0:  # so it is with a single class
        return "all classes have the same logit in every utterance"
    others = logits.copy()
    others[np.arange(len(true)), true] = -np.inf
    if (others.max(1) < logits[np.arange(len(true)), true]).all():
        is_one = len(true) == 1
        whose = "the only utterance is" if is_one else f"all of the {len(true)} utterances are"
        return f"{whose} right: the lower the temperature the likelier, so none is the best"
    return None


def logit_table(frame: pd.DataFrame, logits: dict[str, Sequence[float]], classes: Sequence[str]) -> pd.DataFrame:
    """Return a part's rows of ``logits.csv``, of those utterances of a manifest that have logits; sorted by ID.

    Columns: ID, speaker, emotion and ``logit_<class>`` by class.
    """
    rows = frame.loc[frame["ID"].isin(logits.keys()), ["ID", "speaker", "emotion"]].sort_values("ID", ignore_index=True)
    columns = [f"logit_{c}" for c in classes]
    values = np.array([logits[utterance] for utterance in rows["ID"]], np.float32).reshape(len(rows), len(classes))
    return rows.join(pd.DataFrame(values, columns=columns))  # float32: the CSV has as many digits as are known


def logits_of(table: pd.DataFrame, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return logits [utterances, classes] and indices of the true classes of a table like ``logits.csv``."""
    # a CSV's digits tell a float32 from its neighbours, and read as float64 are not yet its value
    logits = table[[f"logit_{c}" for c in classes]].to_numpy(np.float32).astype(float)
    return logits, pd.Index(classes).get_indexer(table["emotion"])


def calibrate(valid: pd.DataFrame, test: pd.DataFrame, classes: Sequence[str]) -> dict:
    """Return what ``calibration.json`` says of a temperature: itself, and figures on both parts with and without it.

    Both tables are from :func:`logit_table`; the first may be empty.

    Returns
    -------
    dict
        ``temperature`` (None with a ``reason``, and the ``unused`` one where utterances are few or lack a class),
        ``part`` and ``n`` of its utterances; ``figures`` by part, each ``uncalibrated`` and, where there is a
        temperature, ``calibrated``; ``thresholds`` of :func:`abstention` on the validation utterances; ``note`` where
        there is something to know.
    """
    logits, true = logits_of(valid, classes)
    fit, unused = fit_temperature(logits, true), {}
    if fit.temperature is not None and (reason := _too_little(true, classes)):
        fit, unused = Fit(None, reason), {"unused": fit.temperature}
    parts = {"valid": (logits, true), "test": logits_of(test, classes)}
    parts = {part: of for part, of in parts.items() if len(of[1]) and np.isfinite(of[0]).all()}
    figures = {part: _figures(*of, fit.temperature) for part, of in parts.items()}
    found = {"temperature": fit.temperature, **({"reason": fit.remark, **unused} if fit.temperature is None else {})}
    found |= {"part": "valid", "n": len(valid), "figures": figures}
    if "valid" in parts:
        found["thresholds"] = abstention(utterance_scores(with_temperature(logits, fit.temperature or 1.0), true))
    notes = [fit.remark] if fit.temperature is not None else []
    if 0 < len(valid) < FEW:
        notes.append(f"fitted on {counted(len(valid), 'utterance')} only")
    return found | {"note": "; ".join(filter(None, notes))}


def _too_little(true: np.ndarray, classes: Sequence[str]) -> str | None:
    """Why a temperature may say nothing of other utterances."""
    lacking = [name for k, name in enumerate(classes) if k not in true]
    if len(true) < FEWEST:
        return f"the validation part has {counted(len(true), 'utterance')}, expected {FEWEST} at least"
    return f"the validation part has no {', '.join(lacking)}" if lacking else None


def _figures(logits: np.ndarray, true: np.ndarray, temperature: float | None) -> dict:
    ways = {"uncalibrated": 1.0} | ({} if temperature is None else {"calibrated": temperature})
    return {way: calibration_figures(utterance_scores(with_temperature(logits, t), true)) for way, t in ways.items()}


def read_calibration(run_folder: str | os.PathLike) -> dict | None:
    """Read and check a run's ``calibration.json``; None where there is no such file."""
    path = Path(run_folder) / CALIBRATION
    return check_calibration(read_json(path, dict, AGAIN), path) if path.is_file() else None


def check_calibration(found, where: str | os.PathLike) -> dict:
    """Return the same content, when it is that of a ``calibration.json``: a mapping with a temperature, maybe null."""
    if not isinstance(found, dict) or "temperature" not in found:
        raise UserError(f"{where}: expected a mapping with a temperature, found {str(found)[:80]}")
    if found["temperature"] is not None:
        check_temperature(found["temperature"], f"{where}: temperature")
    return found


def check_temperature(value, name: str = "temperature") -> float:
    """Return the same value, when it is a temperature."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{name}: expected a finite number > 0, found {value!r}")
    return float(value)


def temperature_of(calibration: dict | None, epoch: int | None = None) -> tuple[float, str | None]:
    """Return the temperature to use, and why there is none where it is 1 for want of another.

    `epoch` is that of the parameters: a temperature fitted to those of another epoch is not theirs.

    Example
    -------
    >>> temperature_of({"temperature": 1.37, "epoch": 22}, 23)
    (1.0, 'calibration.json is of epoch 22, the parameters are of epoch 23')
    """
    if calibration is None:
        return 1.0, f"the run has no {CALIBRATION}"
    if calibration["temperature"] is None:
        return 1.0, str(calibration.get("reason", f"{CALIBRATION} has no temperature"))
    if epoch is not None and calibration.get("epoch") != epoch:
        return 1.0, f"{CALIBRATION} is of epoch {calibration.get('epoch')}, the parameters are of epoch {epoch}"
    return float(calibration["temperature"]), None
