"""Decomposed speech to look at and listen to: parts, codes, conversions, pictures, sound and the two commands."""

import os
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_ser.cli import main
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.decompose import (
    _recording_names,
    analyse,
    convert,
    invert_mel,
    parts_of,
    plot_analysis,
    plot_conversion,
    read_parts,
)
from speechbrain_ser.lobes.speech_decomposition import (
    ContentEncoder,
    Decoder,
    PitchEncoder,
    RhythmEncoder,
    SpeechDecomposition,
    TimbreEncoder,
)
from speechbrain_ser.processing.pitch import PitchTrack, extract_f0, normalize
from speechbrain_ser.processing.split_mel import SplitMel, prepare

MEL = SplitMel()
F0 = PitchTrack(f_range=(60.0, 500.0))
NAMES = ("content", "pitch", "rhythm", "timbre")


def voice(seconds: float = 1.2, pitch: float = 140.0) -> torch.Tensor:
    """Harmonics of a gliding pitch, on and off every quarter of a second, over a little noise."""
    time = torch.arange(round(seconds * 16_000)) / 16_000
    hz = pitch * (1 + 0.2 * torch.sin(2 * torch.pi * 1.5 * time))
    phase = torch.cumsum(2 * torch.pi * hz / 16_000, 0)
    tones = sum(torch.sin(k * phase) / k for k in range(1, 25))
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return 0.1 * tones * ((time * 2) % 1 < 0.5) + 1e-3 * noise


def decomposition(names=NAMES, decoder=True) -> SpeechDecomposition:
    """Narrow encoders and a small decoder, with random weights that matter: a code's change shows in the output."""
    torch.manual_seed(1)
    encoders = {
        "content": ContentEncoder(channels=16, groups=4),
        "pitch": PitchEncoder(channels=16, groups=4, units=4),
        "rhythm": RhythmEncoder(channels=16, groups=4),
        "timbre": TimbreEncoder(channels=16, groups=4, units=4),
    }
    chosen = {name: encoders[name] for name in names}
    return SpeechDecomposition(chosen, partial(Decoder, units=16, layers=1) if decoder else None)


@pytest.fixture(scope="module")
def source():
    return parts_of(voice(1.2), "source", MEL, F0)


@pytest.fixture(scope="module")
def target():
    return parts_of(voice(0.7, 220.0), "target", MEL, F0)


@pytest.fixture(scope="module")
def model():
    return decomposition()


@pytest.fixture
def loader(monkeypatch):
    """Put a model where `load_model` finds it."""

    def put(model):
        trained = SimpleNamespace(model=SimpleNamespace(decomposition=model, inputs={"mel": MEL, "f0": F0}))
        monkeypatch.setattr("speechbrain_ser.inference.decompose.load_model", lambda *_: trained)

    return put


@pytest.fixture
def recordings(tmp_path) -> tuple[str, str]:
    paths = tmp_path / "a01.wav", tmp_path / "b02.wav"
    for path, wav in zip(paths, (voice(1.2), voice(0.7, 220.0)), strict=True):
        soundfile.write(path, wav.numpy(), 16_000)
    return tuple(map(str, paths))


def test_sound_of_a_spectrogram_has_that_spectrogram_and_pitch():
    wav = voice(1.5)
    mel = MEL.extract(wav)
    again = invert_mel(mel)
    decibels = 100 * (MEL.extract(again) - mel)
    assert decibels.square().mean().sqrt() < 3.2  # 2.8 dB, over all bands and frames; 100 dB is the range
    assert torch.equal(invert_mel(mel), again)
    assert again.square().mean().sqrt().item() == pytest.approx(wav.square().mean().sqrt().item(), rel=0.1)  # its level
    before, after = (extract_f0(x.numpy()) for x in (wav, again))
    both = (before > 0) & (after > 0)
    assert both.sum() > 0.8 * (before > 0).sum()
    assert np.median(np.abs(1200 * np.log2(after[both] / before[both]))) < 20  # cents


@pytest.mark.parametrize("samples", [19, 255, 256, 15_999])
def test_sound_is_as_long_to_half_a_hop(samples):
    mel = MEL.extract(voice(2.0)[:samples])
    wav = invert_mel(mel)
    assert wav.isfinite().all() and abs(len(wav) - samples) <= 128 and len(MEL.extract(wav)) == len(mel)


