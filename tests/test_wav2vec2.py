"""The wav2vec2 lobe: parity with the published program, padding, every switch, every error; tiny backbones."""

import copy
import json
import pickle
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, HubertConfig, HubertModel

from speechbrain_ser.lobes import backbone
from speechbrain_ser.lobes import wav2vec2 as module
from speechbrain_ser.lobes.backbone import UserError, check_backbone, fingerprint
from speechbrain_ser.lobes.encoder import Encoder
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.nnet import convolution
from speechbrain_ser.nnet.augment import span_mask
from speechbrain_ser.nnet.convolution import convolve_in_pieces
from speechbrain_ser.processing.lengths import frame_mask

TOLERANCE = 1e-4
LENGTHS = torch.tensor([6000, 11123, 400, 8007])  # the shortest gives one frame

GROUP, LAYER = ("wav2vec2", "group", False), ("wav2vec2", "layer", True)
DATA2VEC, WAVLM = ("data2vec-audio", "layer", False), ("wavlm", "group", False)
KINDS = [
    GROUP,
    LAYER,
    ("wav2vec2", "layer", False),
    ("hubert", "group", False),
    ("hubert", "layer", True),
    WAVLM,
    ("wavlm", "layer", True),
    DATA2VEC,
]
WHISPER = ("whisper", "layer", False)  # test_whisper.py has what is its own
every_family = pytest.mark.parametrize("kind", [*KINDS, WHISPER], ids=lambda kind: "-".join(map(str, kind)))
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
both_front_ends = pytest.mark.parametrize("kind", [GROUP, LAYER], ids=["group", "layer"])

# pytest replaces the filter that the lobe's module sets
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function: kind -> folder of a tiny backbone, built once."""
    root = tmp_path_factory.mktemp("backbones")

    def build(kind) -> str:
        model_type, norm, stable = kind
        kinds = {"model_type": model_type, "feat_extract_norm": norm, "do_stable_layer_norm": stable}
        sizes = {"hidden_size": 16, "num_layers": 2, "conv_dim": 8, "num_heads": 2, "intermediate_size": 24}
        return str(build_tiny_wav2vec2(root / f"{model_type}-{norm}-{stable}", **kinds, **sizes))

    return build


@pytest.fixture(scope="module")
def batch() -> SimpleNamespace:
    """Four noises of different length, level and offset, and padding that is not even silent."""
    random = torch.Generator().manual_seed(0)
    wavs = torch.randn(len(LENGTHS), int(LENGTHS.max()), generator=random)  # [batch, time]
    wavs = wavs * torch.tensor([0.1, 1.0, 0.5, 0.01])[:, None] + 0.02
    singles = [wavs[i : i + 1, :length] for i, length in enumerate(LENGTHS)]
    return SimpleNamespace(wavs=wavs, lens=LENGTHS / LENGTHS.max(), singles=singles)


@pytest.fixture(params=["one by one", "together", "elsewhere"])
def front_end(request, monkeypatch):
    """Without gradients utterances go through the front end alone and in pieces on a CPU, elsewhere as a batch."""
    if request.param != "one by one":
        monkeypatch.setattr(module, "_one_by_one", lambda wavs: False)
    if request.param == "elsewhere":
        not_on_a_cpu(monkeypatch)
    monkeypatch.setattr(module, "convolve_in_pieces", partial(convolve_in_pieces, piece=7))


def not_on_a_cpu(monkeypatch) -> None:
    """The front end's layers compute as on any other device."""
    monkeypatch.setattr(convolution, "as_matrix_product", lambda hidden: False)


either_way = pytest.mark.usefixtures("front_end")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def published_input(wav: torch.Tensor) -> torch.Tensor:
    return (wav - wav.mean()) / (wav.var(correction=0) + 1e-7).sqrt()


def padding_error(lobe: Wav2Vec2, batch: SimpleNamespace) -> float:
    """Largest relative error of a padded batch against its utterances alone."""
    with torch.no_grad():
        out = lobe(batch.wavs, batch.lens)
        singles = [lobe(wav)[0] for wav in batch.singles]
    return max(relative_error(out[i, : len(single)], single) for i, single in enumerate(singles))


@either_way
@every_family
def test_padded_batch_gives_the_singles(folder, batch, kind):
    assert padding_error(Encoder(folder(kind)).eval(), batch) < TOLERANCE


