"""Audio of any kind at 16 kHz mono, optimiser steps of exactly N utterances, batches."""

import math
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_ser.data.batches import (
    UNKNOWN_SPEAKER,
    AudioCache,
    Batch,
    StepSampler,
    length_sorted_batches,
    load_audio,
    make_dataset,
    make_loader,
)
from speechbrain_ser.errors import UserError


def sine(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * math.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype("float32")


# ------------------------------------------------------------------ audio


@pytest.mark.parametrize(
    ("name", "rate", "subtype"),
    [
        ("a.wav", 44_100, "PCM_16"),
        ("a.flac", 44_100, "PCM_16"),
        ("a.wav", 8_000, "FLOAT"),
        ("a.ogg", 48_000, None),
        ("a.wav", 44_101, "FLOAT"),  # no common divisor with 16 kHz
        ("a.wav", 12_002, "FLOAT"),
    ],
)
def test_stereo_of_any_rate_becomes_16_khz_mono(tmp_path, name, rate, subtype):
    """Left is 1.5 x the sine, right 0.5 x: the mean of the channels is the sine itself, at 16 kHz."""
    wav = sine(rate)
    soundfile.write(tmp_path / name, np.stack([1.5 * wav, 0.5 * wav], 1), rate, subtype)
    expected = torch.from_numpy(sine(16_000))
    found = load_audio(tmp_path / name)
    assert found.shape == expected.shape and found.dtype == torch.float32
    middle = slice(800, -800)  # a filter's edges
    tolerance = 0.03 if name.endswith("ogg") else 2e-3
    assert (found[middle] - expected[middle]).abs().max() < tolerance


def test_what_16_khz_cannot_hold_is_gone(tmp_path):
    """A tone above 8 kHz must not come back, mirrored, as one below it."""
    soundfile.write(tmp_path / "a.wav", sine(44_100, hertz=9_000), 44_100, "FLOAT")
    assert load_audio(tmp_path / "a.wav")[800:-800].abs().max() < 0.5 * 10 ** (-100 / 20)


def test_16_khz_mono_is_read_where_it_lies(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(16_000), 16_000, "FLOAT")
    cache = AudioCache(tmp_path / "cache")
    assert cache.fill([str(tmp_path / "a.wav")], progress=False) == 0
    assert not (tmp_path / "cache").exists()
    assert np.array_equal(cache[str(tmp_path / "a.wav")].numpy(), sine(16_000))


@pytest.fixture
def stereo(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([sine(44_100)] * 2, 1), 44_100)
    return path


def test_a_copy_is_made_once_and_then_read(tmp_path, stereo, monkeypatch):
    folder = tmp_path / "cache"
    first = AudioCache(folder)
    assert first.fill([str(stereo)], progress=False) == 1
    (copy,) = folder.iterdir()
    info = soundfile.info(copy)
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "FLOAT")
    assert torch.equal(first[str(stereo)], load_audio(stereo))
    written = copy.stat().st_mtime_ns

    import speechbrain_ser.data.batches as dataio

    def never(path):
        raise AssertionError("resampled again")

    with monkeypatch.context() as patch:
        patch.setattr(dataio, "load_audio", never)
        second = AudioCache(folder)
        assert second.fill([str(stereo)], progress=False) == 1
    assert copy.stat().st_mtime_ns == written
    assert torch.equal(second[str(stereo)], first[str(stereo)])


def test_a_changed_recording_gets_a_new_copy(tmp_path, stereo):
    folder = tmp_path / "cache"
    AudioCache(folder).fill([str(stereo)], progress=False)
    soundfile.write(stereo, np.stack([sine(44_100, hertz=880)] * 2, 1), 44_100)
    os.utime(stereo, ns=(1, 1))
    cache = AudioCache(folder)
    cache.fill([str(stereo)], progress=False)
    assert len(list(folder.iterdir())) == 2
    spectrum = cache[str(stereo)].numpy()
    assert abs(np.argmax(np.abs(np.fft.rfft(spectrum))) * 16_000 / len(spectrum) - 880) < 4


def test_a_copy_of_another_resampler_is_not_read(tmp_path, stereo, monkeypatch):
    import speechbrain_ser.data.batches as dataio

    for copies, resampler in enumerate(("another", dataio.RESAMPLER), 1):
        monkeypatch.setattr(dataio, "RESAMPLER", resampler)
        AudioCache(tmp_path / "cache").fill([str(stereo)], progress=False)
        assert len(list((tmp_path / "cache").iterdir())) == copies


def test_a_failed_copy_leaves_nothing_half_written(tmp_path, stereo, monkeypatch):
    import speechbrain_ser.data.batches as dataio

    def killed(*args):
        raise KeyboardInterrupt

    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(dataio.os, "replace", killed)  # killed after the writing, before the name
        with pytest.raises(KeyboardInterrupt):
            AudioCache(folder).fill([str(stereo)], progress=False)
    assert not list(folder.glob("*.wav"))
    cache = AudioCache(folder)
    cache.fill([str(stereo)], progress=False)
    assert torch.equal(cache[str(stereo)], load_audio(stereo))


