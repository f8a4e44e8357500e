"""The stress test: each change by a formula of its own, models whose failures are known, and who may be tested."""

# ruff: noqa: F811 (fixtures of other files)
import itertools
import json
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy import signal, stats

from speechbrain_ser.cli import main as cli
from speechbrain_ser.evaluation.metrics import emotion_metrics
from speechbrain_ser.inference import stress
from speechbrain_ser.inference.evaluate import open_model
from speechbrain_ser.processing import perturbations as p
from speechbrain_ser.processing.perturbations import BOXES, CODECS, MODERATE, SEVERE, SMALL, TABLE, Voices, generator

from .test_evaluate import blank_pictures  # noqa: F401 (a fixture)
from .test_inference import run_of  # noqa: F401 (a fixture)

RATE = 16_000
BY_NAME = {change.name: change for change in TABLE}


def speech(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Something like it: a voice of 120 Hz, syllables of a quarter of a second, and a little breath."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 120 * k * t + k) / k for k in range(1, 40))
    wav = voice * (0.1 + np.abs(np.sin(2 * np.pi * 2 * t))) + 0.1 * rng.standard_normal(len(t))
    return (0.3 * wav / np.abs(wav).max()).astype(np.float32)


def tone(hertz: float, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32) / 2


def changed(name: str, wav: np.ndarray, others=(), seed: int = 0) -> np.ndarray:
    return BY_NAME[name](wav, generator(seed, "utterance", name), others)


def decibels(first: np.ndarray, second: np.ndarray) -> float:
    return 10 * np.log10(np.sum(np.square(first, dtype=float)) / np.sum(np.square(second, dtype=float)))


def hertz_of(wav: np.ndarray) -> float:
    """The strongest frequency, of the middle, to 0.1 Hz."""
    middle = wav[len(wav) // 4 : -len(wav) // 4]
    return np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 10 * RATE)).argmax() / 10


# ------------------------------------------------------------------ changes


def test_every_change_is_a_new_finite_waveform_that_its_keys_alone_decide():
    wav, others = speech(1.0), [speech(0.7, seed) for seed in range(1, 6)]
    before, counts = wav.copy(), pd.Series([change.severity for change in TABLE]).value_counts()
    assert len(BY_NAME) == len(TABLE) and 2 * len(TABLE) >= 60 and set(counts.index) == {SMALL, MODERATE, SEVERE}
    for change in TABLE:
        first, again = (change(wav, generator(0, "a", change.name), others) for _ in range(2))
        assert first.dtype == np.float32 and np.isfinite(first).all() and np.array_equal(first, again), change.name
        assert len(first) != len(wav) or not np.array_equal(first, wav), change.name
        assert np.array_equal(wav, before)
    for name in ("white noise 20 dB", "babble 20 dB", "lost packets 5 %"):
        assert not np.array_equal(changed(name, wav, others), changed(name, wav, others, seed=1))


def test_levels():
    wav = speech()
    for db in (-20, -6, 6):
        assert decibels(changed(f"gain {db:+d} dB", wav), wav) == pytest.approx(db, abs=1e-3)
    found = changed("offset 10 %", wav)
    assert np.ptp(found - wav) < 1e-6 and (found - wav).mean() == pytest.approx(0.1 * np.abs(wav).max(), rel=1e-5)
    for share in (0.3, 3, 20):
        found = changed(f"clipping {share:g} %", wav)
        at_limit = np.abs(found) >= np.abs(found).max() * (1 - 1e-6)
        assert at_limit.mean() == pytest.approx(share / 100, rel=0.02)
        assert np.array_equal(found[~at_limit], wav[~at_limit])


def test_bands():
    """8 kHz hold nothing above 4 kHz; a telephone, nothing below 300 Hz either."""
    for name, kept, gone in (("8 kHz", (100, 1000, 3500), (4500, 7000)), ("telephone", (600, 1000, 2500), (60, 5000))):
        for hertz in kept:
            assert decibels(changed(name, tone(hertz)), tone(hertz)) == pytest.approx(0, abs=0.6), (name, hertz)
        for hertz in gone:
            assert decibels(changed(name, tone(hertz)), tone(hertz)) < -20, (name, hertz)