@either_way
@every_kind
def test_single_is_what_transformers_gives(folder, batch, kind):
    """Without padding nothing of the lobe's own takes part: the model is the published one."""
    lobe = Wav2Vec2(folder(kind)).eval()
    model = AutoModel.from_pretrained(folder(kind)).eval()
    wav = batch.singles[1]
    with torch.no_grad():
        assert relative_error(lobe(wav), model(published_input(wav)).last_hidden_state) < 1e-5


@every_family
def test_past_the_end_is_zero(folder, batch, kind):
    lobe = Encoder(folder(kind))
    for lobe_in_mode in (lobe.train(), lobe.eval()):
        out = lobe_in_mode(batch.wavs, batch.lens)
        own = frame_mask(lobe.frame_counts(LENGTHS), out.shape[1])
        assert (out[~own] == 0).all()
        assert (out[own] != 0).any(dim=-1).all()


@either_way
def test_hubert_with_batch_norm(batch, tmp_path):
    """Some HuBERT checkpoints normalise before the positional convolution, which lifts zeros."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = HubertConfig(**sizes, conv_dim=[8] * 7, conv_pos_batch_norm=True)
    model = HubertModel(config)
    torch.nn.init.normal_(model.encoder.pos_conv_embed.batch_norm.bias)
    torch.nn.init.normal_(model.encoder.pos_conv_embed.batch_norm.running_mean)
    model.save_pretrained(tmp_path)
    lobe = Wav2Vec2(str(tmp_path), apply_spec_augment=False, dropout=0.0).eval()
    assert padding_error(lobe, batch) < TOLERANCE
    wav = batch.singles[0]
    with torch.no_grad():
        assert relative_error(lobe(wav), model.eval()(published_input(wav)).last_hidden_state) < 1e-5
    # running statistics leave padding out: more of it changes nothing
    longer = F.pad(batch.wavs, (0, 5000))
    twin = copy.deepcopy(lobe).train()
    lobe.train()(batch.wavs, batch.lens)
    twin(longer, LENGTHS / longer.shape[1])
    norms = [m.model.encoder.pos_conv_embed.batch_norm.running_var for m in (lobe, twin)]
    torch.testing.assert_close(*norms)


@both_front_ends
def test_the_front_end_learns_as_on_other_devices(folder, batch, kind, monkeypatch):
    """A CPU computes its convolutions, their gradients and the group norm in ways of its own."""
    lobe = Wav2Vec2(folder(kind), apply_spec_augment=False, dropout=0.0).train()
    parameters = list(lobe.model.feature_extractor.parameters())
    random = torch.Generator().manual_seed(2)
    weight = torch.randn(lobe(batch.wavs, batch.lens).shape, generator=random)

    def gradients() -> list[torch.Tensor]:
        return torch.autograd.grad((lobe(batch.wavs, batch.lens) * weight).sum(), parameters)

    found = gradients()
    not_on_a_cpu(monkeypatch)
    assert all(relative_error(*pair) < TOLERANCE for pair in zip(found, gradients(), strict=True))


@every_family
def test_gradients_of_a_batch_are_the_sum_of_the_singles(folder, batch, kind):
    lobe = Encoder(folder(kind), apply_spec_augment=False, dropout=0.0).train()
    random = torch.Generator().manual_seed(2)
    counts = lobe.frame_counts(LENGTHS)
    weights = torch.randn(len(LENGTHS), int(counts.max()), lobe.output_size, generator=random)

    def gradients(runs) -> dict:
        lobe.zero_grad()
        for out, weight in runs:
            (out * weight[: out.shape[0], : out.shape[1]]).sum().backward()
        return {n: p.grad.clone() for n, p in lobe.named_parameters() if p.requires_grad}

    together = gradients([(lobe(batch.wavs, batch.lens), weights)])
    alone = gradients((lobe(wav), weights[i : i + 1]) for i, wav in enumerate(batch.singles))
    largest = max(gradient.abs().max().item() for gradient in alone.values())
    for name, gradient in alone.items():
        # a bias of the attention's keys has no gradient but rounding
        tolerance = TOLERANCE * gradient.abs().max().item() + 1e-6 * largest
        torch.testing.assert_close(together[name], gradient, rtol=0, atol=tolerance, msg=lambda t, n=name: f"{n}: {t}")


def test_frame_counts_are_those_of_the_encoder(folder):
    lobe = Wav2Vec2(folder(GROUP)).eval()
    lengths = [400, 719, 720, 16000, 16079, 16080]
    found = [lobe(torch.randn(1, length)).shape[1] for length in lengths]
    assert lobe.frame_counts(torch.tensor(lengths)).tolist() == found == [1, 1, 2, 49, 49, 50]
    assert lobe.frame_counts(torch.tensor([399, 0])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("wavs", "lens", "message"),
    [
        ((2, 1, 800), [1.0, 1.0], r"expected wavs \[batch, time\] and wav_lens \[batch\]"),
        ((2, 800), [1.0, 1.0, 1.0], r"expected wavs \[batch, time\] and wav_lens \[batch\]"),
        ((2, 800), [[1.0, 1.0]] * 2, r"expected wavs \[batch, time\] and wav_lens \[batch\]"),
        ((3, 800), [399 / 800, 1.0, 20 / 800], r"utterance 0 has 399 samples, utterance 2 has 20 .* 400 samples"),
    ],
)
def test_batches_that_cannot_be_encoded(folder, wavs, lens, message):
    with pytest.raises(ValueError, match=message):
        Wav2Vec2(folder(GROUP))(torch.zeros(wavs), torch.tensor(lens))


def copy_without(source: str, target: Path, *names: str) -> Path:
    shutil.copytree(source, target)
    for name in names:
        (target / name).unlink()
    return target


def test_normalize_wav(folder, batch, tmp_path):
    """As the preprocessor says, yes without one, and the argument overrides."""
    bare = copy_without(folder(GROUP), tmp_path / "bare", "preprocessor_config.json")
    off = copy_without(folder(GROUP), tmp_path / "off")
    change_json(off / "preprocessor_config.json", do_normalize=False)
    assert [Wav2Vec2(str(path)).normalize_wav for path in (folder(GROUP), bare, off)] == [True, True, False]
    assert not Wav2Vec2(str(bare), normalize_wav=False).normalize_wav
    nested = shutil.copytree(off, tmp_path / "as transformers 5 writes it")
    (nested / "processor_config.json").write_text('{"feature_extractor": {"do_normalize": false}}')
    (nested / "preprocessor_config.json").unlink()
    assert not Wav2Vec2(str(nested)).normalize_wav
    known = [fingerprint(path) for path in (folder(GROUP), bare, off, nested)]
    assert known[0] == known[1] != known[2] == known[3] == f"{known[0]}, do_normalize: False"
    raw, normalized = Wav2Vec2(str(off)).eval(), Wav2Vec2(str(off), normalize_wav=True).eval()
    assert padding_error(raw, batch) < TOLERANCE
    for grad in (False, True):  # two ways through the front end
        with torch.set_grad_enabled(grad):
            loud, quiet = normalized(batch.wavs[:, :800]), normalized(batch.wavs[:, :800] * 0.5)
            assert relative_error(loud, quiet) < 1e-2 < relative_error(raw(batch.wavs[:, :800]), loud)
            assert normalized(torch.zeros(2, 800)).isfinite().all()


@every_kind
def test_fixed_weights_change_nothing(folder, batch, kind):
    lobe = Wav2Vec2(folder(kind)).eval()
    with torch.no_grad():
        exact = lobe(batch.wavs, batch.lens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = lobe(batch.wavs, batch.lens)
        lobe.fix_weights()
        assert torch.equal(lobe(batch.wavs, batch.lens), exact)
        lobe.fix_weights(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(lobe(batch.wavs, batch.lens), rough)
    assert relative_error(rough.float(), exact) < 0.05
    layer = lobe.model.encoder.layers[0].feed_forward.intermediate_dense
    assert layer.weight.dtype == torch.bfloat16 and "parametrizations" not in " ".join(lobe.state_dict())


@pytest.mark.parametrize("kind", [GROUP, WHISPER], ids=["wav2vec2", "whisper"])
def test_freeze(folder, batch, kind):
    lobe = Encoder(folder(kind), freeze=True, dropout=0.5, layerdrop=0.5).train()
    first, second = lobe(batch.wavs, batch.lens), lobe(batch.wavs, batch.lens)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in lobe.parameters())
    assert lobe.training
    assert not any(part.training for part in lobe.model.modules())


@every_kind
def test_freeze_feature_extractor(folder, batch, kind):
    """By our setting, or as SpeechBrain's IEMOCAP recipe does it (freeze_wav2vec2_conv)."""
    ours, theirs = Wav2Vec2(folder(kind), freeze_feature_extractor=True), Wav2Vec2(folder(kind))
    theirs.model.feature_extractor._freeze_parameters()
    for lobe in (ours, theirs):
        lobe.train()(batch.wavs, batch.lens).square().sum().backward()
        with_gradient = {name for name, parameter in lobe.named_parameters() if parameter.grad is not None}
        assert {name for name, p in lobe.named_parameters() if p.requires_grad} == with_gradient
        assert with_gradient == {n for n, _ in lobe.named_parameters() if not n.startswith("model.feature_extractor.")}
        assert lobe.model.encoder.training
    assert not ours.model.feature_extractor.training


