"""The Brain that recipes share, on a tiny convolutional encoder: steps, schedules, checkpoints, resuming."""

import functools
import itertools
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import speechbrain as sb
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.time_domain import DropChunk, SpeedPerturb
from speechbrain.utils.epoch_loop import EpochCounterWithStopper
from torch import nn
from transformers import get_linear_schedule_with_warmup

from recipes.cai_mtl.brain import CaiBrain
from speechbrain_ser.data.batches import AudioCache, StepSampler, length_sorted_batches, make_dataset, make_loader
from speechbrain_ser.data.labels import UNKNOWN
from speechbrain_ser.data.protocols import Fold
from speechbrain_ser.data.text import CharacterTokens
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import write_json
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.nnet.augment import WaveformAugmentation
from speechbrain_ser.nnet.losses import cross_entropy
from speechbrain_ser.nnet.pooling import MaskedPooling
from speechbrain_ser.processing.lengths import absolute_lengths, frame_mask
from speechbrain_ser.training.checkpoints import WholeCheckpointer
from speechbrain_ser.training.results import make_loggers
from speechbrain_ser.training.run import Run
from speechbrain_ser.training.signals import stop_wish

CLASSES = ["calm", "loud"]
TOKENS = CharacterTokens(["<blank>", "|", "A", "B"])
TEXTS = ["ab", "a b", "", "ba", "b"]
N_TRAIN, N_VALID, N_TEST = 11, 5, 6


class TinyEncoder(nn.Module):
    """One convolution, dropout, and nothing past an utterance's end."""

    output_size = 6

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.conv = nn.Conv1d(1, self.output_size, 400, stride=320)
        self.dropout = nn.Dropout(dropout)

    def frame_counts(self, n_samples):
        return (torch.as_tensor(n_samples) - 400) // 320 + 1

    def forward(self, wavs, wav_lens):
        z = self.dropout(self.conv(wavs[:, None]).relu()).transpose(1, 2)
        counts = self.frame_counts(torch.round(wav_lens.double() * wavs.shape[1]).long())
        return z * frame_mask(counts, z.shape[1])[:, :, None]


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """Noise of several lengths and loudnesses; the loud ones are 'loud'."""
    folder = tmp_path_factory.mktemp("wavs")
    rng = np.random.default_rng(0)
    rows = []
    for k in range(N_TRAIN + N_VALID + N_TEST):
        part = "train" if k < N_TRAIN else "valid" if k < N_TRAIN + N_VALID else "test"
        n, loud = int(rng.integers(4_000, 9_000)), k % 2
        path = folder / f"{part}{k:02d}.wav"
        soundfile.write(path, (0.05 + 0.3 * loud) * rng.uniform(-1, 1, n).astype("float32"), 16_000, "FLOAT")
        rows.append((f"{part}{k:02d}", str(path), n / 16_000, CLASSES[loud], "s", TEXTS[k % len(TEXTS)]))
    columns = ["ID", "wav", "duration", "emotion", "speaker", "transcript"]
    return pd.DataFrame(rows, [row[0] for row in rows], columns)


HEADS = {
    "emotion": functools.partial(nn.Linear, out_features=len(CLASSES)),
    "asr": functools.partial(nn.Linear, out_features=len(TOKENS)),
}


def make_model(encoder, alpha=0.1, seed=1) -> CaiModel:
    return CaiModel(encoder, MaskedPooling("mean"), HEADS, {"emotion": 1.0, "asr": alpha}, seed)


