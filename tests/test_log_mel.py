"""Log-mel spectrograms: the textbook's numbers, an utterance's own frames only, silence."""

import numpy as np
import pytest
import torch

from speechbrain_ser.processing.log_mel import LogMel

RATE = 16_000


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    """0.7 s of a gliding voice with breath and a pause: 60 dB from its loudest to its quietest [time]."""
    time = torch.arange(11_200, dtype=torch.float64) / RATE
    pitch = 2 * torch.pi * (120 * time + 60 * time**2)
    voice = sum(torch.sin(k * pitch) / k for k in range(1, 40)) * (time < 0.5)
    breath = torch.randn(len(time), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (0.1 * voice + 1e-4 * breath).float()


def fourier_power(frames: np.ndarray) -> np.ndarray:
    """|DFT|^2 from its definition, [frames, n] -> [frames, n / 2 + 1]."""
    n = frames.shape[1]
    angles = 2 * np.pi * np.outer(np.arange(n), np.arange(n // 2 + 1)) / n
    return (frames @ np.cos(angles)) ** 2 + (frames @ np.sin(angles)) ** 2


def slaney_hertz(mel: np.ndarray) -> np.ndarray:
    """Slaney's Auditory Toolbox: 66.7 Hz a step up to 1 kHz, from there 27 steps a factor of 6.4."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def slaney_filters(n_mels: int, n_fft: int) -> np.ndarray:
    """Triangles of area 1 from 0 Hz to 8 kHz [n_fft / 2 + 1, bands]."""
    top = 15 + 27 * np.log(8) / np.log(6.4)  # 8 kHz
    corners = slaney_hertz(np.linspace(0, top, n_mels + 2))
    bins = np.arange(n_fft // 2 + 1) * RATE / n_fft
    return np.stack(
        [np.interp(bins, corners[i : i + 3], [0, 2 / (corners[i + 2] - corners[i]), 0]) for i in range(n_mels)], axis=1
    )


def textbook_bands(wav: np.ndarray) -> np.ndarray:
    """Mel power of a waveform in float64 [frames, 128]."""
    padded = np.pad(wav.astype(np.float64), 400, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 800)
    frames = np.stack([padded[i : i + 800] * window for i in range(0, len(padded) - 799, 400)])
    return fourier_power(frames) @ slaney_filters(128, 800)


@pytest.mark.parametrize("samples", [11_200, 11_199, 1000, 401, 150, 2, 1])
def test_paper_settings_are_the_textbook_s(speech, samples):
    wav = speech[2000 : 2000 + samples]
    bands = textbook_bands(wav.numpy())
    expected = np.maximum(10 * np.log10(bands / bands.max()), -80) / 80
    found = LogMel().extract(wav).numpy()
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert found.max() == 0 and found.min() >= -1 and (samples < 1000 or (found == -1).mean() < 0.5)  # not all floor


def test_absolute_scales_are_the_textbook_s(speech):
    bands = np.maximum(textbook_bands(speech.numpy()), 1e-10)
    np.testing.assert_allclose(LogMel(scale="db").extract(speech), 10 * np.log10(bands), atol=0.008, rtol=0)
    np.testing.assert_allclose(LogMel(scale="log").extract(speech), np.log(bands), atol=0.002, rtol=0)


@pytest.mark.parametrize("scale", ["peak_db", "db", "log"])
def test_padded_batch_gives_the_singles(speech, scale):
    log_mel = LogMel(scale=scale)
    lengths = torch.tensor([11_200, 8000, 7999, 1201, 400, 399, 3, 1])
    wavs = torch.full((len(lengths), 12_345), float("nan"))  # padding is ignored whatever it holds
    for row, length in zip(wavs, lengths, strict=True):
        row[:length] = speech[:length] / length  # loud and soft ones
    feats = log_mel(wavs, lengths / 12_345)
    counts = log_mel.frame_counts(lengths)
    assert feats.shape == (len(lengths), log_mel.frame_counts(12_345), 128)
    for row, wav, length, count in zip(feats, wavs, lengths, counts, strict=True):
        torch.testing.assert_close(row[:count], log_mel.extract(wav[:length]), atol=1e-5, rtol=1e-6)
        assert (row[count:] == log_mel.padding_value).all()


def test_autocast_changes_nothing(speech):
    log_mel = LogMel()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = log_mel(speech[None].half())[0]
    torch.testing.assert_close(found, log_mel.extract(speech.half().float()))


def test_bands_have_gradients(speech):
    wav = speech.clone().requires_grad_()
    LogMel().extract(wav).sum().backward()
    assert wav.grad.isfinite().all() and wav.grad.abs().max() > 0


@pytest.mark.parametrize("scale", ["peak_db", "db", "log"])
def test_silence_is_the_padding_value(speech, scale):
    log_mel = LogMel(scale=scale)
    feats = log_mel(torch.stack([speech, torch.zeros_like(speech)]))
    assert (feats[1] == feats[1, 0, 0]).all()
    torch.testing.assert_close(feats[1, 0, 0].item(), log_mel.padding_value, atol=1e-5, rtol=0)
    faint = log_mel(torch.stack([speech * 1e-18, speech * 1e-25, torch.full_like(speech, 0.5)]))
    for some in (feats, faint) if scale == "peak_db" else (feats,):
        assert some.isfinite().all() and (scale != "peak_db" or ((some >= -1) & (some <= 0)).all())


@pytest.mark.parametrize("settings", [{}, {"n_fft": 1024, "hop_length": 256}, {"n_fft": 401, "hop_length": 160}])
def test_frame_counts_are_what_forward_gives(settings):
    log_mel = LogMel(n_mels=2, scale="db", **settings)
    noise = torch.rand(5000, generator=torch.Generator().manual_seed(0)) + 0.1
    lengths = torch.arange(1, 5001)
    counts = log_mel.frame_counts(lengths)
    # frames never decrease with the length: right at both ends of a run of equal counts is right all along it
    steps = counts.diff().nonzero().flatten()
    ends = torch.cat([torch.tensor([0]), steps, steps + 1, torch.tensor([4999])])
    for length, count in zip(lengths[ends], counts[ends], strict=True):
        assert log_mel.extract(noise[:length]).shape[0] == count
    for some in lengths[::7].split(250):
        # in a batch every frame before the end holds sound, none after it
        feats = log_mel(noise.repeat(len(some), 1), some / 5000)
        sound = (feats > log_mel.padding_value).any(dim=2)  # [batch, frames]
        assert torch.equal(sound.sum(dim=1), log_mel.frame_counts(some))


def test_settings_tell_outputs_apart():
    others = [{}, {"n_fft": 1024}, {"hop_length": 200}, {"n_mels": 80}, {"scale": "db"}, {"scale": "log"}]
    assert len({str(LogMel(**other).settings) for other in others}) == len(others)


@pytest.mark.parametrize(
    ("settings", "wav_lens", "message"),
    [
        ({"scale": "dB"}, None, "scale is 'dB', expected one of peak_db, db, log"),
        ({"hop_length": 0}, None, "hop_length is 0, expected a whole number above 0"),
        ({}, torch.tensor([1.0, 0.0]), r"expected at least 1 sample an utterance, found none in \[1\]"),
    ],
)
def test_what_is_refused(settings, wav_lens, message):
    with pytest.raises(ValueError, match=message):
        LogMel(**settings)(torch.zeros(2, 800), wav_lens)
