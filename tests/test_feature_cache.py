"""Features are computed once, found again by content and settings, and never trusted when damaged."""

import json
import logging
import multiprocessing
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.errors import UserError
from speechbrain_ser.processing import cache as feature_cache
from speechbrain_ser.processing import cache as sources
from speechbrain_ser.processing.cache import ContentDigests, DamagedEntry, FeatureCache, pack, unpack
from speechbrain_ser.processing.log_mel import LogMel

SETTINGS = {"features": "two", "factor": 2}


class Two:
    """Two arrays an utterance, and how often they were computed."""

    def __init__(self):
        self.calls = 0

    def __call__(self, wav: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"mel": wav[:60].view(20, 3) * 2, "f0": (wav[:20] > 0).long()}


def write_wav(path: Path, seed: int, samples: int = 400) -> str:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, samples)
    soundfile.write(path, noise, 16_000)
    return str(path)


@pytest.fixture
def paths(tmp_path) -> list[str]:
    return [write_wav(tmp_path / f"{i}.wav", i) for i in range(6)]


@pytest.fixture
def make(tmp_path):
    """A new cache object on the same folder, as another run has it."""

    def make(extract=None, settings=None, **options) -> FeatureCache:
        return FeatureCache(tmp_path / "cache", settings or SETTINGS, extract or Two(), load_audio, **options)

    return make


def age(*paths: str, seconds: float = 10) -> None:
    """Recordings that were written a while ago, as corpora are."""
    for path in paths:
        then = time.time() - seconds
        os.utime(path, (then, then))


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*.safetensors"))


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------ hit and miss


def test_computed_once_then_found(make, paths):
    first, second = make(), make()
    assert first.fill(paths, progress=False) == first.extract.calls == 6
    assert first.fill(paths, progress=False) == 0
    assert second.fill(paths, progress=False) == second.extract.calls == 0
    for path in paths:
        expected = Two()(load_audio(path))
        assert same(first[path], expected) and same(second[path], expected)
        assert second[path]["f0"].dtype == torch.long


def test_miss_without_fill_is_computed_and_kept(make, paths):
    first, second = make(), make()
    assert same(first[paths[0]], Two()(load_audio(paths[0])))
    assert same(second[Path(paths[0])], first[paths[0]])
    assert (first.extract.calls, second.extract.calls) == (1, 0)


def test_one_tensor_comes_back_as_one(make, paths):
    def halves(wav):
        return wav.view(20, 20).T  # not contiguous

    for cache in (make(halves), make(halves)):
        assert torch.equal(cache[paths[0]], load_audio(paths[0]).view(20, 20).T)


def test_log_mel_of_other_rates_and_channels(make, tmp_path):
    stereo = np.random.default_rng(0).uniform(-0.5, 0.5, (4410, 2))
    soundfile.write(tmp_path / "stereo.wav", stereo, 44_100)
    log_mel = LogMel()
    cache = make(log_mel.extract, log_mel.settings)
    assert cache.fill([tmp_path / "stereo.wav"], progress=False) == 1
    expected = log_mel(load_audio(tmp_path / "stereo.wav")[None])[0]
    assert torch.equal(cache[tmp_path / "stereo.wav"], expected)
    assert torch.equal(make(None, log_mel.settings)[tmp_path / "stereo.wav"], expected)


def test_features_of_another_resampler_are_not_read(paths, tmp_path, monkeypatch):
    for resampler in ("another", sources.RESAMPLER):
        monkeypatch.setattr(sources, "RESAMPLER", resampler)
        source = sources.feature_source(LogMel(), tmp_path / "cache", pd.DataFrame({"wav": paths}))
        assert [source.fill(paths, progress=False) for _ in range(2)] == [len(paths), 0]


def test_settings_are_kept_apart_and_noted(make, paths, tmp_path):
    make().fill(paths, progress=False)
    other = {"features": "two", "factor": 2.5}
    cache = make(lambda wav: wav * 2.5, other)
    assert cache.fill(paths, progress=False) == 6
    assert torch.equal(cache[paths[0]], load_audio(paths[0]) * 2.5)
    assert make().fill(paths, progress=False) == 0  # and the first ones are still there
    notes = [json.loads(note.read_text()) for note in (tmp_path / "cache").glob("*/settings.json")]
    assert sorted(notes, key=lambda note: note["factor"]) == [SETTINGS, other]


