"""The Whisper lobe: parity with transformers, padding, every switch, every error; import from CTranslate2's format."""

import json
import os
import re
import struct

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

from speechbrain_ser.errors import UserError
from speechbrain_ser.lobes import backbone, import_whisper
from speechbrain_ser.lobes.backbone import check_backbone, fingerprint, resolve_backbone
from speechbrain_ser.lobes.encoder import Encoder
from speechbrain_ser.lobes.tiny import build_tiny_wav2vec2
from speechbrain_ser.lobes.wav2vec2 import Wav2Vec2
from speechbrain_ser.lobes.whisper import Whisper
from speechbrain_ser.processing.cache import FeatureCache

TOLERANCE = 1e-4
LENGTHS = (160, 30001, 479, 16000)  # the shortest gives one frame
with_wheels = pytest.mark.skipif(not import_whisper.wheels_installed(), reason="Whisper base needs the extra `whisper`")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper") / "tiny"
    return str(build_tiny_wav2vec2(folder, model_type="whisper", hidden_size=32, num_layers=3))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(import_whisper.import_whisper("wheels", tmp_path_factory.mktemp("whisper") / "base"))


@pytest.fixture
def speech():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator) * 0.1 for n in LENGTHS]


def batch_of(wavs):
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True, padding_value=7.0)  # never read
    return padded, torch.tensor([len(w) / padded.shape[1] for w in wavs])


def published(folder, wav):
    """All states of transformers' own encoder, padded to 30 s."""
    model = WhisperModel.from_pretrained(folder, dtype=torch.float32).encoder.eval()
    bands = WhisperFeatureExtractor.from_pretrained(folder)(wav.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        found = model(bands.input_features, output_hidden_states=True)
    return [*found.hidden_states[:-1], found.last_hidden_state]


@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=with_wheels)])
def test_padded_to_30_s_every_layer_is_transformers(size, request, speech):
    folder, wav = request.getfixturevalue(size), speech[1]
    states, counts = Whisper(folder, pad_to_30s=True).eval().states(wav[None])
    expected = published(folder, wav)
    assert len(states) == len(expected) and counts.tolist() == [94]
    for mine, theirs in zip(states, expected, strict=True):
        # a few channels of the layers 4 and 5 reach 490: there to 1e-5 of the largest value
        bound = TOLERANCE * max(1.0, float(theirs.abs().max()) / 10)
        torch.testing.assert_close(mine, theirs[:, :94], atol=bound, rtol=0)
    full = torch.nn.functional.pad(wav, (0, 480_000 - len(wav)))  # all 1500 frames of them
    (last,) = Whisper(folder).eval().states(full[None])[0][-1:]
    torch.testing.assert_close(last, expected[-1], atol=TOLERANCE * max(1.0, float(last.detach().max()) / 10), rtol=0)


@pytest.mark.parametrize("settings", [{}, {"pad_to_30s": True}, {"weighted_sum": True}, {"n_layers": 2}])
def test_a_batch_gives_what_each_gives_alone(tiny, speech, settings):
    lobe = Whisper(tiny, **settings).eval()
    out = lobe(*batch_of(speech))
    for row, wav in zip(out, speech, strict=True):
        alone = lobe(wav[None])[0]
        assert len(alone) == lobe.frame_counts(len(wav))
        torch.testing.assert_close(row[: len(alone)], alone, atol=TOLERANCE, rtol=0)
        assert not row[len(alone) :].any()


def test_float16_and_sharded_encoders_without_a_decoder_load(tiny, tmp_path):
    expected = Whisper(tiny).model.state_dict()
    weights = load_file(f"{tiny}/model.safetensors")
    for prefix in ("", "model."):
        folder = tmp_path / f"of{prefix}"
        folder.mkdir()
        state = {f"{prefix}{k}": v.half() for k, v in weights.items() if k.startswith("encoder.")}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(open(f"{tiny}/config.json").read())
        found = Whisper(str(folder)).model.state_dict()
        assert all(v.dtype == torch.float32 for v in found.values())
        assert all(torch.equal(found[k], expected[k].half().float()) for k in expected)