def make_brain(frame, folder, run_opts=None, model=None, **changes):
    """A CaiBrain with everything that run.build gives it."""
    options = {"alpha": 0.1, "micro": 4, "n_epochs": 2, "seed": 1, "dropout": 0.0, "valid": True, "batch_size": 4}
    options |= {"early_stopping": 10_000, "checkpointer": True, "brain_class": CaiBrain}
    options |= {"opt": functools.partial(torch.optim.AdamW, lr=0.01)}
    options.update({k: changes.pop(k) for k in list(changes) if k in options})
    o = SimpleNamespace(**options)
    folder.mkdir(parents=True, exist_ok=True)
    ids = {p: tuple(i for i in frame.index if i.startswith(p)) for p in ("train", "valid", "test")}
    fold = Fold("f", ids["train"], ids["valid"] if o.valid else (), (), ids["test"])
    sb.utils.seed.seed_everything(o.seed)
    model = model or make_model(TinyEncoder(o.dropout), o.alpha, o.seed)
    hparams = {
        "loss_weights": {"emotion": 1.0, "asr": o.alpha},
        "class_weights": None,
        "labels_of": [],
        "decoding": "greedy",
        "beam_size": 5,
        "tracker": None,
        "augment": None,
        "n_epochs": o.n_epochs,
        "lr_schedule": get_linear_schedule_with_warmup,
        "warmup": 0.1,
        "backbone_lr": None,
        "test_every_epoch": False,
        "max_grad_norm": 1.0,
        "nonfinite_patience": 0,
        "epoch_counter": EpochCounterWithStopper(o.n_epochs, o.early_stopping, 0, "max"),
    }
    assert not set(changes) - set(hparams), changes
    hparams.update(changes)
    run = Run(SimpleNamespace(plain=hparams), frame, fold, ["f"], folder, {})
    run.tokens = TOKENS if o.alpha else None
    sampler = StepSampler(run.part("train")["duration"], o.batch_size, o.micro, o.seed)
    cache, loaders = AudioCache(folder / "cache"), {"valid": None}
    for part in ("train", "valid", "test"):
        if len(rows := run.part(part)):
            dataset = make_dataset(rows, {"sig": cache}, run.labels, run.tokens and run.tokens.encode)
            in_steps = (sampler, sampler.micro_batches)
            planned = in_steps if part == "train" else (length_sorted_batches(rows["duration"], 3),)
            loaders[part] = make_loader(dataset, *planned)
    brain = o.brain_class(
        run=run,
        loaders=loaders,
        modules={"model": model},
        opt_class=o.opt,
        hparams=hparams,
        run_opts={"device": "cpu", "noprogressbar": True, **(run_opts or {})},
        checkpointer=WholeCheckpointer(folder / "save", {"model": model}) if o.checkpointer else None,
    )
    return SimpleNamespace(brain=brain, loaders=loaders, sampler=sampler, hparams=hparams, folder=folder)


def fit(run):
    run.brain.fit(run.hparams["epoch_counter"], run.loaders["train"], run.loaders["valid"])
    return run


def weights(run) -> dict:
    return {k: v.clone() for k, v in run.brain.modules.model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def record_before_steps(run, look) -> list:
    """What `look` sees of the Brain just before each optimiser step of a fit."""
    seen, original = [], run.brain.optimizers_step

    def record():
        seen.append(look(run.brain))
        original()

    run.brain.optimizers_step = record
    fit(run)
    return seen


class Killed(Exception):
    """A process that ends, in a test."""


def stop_after(brain, n_steps: int):
    """Let a brain die in the step after so many (whose checkpoints are written)."""
    original, count = brain._should_save_intra_epoch_ckpt, itertools.count()

    def count_steps(*args):
        if next(count) == n_steps:
            raise Killed
        return original(*args)

    brain._should_save_intra_epoch_ckpt = count_steps


def hand_made_loop(frame, run, n_epochs, lr, class_weights, clip):
    """Plain PyTorch: one padded-free forward pass an utterance, mean over each step's own count, SGD."""
    model = run.brain.modules.model
    ids = list(run.brain.run.fold.train)
    steps = []
    for epoch in range(1, n_epochs + 1):
        order = np.random.default_rng([1, epoch]).permutation(len(ids))
        steps += [order[i : i + 4] for i in range(0, len(order), 4)]
    total, n_warm = len(steps), round(0.1 * len(steps))
    for k, step in enumerate(steps):
        rate = lr * (k / n_warm if k < n_warm else (total - k) / (total - n_warm))
        loss = 0.0
        for index in step:
            row = frame.loc[ids[index]]
            wav = torch.from_numpy(soundfile.read(row["wav"], dtype="float32")[0])[None]
            out = model((wav, torch.ones(1)))
            c = CLASSES.index(row["emotion"])
            weight = 1.0 if class_weights is None else class_weights[c]
            loss = loss - weight * out["emotion"].log_softmax(-1)[0, c]
            target = torch.tensor([TOKENS.encode(row["transcript"])])
            log_probs = out["asr"].log_softmax(-1).transpose(0, 1)
            sizes = torch.tensor([log_probs.shape[0]]), torch.tensor([target.shape[1]])
            if row["transcript"]:  # else nobody knows what is said
                loss = loss + 0.1 * nn.functional.ctc_loss(log_probs, target.long(), *sizes, reduction="sum")
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss / len(step), parameters)
        if clip:
            norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
            gradients = [g * min(1.0, clip / norm) for g in gradients]
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= rate * g
    return weights(run)


