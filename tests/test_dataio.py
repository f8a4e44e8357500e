"""Audio of any kind at 16 kHz mono, optimiser steps of exactly N utterances, batches."""

import math
import os
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_ser.data.audio import BadAudioError, claimed_seconds, duration_of
from speechbrain_ser.data.batches import (
    AudioCache,
    Batch,
    Step,
    StepSampler,
    length_sorted_batches,
    load_audio,
    make_dataset,
    make_loader,
)
from speechbrain_ser.data.labels import UNKNOWN
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.timeline import stream_audio


def sine(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * math.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype("float32")


# 44 101 Hz has no common divisor with 16 kHz
RECORDINGS = [("a.flac", 44_100, "PCM_16"), ("a.wav", 8_000, "FLOAT"), ("a.ogg", 48_000, None)]


@pytest.mark.parametrize(("name", "rate", "subtype"), [*RECORDINGS, ("a.wav", 44_101, "FLOAT")])
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
    assert first.fill([str(stereo)] * 8, progress=False) == 1  # two threads must not write one copy
    (copy,) = folder.iterdir()
    info = soundfile.info(copy)
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "FLOAT")
    assert torch.equal(first[str(stereo)], load_audio(stereo))
    second = AudioCache(folder)
    with monkeypatch.context() as patch:
        patch.setattr("speechbrain_ser.data.batches.load_audio", None)  # nothing is resampled again
        assert second.fill([str(stereo)], progress=False) == 1
    assert torch.equal(second[str(stereo)], first[str(stereo)])


def test_a_changed_recording_or_another_resampler_makes_a_new_copy(tmp_path, stereo, monkeypatch):
    folder = tmp_path / "cache"
    AudioCache(folder).fill([str(stereo)], progress=False)
    soundfile.write(stereo, np.stack([sine(44_100, hertz=880)] * 2, 1), 44_100)
    os.utime(stereo, ns=(1, 1))
    cache = AudioCache(folder)
    cache.fill([str(stereo)], progress=False)
    assert len(list(folder.iterdir())) == 2
    spectrum = cache[str(stereo)].numpy()
    assert abs(np.argmax(np.abs(np.fft.rfft(spectrum))) * 16_000 / len(spectrum) - 880) < 4
    monkeypatch.setattr("speechbrain_ser.data.batches.RESAMPLER", "another")
    AudioCache(folder).fill([str(stereo)], progress=False)
    assert len(list(folder.iterdir())) == 3


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


# ------------------------------------------------------------------ headers are not believed

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000).astype("float32")
RISING = np.append(0.01 * NOISE, NOISE)


def said_of(path) -> str | float:
    """Seconds, or the defect; all readers agree."""
    try:
        seconds = duration_of(path)
        assert claimed_seconds(path) == seconds
    except BadAudioError as defect:
        for read in (load_audio, lambda path: list(stream_audio(path))):
            with pytest.raises(BadAudioError) as again:
                read(path)
            assert str(again.value) == str(defect) == f"{path}: {defect.words}"
        return defect.words
    whole, streamed = load_audio(path), torch.cat(list(stream_audio(path, 0.3)))
    assert torch.allclose(whole, streamed, atol=1e-6) and abs(len(whole) - 16_000 * seconds) <= 1
    return seconds


def written(path, samples=NOISE, rate=16_000, subtype=None, **options) -> bytearray:
    soundfile.write(path, samples, rate, subtype, format=path.suffix[1:].upper(), **options)
    return bytearray(path.read_bytes())


TELL = ("wav", "wavex", "rf64", "w64", "aiff", "au", "caf", "svx", "voc", "nist", "ogg", "mp3")