def test_order_of_settings_is_nothing(make, paths):
    make().fill(paths, progress=False)
    assert make(settings=dict(reversed(SETTINGS.items()))).fill(paths, progress=False) == 0


def test_another_format_finds_nothing_old(make, paths, monkeypatch):
    make().fill(paths, progress=False)
    monkeypatch.setattr(feature_cache, "FORMAT", feature_cache.FORMAT + 1)
    assert make().fill(paths, progress=False) == 6


@pytest.mark.parametrize("settings", [{"device": torch.device("cpu")}, {"floor": float("nan")}, ["log_mel"]])
def test_settings_must_be_plain(make, settings):
    with pytest.raises(ValueError, match="settings must be"):
        make(settings=settings)


# ------------------------------------------------------------------ content


def test_changed_content_under_the_same_name(make, paths):
    make().fill(paths, progress=False)
    size = os.path.getsize(paths[0])
    write_wav(Path(paths[0]), seed=99)
    assert os.path.getsize(paths[0]) == size
    cache = make()
    assert cache.fill(paths, progress=False) == 1
    assert same(cache[paths[0]], Two()(load_audio(paths[0])))


def test_fill_looks_again_in_the_same_object(make, paths):
    cache = make()
    cache.fill(paths, progress=False)
    write_wav(Path(paths[0]), seed=99)
    assert cache.fill(paths, progress=False) == 1
    assert same(cache[paths[0]], Two()(load_audio(paths[0])))


def test_same_content_elsewhere_is_shared(make, paths, tmp_path):
    (tmp_path / "copies").mkdir()
    copies = [write_wav(tmp_path / "copies" / f"copy {i}.wav", i) for i in range(6)]
    cache = make()
    assert cache.fill([*paths, *copies, *paths], progress=False) == 6
    assert make().fill(copies, progress=False) == 0
    assert same(cache[copies[3]], cache[paths[3]]) and len(entries(tmp_path)) == 6


def test_digests_are_remembered(make, paths, tmp_path, monkeypatch):
    age(*paths)
    make().fill(paths, progress=False)
    opened = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(str(path)) or read_bytes(path))
    assert make().fill(paths, progress=False) == 0
    assert not set(opened) & set(paths) and len(opened) == 6  # the entries only
    age(paths[0], seconds=20)  # touched: looked at again, and the same
    assert make().fill(paths, progress=False) == 0
    assert set(opened) & set(paths) == {paths[0]}


def test_a_young_file_is_not_remembered(tmp_path):
    """It may change once more within the tick of the clock that its time shows."""
    path, memory = write_wav(tmp_path / "a.wav", 0), tmp_path / "digests.json"
    digests = ContentDigests(memory)
    stat = os.stat(path)
    before = digests(path)
    write_wav(tmp_path / "a.wav", 1)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digests(path) != before
    digests.save()
    assert not memory.exists()


def test_processes_add_to_what_others_remember(paths, tmp_path):
    age(*paths)
    memory = tmp_path / "digests.json"
    first, second = ContentDigests(memory), ContentDigests(memory)
    found = [first(paths[0]), second(paths[1])]
    first.save()
    second.save()
    third = ContentDigests(memory)
    assert set(third._known) == set(paths[:2])
    assert [third(path) for path in paths[:2]] == found


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data.replace(b"a", b"b")])
def test_damaged_memory_of_digests_counts_as_empty(make, paths, tmp_path, caplog, damage):
    age(*paths)
    make().fill(paths, progress=False)
    memory = tmp_path / "cache" / feature_cache.DIGESTS
    memory.write_bytes(damage(memory.read_bytes()))
    cache = make()
    assert cache.fill(paths, progress=False) == 0
    assert "recordings.json is damaged" in caplog.text
    assert same(cache[paths[0]], Two()(load_audio(paths[0])))
    caplog.clear()
    assert make().fill(paths, progress=False) == 0 and not caplog.text  # mended


# ------------------------------------------------------------------ damage


def test_no_changed_bit_goes_unnoticed():
    features = {"mel": torch.rand(3, 2), "f0": torch.arange(3)}
    data = pack(features, "key")
    assert pack(features, "key") == data and same(unpack(data, "key"), features)
    noticed = 0
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            try:  # a blank of the header may change, as long as the features do not
                assert same(unpack(bytes(changed), "key"), features)
            except DamagedEntry:
                noticed += 1
    assert noticed > 0.9 * 8 * len(data)


