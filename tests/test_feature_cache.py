"""Features are computed once, found again by content and settings, and computed anew where they cannot be read."""

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.errors import UserError
from speechbrain_ser.processing import cache as module
from speechbrain_ser.processing.cache import FeatureCache, feature_source
from speechbrain_ser.processing.log_mel import LogMel

SETTINGS = {"features": "doubled", "factor": 2}


class Doubled:
    """Features [20, 20], and how often they were computed."""

    def __init__(self):
        self.calls = 0

    def __call__(self, wav: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return wav.view(20, 20).T * 2  # not contiguous


def expected(path: str) -> torch.Tensor:
    return Doubled()(load_audio(path))


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
    return lambda extract=None, settings=SETTINGS, **options: FeatureCache(
        tmp_path / "cache", settings, extract or Doubled(), **options
    )


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*.safetensors"))


def test_computed_once_then_found(make, paths):
    first, second = make(), make()
    assert torch.equal(first[Path(paths[0])], expected(paths[0]))  # a miss without fill
    assert first.fill(paths, progress=False) == 5 and first.extract.calls == 6
    assert first.fill(paths, progress=False) == 0
    assert second.fill(paths, progress=False) == second.extract.calls == 0
    first[paths[0]].zero_()  # the caller's own to change
    for path in paths:
        assert torch.equal(first[path], expected(path)) and torch.equal(second[path], expected(path))


@pytest.mark.parametrize("name", ["RESAMPLER", "FORMAT"])
def test_features_of_another_resampler_or_format_are_not_read(paths, tmp_path, monkeypatch, name):
    for value in ("another", getattr(module, name)):
        monkeypatch.setattr(module, name, value)
        source = feature_source(LogMel(), tmp_path / "cache", pd.DataFrame({"wav": paths}))
        assert [source.fill(paths, progress=False) for _ in range(2)] == [len(paths), 0]


def test_settings_are_kept_apart_and_noted(make, paths, tmp_path):
    make().fill(paths, progress=False)
    other = {"features": "doubled", "factor": 2.5}
    cache = make(lambda wav: wav * 2.5, other)
    assert cache.fill(paths, progress=False) == 6
    assert torch.equal(cache[paths[0]], load_audio(paths[0]) * 2.5)
    assert make(settings=dict(reversed(SETTINGS.items()))).fill(paths, progress=False) == 0  # in any order
    notes = [json.loads(note.read_text()) for note in (tmp_path / "cache").glob("*/settings.json")]
    known = {"resampler": module.RESAMPLER}
    assert sorted(notes, key=lambda note: note["factor"]) == [SETTINGS | known, other | known]


def test_content_decides_and_not_the_path(make, paths, tmp_path):
    cache = make()
    cache.fill(paths, progress=False)
    (tmp_path / "copies").mkdir()
    copies = [write_wav(tmp_path / "copies" / f"copy {i}.wav", i) for i in range(6)]
    assert make().fill([*copies, *paths, *copies], progress=False) == 0
    write_wav(Path(paths[0]), seed=99)
    assert cache.fill(paths, progress=False) == 1  # the same object looks again
    assert torch.equal(cache[paths[0]], expected(paths[0])) and len(entries(tmp_path)) == 7


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: bytes(len(data))], ids=["short", "zeros"])
def test_damaged_entry_is_rebuilt_with_a_warning(make, paths, tmp_path, caplog, damage, fill):
    make().fill(paths, progress=False)
    victim = entries(tmp_path)[2]
    whole = victim.read_bytes()
    victim.write_bytes(damage(whole))
    cache = make()
    if fill:
        assert cache.fill(paths, progress=False) == 1
    assert all(torch.equal(cache[path], expected(path)) for path in paths)
    assert cache.extract.calls == 1 and victim.read_bytes() == whole
    assert caplog.text.count("computed again") == 1 and victim.name in caplog.text


def test_folder_that_cannot_be(tmp_path, paths):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"file/\w+/settings.json cannot be written: Not a directory"):
        FeatureCache(tmp_path / "file", SETTINGS, Doubled()).fill(paths, progress=False)


def _fill_and_check(folder, paths, barrier, results):
    cache = FeatureCache(folder, SETTINGS, Doubled(), workers=2)
    barrier.wait(60)
    computed = cache.fill(paths, progress=False)
    results.put((computed, all(torch.equal(cache[path], expected(path)) for path in paths)))


def test_two_processes_at_once(tmp_path):
    paths = [write_wav(tmp_path / f"{i}.wav", i) for i in range(40)]
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
    assert all(right for _, right in found) and sum(computed for computed, _ in found) >= 40
    assert len(entries(tmp_path)) == 40 and not list((tmp_path / "cache").rglob("*.tmp"))


def test_number_of_workers_changes_no_byte(tmp_path, paths):
    log_mel, contents = LogMel(), []
    for workers in (1, 4):
        folder = tmp_path / f"cache{workers}"
        FeatureCache(folder, log_mel.settings, log_mel.extract, workers=workers).fill(paths, False)
        contents.append({path.name: path.read_bytes() for path in folder.glob("*/*")})
    assert contents[0] == contents[1] and len(contents[0]) == 7  # six entries and the note


def test_loading_processes_take_the_cache_along(make, paths):
    cache = make()
    cache.fill(paths, progress=False)
    copy = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 10_000  # without what it keeps
    assert torch.equal(copy[paths[0]], cache[paths[0]]) and copy.extract.calls == 6


def test_all_offenders_are_listed(make, paths, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    bad = [str(broken), write_wav(tmp_path / "short.wav", 7, samples=30), str(tmp_path / "missing.wav")]
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
    write_wav(Path(bad[1]), 8)
    assert torch.equal(cache[bad[1]], expected(bad[1]))  # mended
    with pytest.raises(UserError, match=rf"{paths[1]}: ValueError: NaN or infinite values in its features"):
        make(lambda wav: wav / 0, {"features": "infinite"}).fill(paths, progress=False)


def test_memory_has_a_limit(make, paths, tmp_path):
    """What was read first is found without its file, the rest is read anew."""
    for memory, kept in ((1 << 30, 6), (2 * 400 * 4, 2), (0, 0)):
        cache = make(memory=memory)
        cache.fill(paths, progress=False)
        assert cache.fill(paths, progress=False) == 0
        before = cache.extract.calls
        for entry in entries(tmp_path):
            entry.unlink()
        assert all(torch.equal(cache[path], expected(path)) for path in paths)
        assert cache.extract.calls - before == 6 - kept
