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
from speechbrain_ser.processing.pitch import extract_f0, normalize, quantize
from speechbrain_ser.processing.rapt import frame_count
from speechbrain_ser.processing.speech_split import UNVOICED

DATA = Path(__file__).parent / "data" / "speechsplit_f0.npz"  # the program's numbers for three recordings of EMO-DB


@pytest.mark.parametrize("name", ["03a01Fa", "08a01Na", "14a05Wa"])
def test_as_the_released_program(name):
    with np.load(DATA) as data:
        logs, norm, bins = (data[f"{name}_{key}"] for key in ("log", "norm", "bin"))
    f0 = np.where(logs > UNVOICED, np.exp(logs.astype(np.float64)), 0)
    found = normalize(f0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, norm, atol=1e-6)
    assert quantize(found).tolist() == bins.tolist()


@pytest.mark.parametrize(
    ("f0", "classes"),
    [
        ([], []),
        ([0, 0], [0, 0]),
        ([0, 200, 0], [0, 129, 0]),  # a pitch that never changes is its mean
        ([123.456] * 9, [129] * 9),
        ([400, 100, *[200] * 98], [256, 0, *[129] * 98]),  # seven deviations; clipped to 0 it is unvoiced
        ([100, 0, 120, 140], [88, 0, 131, 166]),
        ([200, 0, 240, 280], [88, 0, 131, 166]),  # relative
    ],
)
def test_classes_of_an_utterance(f0, classes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quantize(normalize(np.array(f0, dtype=np.float32))).tolist() == classes


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


@pytest.mark.parametrize(
    ("wav", "given"),
    [
        (0.01 * np.sin(np.arange(2560.0)), 2561),  # a sample more: as many frames as the spectrogram
        (0.01 * np.sin(np.arange(2561.0)), 2561),
        (np.zeros(0), None),
        (np.ones(500), None),  # too short
    ],
)
def test_pysptk_is_given_samples_of_16_bits(monkeypatch, wav, given):
    calls = []

    def answer(x, *settings, **named):
        calls.append((x, *settings, *named.values()))
        return np.full(-(-len(x) // 256), 100, dtype=np.float32)

    monkeypatch.setitem(sys.modules, "pysptk", types.SimpleNamespace(rapt=answer))
    f0 = extract_f0(wav, "pysptk", 60, 500)
    assert f0.tolist() == [100 if given else 0] * frame_count(len(wav))
    for x, *settings in calls:
        assert (x.dtype, len(x), settings) == (np.float32, given, [16_000, 256, 60, 500, "f0"])
        np.testing.assert_allclose(x[: len(wav)], wav / np.abs(wav).max() * 32768, rtol=1e-6)


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
