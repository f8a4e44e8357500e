"""Temperature scaling (Guo et al. 2017): one number a run, fitted on its validation utterances and kept with it.

A run's folder has ``logits.csv``, the logits in full of the validation and test utterances at the epoch that the run's
selection chose, ``calibration.json``, what was fitted on the first and how it fares on both, and ``reliability.png``, a
picture of the second.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.reliability import (
    abstention,
    calibration_figures,
    utterance_scores,
    with_temperature,
)

BOUNDS = (0.05, 20.0)
FEW = 50  # validation utterances, below which the file says how few they are
FILES = CALIBRATION, LOGITS, RELIABILITY = "calibration.json", "logits.csv", "reliability.png"


class Fit(NamedTuple):
    """A temperature, or None; and what must be said of it."""

    temperature: float | None
    remark: str | None = None


def fit_temperature(logits: np.ndarray, true: Sequence[int]) -> Fit:
    """The temperature with the smallest negative log likelihood of the true classes.

    Arguments
    ---------
    logits : numpy.ndarray
        [utterances, classes].
    true : sequence of int
        Index of each utterance's class.

    Returns
    -------
    Fit
        Within :data:`BOUNDS`, rounded to four digits behind the point, with a remark where it stands at one of them.
        None, and why, where no temperature is the best one: no utterances, one class, logits that are not finite, or
        utterances that are all right, whose likelihood grows for ever as the temperature falls.

    Example
    -------
    >>> overconfident = np.array([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0], [5.0, 0.0]])  # 99.3 %, and three of four right
    >>> fit_temperature(overconfident, [0, 0, 0, 1])  # 5 / log(3)
    Fit(temperature=4.5512, remark=None)
    >>> fit_temperature(overconfident, [0, 0, 0, 0]).remark
    'all of the 4 utterances are right: the lower the temperature the likelier, so none is the best'
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
    return Fit(temperature, _remark(temperature))


def _no_temperature(logits: np.ndarray, true: np.ndarray) -> str | None:
    """Why there is none to fit."""
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


def _remark(temperature: float) -> str | None:
    if temperature == BOUNDS[1]:
        return f"at its upper bound, {BOUNDS[1]:g}: these logits tell the utterances no better than chance"
    if temperature == BOUNDS[0]:
        return f"at its lower bound, {BOUNDS[0]:g}: these logits are very small"
    return None


# ------------------------------------------------------------------ the files of a run


def logit_table(frame: pd.DataFrame, logits: dict[str, Sequence[float]], classes: Sequence[str]) -> pd.DataFrame:
    """A part's rows of ``logits.csv``.

    Arguments
    ---------
    frame : pandas.DataFrame
        Columns ID, speaker, emotion; those utterances of it are taken that have logits.
    logits : dict of str to sequence of float
        By ID, float32, in the order of the classes.
    classes : sequence of str
        All classes.

    Returns
    -------
    pandas.DataFrame
        ID, speaker, emotion, ``logit_<class>``; sorted by ID.

    Example
    -------
    >>> frame = pd.DataFrame({"ID": ["b", "a"], "speaker": "03", "emotion": ["sad", "happy"]})
    >>> print(logit_table(frame, {"a": [1.5, 0.1], "b": [0.0, 2.0]}, ["happy", "sad"]).to_csv(index=False))
    ID,speaker,emotion,logit_happy,logit_sad
    a,03,happy,1.5,0.1
    b,03,sad,0.0,2.0
    """
    rows = frame.loc[frame["ID"].isin(logits.keys()), ["ID", "speaker", "emotion"]].sort_values("ID", ignore_index=True)
    columns = [f"logit_{c}" for c in classes]
    values = np.array([logits[utterance] for utterance in rows["ID"]], np.float32).reshape(len(rows), len(classes))
    return rows.join(pd.DataFrame(values, columns=columns))  # float32: the CSV has as many digits as are known