@pytest.mark.parametrize("norm", [GROUP, LAYER, DATA2VEC])
def test_the_front_ends_output_may_come_from_elsewhere(folder, batch, norm):
    """Computed alone, kept and padded again: the lobe gives and learns the same."""
    lobe = Wav2Vec2(folder(norm), freeze_feature_extractor=True, cache_front_end=True, apply_spec_augment=False).eval()
    kept = [lobe.features.extract(wav[0]) for wav in batch.singles]
    counts = torch.tensor([len(features) for features in kept])
    assert counts.tolist() == lobe.frame_counts(LENGTHS).tolist()
    padded = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=7.0)
    found, expected = lobe(padded, counts / counts.max()), lobe(batch.wavs, batch.lens)
    assert relative_error(found.detach(), expected.detach()) < TOLERANCE
    gradients = [torch.autograd.grad(out.square().sum(), lobe.model.encoder.parameters()) for out in (found, expected)]
    flat = [torch.cat([g.flatten() for g in each]) for each in gradients]
    assert relative_error(*flat) < TOLERANCE
    settings = lobe.features.settings
    assert settings == Wav2Vec2(folder(norm), freeze=True, cache_front_end=True).features.settings
    with torch.no_grad():
        next(lobe.model.feature_extractor.parameters()).add_(1e-3)
    assert lobe.features.settings != settings