@pytest.mark.parametrize("micro, clip", [(1, 0), (3, 0), (4, 0), (1, 0.05), (3, 0.05)])
@pytest.mark.parametrize("lines", [{}, {"backbone_lr": 0.5}, {"class_weights": {"calm": 1, "loud": 7}}], ids=str)
def test_training_equals_a_hand_made_loop_with_the_last_smaller_step(frame, tmp_path, micro, clip, lines):
    """11 utterances in steps of 4, 4 and 3: SpeechBrain would drop the 3, divide by 4, and clip one group alone."""
    options = dict(opt=functools.partial(torch.optim.SGD, lr=0.5), max_grad_norm=clip, valid=False, **lines)
    mine = fit(make_brain(frame, tmp_path / "mine", micro=micro, **options))
    assert mine.brain.optimizer_step == 2 * 3
    assert len(mine.brain.optimizer.param_groups) == (2 if "backbone_lr" in lines else 1)
    class_weights = mine.brain.class_weights
    theirs = hand_made_loop(frame, make_brain(frame, tmp_path / "theirs", **options), 2, 0.5, class_weights, clip)
    start = weights(make_brain(frame, tmp_path / "start", **options))
    for name, value in weights(mine).items():
        moved = (value - start[name]).abs().max()
        assert moved > 0
        assert (value - theirs[name]).abs().max() <= 1e-4 * moved, name


def test_backbone_lr_makes_groups_and_the_schedule_keeps_both_rates(frame, tmp_path):
    run = make_brain(frame, tmp_path, backbone_lr=0.001, n_epochs=10, valid=False)
    rates = record_before_steps(run, lambda brain: [g["lr"] for g in brain.optimizer.param_groups])
    names = {id(p): k for k, p in run.brain.modules.named_parameters()}
    groups = [{names[id(p)] for p in g["params"]} for g in run.brain.optimizer.param_groups]
    assert groups == [{k for k in names.values() if part in k} for part in ("heads", "model.encoder")]
    n, warm = 30, 3  # ten epochs of three steps, a tenth of them rising
    factors = [k / warm if k < warm else (n - k) / (n - warm) for k in range(n)]
    np.testing.assert_allclose(np.array(rates), np.outer(factors, [0.01, 0.001]), rtol=1e-9)
    history = pd.read_csv(run.folder / "epochs.csv")
    # the rate after an epoch's last step is the next step's; the logged one is the rest's, not the backbone's
    np.testing.assert_allclose(history["lr"][:-1], [0.01 * factors[3 * e] for e in range(1, 10)], rtol=1e-9)


def test_vectors_are_not_decayed_where_asked(frame, tmp_path):
    opt = functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.3)
    run = make_brain(frame, tmp_path, {"remove_vector_weight_decay": True}, opt=opt)
    run.brain.init_optimizers()
    decays = {p.ndim < 2: g["weight_decay"] for g in run.brain.optimizer.param_groups for p in g["params"]}
    assert decays == {True: 0.0, False: 0.3}


def test_bf16_runs_with_losses_in_float32(frame, tmp_path):
    run = make_brain(frame, tmp_path, {"precision": "bf16"}, n_epochs=1)
    kinds = []
    original = run.brain.weighted_sum

    def record(losses, *args):
        kinds.extend(loss.dtype for loss in losses.values())
        return original(losses, *args)

    run.brain.weighted_sum = record
    fit(run)
    assert set(kinds) == {torch.float32} and np.isfinite(pd.read_csv(run.folder / "epochs.csv")["train_loss"]).all()


def test_a_scaler_of_gradients_changes_nothing(frame, tmp_path):
    """fp16's, by a power of two, with two micro-batches a step; nothing overflows here."""
    plain = fit(make_brain(frame, tmp_path / "plain", micro=2))
    scaled = make_brain(frame, tmp_path / "scaled", micro=2)
    scaled.brain.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fit(scaled)
    assert scaled.brain.optimizer_step == 6 and same(weights(plain), weights(scaled))


def test_batch_statistics_are_refused_with_several_processes(frame, tmp_path, monkeypatch):
    run = make_brain(frame, tmp_path)
    run.brain.model.encoder.norm = nn.BatchNorm1d(6)
    run.brain._refuse_batch_statistics()
    monkeypatch.setattr("speechbrain_ser.training.distributed.world_size", lambda: 2)
    with pytest.raises(UserError, match=r"model\.encoder\.norm normalise over a batch"):
        run.brain._refuse_batch_statistics()


def test_nothing_left_to_train(frame, tmp_path):
    run = make_brain(frame, tmp_path)
    run.brain.modules.requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        run.brain.init_optimizers()


class Recorder(TinyEncoder):
    """Keeps the dropout masks and the batches it sees."""

    def __init__(self, dropout):
        super().__init__(dropout)
        self.seen = []

    def forward(self, wavs, wav_lens):
        z = super().forward(wavs, wav_lens)
        if self.training:
            self.seen.append((wavs.clone(), self.dropout(torch.ones(50))))
        return z