def logits_of(table: pd.DataFrame, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [utterances, classes] and indices of the true classes [utterances] of a table like ``logits.csv``."""
    # a CSV's digits tell a float32 from its neighbours, and read as float64 are not yet its value
    logits = table[[f"logit_{c}" for c in classes]].to_numpy(np.float32).astype(float)
    return logits, pd.Index(classes).get_indexer(table["emotion"])


def calibrate(valid: pd.DataFrame, test: pd.DataFrame, classes: Sequence[str]) -> dict:
    """What ``calibration.json`` says of a temperature: itself, and figures on both parts with and without it.

    Arguments
    ---------
    valid, test : pandas.DataFrame
        From :func:`logit_table`; the first may be empty.
    classes : sequence of str
        All classes.

    Returns
    -------
    dict
        ``temperature`` (None with a ``reason``), ``part`` and ``n`` of its utterances; ``figures`` by part, each
        ``uncalibrated`` and, where there is a temperature, ``calibrated``; ``thresholds``: coverage and accuracy of
        the validation utterances when the model keeps silent below some thresholds. ``note`` where there is something
        to know.
    """
    logits, true = logits_of(valid, classes)
    fit = fit_temperature(logits, true)
    parts = {"valid": (logits, true), "test": logits_of(test, classes)}
    parts = {part: of for part, of in parts.items() if len(of[1]) and np.isfinite(of[0]).all()}
    figures = {part: _figures(*of, fit.temperature) for part, of in parts.items()}
    found = {"temperature": fit.temperature, **({"reason": fit.remark} if fit.temperature is None else {})}
    found |= {"part": "valid", "n": len(valid), "figures": figures}
    if "valid" in parts:
        found["thresholds"] = abstention(utterance_scores(with_temperature(logits, fit.temperature or 1.0), true))
    notes = [fit.remark] if fit.temperature is not None else []
    if 0 < len(valid) < FEW:
        notes.append(f"fitted on {len(valid)} utterances only")
    return found | {"note": "; ".join(filter(None, notes))}


def _figures(logits: np.ndarray, true: np.ndarray, temperature: float | None) -> dict:
    ways = {"uncalibrated": 1.0} | ({} if temperature is None else {"calibrated": temperature})
    return {way: calibration_figures(utterance_scores(with_temperature(logits, t), true)) for way, t in ways.items()}


# ------------------------------------------------------------------ reading


def read_calibration(run_folder: str | os.PathLike) -> dict | None:
    """What a run's ``calibration.json`` says; None where there is no such file.

    Arguments
    ---------
    run_folder : str or os.PathLike
        The run.

    Returns
    -------
    dict or None

    Raises
    ------
    UserError
        When it is none.
    """
    path = Path(run_folder) / CALIBRATION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: expected JSON: {error}") from error
    return check_calibration(found, path)


def check_calibration(found, where: str | os.PathLike) -> dict:
    """The same content, when it is that of a ``calibration.json``.

    Arguments
    ---------
    found : object
        What was read.
    where : str or os.PathLike
        From where.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        When the temperature is neither null nor a finite number above 0.
    """
    if not isinstance(found, dict) or "temperature" not in found:
        raise UserError(f"{where}: expected a mapping with a temperature, found {str(found)[:80]}")
    if found["temperature"] is not None:
        check_temperature(found["temperature"], f"{where}: temperature")
    return found


def check_temperature(value, name: str = "temperature") -> float:
    """The same value, when it is a temperature.

    Example
    -------
    >>> check_temperature(0)
    Traceback (most recent call last):
    speechbrain_ser.errors.UserError: temperature: expected a finite number > 0, found 0
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{name}: expected a finite number > 0, found {value!r}")
    return float(value)


def temperature_of(calibration: dict | None, epoch: int | None = None) -> tuple[float, str | None]:
    """The temperature to use, and why there is none where it is 1 for want of another.

    Arguments
    ---------
    calibration : dict or None
        The content of a ``calibration.json``.
    epoch : int, optional
        That of the parameters: a temperature fitted to those of another epoch is not theirs.

    Returns
    -------
    tuple of float and str or None

    Example
    -------
    >>> temperature_of({"temperature": 1.37, "epoch": 22}, 22)
    (1.37, None)
    >>> temperature_of({"temperature": 1.37, "epoch": 22}, 23)
    (1.0, 'calibration.json is of epoch 22, the parameters are of epoch 23')
    >>> temperature_of(None)
    (1.0, 'the run has no calibration.json')
    """
    if calibration is None:
        return 1.0, f"the run has no {CALIBRATION}"
    if calibration["temperature"] is None:
        return 1.0, str(calibration.get("reason", f"{CALIBRATION} has no temperature"))
    if epoch is not None and calibration.get("epoch") != epoch:
        return 1.0, f"{CALIBRATION} is of epoch {calibration.get('epoch')}, the parameters are of epoch {epoch}"
    return float(calibration["temperature"]), None
