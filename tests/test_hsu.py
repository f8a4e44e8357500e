"""Hsu's two stages: what each line builds, and runs through the command line on the demo corpus and odd recordings."""

import json
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from speechbrain.dataio.batch import PaddedData
from torch import nn

from speechbrain_ser.cli import main as cli
from speechbrain_ser.crossval.plan import make_plans, read_arguments
from speechbrain_ser.errors import UserError
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.hsu import HsuModel, HsuPretrainModel
from speechbrain_ser.nnet.augment import random_crop
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.cache import feature_source
from speechbrain_ser.processing.pitch import PitchTrack
from speechbrain_ser.processing.split_mel import SplitMel

from .conftest import ROOT
from .test_train import folder_of, metrics_of

PARTS = ("content", "rhythm", "pitch", "timbre")
NARROW = {name: {"channels": 8, "groups": 2, "units": 2} for name in (*PARTS, "single")}
NARROW["decoder"] = {"units": 4, "layers": 1}
RESAMPLING = {"min_segment": 19, "max_segment": 31}
OURS = {"emotion": 0.45, "reconstruction": 0.45, "asr": 0.05, "speaker": 0.05}


def heads(*tasks):
    sizes = {"emotion": 4, "asr": 7, "speaker": 3}
    return {task: partial(nn.Linear, out_features=sizes[task]) for task in tasks}


@pytest.fixture
def stage_2(small):
    def build(parts=PARTS, emotion_reads=None, **weights) -> HsuModel:
        speech = Wav2Vec2(str(small.backbone()), apply_spec_augment=False), MaskedPooling("mean")
        reads, tasks = parts if emotion_reads is None else emotion_reads, heads("emotion", "asr", "speaker")
        lines = parts, reads, NARROW, True, RESAMPLING, tasks, OURS | weights
        return HsuModel(*speech, SplitMel(), PitchTrack(), *lines, seed=3).eval()

    return build


def stage_1(parts=PARTS, weights=None, **changes) -> HsuPretrainModel:
    weights = weights or {"reconstruction": 0.9, "speaker": 0.1}
    return HsuPretrainModel(
        SplitMel(), PitchTrack(), parts, NARROW, True, RESAMPLING, heads("speaker"), weights, **changes
    )


def padded(signals) -> PaddedData:
    lengths = torch.tensor([len(s) for s in signals])
    return PaddedData(nn.utils.rnn.pad_sequence(signals, batch_first=True), lengths / lengths.max())