def recorded(frame, folder, alpha):
    sb.utils.seed.seed_everything(1)
    model = make_model(Recorder(0.5), alpha)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    return start, fit(make_brain(frame, folder, alpha=alpha, model=model, dropout=0.5))


def test_alpha_0_is_not_built_computed_or_logged_and_changes_no_random_draw(frame, tmp_path):
    start, mtl = recorded(frame, tmp_path / "mtl", 0.1)
    single_start, single = recorded(frame, tmp_path / "single", 0)
    assert {k for k in start if k not in single_start} == {"heads.asr.weight", "heads.asr.bias"}
    for name, value in single_start.items():
        assert torch.equal(value, start[name]), name
    pairs = list(zip(mtl.brain.modules.model.encoder.seen, single.brain.modules.model.encoder.seen, strict=True))
    assert len(pairs) == 2 * 3
    for (wav, mask), (single_wav, single_mask) in pairs:
        assert torch.equal(wav, single_wav) and torch.equal(mask, single_mask)
    assert single.brain.run.tokens is None and single.brain.decode is None
    columns = pd.read_csv(single.folder / "epochs.csv").columns
    assert not [c for c in columns if "asr" in c or "WER" in c or "loss_" in c]
    assert {"train_loss_asr", "train_loss_emotion", "valid_WER"} <= set(pd.read_csv(mtl.folder / "epochs.csv").columns)
    single.brain.evaluate(single.loaders["test"])
    assert "hypothesis" not in single.brain.predictions()


def test_epochs_and_predictions_agree_with_the_models_own_outputs(frame, tmp_path):
    run = fit(make_brain(frame, tmp_path, n_epochs=1))
    run.brain.evaluate(run.loaders["test"])
    found = run.brain.predictions()
    assert found["ID"].tolist() == sorted(i for i in frame.index if i.startswith("test"))
    model = run.brain.modules.model.eval()
    for row in found.itertuples():
        wav = torch.from_numpy(soundfile.read(frame.at[row.ID, "wav"], dtype="float32")[0])[None]
        with torch.no_grad():
            posterior = model((wav, torch.ones(1)))["emotion"].softmax(-1)[0]
        assert [row.posterior_calm, row.posterior_loud] == pytest.approx(posterior.tolist(), abs=1e-5)
        assert row.predicted == CLASSES[int(posterior.argmax())]
        assert row.emotion == frame.at[row.ID, "emotion"] and row.speaker == "s"
    epochs = pd.read_csv(run.folder / "epochs.csv")
    assert epochs["epoch"].tolist() == [1]
    assert epochs["train_loss"][0] == pytest.approx(
        epochs["train_loss_emotion"][0] + 0.1 * epochs["train_loss_asr"][0], rel=1e-6
    )
    assert np.array(json.loads(epochs["valid_confusion"][0])).sum() == N_VALID
    assert "epoch: 1" in (run.folder / "train_log.txt").read_text()


def test_test_every_epoch_leaves_training_bit_identical(frame, tmp_path):
    plain = fit(make_brain(frame, tmp_path / "plain", dropout=0.3, valid=False))
    tested = fit(make_brain(frame, tmp_path / "tested", dropout=0.3, valid=False, test_every_epoch=True))
    assert same(weights(plain), weights(tested))
    a, b = (pd.read_csv(r.folder / "epochs.csv") for r in (plain, tested))
    pd.testing.assert_frame_equal(a, b[a.columns])
    assert {"test_WA", "test_UA", "test_WER", "test_confusion"} <= set(b.columns)
    # the last epoch's figures are those of a test of the last checkpoint
    tested.brain.evaluate(tested.loaders["test"])
    predictions = tested.brain.predictions()
    assert b["test_WA"].iloc[-1] == (predictions["predicted"] == predictions["emotion"]).mean()


class GenderBrain(CaiBrain):
    def compute_objectives(self, predictions, batch, stage, **more):
        more["gender"] = cross_entropy(predictions["gender"], batch.gender)
        return super().compute_objectives(predictions, batch, stage, **more)