def test_a_recording_listed_twice_is_copied_once(tmp_path, stereo, monkeypatch):
    made = []
    original = AudioCache._copy

    def record(self, path):
        made.append(path)
        return original(self, path)

    monkeypatch.setattr(AudioCache, "_copy", record)
    cache = AudioCache(tmp_path / "cache")
    assert cache.fill([str(stereo)] * 8, progress=False) == 1
    assert made == [str(stereo)]


def test_a_recording_is_decoded_once_while_there_is_room(tmp_path, monkeypatch):
    wavs = {name: torch.randn(100) for name in "abc"}
    read = []
    monkeypatch.setattr("speechbrain_ser.data.batches.load_audio", lambda path: read.append(path) or wavs[path].clone())
    cache = AudioCache(tmp_path, memory=2 * 400)
    for _ in range(2):
        for name in "abc":
            found = cache[name]
            assert torch.equal(found, wavs[name])
            found.zero_()  # the caller's own
    assert read == ["a", "b", "c", "c"]
    assert torch.equal(pickle.loads(pickle.dumps(cache))["a"], wavs["a"]) and read[-1] == "a"  # a loading process


# ------------------------------------------------------------------ steps

DURATIONS = [float(d) for d in np.random.default_rng(5).uniform(1, 9, 23)]


def sampler_of(seed=1, epoch=1, step=8, micro=3, durations=DURATIONS, **options):
    sampler = StepSampler(durations, step, micro, seed, **options)
    sampler.set_epoch(epoch)
    return sampler


@pytest.mark.parametrize("micro", [1, 3, 8, 100])
def test_every_step_has_exactly_its_size_and_the_last_the_rest(micro):
    sampler = sampler_of(micro=micro)
    assert sampler.steps_per_epoch == 3
    sizes, step = [], []
    for batch, planned in zip(sampler, sampler.plan, strict=True):
        assert batch == list(planned.indices) and 1 <= len(batch) <= micro
        step += batch
        if planned.ends_step:
            assert planned.step_size == len(step)
            sizes.append(len(step))
            step = []
    assert sizes == [8, 8, 7] and step == []
    assert sorted(i for b in sampler for i in b) == list(range(23))
    assert len(sampler) == len(list(sampler))


def test_the_micro_batch_changes_no_steps_members():
    def steps(micro):
        found, step = [], set()
        for planned in sampler_of(micro=micro).plan:
            step |= set(planned.indices)
            if planned.ends_step:
                found.append(step)
                step = set()
        return found

    assert steps(1) == steps(3) == steps(8)


def test_a_steps_utterances_are_sorted_by_length():
    for planned in sampler_of(micro=8).plan:
        lengths = [DURATIONS[i] for i in planned.indices]
        assert lengths == sorted(lengths, reverse=True)
    assert sampler_of(micro=1).padding_share() == 0
    by_hand = sum(max(DURATIONS[i] for i in b) * len(b) for b in sampler_of(micro=8))
    assert sampler_of(micro=8).padding_share() == pytest.approx(1 - sum(DURATIONS) / by_hand)


# IEMOCAP's 5531 utterances of the four classes: mean 4.4 s, 0.6 to 34 s, skewed
LENGTHS = np.exp(np.random.default_rng(0).normal(np.log(4.4) - 0.19, 0.62, 5531)).clip(0.6, 34)


def test_buckets_pad_under_five_percent():
    at_random = sampler_of(micro=8, durations=LENGTHS).padding_share()
    assert at_random > 0.5 and sampler_of(micro=8, durations=LENGTHS, bucket_steps=64).padding_share() < 0.05