def test_frames_follow_the_formula(tiny):
    lobe = Whisper(tiny).eval()
    for n in (160, 319, 320, 321, 479, 480, 481, 16000, 16001):
        assert lobe(torch.randn(1, n)).shape[1] == lobe.frame_counts(n) > 0, n
    assert lobe.frame_counts(159) == 0 and lobe.frame_counts(480_000) == 1500


def test_pieces_of_30_s(tiny):
    wav = torch.randn(1, 30 * 16000 * 2 + 1000) * 0.1
    lobe = Whisper(tiny, windows=True).eval()
    out = lobe(wav)
    assert out.shape[1] == lobe.frame_counts(wav.shape[1]) == 3003
    torch.testing.assert_close(out[:, 1500:3000], lobe(wav[:, 480_000:960_000]))
    other = torch.nn.functional.pad(wav[:, :700_000], (0, wav.shape[1] - 700_000))
    both = lobe(torch.cat([wav, other]), torch.tensor([1.0, 700_000 / wav.shape[1]]))
    torch.testing.assert_close(both[:1], out)
    torch.testing.assert_close(both[1:, :2188], lobe(wav[:, :700_000])[:, :2188], atol=1e-5, rtol=0)
    partly = Whisper(tiny, windows=True, freeze_layers=1, cache_embeddings=True).eval()
    torch.testing.assert_close(partly(partly.features.extract(wav[0])[None]), out, atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match=r"utterance 0 has 60.1 s.*positions for 30 s"):
        Whisper(tiny)(wav)


@pytest.mark.parametrize("settings", [{"freeze": True}, {"freeze_layers": 2}, {"freeze": True, "weighted_sum": True}])
def test_cached_states_give_the_same(tiny, speech, settings, tmp_path):
    lobe = Whisper(tiny, cache_embeddings=True, **settings).eval()
    cache = FeatureCache(tmp_path, lobe.features.settings, lobe.features.extract, lambda path: speech[int(path[-1])])
    for k in (1, 3):
        (tmp_path / str(k)).write_text(str(k))
    features = [cache[str(tmp_path / str(k))] for k in (1, 3)]
    assert {f.dtype for f in features} == {torch.float16}
    padded, lens = batch_of(features)
    torch.testing.assert_close(lobe(padded, lens), lobe(*batch_of([speech[1], speech[3]])), atol=1e-2, rtol=0)


def test_the_cache_knows_its_encoder(tiny):
    one = Whisper(tiny, freeze=True, cache_embeddings=True)
    assert one.features.settings == Whisper(tiny, freeze=True, cache_embeddings=True).features.settings
    with torch.no_grad():
        one.model.layers[1].fc1.bias[0] += 1
    others = [one, Whisper(tiny, freeze=True, cache_embeddings=True, n_layers=2)]
    others += [Whisper(tiny, freeze_layers=k, cache_embeddings=True) for k in (1, 2)]
    others += [Whisper(tiny, freeze=True, pad_to_30s=True, cache_embeddings=True)]
    keys = [json.dumps(lobe.features.settings, sort_keys=True) for lobe in others]
    keys += [json.dumps(Whisper(tiny, freeze=True, cache_embeddings=True).features.settings, sort_keys=True)]
    assert len(set(keys)) == len(keys)
    # an upper layer that is trained is no part of what is cached
    lobe = Whisper(tiny, freeze_layers=1, cache_embeddings=True)
    before = lobe.features.settings
    with torch.no_grad():
        lobe.model.layers[2].fc1.bias[0] += 1
    assert lobe.features.settings == before


def test_lowest_layers_stay_fixed_and_a_dropped_one_is_skipped(tiny, speech):
    lobe = Whisper(tiny, freeze_layers=2, dropout=0.5).train()
    trained = {name.split(".")[1] for name, p in lobe.model.named_parameters() if p.requires_grad}
    assert trained == {"2", "weight", "bias"}  # the upper layer, the last norm
    assert torch.equal(lobe.frozen_states(speech[1][None])[0][-1], lobe.frozen_states(speech[1][None])[0][-1])
    dropped = Whisper(tiny, layerdrop=1.0, apply_spec_augment=False, dropout=0.0).train()
    hidden, _ = dropped.frozen_states(speech[1][None])
    torch.testing.assert_close(dropped(speech[1][None]), dropped.model.layer_norm(hidden[0]))


