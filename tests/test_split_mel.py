"""SpeechSplit's mel spectrogram: the published program's on real speech, and by hand on a synthetic signal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal
from transformers.audio_utils import mel_filter_bank

from speechbrain_ser.processing.speech_split import F_MAX, F_MIN, mel_filters, prepare
from speechbrain_ser.processing.split_mel import SplitMel

REFERENCE = Path(__file__).parent / "data" / "speechsplit"


@pytest.fixture(scope="module")
def sweep() -> torch.Tensor:
    """A hum at 8 Hz and a sweep from 100 Hz to 7 kHz; silence before and after, for the filter to come to rest."""
    time = np.arange(3000) / 16000
    wav = 0.2 * np.sin(2 * np.pi * 8 * time) + 0.3 * np.sin(2 * np.pi * (100 * time + 18400 * time**2))
    return torch.from_numpy(np.pad(wav * np.hanning(3000), 2500)).float()


@pytest.mark.parametrize("name", ["03a01Fa", "08a01Na", "14a05Wa"])
def test_published_program(emodb_folder, name):
    from speechbrain_ser.data.batches import load_audio

    wav = torch.as_tensor(load_audio(emodb_folder / "wav" / f"{name}.wav"))
    noise = (np.random.RandomState(int(name[:2])).rand(len(wav)) - 0.5) * 1e-6
    with np.load(REFERENCE / "mel_norm.npz") as published:
        expected = torch.from_numpy(published[name].clip(0, 1))
    torch.testing.assert_close(SplitMel().extract(wav, noise), expected, atol=1e-5, rtol=0)
    assert (SplitMel().extract(wav) - expected).abs().max() < 1e-3  # a dither of its own


def test_published_filters():
    with np.load(REFERENCE / "mel_basis.npz") as published:
        np.testing.assert_allclose(mel_filters(), published["mel_basis"], atol=2e-7)
    slaney = {"norm": "slaney", "mel_scale": "slaney"}
    assert np.array_equal(mel_filters(), mel_filter_bank(513, 80, F_MIN, F_MAX, 16000, **slaney))


def test_by_hand(sweep):
    with np.load(REFERENCE / "mel_basis.npz") as published:
        b, a, filters = published["hp_b"], published["hp_a"], published["mel_basis"]
    filtered = 0.96 * sweep.double().numpy()
    for _ in range(2):  # there and back: the signal begins and ends in silence
        filtered = signal.lfilter(b, a, filtered)[::-1]
    padded = np.concatenate([filtered[512:0:-1], filtered, filtered[-2:-514:-1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    transform = np.exp(-2j * np.pi * np.outer(np.arange(513), np.arange(1024)) / 1024)
    magnitudes = np.abs(transform @ np.stack([padded[i : i + 1024] * window for i in range(0, 8000, 256)]).T)
    expected = (20 * np.log10(np.maximum(1e-5, magnitudes.T @ filters)) - 16 + 100) / 100
    mel = SplitMel(dither=False).extract(sweep).numpy()
    assert mel.shape == (32, 80)
    assert 0.1 < (mel > 0).mean() and 0.3 < mel.max() < 1
    np.testing.assert_allclose(mel, expected.clip(0, 1), atol=1e-4)


@pytest.mark.parametrize("samples", [19, 255, 256, 257, 1024, 5000])
def test_frame_counts(samples):
    split_mel = SplitMel()
    mel = split_mel.extract(torch.rand(samples) - 0.5)
    assert mel.shape == (samples // 256 + 1, 80) == (split_mel.frame_counts(samples), split_mel.output_size)
    assert 0 <= mel.min() and mel.max() <= 1 and split_mel.frame_counts(18) == 0


def test_dither_is_the_recordings_own(sweep):
    first = prepare(sweep)
    prepare(sweep.flip(0))  # what comes in between does not matter
    assert np.array_equal(first, prepare(sweep))
    noise = first - prepare(sweep, np.zeros(1))
    assert 4.9e-7 < np.abs(noise).max() <= 5e-7 and abs(noise.mean()) < 2e-8
    other = prepare(sweep * 0.5) - prepare(sweep * 0.5, np.zeros(1))
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.05
    assert not torch.equal(SplitMel().extract(sweep), SplitMel(dither=False).extract(sweep))
    assert SplitMel().settings != SplitMel(dither=False).settings
    assert (SplitMel().extract(torch.zeros(4000)) == SplitMel().padding_value).all()  # of silence nothing is left


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (torch.zeros(18), r"at least 19 samples, found \[18\]"),
        (torch.zeros(1, 4000), r"expected a waveform \[time\]"),
        (torch.full((4000,), float("nan")), "finite"),
    ],
)
def test_bad_waveforms(wav, message):
    with pytest.raises(ValueError, match=message):
        SplitMel().extract(wav)