def encoder_input(lobe: Wav2Vec2, wavs: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
    """Hidden states as they enter the transformer [batch, frames, channels]."""
    seen = []
    hook = lobe.model.encoder.register_forward_pre_hook(lambda encoder, args: seen.append(args[0].detach().clone()))
    lobe(wavs, lens)
    hook.remove()
    return seen[0]


@every_kind
def test_spec_augment_masks_own_frames_in_training_only(folder, batch, kind):
    lobe = Wav2Vec2(folder(kind), dropout=0.0, mask_time_prob=0.4)
    counts = lobe.frame_counts(LENGTHS)
    clean = encoder_input(lobe.eval(), batch.wavs, batch.lens)
    np.random.seed(0)  # noqa: NPY002
    augmented = encoder_input(lobe.train(), batch.wavs, batch.lens)
    masked = (augmented == lobe.model.masked_spec_embed).all(dim=-1)  # [batch, frames]
    torch.testing.assert_close(augmented[~masked], clean[~masked], rtol=1e-4, atol=1e-5)
    assert not (masked & ~frame_mask(counts, masked.shape[1])).any()
    assert masked.sum(dim=1)[counts >= 10].min() >= 10
    assert masked.sum(dim=1)[counts < 10].max() == 0


def test_channel_masks(folder, batch):
    lobe = Wav2Vec2(folder(GROUP), dropout=0.0, mask_time_prob=0.0, mask_feature_prob=0.5, mask_feature_length=4)
    zeroed = (encoder_input(lobe.train(), batch.wavs, batch.lens) == 0).all(dim=1)  # [batch, channels]
    assert (zeroed.sum(dim=1) >= 4).all() and not zeroed.all(dim=1).any()


@pytest.mark.parametrize("settings", [{}, {"apply_spec_augment": False}, {"mask_time_prob": 0.0}])
@both_front_ends
def test_whatever_wants_a_gradient_gets_one(folder, batch, kind, settings):
    """Or DistributedDataParallel waits for ever; with clips too short to mask as well."""
    for wavs in (batch.wavs, batch.wavs[:, :1600]):
        lobe = Wav2Vec2(folder(kind), **settings).train()
        lobe(wavs).square().sum().backward()
        without = [name for name, p in lobe.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
        assert lobe.model.masked_spec_embed.requires_grad == (not settings)


def test_span_mask_statistics():
    np.random.seed(0)  # noqa: NPY002
    counts = np.tile([400, 100, 19, 10, 9], 200)
    mask = span_mask(counts, 400, prob=0.05, length=10, min_spans=2)
    assert not (mask & (np.arange(400) >= counts[:, None])).any()
    by_length = mask.sum(axis=1).reshape(-1, 5)
    assert set(by_length[:, 4]) == {0} and set(by_length[:, 3]) == set(by_length[:, 2]) == {10}  # one span fits
    assert by_length[:, 1].min() >= 11 and by_length[:, 1].max() == 20  # two spans, that may overlap
    many = span_mask(np.full(500, 400), 400, prob=0.05, length=10)
    assert 0.045 < many.mean() < 0.05  # an upper bound, because spans may overlap


def test_dropout_and_layerdrop_reach_the_model(folder, batch):
    settings = {"source": folder(GROUP), "dropout": 0.3, "layerdrop": 1.0, "apply_spec_augment": False}
    lobe = Wav2Vec2(**settings).train()
    assert {part.p for part in lobe.model.modules() if isinstance(part, torch.nn.Dropout)} == {0.3}
    assert lobe.model.encoder.layers[0].attention.dropout == 0.3
    kept = Wav2Vec2(folder(GROUP))
    assert {part.p for part in kept.model.modules() if isinstance(part, torch.nn.Dropout)} == {0.1}
    # every layer is skipped in training: gradients stop before them, and all states are the first
    lobe(batch.wavs, batch.lens).square().sum().backward()
    assert all(parameter.grad is None for parameter in lobe.model.encoder.layers.parameters())
    assert lobe.model.feature_projection.projection.weight.grad is not None
    settings["dropout"] = 0.0
    summed, last = Wav2Vec2(**settings, weighted_sum=True).train(), Wav2Vec2(**settings).train()
    torch.testing.assert_close(summed(batch.wavs, batch.lens), last(batch.wavs, batch.lens))


@every_family
def test_gradient_checkpointing_gives_the_same_gradients(folder, batch, kind):
    def run(on: bool) -> tuple[dict, int]:
        lobe = Encoder(folder(kind), gradient_checkpointing=on).train()
        calls, layer = [], lobe.transformer.layers[1]
        (layer.fc1 if kind == WHISPER else layer.feed_forward).register_forward_pre_hook(lambda *_: calls.append(1))
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        first, second = lobe(batch.wavs[:2], batch.lens[:2]), lobe(batch.wavs[2:], batch.lens[2:])
        (first.square().sum() + second.square().sum()).backward()
        return {name: p.grad for name, p in lobe.named_parameters()}, len(calls)

    (plain, once), (recomputed, twice) = run(False), run(True)
    assert (once, twice) == (2, 4)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("kind", [GROUP, ("hubert", "layer", True), DATA2VEC, WHISPER], ids=lambda kind: kind[0])
def test_attention_implementations_agree(folder, batch, kind):
    outputs = {}
    for name in ("eager", "sdpa"):
        lobe = Encoder(folder(kind), attn_implementation=name).eval()
        assert lobe.model.config._attn_implementation == name
        with torch.no_grad():
            outputs[name] = lobe(batch.wavs, batch.lens)
    assert relative_error(outputs["sdpa"], outputs["eager"]) < TOLERANCE


@every_kind
def test_weighted_sum_starts_as_the_mean_of_all_states(folder, batch, kind):
    lobe = Wav2Vec2(folder(kind), weighted_sum=True).eval()
    assert lobe.layer_weights.shape == (3,)
    assert padding_error(lobe, batch) < TOLERANCE
    wav = batch.singles[0]
    model = AutoModel.from_pretrained(folder(kind)).eval()
    with torch.no_grad():
        out = model(published_input(wav), output_hidden_states=True)
        # transformers gives the last before the final layer norm, where there is one; SUPERB takes it after
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        assert relative_error(lobe(wav), torch.stack(states).mean(dim=0)) < 1e-5
        lobe.layer_weights.copy_(torch.tensor([-99.0, -99.0, 99.0]))
        assert relative_error(lobe(wav), out.last_hidden_state) < 1e-5


def test_weighted_sum_is_learned_on_a_frozen_encoder(folder, batch):
    lobe = Wav2Vec2(folder(GROUP), weighted_sum=True, freeze=True).train()
    lobe(batch.wavs, batch.lens).square().sum().backward()
    assert lobe.layer_weights.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in lobe.model.parameters())


def test_output_norm(folder, batch):
    lobe = Wav2Vec2(folder(LAYER), output_norm=True).eval()
    assert padding_error(lobe, batch) < TOLERANCE
    own = lobe(batch.wavs, batch.lens)[0, :18]
    torch.testing.assert_close(own.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(own.var(correction=0), torch.tensor(1.0), rtol=0, atol=1e-3)


@every_family
def test_bfloat16_autocast(folder, batch, kind):
    lobe = Encoder(folder(kind), dropout=0.0, apply_spec_augment=False).train()
    exact = lobe(batch.wavs, batch.lens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = lobe(batch.wavs, batch.lens)
    assert relative_error(rough.float(), exact) < 0.1
    rough.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in lobe.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GROUP, {"mask_time_prob": 1.5}, "mask_time_prob is 1.5, expected 0 to 1"),
        (GROUP, {"dropout": -0.1}, "dropout is -0.1, expected"),
        (GROUP, {"layerdrop": 2}, "layerdrop is 2, expected"),
        (GROUP, {"mask_time_length": 0}, "mask_time_length is 0, expected"),
        (GROUP, {"mask_feature_prob": 0.1, "mask_feature_length": 17}, "length is 17: the encoder has 16 channels"),
        (GROUP, {"freeze_layers": 2}, "freeze_layers is 2, expected 0 to 1"),
        (GROUP, {"cache_front_end": True}, "cache_front_end: expected a front end that is not trained"),
        (GROUP, {"cache_embeddings": True}, "cache_embeddings: expected an encoder that is not trained"),
        (GROUP, {"attn_implementation": "sdp"}, "is 'sdp': expected one of eager, sdpa, flash_attention_2"),
        (WAVLM, {"attn_implementation": "sdpa"}, "cannot be loaded: WavLMModel does not support"),
        (GROUP, {"frieze": True}, "frieze"),
    ],
)
def test_settings_out_of_range(folder, kind, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Wav2Vec2(folder(kind), **settings)


@every_kind
def test_parameters_keep_transformers_names(folder, kind, tmp_path):
    """A checkpoint of the lobe goes into transformers' model and back."""
    lobe = Wav2Vec2(folder(kind))
    model = AutoModel.from_pretrained(folder(kind))
    own = {name.removeprefix("model."): value for name, value in lobe.state_dict().items()}
    assert model.load_state_dict(own).missing_keys == []
    assert set(own) == set(model.state_dict())


def test_loading_is_silent_and_draws_nothing(folder, capfd):
    states = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    Wav2Vec2(folder(GROUP))
    assert capfd.readouterr().err == ""
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == states[1]  # noqa: NPY002


def test_pytorch_weights_of_a_fine_tuned_checkpoint(folder, batch, tmp_path):
    """As published: prefix, CTC head, quantizer, old names of the weight norm, no masked_spec_embed."""
    target = copy_without(folder(GROUP), tmp_path / "ctc", "model.safetensors")
    weights = load_file(Path(folder(GROUP)) / "model.safetensors")
    del weights["masked_spec_embed"]
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, name in old.items():
        weights = {key.replace(new, name): value for key, value in weights.items()}
    published = {f"wav2vec2.{key}": value for key, value in weights.items()}
    published |= {"lm_head.weight": torch.zeros(32, 16), "quantizer.codevectors": torch.zeros(1, 2, 3)}
    torch.save(published, target / "pytorch_model.bin")
    found, expected = Wav2Vec2(str(target)).eval(), Wav2Vec2(folder(GROUP)).eval()
    assert torch.equal(found(batch.wavs, batch.lens), expected(batch.wavs, batch.lens))


def test_weights_that_do_not_fit(folder, tmp_path):
    target = copy_without(folder(GROUP), tmp_path / "changed")
    weights = load_file(target / "model.safetensors")
    del weights["encoder.layer_norm.bias"]
    weights["feature_projection.projection.bias"] = torch.zeros(5)
    weights["encoder.layers.2.layer_norm.bias"] = torch.zeros(16)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    missing, other = "missing: encoder.layer_norm.bias", r"size: feature_projection.*bias is \[5\], expected \[16\]"
    extra = "not in the configuration: encoder.layers.2.layer_norm.bias"
    with pytest.raises(UserError, match=f"{target}.*{missing}.*{other}.*{extra}"):
        Wav2Vec2(str(target))


@pytest.fixture
def no_hub(monkeypatch):
    """The hub is out of reach, and the user's own cache empty."""

    def fail(*_, **__):
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(backbone.huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(backbone.huggingface_hub, "snapshot_download", fail)


def both_raise(source, message: str, **settings) -> None:
    """The early check and the lobe say the same."""
    for use in (check_backbone, Wav2Vec2):
        with pytest.raises(UserError, match=message):
            use(source, **settings)


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / WEIGHTS).unlink(), r"lacks the weights \(.*\): expected config.json .*, found config.json, "),
        (lambda f: (f / CONFIG).unlink(), "lacks config.json: expected .*, found model.safetensors"),
        (lambda f: [file.unlink() for file in f.iterdir()], "lacks config.json and the weights.*found an empty folder"),
        (lambda f: change_json(f / CONFIG, model_type="bert"), "model type 'bert': expected one of wav2vec2, hubert, "),
        (lambda f: change_json(f / CONFIG, add_adapter=True), "adapter"),
        (lambda f: (f / CONFIG).write_text("{"), "config.json: expected JSON"),
        (lambda f: change_json(f / PREPROCESSOR, sampling_rate=8000), "8000 Hz: only 16000 Hz is supported"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]), "damaged or half-copied"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), "is empty: copy it again"),
        (lambda f: (f / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    ],
)
def test_folders_that_cannot_be_used(folder, tmp_path, change, message):
    target = copy_without(folder(GROUP), tmp_path / "folder")
    change(target)
    both_raise(str(target), f"{target}.*{message}|{message}.*{target}")