def test_spec_augment_masks_own_frames_in_training(tiny, speech):
    lobe = Whisper(tiny, mask_time_prob=0.5, layerdrop=0.0, dropout=0.0)
    np.random.seed(0)  # noqa: NPY002 (SpecAugment draws from the global one)
    assert not torch.equal(lobe.train()(speech[1][None]), lobe.eval()(speech[1][None]))
    plain = Whisper(tiny, apply_spec_augment=False, layerdrop=0.0, dropout=0.0)
    torch.testing.assert_close(plain.train()(speech[1][None]), plain.eval()(speech[1][None]))


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("whisper", {"cache_embeddings": True}, "cache_embeddings: expected an encoder that is not trained"),
        ("whisper", {"pad_to_30s": True, "windows": True}, "expected one of them"),
        ("whisper", {"n_layers": 4}, "n_layers is 4, expected 1 to 1"),
        ("whisper", {"freeze_layers": 1}, "freeze_layers is 1, expected 0 to 0"),
        ("whisper", {"dropout": 2.0}, "dropout is 2.0, expected 0 to 1"),
        ("whisper", {"attn_implementation": "flash_attention_2"}, "expected one of eager, sdpa$"),
        ("whisper", {"pad_to_30s": True, "freeze_layers": 1, "cache_embeddings": True}, "expected freeze"),
        ("whisper", {"normalize_wav": True}, r"normalize_wav is True: whisper \(.*\) has no such setting, leave it N"),
        ("whisper", {"cache_front_end": True}, "cache_front_end is True: whisper"),
        ("wav2vec2", {"pad_to_30s": True}, "pad_to_30s is True: wav2vec2"),
        ("hubert", {"windows": True}, "windows is True: hubert .* has no such setting, leave it False"),
        ("hubert", {"frieze": True}, "frieze"),
    ],
)
def test_settings_that_a_family_does_not_have_and_values_out_of_range(small, kind, settings, said):
    folder = str(small.backbone(model_type=kind))
    with pytest.raises((ValueError, TypeError), match=said):
        Encoder(folder, **settings)
    assert Encoder(folder).output_size == 16


def test_the_families_lobes_take_their_own_kind_alone(small, tiny):
    for lobe, folder in ((Whisper, small.backbone()), (Wav2Vec2, tiny)):
        with pytest.raises(UserError, match="is of model type"):
            lobe(str(folder))


