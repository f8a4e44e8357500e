"""RAPT finds the pitch that synthetic voices are known to have, and on real speech what SPTK's program finds."""

import itertools
import warnings

import numpy as np
import pytest
from scipy import signal

from speechbrain_ser.errors import UserError
from speechbrain_ser.processing import rapt as module
from speechbrain_ser.processing.rapt import frame_count, rapt

RATE, HOP = 16_000, 256
FORMANTS = ((500, 80), (1500, 120), (2500, 160))  # Hz: centre and width
OUTSIDE = 3  # frames at either end that see less than a whole window


def voice(f0: np.ndarray) -> np.ndarray:
    """Pulses at the given frequency of each sample, placed between samples, through a vocal tract."""
    cycles = np.cumsum(f0) / RATE
    last = np.flatnonzero(np.diff(np.floor(cycles)))
    part = (np.ceil(cycles[last]) - cycles[last]) / (cycles[last + 1] - cycles[last])  # of the way to the next sample
    wav = np.zeros(len(f0))
    wav[last] = 1 - part
    wav[last + 1] += part
    for centre, width in FORMANTS:
        radius = np.exp(-np.pi * width / RATE)
        wav = signal.lfilter([1.0], [1, -2 * radius * np.cos(2 * np.pi * centre / RATE), radius**2], wav)
    return wav / np.abs(wav).max()


def steady(f0: float, seconds: float = 1.0) -> np.ndarray:
    return voice(np.full(int(seconds * RATE), float(f0)))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(int(seconds * RATE))


def cents(found, expected):
    return 1200 * np.log2(found / expected)


def mixture(floor: float = 1e-3) -> np.ndarray:
    """Half a second each of voice, silence, hiss, a voice a fifth higher, on a quiet floor."""
    parts = [steady(120, 0.5), np.zeros(8000), 0.2 * noise(0.5, 1), 0.5 * steady(180, 0.5)]
    return np.concatenate(parts) + floor * noise(2.0, 2)


@pytest.mark.parametrize("f0", [60, 98.7, 150, 221.3, 440, 550])
def test_steady_voice(f0):
    found = rapt(steady(f0))[OUTSIDE:-OUTSIDE]
    assert (found > 0).all()
    assert np.abs(cents(found, f0)).max() < 5


@pytest.mark.parametrize(("first", "last"), [(100, 300), (420, 180)])
def test_glide(first, last):
    track = np.geomspace(first, last, 2 * RATE)
    found = rapt(voice(track))[OUTSIDE:-OUTSIDE]
    assert (found > 0).all()
    middle = np.arange(OUTSIDE, OUTSIDE + len(found)) * HOP
    middle = middle + 60 + (RATE / track[middle] / 2).astype(int)  # between a window and the one a period later
    error = np.abs(cents(found, track[middle]))
    assert np.median(error) < 5
    assert error.max() < 30


def test_a_missing_fundamental_is_found_and_none_in_noise():
    time = np.arange(RATE) / RATE
    wav = sum(np.cos(2 * np.pi * 110 * k * time) for k in range(2, 8))
    np.testing.assert_allclose(rapt(wav)[OUTSIDE:-OUTSIDE], 110, rtol=0.003)
    assert np.mean(rapt(noise(4.0)) > 0) < 0.02


@pytest.mark.parametrize(
    "wav", [np.zeros(RATE), np.full(RATE, 0.3), np.zeros(0), np.ones(5), steady(100)[:600], 1e-300 * noise(1.0)]
)
def test_nothing_to_track(wav):
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        f0 = rapt(wav)
    assert f0.tolist() == [0.0] * frame_count(len(wav))