def test_sound_of_silence_of_values_beyond_the_range_and_of_what_is_no_spectrogram():
    assert invert_mel(np.full((20, 80), -3.0)).abs().max() < 1e-3
    torch.testing.assert_close(invert_mel(np.full((20, 80), 7.0)), invert_mel(np.ones((20, 80))))
    for mel in (np.zeros((0, 80)), np.zeros((80, 20)), np.zeros(80), np.full((5, 80), np.nan)):
        with pytest.raises(ValueError, match="expected a spectrogram"):
            invert_mel(mel)


def test_parts_of_a_recording(tmp_path):
    wav = voice()
    soundfile.write(tmp_path / "a01.wav", wav.numpy(), 16_000, "FLOAT")
    parts = read_parts(tmp_path / "a01.wav", MEL, F0)
    assert (parts.name, parts.title, parts.hop_seconds) == ("a01", "a01", 0.016)
    np.testing.assert_array_equal(parts.mel, MEL.extract(wav))
    np.testing.assert_array_equal(parts.f0_hz, extract_f0(prepare(wav), f_min=60.0, f_max=500.0))
    np.testing.assert_array_equal(parts.f0, normalize(parts.f0_hz))
    assert len(parts.f0) == len(parts.mel) and 100 < np.median(parts.f0_hz[parts.f0_hz > 0]) < 180


def test_f0_is_tracked_only_where_it_is_read(loader, recordings, tmp_path, monkeypatch):
    loader(decomposition(("rhythm", "timbre"), decoder=False))
    monkeypatch.setattr("speechbrain_ser.processing.pitch.extract_f0", lambda *a: pytest.fail("F0 tracked"))
    assert main(["decompose", "run", recordings[0], f"--out={tmp_path / 'out'}"]) == 0
    with np.load(tmp_path / "out" / "a01.npz") as arrays:
        assert set(arrays) == {"mel", "code_rhythm", "code_timbre", "hop_seconds"}


@pytest.mark.parametrize(
    ("wav", "said"),
    [
        (np.full(1000, np.nan), "NaN"),
        (np.arange(18) / 18, "at least 19 samples at 16 kHz, which make a frame, found 18"),
    ],
)
def test_unusable_recordings_are_named(tmp_path, wav, said):
    path = tmp_path / "a.wav"
    soundfile.write(path, wav, 16_000, "FLOAT")
    with pytest.raises(UserError, match=f"^{path}: .*{said}"):
        read_parts(path, MEL, F0)


