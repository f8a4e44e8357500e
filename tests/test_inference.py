"""A trained model in use: what training's own test said, whatever the batch; odd recordings; nothing idle runs."""

import dataclasses
import itertools
import random
import shutil
import struct
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from speechbrain_ser.data.audio import check_audio
from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.recognizer import LOOK_AHEAD, EmotionRecognizer, load_model

from .conftest import ROOT

CPU = {"device": "cpu"}
STAGE_2 = ["--pretrain=False", "--fold=03", "--pooling=sum"]
# one run each: system, flags (sums over frames, not means: narrow models then tell utterances apart)
RUNS = {
    "cai": ("cai_mtl", ["--pooling=sum"]),
    "ha": ("ha_speaker_norm", ["--pooling=sum", "--decoding=beam", "--beam_size=3"]),
    "fu": ("fu_cross_lingual", ["--fold=03", "--lr=0.01", "--n_epochs=2"]),
    "fu, waveforms": ("fu_cross_lingual", ["--fold=03", "--fixed_length=0", "--cache_features=False", "--lr=0.01"]),
    "hsu": ("hsu_mtl", [*STAGE_2, "--emotion_reads=[pitch, timbre]"]),
    "hsu by gender": ("hsu_mtl", [*STAGE_2, "--f0_range={M: [50, 250], F: [100, 600]}", "--a_CTC=0"]),
    "probe": ("probe", []),
    "stage 1": ("hsu_pretrain", []),
}


@pytest.fixture
def run_of(trained):
    """The folder of one of the runs."""
    return lambda name: trained(*RUNS[name][1], yaml=RUNS[name][0])


@pytest.fixture(scope="module")
def wavs(small):
    """The folder of the recordings that are tested, and many others."""
    return small.corpus("emodb") / "wav"


def predictions_of(folder, wavs) -> pd.DataFrame:
    """What the run's own test said; utterances that it tells apart."""
    frame = pd.read_csv(folder / "predictions.csv", dtype={"ID": str}, keep_default_na=False)
    frame["path"] = [f"{wavs / utterance}.wav" for utterance in frame["ID"]]
    assert len(frame) > 5 and frame.filter(like="posterior_").std().max() > 2e-3
    assert "hypothesis" not in frame or frame["hypothesis"].nunique() > 5
    return frame


def assert_equal(found, row):
    """A result is what the run's own test said."""
    assert found.error is None and found.emotion == row["predicted"] and found.path == row["path"]
    expected = {c.removeprefix("posterior_"): p for c, p in row.items() if c.startswith("posterior_")}
    assert found.posteriors == pytest.approx(expected, abs=1e-4)
    assert found.transcript == (row["hypothesis"] if "hypothesis" in row else None)


def test_the_recognizer_needs_no_library_of_figures_and_metrics():
    code = (
        "import sys, speechbrain_ser.inference.recognizer; print({'matplotlib', 'sklearn', 'jiwer'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["cai", "ha", "fu", "fu, waveforms", "hsu", "probe"])
def test_equals_the_runs_own_predictions_in_any_batch_and_order(run_of, wavs, name):
    folder = run_of(name)
    rows = predictions_of(folder, wavs).to_dict("records")
    random.Random(3).shuffle(rows)
    recognizer = EmotionRecognizer.from_run(folder, CPU, calibrated=False)
    for batch_size in (1, 5):
        found = recognizer.classify_files((row["path"] for row in rows), batch_size)
        for result, row in zip(found, rows, strict=True):
            assert_equal(result, row)
    assert_equal(recognizer.classify_file(rows[0]["path"]), rows[0])
    signals = [load_audio(row["path"]) for row in rows[:4]]
    lengths = torch.tensor([len(signal) for signal in signals])
    padded = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True, padding_value=9.0)  # which says nothing
    for result, row in zip(recognizer.classify_batch(padded, lengths / lengths.max()), rows[:4], strict=True):
        assert_equal(dataclasses.replace(result, path=row["path"]), row)


def test_half_precision_is_near_in_any_batch(run_of, wavs):
    """bf16, with weights that are stored so."""
    recognizer = EmotionRecognizer.from_run(run_of("cai"), CPU | {"precision": "bf16"})
    assert recognizer.model.encoder.model.encoder.layers[0].feed_forward.output_dense.weight.dtype == torch.bfloat16
    paths = sorted(wavs.iterdir())[:8]

    def embeddings(recognizer, batch_size):
        return torch.stack([r.embedding for r in recognizer.classify_files(paths, batch_size, embedding=True)])

    exact = embeddings(EmotionRecognizer.from_run(run_of("cai"), CPU), 1)
    for batch_size in (1, 5):
        assert 1e-5 < ((embeddings(recognizer, batch_size) - exact).abs().max() / exact.abs().max()) < 0.02