def test_a_further_label_is_trained_measured_and_written(frame, tmp_path):
    frame = frame.assign(text="", gender=np.resize(["M", "F", ""], len(frame)))  # of every third one it is not known
    heads = {**HEADS, "gender": functools.partial(nn.Linear, out_features=2)}
    loss_weights = {"emotion": 1.0, "asr": 0.1, "gender": 0.5}
    model = CaiModel(TinyEncoder(), MaskedPooling("mean"), heads, loss_weights)
    options = {"labels_of": ["gender"], "loss_weights": loss_weights, "brain_class": GenderBrain}
    run = fit(make_brain(frame, tmp_path, model=model, augment=augmenter(True), **options))
    assert run.brain.run.labels == {"emotion": CLASSES, "speaker": ["s"], "gender": ["F", "M"]}
    epochs = pd.read_csv(run.folder / "epochs.csv")
    parts = epochs[["train_loss_emotion", "train_loss_asr", "train_loss_gender"]].to_numpy() @ [1.0, 0.1, 0.5]
    np.testing.assert_allclose(epochs["train_loss"], parts, rtol=1e-6)
    run.brain.evaluate(run.loaders["test"])
    found = run.brain.table("test")
    assert set(found["gender_predicted"]) <= {"F", "M"} and found["gender"].tolist() == ["F", "", "M"] * 2
    accuracy = (found["gender"] == found["gender_predicted"])[found["gender"] != ""].mean()  # "": nobody knows
    assert run.brain.report({"test": found})["gender_accuracy"] == accuracy
    assert {"train_gender_accuracy", "valid_gender_accuracy"} <= set(epochs)


def augmenter(concat: bool) -> Augmenter:
    return Augmenter(
        concat_original=concat,
        min_augmentations=1,
        max_augmentations=1,
        augmentations=[DropChunk(drop_length_low=100, drop_length_high=200, drop_count_low=2, drop_count_high=2)],
    )


@pytest.mark.parametrize("concat", [False, True])
def test_augmenter_keeps_labels_with_their_waveforms(frame, tmp_path, concat):
    run = make_brain(frame, tmp_path, augment=augmenter(concat), n_epochs=1)
    seen = []
    original = run.brain.compute_forward

    def record(batch, stage):
        if stage == sb.Stage.TRAIN:
            seen.append((batch.sig[0].clone(), list(batch.id), batch.emotion.clone(), list(batch.tokens)))
        return original(batch, stage)

    run.brain.compute_forward = record
    fit(run)
    assert sum(len(ids) for _, ids, _, _ in seen) == N_TRAIN * (2 if concat else 1)
    for wavs, ids, emotions, tokens in seen:
        assert len(wavs) == len(ids) == len(emotions) == len(tokens)
        for wav, i, emotion, token in zip(wavs, ids, emotions, tokens, strict=True):
            assert CLASSES[int(emotion)] == frame.at[i, "emotion"]
            assert token.tolist() == (TOKENS.encode(frame.at[i, "transcript"]) or [UNKNOWN])
            own = torch.from_numpy(soundfile.read(frame.at[i, "wav"], dtype="float32")[0])
            kept = (wav[: len(own)] == own).float().mean()
            assert kept > 0.8  # this very recording, but for the dropped chunks


def test_augmenter_that_changes_lengths_and_skips(frame, tmp_path):
    augment = Augmenter(augment_prob=0.5, augmentations=[SpeedPerturb(16_000, speeds=[80, 125])])
    run = fit(make_brain(frame, tmp_path, augment=augment, n_epochs=3))
    assert run.brain.optimizer_step == 9


def heard_by_id(run) -> dict[tuple[int, str], torch.Tensor]:
    """What the model reads of each utterance in each epoch of a fit."""
    seen, original = {}, run.brain.compute_forward

    def record(batch, stage):
        if stage == sb.Stage.TRAIN:
            counts = absolute_lengths(*batch.sig).tolist()
            epoch = run.brain.hparams.epoch_counter.current
            seen.update({(epoch, i): wav[:n].clone() for i, wav, n in zip(batch.id, batch.sig[0], counts, strict=True)})
        else:
            for i, wav in zip(batch.id, batch.sig[0], strict=True):
                own = soundfile.read(run.brain.run.frame.at[i, "wav"], dtype="float32")[0]
                assert torch.equal(wav[: len(own)], torch.from_numpy(own))  # never changed
        return original(batch, stage)

    run.brain.compute_forward = record
    fit(run)
    return seen


def of_recordings(frame, seed: int = 1) -> WaveformAugmentation:
    """Speakers of their own, so that there are others who babble; no rooms, which need a package."""
    augment = WaveformAugmentation(room=0, speed=1.0, babble=0.5)
    augment.listen(frame[:N_TRAIN].assign(speaker=[f"s{k % 3}" for k in range(N_TRAIN)]), seed)
    return augment


def test_what_augmentation_makes_of_an_utterance_is_the_same_in_any_batch_and_new_every_epoch(frame, tmp_path):
    first, second = (
        heard_by_id(make_brain(frame, tmp_path / str(micro), augment=of_recordings(frame), n_epochs=2, micro=micro))
        for micro in (1, 4)
    )
    assert len(first) == 2 * N_TRAIN and first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    own = {i: torch.from_numpy(soundfile.read(frame.at[i, "wav"], dtype="float32")[0]) for _, i in first}
    assert all(not torch.equal(first[(epoch, i)], own[i]) for epoch, i in first)
    assert all(not torch.equal(first[(1, i)], first[(2, i)]) for i in own)
    other = of_recordings(frame, seed=2)(own["train00"], "train00", 1)
    assert not torch.equal(other, first[(1, "train00")])