def test_mu_law_holds_256_values_and_errs_by_half_a_step():
    wav = np.random.default_rng(0).uniform(-1, 1, 50_000)
    found = p.mu_law(wav)
    assert len(np.unique(found)) <= 256 and np.abs(found).max() <= 1 and np.allclose(p.mu_law(found), found)
    # dx/dy = (1/255 + |x|) ln 256, and a step of y is 1/127; at its other end |x| is larger by 4.5 %
    assert (np.abs(found - wav) <= 0.5 / 127 * np.log(256) * (np.abs(wav) + 1 / 255) * 1.03).all()
    assert 35 < decibels(wav, found - wav) < 40  # the textbook's 38 dB of G.711


def test_codecs_have_their_rate_and_their_place():
    wav = speech(4.0)
    for (form, rate), level in CODECS.items():
        kbit = len(p.encode(wav, form, level).getvalue()) * 8 / 4.0 / 1000
        low, high = (0.95, 1.05) if form == "MP3" else (0.7, 1.15)  # Opus spends what the signal needs
        assert low * rate < kbit < high * rate, (form, rate)
        found = changed(f"{form} {rate} kbit/s", wav)
        lag = signal.correlate(found, wav, "full", "fft").argmax() - (len(wav) - 1)
        assert len(found) == len(wav) and abs(lag) <= 2, (form, rate)
        assert np.corrcoef(found, wav)[0, 1] > 0.6


