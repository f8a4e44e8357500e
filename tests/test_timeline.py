"""Long recordings: read in blocks, recognised in windows, joined without loss, drawn (written: test_predict.py)."""

# ruff: noqa: F811 (fixtures of other files)
import dataclasses
import inspect
import re
import weakref
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from praatio.textgrid import openTextgrid
from torch import nn

from speechbrain_ser.data.batches import SAMPLE_RATE, load_audio
from speechbrain_ser.data.text import CharacterTokens
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.formats import write_textgrid
from speechbrain_ser.inference.recognizer import EmotionRecognizer
from speechbrain_ser.inference.timeline import (
    Phrase,
    PhraseCutter,
    Segment,
    Timeline,
    WindowPlan,
    join_logits,
    outlined,
    stream_audio,
)
from speechbrain_ser.inference.timeline_figure import plot_timeline
from speechbrain_ser.models.heads import Decoder

from .test_inference import CPU, odd, run_of, wavs  # noqa: F401 (fixtures)

TOKENS = CharacterTokens(["<blank>", "|", *"ABCDEF"])
CLASSES = ["angry", "sad"]


@pytest.fixture
def recognizer_of(run_of):
    return lambda name, **options: EmotionRecognizer.from_run(run_of(name), CPU, **options)


@pytest.fixture(scope="module")
def long_recording(wavs, tmp_path_factory):
    """Several utterances, one after the other, 44.1 kHz, two channels; about 25 s."""
    speech = np.concatenate([soundfile.read(wav)[0] for wav in sorted(wavs.iterdir())[:12]])
    path = tmp_path_factory.mktemp("long") / "long.flac"
    soundfile.write(path, np.stack([speech, 0.5 * speech], 1), 44_100)
    return path


@pytest.mark.parametrize(
    ("rate", "channels", "samples"),
    [(8_000, 1, 33_333), (44_100, 2, 100_001), (16_000, 8, 50_000), (11_025, 3, 12_345), (44_100, 1, 7)],
)
def test_blocks_make_the_whole(tmp_path, rate, channels, samples):
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.wav"
    soundfile.write(path, rng.uniform(-1, 1, (samples, channels)), rate, subtype="FLOAT")
    whole = load_audio(path)
    for seconds in (0.01, 0.33, 10.0):
        blocks = list(stream_audio(path, seconds))
        assert max(map(len, blocks)) <= SAMPLE_RATE * seconds + 2_500  # the last one with the margins
        joined = torch.cat(blocks)
        assert joined.shape == whole.shape and torch.allclose(joined, whole, atol=1e-6)


def test_the_outline_is_the_waveforms():
    torch.manual_seed(0)
    wav, ends = torch.randn(10_007), []
    assert torch.equal(torch.cat(list(outlined(wav.split(611), 96, ends))), wav)
    expected = [[float(part.min()), float(part.max())] for part in wav.split(96)]
    assert np.concatenate(ends).tolist() == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("duration", "step", "grid"), [(400, 200, 1), (400, 400, 1), (400, 170, 32), (100, 33, 20)])
def test_windows_cover_everything_in_order(duration, step, grid):
    for total in (1, 99, 100, 101, 400, 415, 1_000, 2_345):
        whole = torch.arange(total).float()
        plan = WindowPlan(duration, step, grid)
        windows = [(start, start + len(wav), wav) for start, wav in plan.cut(whole.split(71))]
        assert windows[0][0] == 0 and windows[-1][1] == total
        assert all(start % grid == 0 and stop - start <= duration for start, stop, _ in windows)
        assert all(torch.equal(wav, whole[start:stop]) for start, stop, wav in windows)
        assert all(stop - start == duration for start, stop, _ in windows[:-1])
        assert total <= duration or len(windows[-1][2]) > duration - grid  # no scrap
        assert len(windows) == 1 or total > duration
        for (start, stop, _), (next_start, next_stop, _) in pairwise(windows):
            assert start <= next_start <= max(stop, start + step) and next_stop > stop