def test_the_decoder_and_the_speaker_head_are_not_run(run_of):
    """Of Hsu's four encoders the emotion reads two here, of Ha's three heads a stranger needs two."""
    hsu = EmotionRecognizer.from_run(run_of("hsu"), CPU).model
    assert set(hsu.decomposition.encoders) == {"pitch", "timbre"} and hsu.decomposition.decoder is None
    assert set(hsu.heads) == {"emotion", "asr"} and set(load_model(run_of("hsu")).model.heads) > set(hsu.heads)
    assert set(EmotionRecognizer.from_run(run_of("ha"), CPU).model.heads) == {"emotion", "asr"}


def test_without_transcripts_the_rest_is_the_same(run_of, wavs):
    recognizer = EmotionRecognizer.from_run(run_of("cai"), CPU, transcribe=False, calibrated=False)
    assert list(recognizer.model.heads) == ["emotion"]
    row = predictions_of(run_of("cai"), wavs).iloc[0].to_dict() | {"hypothesis": None}
    assert_equal(recognizer.classify_file(row["path"]), row)


def test_embeddings_on_request(run_of, wavs):
    """What the emotion head reads: from it, the head gives the posteriors."""
    recognizer = EmotionRecognizer.from_run(run_of("cai"), CPU, calibrated=False)
    paths = sorted(wavs.iterdir())[:3]
    assert recognizer.classify_file(paths[0]).embedding is None
    for found in recognizer.classify_files(paths, batch_size=2, embedding=True):
        with torch.no_grad():
            posterior = recognizer.model.heads["emotion"](found.embedding).softmax(-1)
        assert list(found.posteriors.values()) == pytest.approx(posterior.tolist(), abs=1e-5)


def test_nobodys_gender_is_known(run_of, wavs, monkeypatch):
    """F0 is looked for in the whole range, which is said once."""
    said = []
    monkeypatch.setattr("speechbrain_ser.inference.recognizer.logger.warning", said.append)
    recognizer = EmotionRecognizer.from_run(run_of("hsu by gender"), CPU)
    results = list(recognizer.classify_files(sorted(wavs.iterdir())[:3], batch_size=1))
    assert [r.error for r in results] == [None] * 3 and recognizer.model.inputs["f0"].f_range == (50, 600)
    assert said == [
        "the model was trained on F0 in a range for each gender (M, F); the gender of who speaks is not known here: "
        "F0 is looked for from 50 to 600 Hz"
    ]


@pytest.mark.parametrize("name", ["cai", "ha", "fu", "fu, waveforms", "hsu"])
def test_a_timeline_of_one_window_is_the_recording(run_of, wavs, name):
    """For every system; in several windows, the batch size changes nothing (the rest: test_timeline.py)."""
    recognizer = EmotionRecognizer.from_run(run_of(name), CPU)
    path = sorted(wavs.iterdir())[0]
    found, expected = recognizer.timeline(path), recognizer.classify_file(path)
    (segment,) = found.segments
    assert (segment.start, segment.end) == (0.0, found.duration) == (0.0, len(load_audio(path)) / 16_000)
    assert segment.emotion == expected.emotion and found.transcript == expected.transcript
    assert segment.posteriors == pytest.approx(expected.posteriors, abs=1e-4)
    one, many = (recognizer.timeline(path, 0.8, 0.3, batch_size=n) for n in (1, 4))
    assert len(one.posteriors) > 3 and one.posteriors == pytest.approx(many.posteriors, abs=1e-4)
    assert one.phrases == many.phrases and (one.phrases is None) == (recognizer.decode is None)


@pytest.fixture(scope="module")
def odd(wavs, tmp_path_factory):
    """Recordings of every kind, and what the error says of each; None where a result is expected."""
    folder = tmp_path_factory.mktemp("odd")
    speech, rate = soundfile.read(sorted(wavs.iterdir())[0])
    soundfile.write(folder / "stereo.flac", np.stack([speech[::2], speech[::2]], 1), rate // 2)
    soundfile.write(folder / "eight.wav", np.stack([speech] * 8, 1), rate)
    soundfile.write(folder / "silent.wav", np.zeros(rate), rate)
    soundfile.write(folder / "short.wav", speech[:160], rate)
    soundfile.write(folder / "long.wav", np.tile(speech, 12), rate)
    soundfile.write(folder / "nan.wav", np.append(speech, np.nan), rate, subtype="FLOAT")
    (folder / "text.wav").write_text("These are minutes of a meeting, not a recording.")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "truncated.wav").write_bytes((folder / "eight.wav").read_bytes()[:9_000])
    (folder / "folder.wav").mkdir()
    errors = {"stereo.flac": None, "eight.wav": None, "silent.wav": "silent: all", "short.wav": "too short: 10.0 ms"}
    errors |= {"long.wav": "too long", "nan.wav": "NaN", "text.wav": "unreadable recording", "empty.wav": "0 bytes"}
    errors |= {"truncated.wav": "truncated recording", "folder.wav": "no such recording", "none.wav": "no such"}
    return folder, errors