def test_lost_packets_are_whole_frames():
    wav = speech()
    for share in (1, 5, 10):
        frames, was = (x.reshape(-1, RATE // 50) for x in (changed(f"lost packets {share} %", wav), wav))
        is_gone = (frames == 0).all(1)
        assert is_gone.sum() == share and np.array_equal(frames[~is_gone], was[~is_gone])  # of a hundred


def test_noise_and_babble_are_so_many_decibels_below():
    wav, other = speech(), tone(440, 0.3)
    for db in (40, 20, 10, 0):
        noise = changed(f"white noise {db} dB", wav).astype(float) - wav
        assert decibels(wav, noise) == pytest.approx(db, abs=0.01)
        power = signal.welch(noise, RATE, nperseg=512)[1][2:-2]
        assert power.max() / power.min() < 6  # white: the bands of 31 Hz hardly differ
    for db in (20, 10, 0):
        noise = changed(f"babble {db} dB", wav, [other]).astype(float) - wav
        assert decibels(wav, noise) == pytest.approx(db, abs=0.01) and hertz_of(noise) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("name", BOXES)
def test_a_room_rings_as_long_as_it_says_and_starts_in_place(name):
    for position in range(p.POSITIONS):
        response = p.impulse_response(**BOXES[name], position=position)
        energy = np.cumsum(np.square(response)[::-1])[::-1]  # Schroeder's integral
        level = 10 * np.log10(energy / energy[0])
        at = [np.flatnonzero(level <= db)[0] for db in (-5, -25)]
        assert 60 / 20 * (at[1] - at[0]) / RATE == pytest.approx(BOXES[name]["rt60"], rel=0.25)
    found = changed(f"room {name}", speech())
    assert decibels(found, speech()) == pytest.approx(0, abs=1e-3)
    click = np.zeros(RATE, np.float32)
    click[4000] = 1
    assert np.abs(changed(f"room {name}", click)).argmax() == 4000


def test_what_changes_pitch_and_what_changes_length():
    wav = tone(200)
    for factor in (90, 98, 102, 110):
        found = changed(f"speed {factor} %", wav)
        assert len(found) == pytest.approx(len(wav) * 100 / factor, abs=2)
        assert hertz_of(found) == pytest.approx(200 * factor / 100, abs=0.5)
    for factor in (90, 110):
        found = changed(f"tempo {factor} %", wav)
        assert len(found) == round(len(wav) * 100 / factor) and hertz_of(found) == pytest.approx(200, abs=0.5)
        assert decibels(found, wav) == pytest.approx(-10 * np.log10(factor / 100), abs=0.3)  # nothing cancels
    for semitones in (-1, 1):
        found = changed(f"pitch {semitones:+d} semitone", wav)
        assert len(found) == len(wav) and hertz_of(found) == pytest.approx(200 * 2 ** (semitones / 12), abs=1)


def test_crops_and_silence():
    wav = speech()
    assert np.array_equal(changed("crop start 50 ms", wav), wav[800:])
    assert np.array_equal(changed("crop both 250 ms", wav), wav[4000:-4000])
    assert np.array_equal(changed("crop both 250 ms", wav[:400]), wav[100:300])  # never more than half
    assert np.array_equal(changed("silence both 1 s", wav), np.concatenate([np.zeros(RATE), wav, np.zeros(RATE)]))
    assert np.array_equal(changed("silence end 50 ms", wav)[: len(wav)], wav)


def test_babble_is_of_other_speakers_where_they_are_known():
    rows = pd.DataFrame({"ID": list("abcd"), "speaker": ["x", "x", "y", "z"], "wav": ""})
    assert set(Voices(rows).draw("a", generator(0), 50)) == {"c", "d"}
    assert set(Voices(rows.assign(speaker="")).draw("a", generator(0), 50)) == {"b", "c", "d"}
    assert Voices(rows[:2]).draw("a", generator(0)) == []


# ------------------------------------------------------------------ checks


def table(n: int = 40) -> tuple[pd.DataFrame, list]:
    """Two classes, two speakers; all is told right."""
    emotion = np.resize(["x", "y"], n)
    clean = pd.DataFrame({"ID": [f"u{k:03d}" for k in range(n)], "speaker": np.repeat(["a", "b"], n // 2)})
    changes = [p.Perturbation(severity, severity, BY_NAME["8 kHz"].change) for severity in (SMALL, MODERATE, SEVERE)]
    return clean.assign(emotion=emotion, predicted=emotion), changes


@pytest.mark.parametrize("n_changed, passed", [(0, 6), (2, 6), (3, 3), (8, 3), (9, 2)])
def test_limits_of_decisions_and_of_recall(n_changed, passed):
    """Of 40: 2 make 5 %, 8 make 20 %; each decision that changes costs 2.5 points of UA."""
    clean, changes = table()
    said = clean["predicted"].to_numpy(object).copy()
    said[:n_changed] = np.where(said[:n_changed] == "x", "y", "x")
    answers = pd.DataFrame({change.name: said for change in changes})
    found = stress.check_changes(changes, clean, answers, ["x", "y"], seed=0)
    assert found.filter(like="_passed").to_numpy().sum() == passed
    assert found["unchanged"].tolist() == [1 - n_changed / 40] * 3
    ua = emotion_metrics(clean["emotion"], said, ["x", "y"])["UA"]
    assert found["UA_change"].tolist() == pytest.approx([ua - 1] * 3)
    if n_changed:  # two speakers, of whom one has all the changes: Student's t of one degree of freedom
        low, high = stats.t.interval(0.95, 1, ua - 1, abs(ua - 1))
        assert (found["UA_low"][0], found["UA_high"][0]) == pytest.approx((low, high), rel=0.05)


def test_chance_is_hypergeometric_and_constant_answers_do_not_beat_it():
    clean, changes = table()
    rng = np.random.default_rng(0)
    said = rng.permutation(clean["predicted"].to_numpy(object))
    stay, loss = stress.by_chance(clean, said, generator(0))
    right = stats.hypergeom(40, 20, 20).ppf(0.95)  # of the twenty x, so many x; as many of the y are y
    assert stay == pytest.approx(2 * right / 40, abs=0.051) and loss == pytest.approx(1 - 2 * right / 40, abs=0.051)
    found = stress.check_changes(changes[2:], clean, pd.DataFrame({SEVERE: ["x"] * 40}), ["x", "y"], seed=0)
    assert not found["unchanged_passed"][0] and not found["UA_change_passed"][0]


def test_the_worst_of_groups_by_chance_is_what_all_orders_give():
    values, emotion = np.array([1, 1, 0, 1, 0, 0.0]), pd.Series([""] * 6)
    groups = {name: np.array(list("aabbcc")) == name for name in "abc"}
    every = [0.5 - np.reshape(order, (3, 2)).mean(1).min() for order in itertools.permutations(values)]
    found = stress.worst_by_chance(values, emotion, groups, generator(0))
    assert found == pytest.approx(np.quantile(every, 0.95)) == 0.5


def test_a_group_that_is_served_worse_fails_and_one_by_chance_passes():
    clean, _ = table(120)
    clean = clean.assign(gender=np.repeat(["F", "M", "F"], 40), text="", length="all")
    clean.loc[clean["gender"] == "M", "predicted"] = "x"  # a UA of 50 %
    answers = pd.DataFrame({"one": clean["predicted"], "two": clean["predicted"]})
    found, alone = stress.check_groups(clean, answers, seed=0)
    rows = found.set_index(["by", "measure"])
    worst = rows.loc[("gender", "UA as recorded")]
    assert worst["worst"] == "M" and worst["gap"] == pytest.approx(5 / 6 - 0.5) and not worst["passed"]
    assert rows.loc[("gender", "decisions that stay"), ["gap", "limit", "passed"]].tolist() == [0, 0.05, True]
    assert rows.loc[("speaker", "UA as recorded"), "passed"] and alone == ["session", "text", "length"]


# ------------------------------------------------------------------ whole


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Utterances of two classes, which differ in length: the model of :func:`by_length` knows them all."""
    rows = []
    for k in range(12):
        seconds = 0.4 if k % 2 else 4.0
        soundfile.write(tmp_path / f"u{k}.wav", speech(seconds, k), RATE)
        rows.append({"wav": f"u{k}.wav", "emotion": "short" if k % 2 else "long", "speaker": f"s{k % 3}"})
    pd.DataFrame(rows).to_csv(tmp_path / "mine.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def by_length(folder, name: str, seconds: float) -> str:
    code = f"def model(wav):\n    sure = float(len(wav) > {seconds} * 16000)\n    return [1 - sure, sure]\n\n"
    (folder / f"{name}.py").write_text(code + "model.classes = ['short', 'long']\n")
    return f"{name}:model"


def run_test(model: str, *flags: str, code: int = 0, capfd) -> tuple[dict, str]:
    capfd.readouterr()
    found = cli(["stress", model, "--corpus=table", "--data_folder=.", "--device=cpu", *flags])
    said, err = capfd.readouterr()
    assert found == code, err
    return json.loads(open("stress/stress.json").read()) if code < 2 else {}, said + err


def test_a_model_fails_what_it_must_fail_and_nothing_else(corpus, capfd):
    """0.4 s and 2 s of silence make more than 2 s: what is short is called long. And nothing else is that long."""
    found, said = run_test(by_length(corpus, "brittle", 2.0), code=1, capfd=capfd)
    failed = [c["change"] for c in found["stress"] if not (c["unchanged_passed"] and c["UA_change_passed"])]
    assert failed == ["silence both 1 s"] and found["failed"] == 2 and found["checks"] == 2 * len(TABLE)
    (row,) = (c for c in found["stress"] if c["change"] == "silence both 1 s")
    assert row["unchanged"] == 0.5 and row["UA_change"] == -0.5 and found["as_recorded"]["UA"] == 1
    assert f"brittle:model FAILS 2 of {2 * len(TABLE)} checks" in said and "NOT COMPARED" in said
    decisions = pd.read_csv("stress/decisions.csv")
    assert decisions["silence both 1 s"].eq("long").all() and decisions["8 kHz"].eq(decisions["emotion"]).all()
    page = open("stress/report.html").read()
    assert page.count("data:image/svg+xml;base64,") == 2 and "http://" not in page and "https://" not in page
    assert len(pd.read_csv("stress/stress.csv")) == len(TABLE) and len(page) < 500_000


def test_a_model_that_nothing_confuses_passes_and_what_is_lacking_is_said(corpus, capfd, monkeypatch, blank_pictures):
    lacking = p.importlib.util.find_spec
    monkeypatch.setattr(p.importlib.util, "find_spec", lambda name: None if name == p.ROOMS else lacking(name))
    found, said = run_test(by_length(corpus, "sturdy", 2.5), capfd=capfd)
    assert found["failed"] == 0 and found["checks"] == 2 * (len(TABLE) - 3) and "passes all" in said
    assert "NOT TESTED: room 0.2 s, 0.5 m, room 0.4 s" in said and "speechbrain-ser[rooms]" in found["missing"][0]


def test_a_seed_gives_one_result_in_any_parts_and_another_seed_another(corpus, capfd, monkeypatch, blank_pictures):
    few = [BY_NAME[name] for name in ("white noise 0 dB", "babble 0 dB", "lost packets 10 %")]
    monkeypatch.setattr(stress, "TABLE", few)
    code = "import numpy as np\n\ndef model(wav):\n    p = abs(wav[:400].mean()) * 50 % 1\n    return [1 - p, p]\n\n"
    (corpus / "picky.py").write_text(code + "model.classes = ['short', 'long']\n")
    results = []
    for seed, size in ((0, 16), (0, 5), (1, 16)):
        monkeypatch.setattr(stress, "PART", size)
        cli(["stress", "picky:model", "--corpus=table", "--data_folder=.", f"--seed={seed}"])
        results.append(open("stress/decisions.csv").read())
    assert results[0] == results[1] != results[2]


def test_what_cannot_be_tested_is_refused_early(corpus, capfd):
    said = run_test("answers.csv", code=2, capfd=capfd)[1]
    assert "answers.csv: expected a model, found posteriors of recordings as they are" in said
    said = run_test(by_length(corpus, "any", 2.0), "--labels={short: short, long: null}", code=2, capfd=capfd)[1]
    assert "expected utterances of two classes" in said


def test_a_runs_clean_figures_are_those_of_evaluate_and_what_it_knows_is_refused(
    small, run_of, tmp_path, monkeypatch, capfd, blank_pictures
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stress, "TABLE", [BY_NAME["gain -6 dB"], BY_NAME["babble 20 dB"]])
    run = run_of("cai")
    options = ["--corpus=emodb", f"--data_folder={small.corpus('emodb')}", "--device=cpu", "--trust-run"]
    part = ["--protocol=speaker", f"--fold={json.loads((run / 'metrics.json').read_text())['fold']}"]
    assert cli(["stress", str(run), *options]) == 2
    assert "recordings were in the model's training" in capfd.readouterr().err
    assert cli(["evaluate", str(run), *options, *part]) == 0 and cli(["stress", str(run), *options, *part]) < 2
    theirs, ours = (
        json.loads((tmp_path / name).read_text()) for name in ("evaluation/metrics.json", "stress/stress.json")
    )
    assert all(ours["as_recorded"][name] == theirs["all"][name] for name in ("n", "WA", "UA", "F1", "confusion"))
    same = ["predicted", *(f"posterior_{name}" for name in ours["classes"])]
    tables = [pd.read_csv(tmp_path / name)[same] for name in ("evaluation/predictions.csv", "stress/decisions.csv")]
    pd.testing.assert_frame_equal(*tables, atol=1e-4)
    with pytest.raises(Exception, match="too short"):
        open_model(str(run), device="cpu", trust_run=True).hear(["a"], [np.ones(10, np.float32)])
