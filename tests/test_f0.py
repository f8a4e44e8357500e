"""F0 is normalised and quantised as SpeechSplit's program does, and tracked as SPTK's."""

import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ser.errors import UserError
from speechbrain_ser.processing.pitch import (
    UNVOICED,
    extract_f0,
    log_f0,
    normalize,
    quantize,
)
from speechbrain_ser.processing.rapt import frame_count

DATA = Path(__file__).parent / "data" / "speechsplit_f0.npz"  # the program's numbers for three recordings of EMO-DB
RECORDINGS = ("03a01Fa", "08a01Na", "14a05Wa")


@pytest.mark.parametrize("name", RECORDINGS)
def test_as_the_released_program(name):
    with np.load(DATA) as data:
        logs, norm, bins = (data[f"{name}_{key}"] for key in ("log", "norm", "bin"))
    f0 = np.where(logs > UNVOICED, np.exp(logs.astype(np.float64)), 0)
    np.testing.assert_allclose(log_f0(f0), logs, rtol=1e-6)
    found = normalize(f0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, norm, atol=1e-6)
    classes = quantize(found)
    assert classes.dtype == torch.int64
    assert classes.tolist() == bins.tolist()


@pytest.mark.parametrize("f0", [np.zeros(7), np.zeros(0), np.zeros(7, np.float32)])
def test_entirely_unvoiced(f0):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm = normalize(f0)
        classes = quantize(norm)
    assert (norm == np.float32(UNVOICED)).all()
    assert classes.tolist() == [0] * len(f0)


@pytest.mark.parametrize("f0", [[0, 200, 0], [200, 200, 200], np.full(9, 123.456, np.float32)])
def test_a_pitch_that_never_changes_is_its_mean(f0):
    norm = normalize(np.asarray(f0))
    assert norm[norm > UNVOICED] == pytest.approx(0.5)
    assert set(quantize(norm).tolist()) <= {0, 129}


def test_far_from_the_mean_is_clipped():
    f0 = np.full(100, 200.0)
    f0[0], f0[1] = 400, 100  # seven deviations
    norm = normalize(f0)
    assert norm[0] == 1
    assert norm[1] == 0
    assert quantize(norm)[:3].tolist() == [256, 0, 129]  # what is clipped to 0 counts as unvoiced in the program


def test_pitch_is_relative():
    f0 = np.array([100, 0, 120, 140.0])
    np.testing.assert_allclose(normalize(2 * f0), normalize(f0), atol=1e-6)


def test_quantize_edges():
    values = torch.tensor([[-1.0, 0, 1e-6, 0.5 / 255 + 1e-6, 1], [UNVOICED, 1.0000001, 2.5 / 255, 254.4 / 255, -0.0]])
    assert quantize(values).tolist() == [[0, 0, 1, 2, 256], [0, 256, 3, 255, 0]]


def test_halfway_to_an_unvoiced_frame_is_unvoiced():
    norm = torch.from_numpy(normalize(np.array([0, 100, 200.0])))
    between = 0.999 * norm[1:] + 0.001 * norm[:-1]
    assert (quantize(between) > 0).tolist() == [False, True]


@pytest.mark.parametrize(
    ("pysptk", "method", "low", "said"),
    [
        (None, "rapr", 50, r"method is 'rapr', expected rapt or pysptk \(did you mean 'rapt'\?\)"),
        (None, "pysptk", 50, r"speechbrain-ser\[rapt\]"),
        (None, "rapt", 300, "f_min=300, f_max=200"),
        (types.ModuleType("pysptk"), "pysptk", 300, "f_min=300, f_max=200"),
    ],
)
def test_what_cannot_be_tracked(monkeypatch, pysptk, method, low, said):
    monkeypatch.setitem(sys.modules, "pysptk", pysptk)
    with pytest.raises(UserError, match=said):
        extract_f0(np.ones(9999), method, f_min=low, f_max=200)


@pytest.fixture
def heard(monkeypatch) -> list:
    """What pysptk is given; its answer is 100 Hz."""
    calls = []

    def answer(x, fs, hopsize, min, max, otype):
        calls.append((x, fs, hopsize, min, max, otype))
        return np.full(-(-len(x) // hopsize), 100, dtype=np.float32)

    module = types.ModuleType("pysptk")
    module.rapt = answer
    monkeypatch.setitem(sys.modules, "pysptk", module)
    return calls


@pytest.mark.parametrize("samples", [2560, 2561, 2815])
def test_pysptk_is_given_samples_of_16_bits(heard, samples):
    wav = 0.01 * np.random.default_rng(0).standard_normal(samples)
    f0 = extract_f0(wav, "pysptk", 60, 500)
    ((x, *settings),) = heard
    assert x.dtype == np.float32
    assert np.abs(x).max() == 32768
    np.testing.assert_allclose(x[:samples], wav / np.abs(wav).max() * 32768, rtol=1e-6)
    assert settings == [16_000, 256, 60, 500, "f0"]
    assert f0.shape == (frame_count(samples),)


@pytest.mark.parametrize("wav", [np.zeros(9999), np.zeros(0), np.ones(500)])
def test_pysptk_is_not_asked_for_nothing(heard, wav):
    assert extract_f0(wav, "pysptk").tolist() == [0] * frame_count(len(wav))
    assert not heard


def test_real_speech_as_pysptk(emodb_folder):
    pytest.importorskip("pysptk", reason="the extra rapt")
    ours, theirs = [], []
    for name in ("03a01Fa", "08a01Na", "09a02Wb"):
        wav, _ = soundfile.read(emodb_folder / "wav" / f"{name}.wav")
        ours.append(extract_f0(wav))
        theirs.append(extract_f0(wav, "pysptk"))
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    assert np.mean((ours > 0) != (theirs > 0)) < 0.03
    both = (ours > 0) & (theirs > 0)
    cents = np.abs(1200 * np.log2(ours[both] / theirs[both]))
    assert np.mean(cents > 1200 * np.log2(1.2)) < 0.02
    assert np.median(cents) < 5