class Scripted(nn.Module):
    """Hears a token in each frame: the signal's level there. Near a window's edges it hears nonsense.

    Each window hears all a frame too early, in time, or a frame too late, as real models place a token differently.
    """

    tasks, inputs, min_samples = ("emotion", "asr"), {"sig": None}, 400
    deaf = 20  # frames

    def keep_tasks(self, tasks):
        pass

    def frame_counts(self, n_samples):
        return ((torch.as_tensor(n_samples) - 400) // 320 + 1).clamp(min=0)

    def forward(self, sig):
        wavs, lengths = sig
        counts = self.frame_counts((lengths * wavs.shape[1]).round().long())
        heard = torch.zeros(len(wavs), int(counts.max()), len(TOKENS))
        for k, n in enumerate(counts.tolist()):
            tokens = (10 * wavs[k, 200::320][:n]).round().long()
            tokens = tokens.roll(int(tokens.sum()) % 3 - 1)
            tokens[: self.deaf] = tokens[-self.deaf :] = TOKENS.index["F"]
            heard[k, :n] = nn.functional.one_hot(tokens, len(TOKENS))
        level = wavs.mean(1)
        return {"asr": 10 * heard, "frames": counts, "emotion": torch.stack([level, -level], 1)}


def script(words: list[str], gap: int = 6, spread: int = 4) -> torch.Tensor:
    """Levels [time] of words: a letter every `spread` frames, `|` between words, with blank frames around each."""
    frames = [0] * 60
    for word in words:
        for letter in word:
            frames += [TOKENS.index[letter], *[0] * (spread - 1)]
        frames += [0] * (gap + 40) if word.endswith("F") else [1, *[0] * gap]  # F ends a sentence
    frames += [0] * 60
    return (torch.tensor(frames, dtype=torch.float32) / 10).repeat_interleave(320)


def words_of(seed: int, n: int = 63) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("ABCDE"), rng.integers(1, 6))) for _ in range(n)]
    return [word + ("F" if k % 7 == 6 else "") for k, word in enumerate(words)]


@pytest.mark.parametrize(("duration", "step"), [(4.0, 2.0), (3.0, 1.0), (4.0, 2.53), (5.0, 0.77)])
def test_no_word_is_lost_or_doubled_at_joints(tmp_path, duration, step):
    """Nonsense at all edges, tokens a frame apart: what is said comes out, and where it was said."""
    words = words_of(seed=int(100 * step))
    path = tmp_path / "words.wav"
    soundfile.write(path, script(words).numpy(), SAMPLE_RATE, subtype="FLOAT")
    recognizer = EmotionRecognizer(Scripted(), CLASSES, Decoder(TOKENS, "greedy"), CPU)
    found = recognizer.timeline(path, duration, step)
    sentences = re.findall(r"\S.*?F", " ".join(words))
    assert [phrase.text for phrase in found.phrases] == ["F", *sentences, "F"]  # nonsense at the recording's own ends
    spoken = [frame for frame, level in enumerate(load_audio(path)[200::320]) if level > 0.15]
    for phrase in found.phrases[1:-1]:
        assert min(abs(phrase.start - 0.02 * frame) for frame in spoken) < 0.03
    assert all(a.end < b.start for a, b in pairwise(found.phrases))


def test_each_frame_comes_from_the_window_where_it_is_most_central():
    """Three windows that never hear a blank; and windows that do not overlap."""
    names = [torch.nn.functional.one_hot(torch.full((8,), k), 4).float() for k in (1, 2, 3)]
    row = torch.cat(list(join_logits(zip((0, 4, 7), names, strict=True))))
    assert row.argmax(-1).tolist() == [1] * 6 + [2] * 3 + [3] * 6
    row = torch.cat(list(join_logits([(0, names[0]), (9, names[1])])))
    assert row.argmax(-1).tolist() == [1] * 9 + [2] * 8