def test_babble_is_of_others_in_training_alone(frame):
    augment = of_recordings(frame)
    heard = {i: [name for turn in range(20) for name in augment.heard(i, turn)] for i in frame.index[:N_TRAIN]}
    speaker = {i: f"s{k % 3}" for k, i in enumerate(frame.index)}
    for i, names in heard.items():
        assert names and all(name.startswith("train") and speaker[name] != speaker[i] for name in names)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_a_resumed_run_augments_as_an_uninterrupted_one(frame, tmp_path, n_steps):
    def make(folder, every):
        return make_brain(frame, folder, {"ckpt_interval_steps": every}, augment=of_recordings(frame), micro=2)

    whole, resumed = interrupted(make, tmp_path, n_steps, 1)
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    "given, said", [({"noise": 1.5}, "noise: expected a prob"), ({"room": True}, "room: expected a")]
)
def test_augmentation_that_cannot_be(given, said, monkeypatch):
    with pytest.raises(UserError, match=said):
        WaveformAugmentation(**given)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"speechbrain-ser\[rooms\].*room: 0"):
        WaveformAugmentation()


class Poisoned(TinyEncoder):
    """Gives NaN in training for the utterance whose first sample is the poison."""

    def forward(self, wavs, wav_lens):
        z = super().forward(wavs, wav_lens)
        return z * torch.where(wavs[:, 0] == self.poison, math.nan, 1.0)[:, None, None] if self.training else z


def poisoned(frame, folder, **options):
    torch.manual_seed(0)
    model = make_model(Poisoned())
    model.encoder.poison = float(soundfile.read(frame.at["train03", "wav"], dtype="float32")[0][0])
    return make_brain(frame, folder, model=model, **options)


def test_a_nonfinite_loss_stops_and_names_its_utterances(frame, tmp_path):
    run = poisoned(frame, tmp_path)
    with pytest.raises(UserError, match="train03") as caught:
        fit(run)
    assert "train02" not in str(caught.value)
    assert all(v.isfinite().all() for v in weights(run).values())


@pytest.mark.parametrize("micro", [1, 4])
def test_patience_skips_the_whole_step(frame, tmp_path, micro):
    """A tolerated batch leaves no trace: no weight, no statistic, no state of the optimiser becomes NaN."""
    run = poisoned(frame, tmp_path, nonfinite_patience=1, micro=micro, valid=False)

    def look(brain):
        gradients = [p.grad for p in brain.modules.parameters() if p.grad is not None]
        return weights(run), all(g.isfinite().all() for g in gradients)

    before, clean = zip(*record_before_steps(run, look), strict=True)
    states = [*before, weights(run)]
    assert all(v.isfinite().all() for v in states[-1].values())
    assert clean.count(False) == 2  # once an epoch
    # warm-up's very first step has rate 0 (0.1 of 6 steps is 1 step); the poisoned ones must not move either
    moved = [not same(a, b) for a, b in itertools.pairwise(states)]
    assert moved[1:] == list(clean[1:])
    epochs = pd.read_csv(run.folder / "epochs.csv")
    assert epochs[["train_loss", "train_loss_asr", "train_loss_emotion"]].notna().all(axis=None)


def interrupted(make, folder, stop, every: int):
    """A fit, and another one that dies (after so many steps, or in a method) and is started again."""
    whole, stopped = fit(make(folder / "whole", 0)), make(folder / "parts", every)

    def killed(*args, **kwargs):
        raise Killed

    if isinstance(stop, int):
        stop_after(stopped.brain, stop)
    else:
        setattr(stopped.brain, stop, killed)
    with pytest.raises(Killed):
        fit(stopped)
    return whole, fit(make(folder / "parts", every))


# 11 utterances: three steps an epoch; 0: a checkpoint an epoch, 1: every step
ENDS = [(stop, every, valid) for stop, every in ((4, 0), (1, 1), (2, 1), (4, 1), ("_log_epoch", 1)) for valid in (0, 1)]


@pytest.mark.parametrize("stop, every, valid", [*ENDS, ("_fit_valid", 1, True)])
def test_a_resumed_run_equals_an_uninterrupted_one(frame, tmp_path, stop, every, valid):
    def make(folder, every):
        options = dict(dropout=0.4, valid=valid, test_every_epoch=True, micro=2)
        return make_brain(frame, folder, {"ckpt_interval_steps": every}, **options)

    whole, resumed = interrupted(make, tmp_path, stop, every)
    assert same(weights(whole), weights(resumed))
    assert (whole.folder / "epochs.csv").read_bytes() == (resumed.folder / "epochs.csv").read_bytes()
    assert whole.brain.optimizer_step == resumed.brain.optimizer_step == 6