def test_no_cut_goes_unnoticed():
    data = pack(torch.rand(3, 2), "key")
    for size in range(len(data)):
        with pytest.raises(DamagedEntry):
            unpack(data[:size], "key")
    with pytest.raises(DamagedEntry):
        unpack(data + b"\0", "key")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-5] + bytes([data[-5] ^ 4]) + data[-4:],
        lambda data: bytes(len(data)),
    ],
    ids=["truncated", "empty", "flipped", "zeros"],
)
@pytest.mark.parametrize("fill", [True, False])
def test_damaged_entry_is_rebuilt_with_a_warning(make, paths, tmp_path, caplog, damage, fill):
    make().fill(paths, progress=False)
    victim = entries(tmp_path)[2]
    whole = victim.read_bytes()
    victim.write_bytes(damage(whole))
    cache = make()
    with caplog.at_level(logging.WARNING):
        if fill:
            assert cache.fill(paths, progress=False) == 1
        found = [cache[path] for path in paths]
    assert cache.extract.calls == 1
    assert caplog.text.count("computed again") == 1 and victim.name in caplog.text
    assert all(same(a, Two()(load_audio(path))) for a, path in zip(found, paths, strict=True))
    assert victim.read_bytes() == whole


def test_entry_of_another_recording_is_not_taken(make, paths, tmp_path, caplog):
    make().fill(paths, progress=False)
    one, other, *_ = entries(tmp_path)
    one.write_bytes(other.read_bytes())
    assert make().fill(paths, progress=False) == 1
    assert f"{one} are computed again: its checksum is wrong" in caplog.text


def test_what_a_killed_process_leaves_is_harmless(make, paths, tmp_path):
    cache = make()
    cache.fill(paths[:3], progress=False)
    whole = entries(tmp_path)[0].read_bytes()
    for name in (".abc.safetensors.123.tmp", f".{entries(tmp_path)[0].name}.deadbeef.tmp"):
        (cache.folder / name).write_bytes(whole[:100])
    again = make()
    assert again.fill(paths, progress=False) == 3
    assert all(same(again[path], Two()(load_audio(path))) for path in paths)


def test_failed_writing_leaves_nothing_behind(make, paths, tmp_path, monkeypatch):
    cache = make()
    cache.fill(paths[:1], progress=False)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"features cannot be kept in .*No space left"):
        make()[paths[1]]
    monkeypatch.undo()
    assert len(list((tmp_path / "cache").rglob("*.safetensors*"))) == 1
    assert make().fill(paths[:2], progress=False) == 1


def test_folder_that_cannot_be(tmp_path, paths):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot be kept in .*expected a folder that can be written"):
        FeatureCache(tmp_path / "file", SETTINGS, Two(), load_audio).fill(paths, progress=False)


# ------------------------------------------------------------------ several at once


def _fill_and_check(folder, paths, barrier, results):
    cache = FeatureCache(folder, SETTINGS, Two(), load_audio, workers=2)
    barrier.wait(60)
    computed = cache.fill(paths, progress=False)
    results.put((computed, all(same(cache[path], Two()(load_audio(path))) for path in paths)))


def test_two_processes_at_once(tmp_path):
    paths = [write_wav(tmp_path / f"{i}.wav", i) for i in range(40)]
    age(*paths)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    both = [
        context.Process(target=_fill_and_check, args=(tmp_path / "cache", paths, barrier, results)) for _ in range(2)
    ]
    for process in both:
        process.start()
    found = [results.get(timeout=60) for _ in both]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert all(right for _, right in found)
    assert sum(computed for computed, _ in found) >= 40
    assert len(entries(tmp_path)) == 40 and not list((tmp_path / "cache").rglob("*.tmp"))
    assert len(ContentDigests(tmp_path / "cache" / feature_cache.DIGESTS)._known) == 40


def test_number_of_workers_changes_no_byte(tmp_path, paths):
    log_mel = LogMel()
    contents = []
    for workers in (1, 4):
        folder = tmp_path / f"cache{workers}"
        FeatureCache(folder, log_mel.settings, log_mel.extract, load_audio, workers=workers).fill(paths, False)
        contents.append({path.name: path.read_bytes() for path in folder.glob("*/*")})
    assert contents[0] == contents[1] and len(contents[0]) == 7  # six entries and the note