def batch(seconds=(0.5, 1.4, 0.9)) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    found = []
    for s in seconds:
        n = int(16_000 * s)
        mel = torch.rand(n // 256 + 1, 80)
        found.append({"sig": torch.randn(n), "mel": mel, "f0": torch.rand(len(mel)) - 0.3})
    return found


def run(model, utterances) -> dict:
    with torch.no_grad():
        return model(**{name: padded([u[name] for u in utterances]) for name in model.inputs})


def test_a_batch_gives_what_its_utterances_give_alone(stage_2):
    model, utterances = stage_2(), batch()
    together = run(model, utterances)
    for k, utterance in enumerate(utterances):
        alone = run(model, [utterance])
        for name in ("emotion", "speaker", "embedding"):
            torch.testing.assert_close(together[name][k], alone[name][0], atol=1e-4, rtol=0)
        for name in ("reconstruction", "asr"):
            found = together[name][k, : alone[name].shape[1]]
            torch.testing.assert_close(found, alone[name][0], atol=1e-4, rtol=0)


def test_a_task_of_weight_0_has_no_parameters_and_no_outputs(stage_2):
    outputs = run(stage_2(), batch())
    assert {"emotion", "asr", "speaker", "reconstruction"} <= set(outputs)
    for task, gone in (("asr", "heads.asr"), ("speaker", "heads.speaker"), ("reconstruction", "decomposition.decoder")):
        model = stage_2(**{task: 0})
        assert task not in run(model, batch()) and not any(n.startswith(gone) for n in model.state_dict())


def test_what_is_removed_changes_no_other_initial_weight(stage_2):
    whole = stage_2().state_dict()
    fewer = {"parts": ("timbre",), "emotion_reads": (), "reconstruction": 0}
    for removed in ({"asr": 0}, {"speaker": 0}, {"reconstruction": 0}, fewer):
        rest = stage_2(**removed).state_dict()
        same = [n for n in rest if n in whole and (removed is not fewer or not n.startswith("heads.emotion"))]
        assert len(same) > 20 and all(torch.equal(whole[n], rest[n]) for n in same)


def test_encoders_that_nothing_reads_are_not_built(stage_2):
    assert stage_2(parts=(), reconstruction=0, speaker=0).inputs == {"sig": None}
    assert set(stage_2(emotion_reads=("rhythm",), reconstruction=0, speaker=0).decomposition.encoders) == {"rhythm"}
    model = stage_2(emotion_reads=("rhythm",), reconstruction=0)  # the speaker reads the timbre
    assert set(model.decomposition.encoders) == {"rhythm", "timbre"} and "f0" not in model.inputs
    assert set(stage_2(parts=("single",), speaker=0).inputs) == {"sig", "mel"}


def test_table_2_narrows_only_what_reaches_the_emotion_head(stage_2):
    """The decoder keeps all four codes; the emotion's vector has wav2vec2's channels and the codes it reads."""
    everything = stage_2()
    for part, size in (("pitch", 4), ("content", 4), ("rhythm", 4), ("timbre", 4)):
        model = stage_2(emotion_reads=(part,))
        assert model.heads["emotion"].in_features == model.encoder.output_size + size
        a, b = run(everything, batch()), run(model, batch())
        assert torch.equal(a["reconstruction"], b["reconstruction"]) and torch.equal(a["asr"], b["asr"])
        codes = model.decomposition.pool(b["codes"], b["mel_frames"])
        assert torch.equal(b["embedding"][:, model.encoder.output_size :], codes[part])


@pytest.mark.parametrize("reads", [PARTS, ("rhythm",), ("pitch", "timbre"), ()])
def test_what_is_kept_of_a_model_gives_what_it_gave(stage_2, reads):
    """Without speaker and decoder: encoders that the emotion does not read go, and the F0 that nobody reads."""
    model, utterances = stage_2(emotion_reads=reads), batch()
    whole = run(model, utterances)
    model.keep_tasks({"emotion", "asr"})
    rest = run(model, utterances)
    assert set(rest) == {"frames", "embedding", "emotion", "asr"} | ({"codes"} if reads else set())
    assert all(torch.equal(rest[name], whole[name]) for name in ("embedding", "emotion", "asr"))
    encoders = set() if model.decomposition is None else set(model.decomposition.encoders)
    inputs = {"sig"} | ({"mel"} if reads else set()) | ({"f0"} if "pitch" in reads else set())
    assert encoders == set(reads) and set(model.inputs) == inputs
    model.keep_tasks({"emotion"})
    assert torch.equal(run(model, utterances)["emotion"], whole["emotion"]) and set(model.heads) == {"emotion"}


def test_stage_1_trains_on_pieces_and_is_tested_on_whole_utterances():
    model = stage_1(crop=(10, 20), crop_padding=0)
    utterances = batch((0.1, 1.4, 0.9))
    trained = model.train()(**{n: padded([u[n] for u in utterances]) for n in model.inputs})
    frames = trained["mel_frames"].tolist()
    assert frames[0] == len(utterances[0]["mel"]) == 7 and all(10 <= f <= 20 for f in frames[1:])
    assert run(model.eval(), utterances)["mel_frames"].tolist() == [len(u["mel"]) for u in utterances]
    published = stage_1(crop=(10, 20), crop_padding=32).train()  # pieces are filled up with silence
    outputs = published(**{n: padded([u[n] for u in utterances]) for n in model.inputs})
    assert outputs["mel_frames"].tolist() == [32, 32, 32] and outputs["target"].shape[1] == 32
    assert not outputs["target"][:, 20:].any() and outputs["target"][:, :7].any()


def test_random_crop_takes_the_same_frames_of_every_signal():
    torch.manual_seed(0)
    frames = torch.arange(100.0).repeat(50, 1)
    cropped, counts = random_crop({"mel": frames[:, :, None], "f0": frames}, torch.full((50,), 100), 20, 30)
    assert set(counts.tolist()) == set(range(20, 31))
    assert torch.equal(cropped["mel"][:, :, 0], cropped["f0"])
    firsts = cropped["f0"][:, 0]
    assert firsts.min() < 15 and firsts.max() > 60
    for row, n in zip(cropped["f0"], counts, strict=True):
        assert torch.equal(row[:n].diff(), torch.ones(int(n) - 1))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: stage_1(parts=("contnet",)), "contnet.*did you mean 'content'"),
        (lambda: stage_1(parts=("rhythm",)), "speaker task reads the timbre"),
        (lambda: stage_1(weights={"reconstruction": 0, "speaker": 1}), "no decoder"),
        (lambda: stage_1(crop=(128, 64)), "crop: expected"),
        (lambda: stage_1(crop=(64, 128), crop_padding=100), "crop_padding is 100"),
        (lambda: stage_1(crop=None, crop_padding=192), "crop_padding is 192"),
        (lambda: PitchTrack("rapd"), "did you mean 'rapt'"),
        (lambda: PitchTrack(f_range=[600, 50]), "f_min < f_max"),
        (lambda: PitchTrack(f_range={"M": [50, 250]}), "for each of"),
        (lambda: PitchTrack(f_range=50), r"\[low, high\]"),
    ],
)
def test_wrong_arguments(build, said):
    with pytest.raises(UserError, match=said):
        build()