@pytest.mark.parametrize("kind", ["words", "letters", "one letter", "silence", "no pause"])
def test_what_is_held_of_a_speech_is_bounded(kind):
    """Whatever is said, no phrase is longer than it may be, and greedy decoding loses nothing."""
    rng = np.random.default_rng(3)
    tokens = {
        "words": rng.choice([0, 0, 0, 1, 2, 3, 4], 3_000),
        "letters": rng.integers(2, 8, 3_000),
        "one letter": np.full(3_000, 5),
        "silence": rng.integers(0, 2, 3_000),
        "no pause": np.resize([2, 0, 3, 0, 0, 4, 1], 3_000),
    }[kind]
    logits = torch.nn.functional.one_hot(torch.from_numpy(tokens), len(TOKENS)).float()
    decode = Decoder(TOKENS, "greedy")

    def parts():
        for part in logits.split(100):
            yield part
            assert len(inspect.getgeneratorlocals(cut).get("held", ())) <= 200

    cut = PhraseCutter(decode, 0.02, min_pause=0.5, max_phrase=4.0).cut(parts())
    phrases = list(cut)
    (whole,) = decode(logits[None], torch.tensor([3_000]))
    assert "".join(phrase.text for phrase in phrases).replace(" ", "") == whole.replace(" ", "")
    assert all(0 < phrase.end - phrase.start <= 4.0 + 1e-6 for phrase in phrases)
    if kind in ("words", "no pause"):  # cut between words alone
        assert " ".join(phrase.text for phrase in phrases) == whole and len(phrases) > 10


def test_odd_recordings_say_what_they_say_whole(recognizer_of, odd):
    folder, errors = odd
    recognizer = recognizer_of("cai", max_seconds=10.0)
    paths = [folder / name for name in errors]
    for result, whole in zip(recognizer.timelines(paths), recognizer.classify_files(paths), strict=True):
        assert result.path == whole.path
        if result.path.endswith("long.wav"):
            assert "--window takes recordings of any length" in whole.error and result.error is None
            assert result.duration > recognizer.max_seconds
        else:
            assert result.error == whole.error and (result.segments == []) == (whole.error is not None)
    with pytest.raises(UserError, match=r"truncated\.wav: truncated recording"):
        recognizer.timeline(folder / "truncated.wav")


def test_a_recording_that_breaks_while_it_is_read(recognizer_of, long_recording, monkeypatch):
    monkeypatch.setattr("speechbrain_ser.inference.recognizer.duration_of", lambda path: 25.0)
    path = long_recording.with_name("broken.flac")
    path.write_bytes(long_recording.read_bytes()[:-100_000])
    (found,) = recognizer_of("fu").timelines([path])
    assert found.error.startswith("unreadable recording") and not found.segments


def test_a_silent_recording_is_refused_and_a_silent_window_is_not(recognizer_of, wavs, tmp_path):
    speech, rate = soundfile.read(sorted(wavs.iterdir())[0])
    soundfile.write(tmp_path / "silent.wav", np.zeros(10 * rate), rate)
    soundfile.write(tmp_path / "pause.wav", np.concatenate([speech, np.zeros(10 * rate), speech]), rate)
    silent, pause = recognizer_of("cai").timelines([tmp_path / "silent.wav", tmp_path / "pause.wav"])
    assert silent.error.startswith("silent: all samples are the same") and not silent.segments
    assert pause.error is None and len(pause.posteriors) > 5


def test_little_is_held_at_a_time(recognizer_of, monkeypatch):
    """Of ten minutes: two blocks, a batch of windows, and no window before its turn."""
    alive, held = weakref.WeakSet(), []  # blocks, and how many there were as each was given

    def blocks(path):
        for _ in range(60):
            block = torch.rand(10 * SAMPLE_RATE)
            alive.add(block)
            held.append(len(alive))
            yield block

    recognizer = recognizer_of("fu", max_seconds=13.0)  # also of a batch
    sizes, outputs = [], recognizer.window_outputs

    def counted(wavs):
        sizes.append((len(wavs), max(map(len, wavs))))
        assert len(held) * 10 <= len(sizes) * 3 * 2 + 30  # batches of three windows, every two seconds
        assert all(wav.untyped_storage().nbytes() <= 4 * 4 * SAMPLE_RATE for wav in wavs[:-1])  # no views of more
        return outputs(wavs)

    monkeypatch.setattr("speechbrain_ser.inference.timeline.stream_audio", blocks)
    monkeypatch.setattr("speechbrain_ser.inference.recognizer.duration_of", lambda path: 600.0)
    monkeypatch.setattr(recognizer, "window_outputs", counted)
    (found,) = recognizer.timelines(["noise.wav"], batch_size=8)
    assert found.error is None and found.duration == 600.0 and len(found.posteriors) == 300
    assert max(held) <= 3 and len(sizes) == 100 and max(sizes) == (3, 4 * SAMPLE_RATE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"duration": 200.0}, "window: expected 0.1 s to max_seconds, 120 s, found 200 s"),
        ({"duration": float("nan")}, "window: expected"),
        ({"step": 5.0}, "step: expected 0.1 s to the window's 4 s, found 5 s"),
        ({"batch_size": 2.5}, "batch_size"),
    ],
)
def test_wrong_windows(options, said):
    recognizer = EmotionRecognizer(Scripted(), CLASSES, None, CPU)
    with pytest.raises(UserError, match=said):
        recognizer.timelines([], **options)