@pytest.mark.parametrize("n", [23, 24, 8, 7, 400])
def test_buckets_take_everybody_once_in_steps_of_their_size(n):
    sampler = sampler_of(micro=3, durations=LENGTHS[:n], bucket_steps=4)
    assert sorted(i for b in sampler for i in b) == list(range(n))
    sizes = [m.step_size for m in sampler.plan if m.ends_step]
    assert sizes == [8] * (n // 8) + [n % 8] * (n % 8 > 0) and len(sizes) == sampler.steps_per_epoch


def test_buckets_are_dealt_anew_every_epoch():
    first, second = (set(sampler_of(epoch=e, micro=8, durations=LENGTHS, bucket_steps=16).plan) for e in (1, 2))
    assert len(first & second) < 3 and sampler_of(bucket_steps=16).plan == sampler_of(bucket_steps=16).plan
    lengths = [LENGTHS[list(m.indices)].mean() for m in sampler_of(micro=8, durations=LENGTHS, bucket_steps=16).plan]
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.2  # no epoch goes from short to long


def test_the_order_is_a_function_of_seed_and_epoch():
    assert sampler_of(22, 2).plan == sampler_of(22, 2).plan
    orders = {(s, e): tuple(sampler_of(s, e).plan) for s in (22, 23, 24) for e in range(1, 6)}
    assert len(set(orders.values())) == len(orders)  # SpeechBrain's seeds 22 and 23 share epochs
    sampler = sampler_of(22, 1)
    first = list(sampler)
    sampler.set_epoch(2)
    assert list(sampler) == [list(m.indices) for m in orders[22, 2]] != first


def test_the_order_leaves_the_global_random_states_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(sampler_of())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("sizes", [(0, 1), (8, 0), (-1, 1), (2.0, 1), ("8", 1)])
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises(UserError, match="batch_size"):
        StepSampler(DURATIONS, *sizes, seed=1)


def test_evaluation_takes_each_once_longest_first():
    batches = length_sorted_batches(DURATIONS, 5)
    flat = [i for b in batches for i in b]
    assert sorted(flat) == list(range(23)) and [len(b) for b in batches] == [5, 5, 5, 5, 3]
    assert [DURATIONS[i] for i in flat] == sorted(DURATIONS, reverse=True)


# ------------------------------------------------------------------ loading


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavs")
    rows = []
    for k, duration in enumerate(DURATIONS):
        n = int(duration * 100)  # short: only the order matters
        soundfile.write(folder / f"{k}.wav", np.full(n, (k + 1) / 100, "float32"), 16_000, "FLOAT")
        text = "" if k % 3 == 0 else f"{{x}} {k}"
        rows.append((f"u{k:02d}", str(folder / f"{k}.wav"), "sad" if k % 2 else "angry", f"s{k % 3}", text))
    return pd.DataFrame(rows, columns=["ID", "wav", "emotion", "speaker", "transcript"])


def loader_of(frame, sampler, workers=0, encode=None):
    return make_loader(make_dataset(frame, {"sig": AudioCache("unused")}, ["angry", "sad"], encode), sampler, workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_planned_ones_and_draw_nothing(frame, workers):
    sampler = sampler_of()
    before = torch.get_rng_state()
    batches = list(loader_of(frame, sampler, workers, encode=lambda text: [len(text)] if text else []))
    assert torch.equal(before, torch.get_rng_state())
    assert [b.id for b in batches] == [[f"u{i:02d}" for i in m.indices] for m in sampler.plan]
    for batch in batches:
        wavs, lengths = batch.sig
        for k, i in enumerate(int(u[1:]) for u in batch.id):
            n = int(DURATIONS[i] * 100)
            assert torch.equal(wavs[k, :n], torch.full((n,), (i + 1) / 100)) and wavs[k, n:].abs().sum() == 0
            assert round(float(lengths[k]) * wavs.shape[1]) == n
            assert batch.emotion[k] == i % 2
            # braces of a transcript arrive as they are
            assert batch.tokens[k].tolist() == ([] if i % 3 == 0 else [len(f"{{x}} {i}")])
            assert batch.tokens[k].dtype == torch.long


@pytest.mark.parametrize("done", [1, 4, 8])
def test_an_epoch_resumed_in_its_middle_goes_on_with_the_right_batches(frame, tmp_path, done):
    sampler = sampler_of(epoch=2)
    expected = [[f"u{i:02d}" for i in m.indices] for m in sampler.plan]
    loader = loader_of(frame, sampler)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    Checkpointer(tmp_path, {"loader": loader}).save_checkpoint(end_of_epoch=False)

    resumed_sampler = StepSampler(DURATIONS, 8, 3, seed=1)
    resumed = loader_of(frame, resumed_sampler)
    Checkpointer(tmp_path, {"loader": resumed}).recover_if_possible()
    resumed_sampler.set_epoch(2)  # as SpeechBrain does, before it iterates
    assert [b.id for b in resumed] == expected[done:]
    resumed_sampler.set_epoch(3)
    assert len(list(resumed)) == len(expected)  # the next epoch is whole


def test_a_batch_without_any_tokens():
    examples = [
        {"id": "a", "sig": torch.ones(4), "emotion_index": 1, "speaker_index": 2, "token_list": []},
        {"id": "b", "sig": torch.ones(2), "emotion_index": 0, "speaker_index": -1, "token_list": []},
    ]
    batch = Batch(examples).to("cpu")
    assert batch.id == ["a", "b"] and batch.sig.lengths.tolist() == [1.0, 0.5]
    assert batch.emotion.tolist() == [1, 0] and batch.emotion.dtype == torch.long
    assert batch.speaker.tolist() == [2, UNKNOWN_SPEAKER]
    assert [t.tolist() for t in batch.tokens] == [[], []] and torch.cat(batch.tokens).dtype == torch.long


def test_a_batch_moves_what_a_device_computes_with():
    batch = Batch([{"id": "a", "sig": torch.ones(4), "emotion_index": 1, "speaker_index": 2, "token_list": [2]}]).to(
        "meta"
    )
    assert {x.device.type for x in (batch.sig.data, batch.emotion, batch.speaker)} == {"meta"}


def test_speakers_who_are_not_trained_on_are_unknown(frame):
    dataset = make_dataset(frame, {"sig": AudioCache("unused")}, ["angry", "sad"], None, speakers=["s0", "s2"])
    indices = [dataset[k]["speaker_index"] for k in range(3)]
    assert indices == [0, UNKNOWN_SPEAKER, 1]