def test_analysis_is_what_the_model_gives_without_resampling(source):
    model = decomposition().train()
    analysis = analyse(model, source)
    frames = len(source.mel)
    codes = -(-frames // 8)
    shapes = {"content": (codes, 16), "pitch": (codes, 8), "rhythm": (codes, 2), "timbre": (8,)}
    assert {name: code.shape for name, code in analysis.codes.items()} == shapes
    assert analysis.hops == dict.fromkeys(("content", "pitch", "rhythm"), 8)
    with torch.no_grad():
        expected, mel = model(torch.from_numpy(source.mel)[None], torch.from_numpy(source.f0)[None])
    for name in NAMES:
        np.testing.assert_array_equal(analysis.codes[name], expected[name][0])
    np.testing.assert_array_equal(analysis.reconstruction, mel[0])
    assert analysis.mse == pytest.approx(np.mean((analysis.reconstruction - source.mel) ** 2), rel=1e-5)


WHISPER = 0.01 * torch.randn(8001, generator=torch.Generator().manual_seed(3)).diff()


@pytest.mark.parametrize(("wav", "remark"), [(torch.zeros(8000), "silent"), (WHISPER, "entirely unvoiced")])
def test_without_a_voice(model, source, wav, remark):
    parts = parts_of(wav, "whisper", MEL, F0)
    assert not parts.f0_hz.any() and parts.title == f"whisper ({remark})"
    analysis = analyse(model, parts)
    assert np.isfinite(analysis.reconstruction).all() and np.isfinite(analysis.mse)
    assert parts.title in plot_analysis(analysis).get_suptitle()
    assert np.isfinite(convert(model, source, parts, ["pitch", "timbre"]).mel).all()


def test_nothing_and_everything_swapped_are_reconstructions(model, source, target):
    conversion = convert(model, source, target, [])
    np.testing.assert_array_equal(conversion.mel, analyse(model, source).reconstruction)
    assert conversion.kept == NAMES
    conversion = convert(model, source, target, [*NAMES[::-1], "pitch"])
    np.testing.assert_array_equal(conversion.mel, analyse(model, target).reconstruction)
    np.testing.assert_array_equal(conversion.f0_hz, target.f0_hz)
    assert conversion.swap == NAMES  # in the decoder's order, once each


@pytest.mark.parametrize("swap", NAMES)
@pytest.mark.parametrize("longer", ["source", "target"])
def test_only_what_is_swapped_changes(model, source, target, swap, longer):
    if longer == "target":
        source, target = target, source
    conversion = convert(model, source, target, [swap])
    own, other = analyse(model, source).codes, analyse(model, target).codes
    leader = target if swap == "rhythm" else source
    frames, codes = len(leader.mel), -(-len(leader.mel) // 8)
    assert conversion.mel.shape == (frames, 80)
    contour = (target if swap == "pitch" else source).f0_hz[:frames]
    np.testing.assert_array_equal(conversion.f0_hz, np.pad(contour, (0, frames - len(contour))))
    for name in NAMES:
        expected = (other if name == swap else own)[name]
        if name != "timbre":
            expected = np.pad(expected, [(0, max(0, codes - len(expected))), (0, 0)])[:codes]
        np.testing.assert_array_equal(conversion.codes[name], expected)
    before = analyse(model, source).reconstruction
    common = min(frames, len(before))
    assert np.abs(conversion.mel[:common] - before[:common]).max() > 1e-4


@pytest.mark.parametrize(
    ("names", "swap"), [(("timbre", "content"), "timbre"), (("content", "rhythm"), "content"), (("rhythm",), "rhythm")]
)
def test_length_of_other_models(source, target, names, swap):
    """Of the rhythm's recording; without rhythm, content leads, not what comes first."""
    source, target = (replace(parts, f0=None, f0_hz=None) for parts in (source, target))
    conversion = convert(decomposition(names), source, target, [swap])
    assert len(conversion.mel) == len((target if swap == "rhythm" else source).mel)
    assert conversion.f0_hz is None


def panels(figure) -> dict:
    """Axes by label, without colour bars."""
    return {axes.get_ylabel().split("\n")[0]: axes for axes in figure.axes if axes.get_label() != "<colorbar>"}


def test_picture_of_an_analysis(model, source):
    analysis = analyse(model, source)
    figure = plot_analysis(analysis)
    found = panels(figure)
    assert list(found) == ["mel band", "F0 (Hz)", "content", "pitch", "rhythm", "reconstruction", "timbre (channel)"]
    seconds = (len(source.mel) - 0.5) * 0.016
    assert all(found[name].get_xlim() == pytest.approx((-0.008, seconds)) for name in list(found)[:-1])
    content = np.repeat(analysis.codes["content"], 8, axis=0)[: len(source.mel)]  # a code stands for eight frames
    shown = {"mel band": source.mel, "reconstruction": analysis.reconstruction, "content": content}
    for name, image in shown.items():
        np.testing.assert_array_equal(found[name].images[0].get_array(), image.T)
    (curve,) = found["F0 (Hz)"].lines
    np.testing.assert_array_equal(np.nan_to_num(curve.get_ydata()), source.f0_hz)
    assert f"{analysis.mse:.2g}" in figure.get_suptitle()


def test_picture_of_what_a_model_has(source):
    figure = plot_analysis(analyse(decomposition(("rhythm",), decoder=False), replace(source, f0=None, f0_hz=None)))
    assert list(panels(figure)) == ["mel band", "rhythm"] and figure.get_suptitle() == "source"


def test_picture_of_a_conversion(model, source, target):
    conversion = convert(model, source, target, ["rhythm", "timbre"])
    figure = plot_conversion(conversion)
    rows, overs = figure.axes[:3], figure.axes[3:6]
    converted = "converted: rhythm, timbre of target; content, pitch of source"
    assert [axes.get_title("left") for axes in rows] == ["source: source", "target: target", converted]
    for axes, mel in zip(rows, (source.mel, target.mel, conversion.mel), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), mel.T)
        assert axes.get_xlim() == pytest.approx((-0.008, (len(source.mel) - 0.5) * 0.016))  # the longest
    assert [axes.get_ylabel() for axes in overs] == ["F0 (Hz)", "F0 (Hz)", "F0 asked for (Hz)"]
    for axes, f0 in zip(overs, (source.f0_hz, target.f0_hz, conversion.f0_hz), strict=True):
        np.testing.assert_array_equal(np.nan_to_num(axes.lines[0].get_ydata()), f0)
        assert axes.get_ylim() == overs[0].get_ylim()


def test_decompose(loader, model, recordings, tmp_path, capsys):
    loader(model)
    out = tmp_path / "new" / "out"
    assert main(["decompose", "run", *recordings, f"--out={out}"]) == 0
    assert sorted(os.listdir(out)) == ["a01.npz", "a01.png", "b02.npz", "b02.png"]
    analysis = analyse(model, read_parts(recordings[0], MEL, F0))
    with np.load(out / "a01.npz") as arrays:
        assert set(arrays) == {"mel", "f0_hz", "f0", *(f"code_{n}" for n in NAMES), "reconstruction", "hop_seconds"}
        np.testing.assert_array_equal(arrays["code_pitch"], analysis.codes["pitch"])
        np.testing.assert_array_equal(arrays["reconstruction"], analysis.reconstruction)
    assert (out / "a01.png").read_bytes().startswith(b"\x89PNG")
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{out / 'a01'}.png, .npz  MSE {analysis.mse:.3g}" and str(out / "b02") in second


def test_convert(loader, model, recordings, tmp_path, capsys):
    loader(model)
    out = tmp_path / "out"
    assert main(["convert", "run", *recordings, "--swap=timbre, rhythm", f"--out={out}"]) == 0
    assert main(["convert", "run", *recordings, "--swap=rhythm", f"--out={out}", "--audio"]) == 0
    made = "a01-b02-rhythm+timbre.png", "a01-b02-rhythm.png", "a01-reconstruction.wav", "a01-b02-rhythm.wav"
    assert sorted(os.listdir(out)) == sorted(made)
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in made]

    source, target = (read_parts(path, MEL, F0) for path in recordings)
    expected = analyse(model, source).reconstruction, convert(model, source, target, ["rhythm"]).mel
    for name, mel in zip(made[2:], expected, strict=True):
        wav, rate = soundfile.read(out / name, dtype="float32")
        assert rate == 16_000
        np.testing.assert_allclose(wav, invert_mel(mel), atol=2 / 32768)