@pytest.mark.parametrize("floor", [1e-3, 0.0], ids=["quiet noise", "digital silence"])
def test_mix(floor):
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        f0 = rapt(mixture(floor))
    expected = np.zeros(len(f0))
    expected[: 8000 // HOP] = 120
    expected[24_000 // HOP + 1 :] = 180
    wrong = np.flatnonzero((f0 > 0) != (expected > 0))
    edges = np.array([0, 8000, 24_000, 32_000]) / HOP
    assert (np.abs(wrong[:, None] - edges).min(axis=1) < 3).all()
    both = (f0 > 0) & (expected > 0)
    assert np.abs(cents(f0[both], expected[both])).max() < 20


def test_neither_level_nor_blocks_show(monkeypatch):
    mix = mixture()
    whole = rapt(mix)
    for gain in (1e-6, 32768.0, -1.0):
        np.testing.assert_allclose(rapt(gain * mix), whole, rtol=1e-9)
    monkeypatch.setattr(module, "BLOCK", 7)
    np.testing.assert_allclose(rapt(mix), whole, rtol=1e-9)


@pytest.mark.parametrize(
    ("wav", "f_range", "error", "message"),
    [
        (np.zeros((2, 9)), (50, 600), ValueError, r"\[time\], found the shape \[2, 9\]"),
        (np.array([0, np.nan]), (50, 600), ValueError, "found NaN"),
        (np.ones(9999), (300, 200), UserError, "f_min=300, f_max=200"),
        (np.ones(9999), (1, 200), UserError, r"1\.6 < f_min"),
        (np.ones(9999), (50, 8000), UserError, "f_max < 8000 Hz"),
        (np.ones(9999), (500, 510), UserError, r"at least 1\.5 ms of period apart"),
    ],
)
def test_what_cannot_be_tracked(wav, f_range, error, message):
    with pytest.raises(error, match=message):
        rapt(wav, f_min=f_range[0], f_max=f_range[1])


def test_the_path_is_the_cheapest_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        lags = np.round(80 * 2.0 ** rng.integers(0, 3, (5, 2)) * rng.uniform(0.9, 1.1, (5, 2)))  # octaves apart
        candidates = module.Candidates(lags, lags, rng.random((5, 2)), rng.random(5))
        changes = rng.uniform(0.5, 2, 5), rng.uniform(0, 0.3, 5)  # of level, stationarity
        paths = itertools.product(range(3), repeat=5)  # the third is unvoiced
        best = min(paths, key=lambda path: _cost(path, candidates, *changes))
        expected = [lags[i, k] if k < 2 else 0 for i, k in enumerate(best)]
        assert module._best_path(candidates, *changes).tolist() == expected


def _cost(path, candidates, level, stationarity):
    """Of a path, as Talkin 1995 writes it down."""
    total = 0.0
    for i, k in enumerate(path):
        total += candidates.unvoiced[i] if k == 2 else candidates.costs[i, k]
        if not i:
            continue
        before = path[i - 1]
        switch = 0.005 + 0.5 * stationarity[i]
        if k < 2 and before < 2:
            ratio = np.log(candidates.lags[i, k] / candidates.lags[i - 1, before])
            octaves = [0.35 + abs(ratio + np.log(2)), 0.35 + abs(ratio - np.log(2))]
            total += 0.02 * RATE / HOP * min(abs(ratio), *octaves)
        elif k < 2:
            total += switch + 0.5 / level[i]
        elif before < 2:
            total += switch + 0.5 * level[i]
    return total


def test_what_drowns_in_noise_is_unvoiced(monkeypatch):
    faint = np.concatenate([steady(120, 0.5), 1e-4 * steady(120, 0.5)])
    assert not rapt(faint)[35:-OUTSIDE].any()
    monkeypatch.setattr(module, "NOISE_POWER", 1e-12)
    np.testing.assert_allclose(rapt(faint)[35:-OUTSIDE], 120, rtol=0.003)


def test_rms_and_spectrum_at_an_onset():
    wav = np.concatenate([1e-3 * noise(0.5), steady(120, 0.5)])
    level, stationarity = module._changes(wav, len(wav) // HOP - 3)
    assert abs(level.argmax() - 8000 / HOP) < 2 and level.max() > 10
    onset = 8000 // HOP
    assert stationarity[onset - 2 : onset + 2].min() < 0.5 * np.median(stationarity[onset + 5 :])