@pytest.mark.parametrize("micro", [1, 4])
def test_resumed_within_an_epoch_with_other_micro_batches(frame, tmp_path, micro):
    sizes = iter([2, 2, micro])

    def make(folder, every):
        return make_brain(frame, folder, {"ckpt_interval_steps": every}, n_epochs=1, micro=next(sizes))

    whole, resumed = interrupted(make, tmp_path, 2, 1)
    assert resumed.brain.optimizer_step == whole.brain.optimizer_step == 3
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, weights(whole)[name], rtol=1e-4, atol=1e-5)
    rows = [pd.read_csv(run.folder / "epochs.csv") for run in (whole, resumed)]
    pd.testing.assert_frame_equal(*rows, rtol=1e-4)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_a_resumed_wav2vec2_draws_the_same_masks_and_layers(frame, tmp_path, small, n_steps):
    """SpecAugment draws from NumPy, layerdrop and dropout from torch."""
    draws = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 3, "layerdrop": 0.4}

    def make(folder, every):
        encoder = Wav2Vec2(str(small.backbone(num_layers=2)), str(tmp_path), **draws)
        return make_brain(frame, folder, {"ckpt_interval_steps": every}, model=make_model(encoder), micro=2)

    whole, resumed = interrupted(make, tmp_path, n_steps, 1)
    assert same(weights(whole), weights(resumed))


def test_more_epochs_continue_a_run(frame, tmp_path):
    fit(make_brain(frame, tmp_path, n_epochs=1))
    run = make_brain(frame, tmp_path, n_epochs=3)
    rates = record_before_steps(run, lambda brain: brain.optimizer.param_groups[0]["lr"])
    assert pd.read_csv(run.folder / "epochs.csv")["epoch"].tolist() == [1, 2, 3]
    assert run.brain.optimizer_step == 9
    # the schedule of nine steps, one of them rising, from its fourth on
    assert rates == pytest.approx([0.01 * (9 - k) / 8 for k in range(3, 9)])


def test_a_wish_that_comes_while_others_are_asked_is_kept(frame, tmp_path, monkeypatch):
    brain = make_brain(frame, tmp_path).brain

    def gathered(number):
        monkeypatch.setattr(stop_wish, "number", 15)  # a signal, meanwhile
        return [number, None]

    monkeypatch.setattr("speechbrain_ser.training.distributed.gathered", gathered)
    monkeypatch.setattr(stop_wish, "number", None)
    assert [brain._is_end_wished(), stop_wish.number, brain._is_end_wished()] == [False, 15, True]


def test_augmentation_leaves_half_a_second_or_what_there_was(frame):
    augment = WaveformAugmentation(**dict.fromkeys(["speed", "edges"], 1), **dict.fromkeys(["room", "babble"], 0))
    augment.listen(frame, seed=1)
    for n in (400, 2400, 9000):
        found = {len(augment(torch.randn(n), "a", turn)) for turn in range(20)}
        assert min(found) >= min(n, 8000) and len(found) > 1