def test_recordings_of_the_same_name(tmp_path):
    folder = tmp_path.name
    assert _recording_names(["DC/a01.wav", "DC/a02.wav"]) == ["a01", "a02"]
    assert _recording_names([tmp_path / "a01.wav", "JE/a01.wav"]) == [f"{folder}_a01", "JE_a01"]
    with pytest.raises(UserError, match=r"JE/a.wav and JE/a.flac: .* different names, found JE_a twice"):
        _recording_names(["DC/a.wav", "JE/a.wav", "JE/a.flac"])


@pytest.mark.parametrize(
    ("names", "decoder", "swap", "expected"),
    [
        (NAMES, True, "rythm", "error: swap: the model has no encoder 'rythm' (did you mean 'rhythm'?)"),
        (NAMES, True, " ,", "error: swap: expected names of encoders separated by commas, found ' ,'"),
        (("rhythm",), True, "rhythm,pitch", "error: swap: the model has no encoder 'pitch'; it has: rhythm"),
        (NAMES, False, "pitch", "error: swap: expected a model with a decoder"),
        (None, True, "pitch", "error: run: expected a run of a model that decomposes speech"),
    ],
)
def test_wrong_conversions(loader, recordings, tmp_path, capsys, names, decoder, swap, expected):
    loader(names and decomposition(names, decoder))
    assert main(["convert", "run", *recordings, f"--swap={swap}", f"--out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.startswith(expected)
    assert not (tmp_path / "out").exists()


def test_wrong_decompositions(loader, model, recordings, tmp_path, capsys):
    loader(model)
    assert main(["decompose", "run", str(tmp_path / "none.wav"), f"--out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.wav'}: no such recording\n"
    assert main(["decompose", "run", recordings[0], f"--out={recordings[1]}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {recordings[1]}/a01.png cannot be written: File exists")
    assert not (tmp_path / "out").exists()