@pytest.mark.parametrize("name", ["cai", "fu", "hsu"])
def test_odd_recordings_do_not_stop_the_others(run_of, odd, wavs, name):
    folder, errors = odd
    recognizer = EmotionRecognizer.from_run(run_of(name), CPU, max_seconds=10.0)
    if name == "fu":  # it fills everything up to a fixed length
        errors = errors | {"short.wav": None}
    plain = str(sorted(wavs.iterdir())[0])
    paths = [folder / file for file in errors] + [plain]
    found = dict(zip([*errors, "plain"], recognizer.classify_files(paths, batch_size=4), strict=True))
    assert [result.path for result in found.values()] == list(map(str, paths))
    for file, said in errors.items():
        result = found[file]
        assert (said in result.error and result.posteriors == {}) if said else result.error is None
    alone = recognizer.classify_file(plain)
    for result in (found["plain"], found["eight.wav"]):  # eight equal channels are the one
        assert result.emotion == alone.emotion and result.transcript == alone.transcript
        assert result.posteriors == pytest.approx(alone.posteriors, abs=1e-4)
    with pytest.raises(UserError, match=r"truncated\.wav: truncated recording"):
        recognizer.classify_file(folder / "truncated.wav")


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_no_memory_for_one_recording(run_of, wavs, error):
    recognizer = EmotionRecognizer.from_run(run_of("cai"), CPU)
    paths = sorted(wavs.iterdir())[:4]
    expected, longest = list(recognizer.classify_files(paths)), max(paths, key=lambda path: len(load_audio(path)))
    limit, forward = len(load_audio(longest)), recognizer.model.forward

    def forward_with_little_memory(sig):
        if sig.data.shape[1] >= limit:
            raise error
        return forward(sig)

    recognizer.model.forward = forward_with_little_memory
    recognizer.max_padding = float("inf")  # all in one batch
    for path, found, before in zip(paths, recognizer.classify_files(paths), expected, strict=True):
        if path == longest:
            assert found.error == f"{type(error).__name__}: {error}"
        else:
            assert found.emotion == before.emotion and found.posteriors == pytest.approx(before.posteriors, abs=1e-4)
    seconds = limit / 16_000
    assert [bool(found.error) for found in recognizer.timelines(paths, seconds)] == [path == longest for path in paths]


@pytest.mark.parametrize("error", [ValueError, TypeError, MemoryError, struct.error, OverflowError, AssertionError])
def test_whatever_a_decoder_raises_is_the_recordings_own(run_of, wavs, monkeypatch, error):
    good, bad = sorted(wavs.iterdir())[:2]
    read = soundfile.SoundFile.read

    def read_or_fail(sound, *args, **options):
        if str(sound.file.name) == str(bad):
            raise error("what it is")
        return read(sound, *args, **options)

    recognizer = EmotionRecognizer.from_run(run_of("fu"), CPU)
    monkeypatch.setattr(soundfile.SoundFile, "read", read_or_fail)
    for first, second in (recognizer.classify_files([bad, good]), recognizer.timelines([bad, good])):
        assert first.error.startswith("unreadable recording") and f"{error.__name__}: what it is" in first.error
        assert second.error is None
    with pytest.raises(UserError, match=f"unreadable recording .*\n  {bad}: {error.__name__}"):
        check_audio([bad, good])


def test_waveforms_that_give_no_result(run_of):
    recognizer = EmotionRecognizer.from_run(run_of("cai"), CPU, max_seconds=2.0)
    torch.manual_seed(0)
    wavs = torch.randn(3, 20_000)
    wavs[1, 7] = torch.inf
    good, bad, short = recognizer.classify_batch(wavs, torch.tensor([0.7, 1.0, 0.01]))
    (alone,) = recognizer.classify_batch(wavs[0, :14_000])
    assert good.posteriors == pytest.approx(alone.posteriors, abs=1e-4) and good.transcript == alone.transcript
    assert "NaN or infinite" in bad.error and short.error.startswith("too short: 12.5 ms")
    (long,) = recognizer.classify_batch(torch.randn(1, 32_001))
    assert long.error.startswith("too long")
    loud, other = recognizer.classify_batch(torch.stack([1e37 * wavs[0], wavs[0]]), torch.tensor([0.7, 0.7]))
    assert loud.error == "the model's output is not finite" and other.posteriors == pytest.approx(good.posteriors, 1e-4)
    for wrong in (torch.zeros(2, 3, 4), torch.zeros(1, 16_000, dtype=torch.int16)):
        with pytest.raises(UserError, match="expected"):
            recognizer.classify_batch(wrong)
    with pytest.raises(UserError, match=r"wav_lens \[batch\]"):
        recognizer.classify_batch(wavs, torch.ones(2))