def made(path="x/a.wav", seconds=12.5, phrases=True) -> Timeline:
    """A timeline in which the recogniser abstained once."""
    edges = np.append(np.arange(0, seconds, 2.0), seconds)
    posteriors = np.tile([0.25, 0.75], (len(edges) - 1, 1))
    heard = [(0.0, 4.0, "sad", 0.25), (4.0, 6.0, None, 0.5), (6.0, seconds, "angry", 0.9)]
    segments = [Segment(start, end, emotion, {"angry": p, "sad": 1 - p}) for start, end, emotion, p in heard]
    said = [Phrase(0.5, 3.0, "SO IST ES"), Phrase(3.6, 5.5, 'EIN "WORT", JA'), Phrase(7.0, seconds, "ÜBER IHN")]
    return Timeline(path, seconds, 4.0, 2.0, segments, said if phrases else None, CLASSES, edges, posteriors)


def test_a_textgrid_is_read_back(tmp_path):
    path = write_textgrid(made(), tmp_path / "a.TextGrid")
    grid = openTextgrid(str(path), includeEmptyIntervals=True)
    assert (grid.minTimestamp, grid.maxTimestamp) == (0.0, 12.5)
    emotions, words = ([tuple(entry) for entry in grid.getTier(name).entries] for name in ("emotion", "transcript"))
    assert emotions == [(0, 4, "sad"), (4, 6, ""), (6, 12.5, "angry")]
    assert [word for word in words if word[2]] == [(p.start, p.end, p.text) for p in made().phrases]
    path = write_textgrid(made(phrases=False), tmp_path / "a.TextGrid")
    assert openTextgrid(str(path), includeEmptyIntervals=True).tierNames == ("emotion",)


@pytest.mark.parametrize(
    ("seconds", "phrases", "rows"), [(12.5, True, 1), (1_800, True, 30), (1_800, False, 10), (10**5, True, 13)]
)
def test_pictures_of_any_length_are_rows(seconds, phrases, rows):
    figure = plot_timeline(made(seconds=seconds, phrases=phrases))
    assert len(figure.axes) == rows
    drawn = [text.get_text().replace("\n", " ") for axes in figure.axes for text in axes.texts]
    assert ("sad" in drawn) == (phrases or seconds < 20) and "angry" in drawn  # where there is room
    assert ("SO IST ES" in drawn) == phrases  # of what is long, in its busiest minutes
    title = figure.texts[0].get_text()
    assert title.startswith("a.wav: ") and ("its busiest minutes" in title) == (seconds > 1_800)
    assert figure.get_figheight() * 120 < 8_000


def test_the_busiest_minutes_of_hours_stand_below_the_overview():
    found = made(seconds=7_200)
    starts = np.concatenate([np.arange(0, 7_200, 60), 3_600 + np.arange(2, 60, 2), 300 + np.arange(2, 20, 2)])
    starts = np.sort(starts).tolist()
    segments = [Segment(start, end, CLASSES[k % 2], {}) for k, (start, end) in enumerate(pairwise([*starts, 7_200]))]
    axes = plot_timeline(dataclasses.replace(found, segments=segments)).axes
    lefts = [each.get_xlim()[0] for each in axes]
    assert lefts[:12] == [600.0 * k for k in range(12)]
    assert len(lefts) == 18 and {300.0, 3_600.0} <= {*lefts[12:]} and lefts[12:] == sorted(lefts[12:])


def test_dollars_are_no_formula(tmp_path):
    found = made("x/a $\\frac$ b.wav")
    found.phrases[0] = Phrase(0.5, 3.0, "$^$ $")
    plot_timeline(found).savefig(tmp_path / "a.png")  # matplotlib parses formulas only now