def test_files_of_two_whispers(tiny, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in os.listdir(tiny):
        (folder / name).write_bytes(open(f"{tiny}/{name}", "rb").read())
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    with pytest.raises(UserError, match=r"preprocessor_config.json: expected features of 80 mel bands.*found 128"):
        check_backbone(folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_mel_bins": 128, "d_model": 16}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"of another size: conv1.bias is \[32\], expected \[16\]"):
        Whisper(str(folder))


def test_128_bands(tmp_path):
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(d_model=16, num_mel_bins=128, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes)
    WhisperModel(config).save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path)
    wav = torch.randn(8000) * 0.1
    states, _ = Whisper(str(tmp_path), pad_to_30s=True).eval().states(wav[None])
    for mine, theirs in zip(states, published(tmp_path, wav), strict=True):
        torch.testing.assert_close(mine, theirs[:, :25], atol=TOLERANCE, rtol=0)


def ctranslate2(model, version=6, specification="WhisperSpec") -> bytes:
    """A Whisper of transformers as CTranslate2 writes it, float16."""
    state = {k.removeprefix("model."): v for k, v in model.state_dict().items()}
    found = {"decoder/embeddings/weight": state["decoder.embed_tokens.weight"]}
    for conv in ("conv1", "conv2"):
        found |= {f"encoder/{conv}/{kind}": state[f"encoder.{conv}.{kind}"] for kind in ("weight", "bias")}
    for part in ("encoder", "decoder"):
        found[f"{part}/position_encodings/encodings"] = state[f"{part}.embed_positions.weight"]
        found[f"{part}/num_heads"] = torch.tensor(model.config.encoder_attention_heads, dtype=torch.int16)
        norms = {f"{part}/layer_norm": f"{part}.layer_norm"}
        for k in range(model.config.encoder_layers):
            old, new = f"{part}.layers.{k}", f"{part}/layer_{k}"
            norms |= {f"{new}/self_attention/layer_norm": f"{old}.self_attn_layer_norm"}
            norms |= {f"{new}/ffn/layer_norm": f"{old}.final_layer_norm"}
            joins = [(f"{new}/self_attention/linear_0", f"{old}.self_attn", "qkv")]
            joins += [(f"{new}/self_attention/linear_1", f"{old}.self_attn", ["out"])]
            if part == "decoder":
                norms |= {f"{new}/attention/layer_norm": f"{old}.encoder_attn_layer_norm"}
                joins += [(f"{new}/attention/linear_{j}", f"{old}.encoder_attn", p)
                          for j, p in enumerate(("q", "kv", ["out"]))]  # fmt: skip
            for name, source, parts in joins:
                weights = [state[f"{source}.{p}_proj.weight"] for p in parts]
                biases = [state.get(f"{source}.{p}_proj.bias", torch.zeros(len(w))) for p, w in zip(parts, weights)]  # noqa: B905
                found |= {f"{name}/weight": torch.cat(weights), f"{name}/bias": torch.cat(biases)}
            for j in (0, 1):
                for kind in ("weight", "bias"):
                    found[f"{new}/ffn/linear_{j}/{kind}"] = state[f"{old}.fc{j + 1}.{kind}"]
        for new, old in norms.items():
            found |= {f"{new}/gamma": state[f"{old}.weight"], f"{new}/beta": state[f"{old}.bias"]}

    def text(words):
        return struct.pack("<H", len(words) + 1) + words.encode() + b"\0"

    data = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, len(found))
    for name, value in found.items():
        kind, values = (2, value) if value.dtype == torch.int16 else (4, value.half())
        raw = values.contiguous().numpy().tobytes()
        data += text(name) + struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape)
        data += struct.pack("<BI", kind, len(raw)) + raw
    return data + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


@pytest.fixture(scope="module")
def faster_whisper(tmp_path_factory, tiny):
    config = WhisperConfig.from_pretrained(tiny)
    config.vocab_size = 51865  # Whisper's special tokens are looked for there
    config.decoder_layers, config.decoder_attention_heads = 3, config.encoder_attention_heads
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("faster") / "whisper"
    folder.mkdir()
    (folder / "model.bin").write_bytes(ctranslate2(model))
    return folder, model