def test_a_range_of_f0_for_each_gender(tmp_path):
    """A man at 300 Hz is above the published program's range for men, a woman is not."""
    wav = np.zeros(16_000)
    wav[:: 16_000 // 300] = 1.0
    for name in "mf":
        soundfile.write(tmp_path / f"{name}.wav", wav / (1 + (name == "f")), 16_000)
    frame = pd.DataFrame({"wav": [str(tmp_path / f"{n}.wav") for n in "mf"], "gender": ["M", "F"], "speaker": "x"})
    track = PitchTrack(f_range={"M": [50, 250], "F": [100, 600]})
    source = feature_source(track, tmp_path / "cache", frame)
    assert source.fill(frame["wav"]) == 2 and source.fill(frame["wav"]) == 0
    hz = {g: track.by_gender[g].extract_hz(torch.from_numpy(wav).float()) for g in "MF"}
    assert hz["F"].median() == pytest.approx(300, rel=0.02) and hz["M"].max() < 251
    man, woman = (source[path] for path in frame["wav"])
    assert not torch.equal(man > 0, torch.zeros(len(man)) > 0) and woman.shape == man.shape
    with pytest.raises(UserError, match="found '' of x"):
        feature_source(track, tmp_path / "cache", frame.assign(gender=["M", ""]))


@pytest.fixture
def pretrained(trained):
    """A short run of stage 1 on fold 03 of the demo corpus in EMO-DB's layout."""
    return lambda *flags: trained("--fold=03", *flags, yaml="hsu_pretrain")


def test_stage_2_starts_from_stage_1(train, pretrained):
    folder = pretrained()
    out = train("--fold=03", f"--pretrained={folder}", "--lr=0", yaml="hsu_mtl")
    assert f"started from {folder}, epoch 1" in out
    (first,), (second,) = (list((f / "save").glob("CKPT*/model.ckpt")) for f in (folder, folder_of(out)))
    first, second = torch.load(first), torch.load(second)
    assert set(first) <= set(second) and all(torch.equal(first[n], second[n]) for n in first)
    last = metrics_of(out)["selections"]["last"]
    predictions = pd.read_csv(folder_of(out) / "predictions.csv")
    assert predictions["mse"].mean() == pytest.approx(last["all"]["MSE"]) and 0 <= last["seen_speaker_accuracy"] <= 1
    stage_1 = json.loads((folder / "metrics.json").read_text())["selections"]["last"]["test"]
    assert last["all"]["MSE"] == pytest.approx(stage_1["MSE"], rel=1e-5)  # nothing was learned since


def test_removed_tasks_have_no_columns(train):
    flags = ["--fold=03", "--pretrain=False", "--a_MSE=0", "--a_CTC=0", "--a_S=0", "--emotion_reads=[rhythm]"]
    out = train(*flags, yaml="hsu_mtl")
    columns = set(pd.read_csv(folder_of(out) / "predictions.csv")) | set(pd.read_csv(folder_of(out) / "epochs.csv"))
    assert not [c for c in columns if re.search("mse|hypothesis|speaker_|WER|asr|reconstruction", c, re.IGNORECASE)]
    assert not (folder_of(out) / "predictions_seen.csv").exists() and not (folder_of(out) / "save/tokens.json").exists()
    assert "seen_speaker_accuracy" not in metrics_of(out)["selections"]["last"]


def test_a_stage_1_that_does_not_fit_is_refused(train, pretrained):
    folder = pretrained()
    said = train("--fold=10", f"--pretrained={folder}", yaml="hsu_mtl", code=2)
    assert "fold: there 03, here 10" in said and "trained on speakers who are tested here (10): it would leak" in said
    wide = "{rhythm: {units: 3}}"
    assert "sizes: there" in train("--fold=03", f"--pretrained={folder}", f"--sizes={wide}", yaml="hsu_mtl", code=2)
    said = train("--fold=03", f"--pretrained={folder}", "--parts=[rhythm, timbre]", yaml="hsu_mtl", code=2)
    assert "parts: there ['content', 'rhythm', 'pitch', 'timbre'], here ['rhythm', 'timbre']" in said
    assert "--pretrained=" in train("--fold=03", yaml="hsu_mtl", code=2)
    assert "no finished run" in train("--fold=03", "--pretrained=nowhere", yaml="hsu_mtl", code=2)
    said = train("--fold=10", f"--pretrained={folder}", "--pretrain=False", yaml="hsu_mtl", code=2)
    assert "pretrained: nothing asks for" in said


@pytest.mark.slow  # several trainings
def test_pretraining_on_everybody_is_leaky_in_both_stages(train, pretrained):
    folder = pretrained("--train_on=all")
    found = json.loads((folder / "metrics.json").read_text())
    assert not found["speaker_disjoint"] and "also trained on (emodb:03)" in found["leak"]
    flags = ["--fold=03", f"--pretrained={folder}", "--lr=0"]
    assert "train_on: there all, here fold" in train(*flags, yaml="hsu_mtl", code=2)
    out = train(*flags, "--pretrain_on=all", yaml="hsu_mtl")
    assert "NO, LEAKY: pre-trained on all speakers" in out and not metrics_of(out)["speaker_disjoint"]
    assert "train_on: expected fold" in train("--train_on=everybody", yaml="hsu_pretrain", code=2)


def test_a_run_of_stage_1_can_be_looked_at_and_converted_with(pretrained, small, tmp_path, capfd):
    """The two commands on a run's own folder: the picture's numbers are the run's."""
    folder = pretrained()
    of_run = pd.read_csv(folder / "predictions.csv", dtype={"ID": str}).set_index("ID")["mse"]
    first, second = (f"{small.corpus('emodb')}/wav/{name}.wav" for name in of_run.index[:2])
    assert cli(["decompose", str(folder), first, "--trust-run", f"--out={tmp_path / 'seen'}"]) == 0
    said = re.search(r"MSE (\S+)", capfd.readouterr().out).group(1)
    assert float(said) == pytest.approx(of_run.iloc[0], rel=1e-2)
    out = tmp_path / "converted"
    assert cli(["convert", str(folder), first, second, "--swap=timbre", f"--out={out}", "--audio", "--trust-run"]) == 0
    assert len(list(out.glob("*.wav"))) == 2 and len(list(out.glob("*.png"))) == 1


def test_no_emotion_is_needed_where_nothing_is_recognised(pretrained):
    found = json.loads((pretrained("--omega=0", "--test_every_epoch=True") / "metrics.json").read_text())
    assert found["kind"] == "pretraining" and set(found["selections"]) == {"last", "valid", "test"}
    assert "speaker_accuracy" not in found["selections"]["last"]["seen"]


def test_short_silent_and_unvoiced_recordings(train, tmp_path):
    """Shorter than a piece, without sound, without a voice: trained on and tested like the others."""
    rng, rows = np.random.default_rng(0), []
    for speaker in "abcd":
        for emotion in ("angry", "sad"):
            kinds = {"short": rng.normal(size=2_000), "silent": np.zeros(9_000), "noise": rng.normal(size=12_000)}
            kinds["silent"][rng.integers(9_000)] = 0.01  # a click: digital silence is refused
            kinds["voice"] = np.sin(np.arange(20_000) * 2 * np.pi * 140 / 16_000 + rng.uniform(0, 6))
            for kind, wav in kinds.items():
                name = f"{speaker}-{emotion}-{kind}.wav"
                soundfile.write(tmp_path / name, 0.1 * wav, 16_000)
                rows.append({"wav": name, "emotion": emotion, "speaker": speaker, "transcript": kind})
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    flags = ["--corpus=table", f"--data_folder={tmp_path}", "--fold=a"]
    folder = folder_of(train(*flags, yaml="hsu_pretrain"))
    found = metrics_of(train(*flags, f"--pretrained={folder}", "--batch_size=2", yaml="hsu_mtl"))
    assert found["selections"]["last"]["all"]["n"] == 8 and 0 < found["selections"]["last"]["all"]["MSE"] < 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--a_MSE=0.4", "--parts=[]", "--a_S=0"], "reconstruction needs encoders"),
        (["--emotion_reads=[single]"], "emotion_reads: single not among the parts"),
        (["--sizes={decoder: {untis: 3}}"], "sizes: decoder: .*untis"),
        (["--sizes={decodre: {units: 3}}"], "did you mean 'decoder'"),
        (["--sizes={pitch: {channels: 9}}"], "sizes: pitch"),
        (["--resampling={min_segment: 1}"], "min_segment"),
        (["--augment=!new:speechbrain.augment.time_domain.DropChunk"], "leave augment: null"),
    ],
)
def test_said_before_training(train, flags, said):
    flags = ["--pretrain=False", *flags]
    assert re.search(said, train(*flags, yaml="hsu_mtl", code=2))


ALONE = {"M1 (emotion alone)", "M2 (and ASR; Cai)"}


@pytest.mark.parametrize(
    "table, n_runs, parts, alone", [("hsu_table2", 12, [4, 4], set()), ("hsu_table3", 14, [1, 1, 4, 4], ALONE)]
)
def test_a_table_shares_each_kind_of_stage_1_within_a_fold(small, tmp_path, table, n_runs, parts, alone):
    lines = [f"--data_folder={small.corpus('emodb')}", "--corpus=emodb", f"--encoder={small.backbone()}"]
    lines += [f"--results_folder={tmp_path / 'results'}", "--folds=03,08"]
    table = ROOT / "hparams" / "tables" / f"{table}.yaml"
    runs = make_plans(read_arguments([str(table), *lines]), ROOT / "hparams")[0].runs
    stage_1 = [r for r in runs if r.setup.config.system == "hsu_pretrain"]
    assert len(runs) == n_runs and sorted(len(r.setup.config.plain["parts"]) for r in stage_1) == parts
    assert {r.name for r in runs if not r.needs} == {"hsu_pretrain", *alone}