def test_no_more_is_read_than_asked_for(run_of, wavs):
    """A list without end: results come after a bounded look ahead, in batches within the bound of seconds."""
    recognizer = EmotionRecognizer.from_run(run_of("cai"), CPU, max_seconds=12.0)
    path, asked, sizes = str(sorted(wavs.iterdir())[0]), [], []
    forward = recognizer.model.forward
    recognizer.model.forward = lambda sig: sizes.append(sig.data.shape) or forward(sig)
    found = recognizer.classify_files((asked.append(k) or path for k in itertools.count()), batch_size=4)
    assert not asked and next(found).path == path and len(asked) == 4 * LOOK_AHEAD
    assert max(n for n, _ in sizes) == 4 and all(n * time <= 12 * 16_000 for n, time in sizes)
    sizes.clear()
    recognizer.max_seconds = soundfile.info(path).duration  # one at a time
    assert [r.error for r in recognizer.classify_files([path] * 3)] == [None] * 3 and [n for n, _ in sizes] == [1] * 3


def test_a_run_that_cannot_be_used(run_of, tmp_path):
    with pytest.raises(UserError, match="recognises emotions, found one for reconstruction, speaker alone"):
        EmotionRecognizer.from_run(run_of("stage 1"), CPU)
    with pytest.raises(UserError, match="expected the folder of a finished run"):
        EmotionRecognizer.from_run(tmp_path, CPU)
    damaged = tmp_path / "run"
    shutil.copytree(run_of("cai"), damaged)
    (damaged / "save" / "tokens.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokens.json: expected what a run writes"):
        EmotionRecognizer.from_run(damaged, CPU)
    (damaged / "save" / "classes.json").unlink()
    with pytest.raises(UserError, match=r"classes.json: expected a file that can be read"):
        EmotionRecognizer.from_run(damaged, CPU, transcribe=False)
    yaml = damaged / "hyperparams.yaml"
    yaml.write_text(yaml.read_text().replace("!new:speechbrain_ser.models.cai.CaiModel", "!new:not_on_path.MyModel"))
    with pytest.raises(UserError, match=r"hyperparams.yaml: no model can be built from it: .*not_on_path.MyModel"):
        load_model(damaged)


def test_the_same_parameters_have_one_name(run_of, tmp_path):
    shutil.copytree(run_of("cai"), tmp_path / "copy")
    folders = run_of("cai"), tmp_path / "copy", run_of("fu")
    names = [EmotionRecognizer.from_run(f, CPU, calibrated=False).model_id for f in folders]
    assert names[0] == names[1] != names[2] and all(len(name) == 16 for name in names)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run_opts": {"devise": "cpu"}}, "did you mean 'device'"),
        ({"run_opts": {"device": "toaster"}}, "toaster"),
        ({"run_opts": {"device": "cuda:99"}}, "cuda:99, but this machine, or its torch"),
        ({"run_opts": {"device": "cpu", "precision": "fp8"}}, "fp8"),
        ({"run_opts": CPU, "max_seconds": 0}, "max_seconds"),
    ],
)
def test_wrong_options(run_of, options, said):
    with pytest.raises(UserError, match=said):
        EmotionRecognizer.from_run(run_of("fu"), **options)


def test_arrays_are_taken_and_one_path_is_told(run_of, wavs):
    recognizer, path = EmotionRecognizer.from_run(run_of("fu"), CPU), str(sorted(wavs.iterdir())[0])
    wav = load_audio(path)
    (expected,) = recognizer.classify_batch(wav)
    for same in (wav.numpy(), wav.double().numpy()[None]):
        assert recognizer.classify_batch(same, np.ones(1) if same.ndim == 2 else None)[0].posteriors == pytest.approx(
            expected.posteriors, abs=1e-5
        )
    for many in (recognizer.classify_files, recognizer.timelines):
        for one in (path, wavs, wav.numpy()):
            with pytest.raises(UserError, match="paths: expected several paths, such as a list, found"):
                many(one)
    for wrong, said in (([0.0], "wavs: expected a tensor or a NumPy array, found list"), (path, "found str")):
        with pytest.raises(UserError, match=said):
            recognizer.classify_batch(wrong)
    with pytest.raises(UserError, match="expected lengths relative to the longest"):
        recognizer.classify_batch(wav[None], torch.tensor([len(wav)]))