def test_every_parameter_finds_its_place(faster_whisper, tmp_path):
    folder, model = faster_whisper
    out = import_whisper.import_whisper(folder, tmp_path / "out")
    found, report = WhisperForConditionalGeneration.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value.half().float(), atol=0, rtol=0)
    check_backbone(out)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda data: data[: len(data) // 2], r"cut off: expected at least [\d,]+ bytes, found [\d,]+"),
        (lambda data: data + b"more", r"expected [\d,]+ bytes, found [\d,]+"),
        (lambda data: struct.pack("<I", 5) + data[4:], "expected version 6 of CTranslate2's format, found 5"),
        (lambda data: data.replace(b"WhisperSpec", b"TransforSpec"[:11]), "expected a Whisper"),
        (lambda data: data.replace(b"encoder/conv1/weight", b"encoder/conv9/weight"), "encoder/conv1/weight"),
        (lambda data: b"", "cut off"),
    ],
)
def test_damaged_model_files(faster_whisper, tmp_path, damage, said):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.bin").write_bytes(damage((faster_whisper[0] / "model.bin").read_bytes()))
    with pytest.raises(UserError, match=said):
        import_whisper.import_whisper(broken, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_import_by_its_command(faster_whisper, tmp_path, capsys):
    from speechbrain_ser.cli import main

    folder, full = faster_whisper[0], tmp_path / "full"
    full.mkdir()
    (full / "note").touch()
    for source, out, code, said in (
        (folder, tmp_path / "out", 0, str(tmp_path / "out")),
        (tmp_path / "nowhere", tmp_path / "new", 2, "model.bin: expected CTranslate2's parameters, found no such"),
        (folder, full, 2, "expected a new or an empty folder"),
    ):
        assert main(["import-whisper", str(source), str(out)]) == code
        assert said in "".join(capsys.readouterr())


def test_an_import_that_fails_leaves_nothing(faster_whisper, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="out cannot be written"):
        patch.setattr(import_whisper, "write_json", fail)  # the weights are written, config.json is not
        import_whisper.import_whisper(faster_whisper[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backbone.huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr(backbone.huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)


@with_wheels
def test_the_wheels_serve_where_the_hub_does_not(no_hub, tmp_path, caplog, speech):
    assert fingerprint("openai/whisper-base", tmp_path) == "openai/whisper-base"
    with caplog.at_level("INFO"):
        assert check_backbone("openai/whisper-base", tmp_path)["d_model"] == 512
    lobe = Encoder("openai/whisper-base", str(tmp_path), n_layers=1)
    assert "taken from the installed wheels" in caplog.text and lobe.output_size == 512
    assert sum(p.numel() for p in Whisper(resolve_backbone("openai/whisper-base", tmp_path)).parameters()) > 19e6
    assert len(fingerprint("openai/whisper-base", tmp_path)) == 16


def test_without_hub_and_wheels(no_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "wheels_installed", lambda: False)
    with pytest.raises(UserError, match=r'could not be fetched.*pip install "speechbrain-ser\[whisper\]"'):
        check_backbone("openai/whisper-base", tmp_path)


@with_wheels
@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: data[:100] + b"x" + data[101:]])
def test_a_damaged_half_is_named(no_hub, tmp_path, monkeypatch, damage):
    package = next(iter(import_whisper.WHEELS))
    name, _ = import_whisper.WHEELS[package]
    place = tmp_path / package / "data"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").touch()
    whole = import_whisper.importlib.resources.files(package) / "data" / name
    (place / name).write_bytes(damage(whole.read_bytes()))
    monkeypatch.setattr(import_whisper.importlib.resources, "files", lambda module: tmp_path / module)
    with pytest.raises(
        UserError, match=rf"and from the wheels: .*{name}: expected the SHA-256 221b8a89.*, found .* bytes\)"
    ):
        check_backbone("openai/whisper-base", tmp_path / "save")


def test_a_frozen_whisper_trains_heads_from_its_cache(train, tmp_path, tiny):
    speed = "[!new:speechbrain.augment.time_domain.SpeedPerturb {orig_freq: 16000}]"
    augment = f"--augment=!new:speechbrain.augment.augmenter.Augmenter {{augmentations: {speed}}}"
    said = train(f"--encoder={tiny}", "--freeze=True", "--cache_embeddings=True", augment, code=2)
    assert "augment changes waveforms, but sig are computed once: give --cache_embeddings=False" in said
    for more in ([], ["--test_only"]):
        assert "WA" in train(f"--encoder={tiny}", "--freeze=True", "--cache_embeddings=True", *more)
    assert list((tmp_path / "results" / "cache" / "features").glob("*/settings.json"))


def test_lora_above_cached_layers(tiny, speech):
    lobe = Whisper(tiny, freeze_layers=2, cache_embeddings=True, lora={"rank": 2}, apply_spec_augment=False)
    trained = {name for name, p in lobe.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("model.layers.2.self_attn.") and "adapter" in name for name in trained)
    plain = Whisper(tiny, freeze_layers=2).eval()
    torch.testing.assert_close(lobe.eval()(speech[1][None]), plain(speech[1][None]))


def test_what_no_whisper_encodes_is_named_before_training(train, tiny, tmp_path):
    rows = ["wav,emotion,speaker"]
    for k in range(12):
        seconds = 31 if k == 7 else 1
        soundfile.write(tmp_path / f"{k}.wav", np.random.default_rng(k).standard_normal(seconds * 16000) * 0.1, 16000)
        rows.append(f"{k}.wav,{'angry' if k % 2 else 'sad'},s{k // 4}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    flags = ("--corpus=table", f"--data_folder={tmp_path}", f"--encoder={tiny}", "--alpha=0")
    assert re.search(r"1 utterances are longer .* encodes \(--windows=True .*: 7 \(31.0 s\)", train(*flags, code=2))
    assert "WA" in train(*flags, "--windows=True", "--freeze=True", "--cache_embeddings=True")