def test_weights_that_are_no_tensors(folder, tmp_path):
    target = copy_without(folder(GROUP), tmp_path / "folder")
    (target / WEIGHTS).rename(target / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match=f"backbone {target} cannot be loaded"):
        Wav2Vec2(str(target))


NO_FOLDER = "backbone folder .* does not exist: expected a folder with config.json and model.safetensors"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *((name, NO_FOLDER) for name in ("/nowhere/at/all", "./nowhere", "~/no-such-folder", "a/b/c", "nowhere/")),
        (__file__, "is a file: expected a folder"),
        ("", "backbone is empty"),
        ("some/model", r"is no local folder, and the hub .*not known\)\. .* give a local folder with config"),
    ],
)
def test_what_is_no_folder(no_hub, tmp_path, source, message):
    both_raise(source, message, save_path=str(tmp_path))


def test_sharded_weights(folder, batch, tmp_path):
    target = copy_without(folder(GROUP), tmp_path / "shards", "model.safetensors")
    AutoModel.from_pretrained(folder(GROUP)).save_pretrained(target, max_shard_size="20KB")
    lobe = Wav2Vec2(str(target)).eval()
    assert torch.equal(lobe(batch.wavs), Wav2Vec2(folder(GROUP)).eval()(batch.wavs))
    shard = sorted(target.glob("model-*.safetensors"))[1]
    shard.unlink()
    both_raise(str(target), f"names weights that are not there: {shard.name}")