@pytest.mark.parametrize("form", [*TELL, "flac"])
def test_a_cut_recording_is_truncated_in_each_format_that_tells(tmp_path, form):
    path = tmp_path / f"a.{form}"
    whole = written(path)
    assert said_of(path) == 2.5
    for share in (0.2, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        assert said_of(path).startswith("unreadable" if form == "flac" else "truncated recording")
    path.write_bytes(whole + whole[len(whole) // 3 :])  # as cat does it
    assert said_of(path).startswith("recording that holds more than its header says")


@pytest.mark.parametrize(
    ("form", "name", "lengths"),
    [
        ("wav", b"data", [x.to_bytes(4, "little") for x in (0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)]),
        ("aiff", b"SSND", [b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"]),
        ("w64", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0O\x8e\xdb\x8a", [b"\xff" * 8, b"\xff" * 7 + b"\x7f"]),
    ],
)
def test_lengths_that_stand_for_unknown_ones(tmp_path, form, name, lengths):
    path = tmp_path / f"a.{form}"
    whole = written(path)
    place = whole.index(name) + len(name)
    for length in lengths:
        whole[place : place + len(length)] = length
        path.write_bytes(whole)
        assert said_of(path) == 2.5
    whole[place : place + len(length)] = bytes(len(length))
    path.write_bytes(whole)
    assert re.match("recording that was never closed .* 8000[08] bytes follow", said_of(path))


def test_integers_written_as_floats_are_told_once(tmp_path, caplog):
    path = tmp_path / "a.wav"
    written(path, 10_000 * NOISE, subtype="FLOAT")
    assert said_of(path) == 2.5
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{path}: samples up to 5,000, expected -1 to 1")


def with_length(flac: bytearray, samples: int) -> bytearray:
    old = int.from_bytes(flac[18:26], "big")
    return flac[:18] + (old >> 36 << 36 | samples).to_bytes(8, "big") + flac[26:]


def without_count(mp3: bytearray) -> bytearray:
    """Without the frame that says how many there are."""
    return mp3[mp3.index(mp3[:2], 4) :]


@pytest.mark.parametrize(
    ("name", "made", "said"),
    [
        ("first.wav", lambda p: written(p)[:40] + (800).to_bytes(4, "little") + written(p)[44:], "more .* 800 bytes"),
        ("lists.wav", lambda p: written(p) + b"LIST" + (9000).to_bytes(4, "little") + bytes(9000), 2.5),
        ("filled.wav", lambda p: written(p) + bytes(9000), 2.5),
        ("empty.wav", lambda p: written(p, NOISE[:0]), "empty recording"),
        ("unknown.flac", lambda p: with_length(written(p), 0), 2.5),
        ("less.flac", lambda p: with_length(written(p), 900), "holds more"),
        ("more.flac", lambda p: with_length(written(p), 40_001), "truncated .*header: 40001 .*file: 40000"),
        ("endless.flac", lambda p: with_length(written(p), (1 << 36) - 1), "can hold.*4,294,967 s"),
        ("constant.mp3", lambda p: without_count(written(p, bitrate_mode="CONSTANT", compression_level=0.9)), 2.556),
        ("varied.mp3", lambda p: without_count(written(p, RISING, bitrate_mode="VARIABLE")), "holds more"),
        ("telephone.wav", lambda p: written(p, NOISE[:8000], 8000, "GSM610"), 1.04),
        ("low.mp3", lambda p: written(p, rate=8_000), 5.0),
        ("slow.wav", lambda p: written(p, rate=999), "sample rate .*999 Hz"),
        ("quick.wav", lambda p: written(p, rate=768_001), "sample rate .*768,001 Hz"),
        ("silent.wav", lambda p: written(p, 0 * NOISE + 0.1), "silent: all samples are the same"),
        ("antiphase.wav", lambda p: written(p, np.stack([NOISE, -NOISE], 1)), "silent once its channels are averaged"),
        ("one.wav", lambda p: written(p, np.stack([NOISE, 0 * NOISE], 1)), 2.5),
    ],
)  # fmt: skip
def test_what_is_said_of_odd_recordings(tmp_path, name, made, said):
    path = tmp_path / name
    path.write_bytes(made(path))
    found = said_of(path)
    assert re.search(said, found) if isinstance(said, str) else found == pytest.approx(said, abs=1e-3)


# ------------------------------------------------------------------ steps and batches

DURATIONS = [float(d) for d in np.random.default_rng(5).uniform(1, 9, 23)]


def sampler_of(seed=1, epoch=1, step=8, micro=3, durations=DURATIONS, **options):
    sampler = StepSampler(durations, step, micro, seed, **options)
    sampler.set_epoch(epoch)
    return sampler


def test_every_step_has_exactly_its_size_and_the_last_the_rest():
    sampler = sampler_of()
    assert [(len(step.indices), step.size) for step in sampler.plan] == [(8, 8), (8, 8), (7, 7)]
    assert len(sampler) == sampler.steps_per_epoch == 3
    assert sorted(k for step in sampler for k in step) == list(range(23))
    for step in sampler:
        assert [DURATIONS[k] for k in step] == sorted((DURATIONS[k] for k in step), reverse=True)


def test_the_micro_batch_changes_nothing_but_padding():
    plans = [sampler_of(micro=micro).plan for micro in (1, 3, 8, 100)]
    assert all(plan == plans[0] for plan in plans)
    assert sampler_of(micro=1).padding_share() == 0
    by_hand = sum(max(DURATIONS[k] for k in step) * len(step) for step in sampler_of())
    assert sampler_of(micro=8).padding_share() == pytest.approx(1 - sum(DURATIONS) / by_hand)


# IEMOCAP's 5531 utterances of the four classes: mean 4.4 s, 0.6 to 34 s, skewed
LENGTHS = np.exp(np.random.default_rng(0).normal(np.log(4.4) - 0.19, 0.62, 5531)).clip(0.6, 34)


@pytest.mark.parametrize("n", [23, 24, 8, 7, 400])
def test_buckets_take_everybody_once_in_steps_of_their_size(n):
    sampler = sampler_of(durations=LENGTHS[:n], bucket_steps=4)
    assert sorted(k for step in sampler for k in step) == list(range(n))
    assert [step.size for step in sampler.plan] == [8] * (n // 8) + [n % 8] * (n % 8 > 0)


def test_buckets_are_dealt_anew_every_epoch():
    assert sampler_of(micro=8, durations=LENGTHS, bucket_steps=64).padding_share() < 0.05  # else over 0.5
    plans = [sampler_of(epoch=epoch, durations=LENGTHS, bucket_steps=16).plan for epoch in (1, 2, 1)]
    first, second = ({tuple(step.indices) for step in plan} for plan in plans[:2])
    assert len(first & second) < 3 and plans[0] == plans[2]
    lengths = [LENGTHS[step.indices].mean() for step in plans[0]]
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.2  # no epoch goes from short to long


def test_the_order_is_a_function_of_seed_and_epoch_and_draws_nothing():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    orders = {(s, e): sampler_of(s, e).plan for s in (22, 23, 24) for e in range(1, 6)}
    assert len({str(plan) for plan in orders.values()}) == len(orders)  # SpeechBrain's seeds 22 and 23 share epochs
    sampler = sampler_of(22, 1)
    sampler.set_epoch(2)
    assert sampler.plan == orders[22, 2]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("sizes", [(0, 1), (8, 0), (-1, 1), (2.0, 1), ("8", 1)])
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises(UserError, match="batch_size"):
        StepSampler(DURATIONS, *sizes, seed=1)


def test_a_step_has_an_utterance_for_each_process():
    with pytest.raises(UserError, match="an utterance for each of 2 processes, found 1"):
        StepSampler(DURATIONS, 1, 1, seed=1, rank=1, world_size=2)


def test_evaluation_takes_each_once_longest_first():
    batches = length_sorted_batches(DURATIONS, 5)
    flat = [k for batch in batches for k in batch]
    assert sorted(flat) == list(range(23)) and [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert [DURATIONS[k] for k in flat] == sorted(DURATIONS, reverse=True)


def ramp(k: int, samples: int) -> torch.Tensor:
    return torch.linspace(k / 100, (k + 1) / 100, samples)


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavs")
    rows = []
    for k, duration in enumerate(DURATIONS):
        n = int(duration * 100)  # short: only the order matters
        soundfile.write(folder / f"{k}.wav", ramp(k, n).numpy(), 16_000, "FLOAT")
        text = "" if k % 3 == 0 else f"{{x}} {k}"
        rows.append((str(folder / f"{k}.wav"), "sad" if k % 2 else "angry", f"s{k % 3}", text))
    names = [f"u{k:02d}" for k in range(len(rows))]
    return pd.DataFrame(rows, names, ["wav", "emotion", "speaker", "transcript"])


LABELS = {"emotion": ["angry", "sad"], "speaker": ["s0", "s2"]}


def loader_of(frame, sampler, workers=0):
    dataset = make_dataset(frame, {"sig": AudioCache("unused")}, LABELS, lambda text: [len(text)] if text else [])
    return make_loader(dataset, sampler, sampler.micro_batches, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_is_a_step_of_micro_batches_and_draws_nothing(frame, workers):
    sampler = sampler_of()
    before = torch.get_rng_state()
    steps = list(loader_of(frame, sampler, workers))
    assert torch.equal(before, torch.get_rng_state())
    assert [[len(batch.id) for batch in step] for step in steps] == [[3, 3, 2], [3, 3, 2], [3, 3, 1]]
    assert [[u for batch in step for u in batch.id] for step in steps] == [[f"u{k:02d}" for k in s] for s in sampler]
    for batch in (batch for step in steps for batch in step):
        wavs, lengths = batch.sig
        for row, k in enumerate(int(u[1:]) for u in batch.id):
            n = int(DURATIONS[k] * 100)
            assert torch.equal(wavs[row, :n], ramp(k, n)) and wavs[row, n:].abs().sum() == 0
            assert round(float(lengths[row]) * wavs.shape[1]) == n
            assert batch.emotion[row] == k % 2 and batch.speaker[row] == [0, UNKNOWN, 1][k % 3]  # s1 is not trained on
            # braces of a transcript arrive as they are; what nobody has written down is unknown
            assert batch.tokens[row].tolist() == ([UNKNOWN] if k % 3 == 0 else [len(f"{{x}} {k}")])
            assert batch.tokens[row].dtype == batch.emotion.dtype == torch.long


def test_a_process_without_an_utterance_has_a_step_of_no_micro_batches(frame):
    sampler = StepSampler(DURATIONS[:3], 2, 1, seed=1, rank=1, world_size=2)
    assert sampler.plan[1] == Step([], 1)
    assert [len(step) for step in loader_of(frame.iloc[:3], sampler)] == [1, 0]


@pytest.mark.parametrize("done", [1, 2, 3])
def test_an_epoch_resumed_in_its_middle_goes_on_with_the_right_steps(frame, tmp_path, done):
    sampler = sampler_of(epoch=2)
    expected = [[f"u{k:02d}" for k in step] for step in sampler]
    loader = loader_of(frame, sampler)
    iterator = iter(loader)
    for _ in range(done):
        next(iterator)
    Checkpointer(tmp_path, {"loader": loader}).save_checkpoint(end_of_epoch=False)

    resumed_sampler = StepSampler(DURATIONS, 8, 3, seed=1)
    resumed = loader_of(frame, resumed_sampler)
    Checkpointer(tmp_path, {"loader": resumed}).recover_if_possible()
    resumed_sampler.set_epoch(2)  # as SpeechBrain does, before it iterates
    assert [[u for batch in step for u in batch.id] for step in resumed] == expected[done:]
    resumed_sampler.set_epoch(3)
    assert len(list(resumed)) == len(expected)  # the next epoch is whole


def test_a_batch_moves_what_a_device_computes_with():
    examples = [{"id": name, "sig": torch.ones(4), "emotion": 1, "gender": UNKNOWN, "tokens": []} for name in "ab"]
    batch = Batch(examples).to("meta")
    assert {x.device.type for x in (batch.sig.data, batch.emotion, batch.gender)} == {"meta"}
    assert torch.cat(batch.tokens).dtype == torch.long  # for nobody who says anything, too