def test_all_workers_work_on_one_thread_each(make, paths):
    """Four recordings are in work at once, each with one thread of torch."""
    meet, threads = threading.Barrier(4), []

    def extract(wav):
        meet.wait(60)
        threads.append(torch.get_num_threads())
        return wav

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make(extract, workers=4).fill(paths[:4], progress=False)
        assert threads == [1] * 4 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_loading_processes_take_the_cache_along(make, paths):
    cache = make()
    cache.fill(paths, progress=False)
    copy = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 10_000  # without what it keeps
    assert same(copy[paths[0]], cache[paths[0]]) and copy.extract.calls == 6


# ------------------------------------------------------------------ failures


def test_all_offenders_are_listed(make, paths, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    short, missing = write_wav(tmp_path / "short.wav", 7, samples=30), str(tmp_path / "missing.wav")
    bad = [str(broken), short, missing]
    cache = make()
    with pytest.raises(UserError) as caught:
        cache.fill([bad[0], *paths[:3], *bad[1:], *paths[3:]], progress=False)
    first, *listed = str(caught.value).splitlines()
    assert first == "no features for 3 of 9 recordings:"
    assert [line.strip().split(": ")[0] for line in listed] == bad
    assert "FileNotFoundError" in listed[2] and "shape" in listed[1]
    for path in bad:
        with pytest.raises(UserError, match=f"no features for 1 of 1 recordings:\n  {path}: "):
            cache[path]
    assert make().fill(paths, progress=False) == 0  # the others were kept
    write_wav(Path(short), 8)
    assert cache.fill([*paths, short], progress=False) == 1  # mended


@pytest.mark.parametrize(
    ("extract", "message"),
    [
        (lambda wav: wav / 0, "NaN or infinite values in its features"),
        (lambda wav: {"mel": wav, "f0": wav.log()}, "NaN or infinite values in its features f0"),
        (lambda wav: wav.numpy(), "must be a tensor or a dict of tensors, found ndarray"),
        (lambda wav: {"mel": None}, "must be a tensor or a dict of tensors"),
        (lambda wav: {}, "must have names"),
        (lambda wav: {"_": wav}, "other than _ and _sha256"),
    ],
)
def test_features_that_cannot_be_kept(make, paths, tmp_path, extract, message):
    with pytest.raises(UserError, match=rf"{paths[1]}: \w+: .*{message}"):
        make(extract).fill(paths, progress=False)
    assert not entries(tmp_path)


# ------------------------------------------------------------------ memory


def test_read_once_then_from_memory(make, paths, tmp_path):
    cache = make()
    make().fill(paths, progress=False)
    found = [cache[path] for path in paths]
    for entry in entries(tmp_path):
        entry.unlink()
    assert all(same(cache[path], a) for path, a in zip(paths, found, strict=True))
    assert cache.extract.calls == 0


def test_memory_has_a_limit(make, paths, tmp_path):
    size = 20 * 3 * 4 + 20 * 8
    cache = make(memory=2 * size)
    assert cache.fill(paths, progress=False) == 6 and cache.fill(paths, progress=False) == 0
    for entry in entries(tmp_path):
        entry.unlink()
    assert all(same(cache[path], Two()(load_audio(path))) for path in paths)
    assert cache.extract.calls == 6 + 4  # two were in memory
    nothing = make(memory=0)
    nothing.fill(paths, progress=False)
    assert same(nothing[paths[0]], nothing[paths[0]])


def test_what_was_handed_out_may_be_changed(make, paths):
    cache = make()
    cache[paths[0]]["mel"].zero_()
    cache[paths[0]]["mel"].zero_()
    assert same(cache[paths[0]], Two()(load_audio(paths[0])))


def test_features_may_share_memory(make, paths):
    cache = make(lambda wav: {"mel": wav[:10], "same": wav[:10], "rest": wav[10:]})
    cache.fill(paths[:1], progress=False)
    assert torch.equal(make()[paths[0]]["same"], load_audio(paths[0])[:10])


# ------------------------------------------------------------------ real speech


def test_real_speech(make, emodb_folder):
    log_mel = LogMel()
    paths = sorted(map(str, (emodb_folder / "wav").glob("*.wav")))[::30]
    assert make(log_mel.extract, log_mel.settings).fill(paths, progress=False) == len(paths)
    cache = make(log_mel.extract, log_mel.settings)
    for path in paths:
        feats, wav = cache[path], load_audio(path)
        assert feats.shape == (log_mel.frame_counts(len(wav)), 128)
        assert feats.max() == 0 and feats.min() == -1  # 16-bit speech has more than 80 dB of range in its bands
        assert -0.9 < feats.mean() < -0.2