def test_hub_model_is_fetched_once(folder, batch, monkeypatch, tmp_path):
    there = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "preprocessor_config.json"]
    asked = []

    def model_info(self, name, **_):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file, size=9) for file in there])

    def snapshot_download(name, cache_dir, allow_patterns):
        asked.append(allow_patterns)
        repository = Path(cache_dir) / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        return shutil.copytree(folder(GROUP), repository / "snapshots" / "abc")

    monkeypatch.setattr(backbone.huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(backbone.huggingface_hub, "snapshot_download", snapshot_download)
    assert check_backbone("some/model", tmp_path) == {}
    assert asked == []
    for _ in range(2):
        lobe = Wav2Vec2("some/model", str(tmp_path)).eval()
        assert torch.equal(lobe(batch.wavs), Wav2Vec2(folder(GROUP)).eval()(batch.wavs))
    assert asked == [["config.json", "processor_config.json", "preprocessor_config.json", "model.safetensors"]]
    assert check_backbone("some/model", tmp_path)["model_type"] == "wav2vec2"
    (snapshot,) = tmp_path.glob("models--some--model/snapshots/*")
    (snapshot / "preprocessor_config.json").unlink()  # of a download that had not asked for all there is
    assert check_backbone("some/model", tmp_path) == {}  # so the hub is asked
    monkeypatch.setattr(backbone.huggingface_hub.HfApi, "model_info", lambda *args, **_: 1 / 0)
    assert check_backbone("some/model", tmp_path)["model_type"] == "wav2vec2"  # who has none takes what there is
    monkeypatch.setattr(backbone.huggingface_hub.HfApi, "model_info", model_info)
    there.remove("config.json")
    with pytest.raises(UserError, match="'other/model' lacks config"):
        check_backbone("other/model", tmp_path)


SMALL = {"hidden_size": 16, "num_layers": 1, "conv_dim": 8, "intermediate_size": 16}


def test_tiny_is_deterministic_draws_nothing_and_keeps_what_is_there(tmp_path):
    state = torch.get_rng_state()
    first = build_tiny_wav2vec2(tmp_path / "a" / "first", **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert build_tiny_wav2vec2(first, **SMALL) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    torch.rand(3)
    folders = first, build_tiny_wav2vec2(tmp_path / "b", **SMALL), build_tiny_wav2vec2(tmp_path / "c", seed=1, **SMALL)
    one, same, other = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert one == same and one["model.safetensors"] != other["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    for folder, message in ((first, r"other settings \(num_heads, seed\)"), (tmp_path, "was not built here")):
        with pytest.raises(UserError, match=message):
            build_tiny_wav2vec2(folder, seed=1, num_heads=2, **SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "'bert', expected one of wav2vec2"),
        ({"feat_extract_norm": "batch"}, "has to be one of"),
        ({"model_type": "data2vec-audio", "feat_extract_norm": "group"}, "layer-norm front end only"),
        ({"num_heads": 5}, "embed_dim must be divisible by num_heads"),
        ({}, "disk full"),
    ],
)
def test_tiny_leaves_nothing_half_written(tmp_path, monkeypatch, settings, message):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("transformers.Wav2Vec2FeatureExtractor.save_pretrained", fail)
    with pytest.raises((OSError, ValueError), match=message):
        build_tiny_wav2vec2(tmp_path / "tiny", **settings)
    assert list(tmp_path.iterdir()) == []


@every_kind
def test_states_and_lowest_layers(folder, batch, kind):
    whole, first = Wav2Vec2(folder(kind)).eval(), Wav2Vec2(folder(kind), n_layers=1).eval()
    with torch.no_grad():
        states, counts = whole.states(batch.wavs, batch.lens)
        own = frame_mask(counts, states[0].shape[1])[:, :, None]
        torch.testing.assert_close((states[-1] * own), whole(batch.wavs, batch.lens))
        lowest, _ = first.states(batch.wavs, batch.lens)
    assert len(states) == 3 and len(lowest) == 2
    torch.testing.assert_close(lowest[0] * own, states[0] * own)
    if not kind[2]:  # where layers are normalised before, a norm stands after the last one
        torch.testing.assert_close(lowest[1] * own, states[1] * own)


@every_kind
def test_lowest_layers_stay_fixed_in_training(folder, batch, kind):
    lobe = Wav2Vec2(folder(kind), freeze_layers=1, layerdrop=0.0, dropout=0.3).train()
    trained = {name for name, p in lobe.model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith(("encoder.layers.1.", "encoder.layer_norm.")) for name in trained)
    lobe(batch.wavs, batch.lens).square().sum().backward()
    assert all((p.grad is not None) is (name in trained) for name, p in lobe.model.named_parameters())


@pytest.mark.parametrize("weighted_sum", [False, True])
def test_a_frozen_encoders_output_can_be_read_from_a_cache(folder, batch, weighted_sum):
    lobe = Wav2Vec2(folder(GROUP), freeze=True, cache_embeddings=True, weighted_sum=weighted_sum).train()
    features = [lobe.features.extract(wav[0]) for wav in batch.singles]
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    lens = torch.tensor([len(f) / padded.shape[1] for f in features])
    torch.testing.assert_close(lobe(padded, lens), lobe(batch.wavs, batch.lens), atol=5e-3, rtol=0)