def test_evaluating_without_a_checkpoint_is_refused(frame, tmp_path):
    run = make_brain(frame, tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        run.brain.evaluate(run.loaders["test"])
    fit(run)
    with pytest.raises(UserError, match="test_score"):
        run.brain.evaluate(run.loaders["test"], max_key="test_score")


def test_a_kill_while_a_checkpoint_is_written_leaves_the_older_one(frame, tmp_path):
    run = fit(make_brain(frame, tmp_path, n_epochs=1))
    expected = weights(run)

    def killed(self, path):
        raise Killed

    checkpointer = run.brain.checkpointer  # of it this is written last: the folder and the other files are there
    checkpointer.add_recoverable("zzz_late", object(), custom_save_hook=killed)
    with pytest.raises(Killed):
        checkpointer.save_checkpoint(meta={"epoch": 2})
    half = list((tmp_path / "save").glob(".CKPT*"))
    assert len(half) == 1 and (half[0] / "model.ckpt").exists()
    again = make_brain(frame, tmp_path, n_epochs=1)
    again.brain.evaluate(again.loaders["test"])
    assert again.brain.tested_epoch == 1
    assert same(expected, weights(again))
    # and training goes on from it, the half one swept away
    more = fit(make_brain(frame, tmp_path, n_epochs=2))
    assert not list((tmp_path / "save").glob(".CKPT*"))
    assert pd.read_csv(more.folder / "epochs.csv")["epoch"].tolist() == [1, 2]


def test_last_is_the_last_whole_epoch(frame, tmp_path):
    options = dict(micro=2, run_opts={"ckpt_interval_steps": 1})
    stopped = make_brain(frame, tmp_path, **options)
    stop_after(stopped.brain, 3 + 2)
    with pytest.raises(Killed):
        fit(stopped)
    run = make_brain(frame, tmp_path, **options)
    run.brain.evaluate(run.loaders["test"])
    assert run.brain.tested_epoch == 1


def fake_scores(run, scores):
    """Let the valid part score what a test says, epoch by epoch."""
    remaining = list(scores)
    original = run.brain._figures

    def figures(part):
        found = original(part)
        if part == "valid":
            found["valid_WA"] = remaining.pop(0)
        return found

    run.brain._figures = figures


def test_the_best_validation_is_kept_and_a_tie_goes_to_the_earlier_epoch(frame, tmp_path):
    run = make_brain(frame, tmp_path, n_epochs=9, early_stopping=2)
    fake_scores(run, [0.2, 0.6, 0.6, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9])
    fit(run)
    assert pd.read_csv(run.folder / "epochs.csv")["epoch"].tolist() == [1, 2, 3, 4]  # stopped two after the best
    run.brain.evaluate(run.loaders["test"], max_key="valid_score")
    assert run.brain.tested_epoch == 2
    run.brain.evaluate(run.loaders["test"])
    assert run.brain.tested_epoch == 4
    assert len(list((tmp_path / "save").glob("CKPT*"))) == 3  # the best, the last and the one before it
    run.brain.checkpointer.keep_for_tests()
    assert {c.meta["epoch"] for c in run.brain.checkpointer.list_checkpoints()} == {2, 4}


def test_a_resumed_run_stops_where_it_would_have(frame, tmp_path):
    """And the number of epochs that it is asked for lengthens the training of one that has not stopped early."""
    scores = [0.6, 0.5, 0.55, 0.4, 0.4]
    for done, last in ((1, 4), (2, 4), (4, 4)):
        first = make_brain(frame, tmp_path / str(done), n_epochs=done, early_stopping=3)
        fake_scores(first, scores[:done])
        fit(first)
        resumed = make_brain(frame, tmp_path / str(done), n_epochs=5, early_stopping=3)
        fake_scores(resumed, scores[done:])
        fit(resumed)
        assert pd.read_csv(resumed.folder / "epochs.csv")["epoch"].tolist() == list(range(1, last + 1))


def test_a_file_has_no_bar_and_a_line_an_epoch(frame, tmp_path, capfd, caplog):
    run = fit(make_brain(frame, tmp_path, run_opts={"noprogressbar": False}))
    run.brain.evaluate(run.loaders["test"])
    assert "it/s" not in capfd.readouterr().err
    assert sum(record.getMessage().startswith("epoch: ") for record in caplog.records) == 2


META = {"epoch": 7, "lr": 0.1}
PARTS = {"train": {"loss": 1.5}, "valid": None, "test": {"WA": 0.25, "WER": 1}}


def test_tensorboard_counts_from_the_epoch_and_not_from_the_process(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, log = make_loggers(tmp_path, "tensorboard")
    log(META, PARTS)
    log({**META, "epoch": 8}, PARTS)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss/train")] == [(7, 1.5), (8, 1.5)]
    assert [e.step for e in found.Scalars("WA/test")] == [7, 8]


def test_wandb_has_one_run_that_says_what_it_is(tmp_path, monkeypatch):
    """Also of a training that was resumed, in a folder that has been moved."""
    calls, before, folder = [], tmp_path / "before", tmp_path.joinpath("cai_mtl", "emodb-speaker", "alpha=0", "03", "1")
    run = SimpleNamespace(log=lambda figures, step: calls.append((figures, step)))
    fake = SimpleNamespace(init=lambda **settings: calls.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    before.mkdir()
    write_json({"alpha": "0"}, before / "configuration.json")
    make_loggers(before, "wandb")
    folder.parent.mkdir(parents=True)
    before.rename(folder)
    _, log = make_loggers(folder, "wandb")
    log(META, PARTS)
    first, second, logged = calls
    assert second["id"] == first["id"] and len(second["id"]) == 32 and second["resume"] == "allow"
    assert {key: second[key] for key in ("dir", "name", "group", "config")} == {
        "dir": folder,
        "name": "alpha=0 03 1",
        "group": "cai_mtl/emodb-speaker/alpha=0",
        "config": {"alpha": "0"},
    }
    assert logged == ({"train": {"loss": 1.5}, "test": PARTS["test"], **META}, 7)
