"""From a command line to a checked configuration: what is refused, what it becomes, what a run is called."""

import re
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.training.config import read_config

ROOT = Path(__file__).parents[1]
HPARAMS = ROOT / "hparams"
SHIPPED = sorted(HPARAMS.glob("*.yaml"))


def read(*flags, yaml=HPARAMS / "cai_mtl.yaml"):
    given = () if any(f.startswith("--data_folder") for f in flags) else ("--data_folder=/data",)
    return read_config([str(yaml), *given, *flags], HPARAMS)


def refused(*flags, yaml=HPARAMS / "cai_mtl.yaml") -> str:
    with pytest.raises(UserError) as caught:
        read(*flags, yaml=yaml)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    """Write a YAML of the user's."""

    def write_yaml(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_yaml


@pytest.fixture
def edit(write):
    """The shipped cai_mtl.yaml with one text replaced."""

    def edit_yaml(old: str, new: str) -> Path:
        text = (HPARAMS / "cai_mtl.yaml").read_text(encoding="utf-8")
        assert text.count(old) == 1, old
        return write(text.replace(old, new))

    return edit_yaml


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("flag", "means"),
    [
        ("--opt=adam", "--opt_class"),
        ("--max=3", "--max_grad_norm"),
        ("--test", "--test_only"),
        ("--dev=cpu", "--device"),
        ("--noprogress", "--noprogressbar"),
        ("--data=x", "--data_folder"),
    ],
)
def test_abbreviations_are_refused(flag, means):
    said = refused(flag)
    assert f"{flag.partition('=')[0]} is unknown" in said and means in said


@pytest.mark.parametrize(
    ("flag", "means"), [("--alhpa=0", "--alpha"), ("--pooIing=sum", "--pooling"), ("--devcie=cpu", "--device")]
)
def test_unknown_names_have_the_nearest(flag, means):
    assert f"{flag.partition('=')[0]} is unknown (did you mean '{means}'?)" in refused(flag)


def test_all_offenders_are_listed():
    said = refused("--alhpa=0", "oops", "--n_epochs=x", "--freeze=maybe", "--opt=1", "--grad_accumulation_factor=4")
    for part in ("--alhpa", "oops", "--n_epochs", "--freeze", "--opt ", "--grad_accumulation_factor"):
        assert part in said
    assert len(said.splitlines()) == 7


def test_given_twice():
    assert "--alpha is given twice" in refused("--alpha=0", "--alpha=1")
    assert "--alpha is given twice" in refused("--alpha=0", "--alpha", "0")
    assert "--device is given twice" in refused("--device=cpu", "--device", "cuda")


@pytest.mark.parametrize("flags", [("--alpha",), ("--alpha", "--seed=1"), ("--device",), ("--device", "--seed=1")])
def test_a_missing_value(flags):
    said = refused(*flags)
    assert flags[0] in said and ("needs a value" in said or "expected one argument" in said)


def test_usage_without_a_yaml():
    for argv in ([], ["--alpha=0"]):
        with pytest.raises(UserError, match="usage"):
            read_config(argv, HPARAMS)


def test_what_is_computed_or_chosen_elsewhere_cannot_be_given():
    assert "batch_size" in refused("--grad_accumulation_factor=2")
    assert "--precision=fp16" in refused("--auto_mix_prec")
    assert "data" in refused("--n_tokens=5") and "data" in refused("--n_emotions=5")
    assert "its YAML" in refused("--system=demo")


# ------------------------------------------------------------------ values


def test_both_ways_of_giving_a_value():
    for flags in (("--alpha=0", "--seed", "7", "--n_epochs=3"), ("--alpha", "0", "--seed=7", "--n_epochs", "3")):
        plain = read(*flags).plain
        assert (plain["alpha"], plain["seed"], plain["n_epochs"]) == (0, 7, 3)


@pytest.mark.parametrize("path", ["/a=b/c=d", "/a b/c", "/x: y", "results#1", "/ü", "2024"])
def test_paths_survive(path):
    config = read(f"--data_folder={path}", f"--output_folder={path}", f"--encoder={path}")
    assert [config.plain[k] for k in ("data_folder", "output_folder", "encoder")] == [path] * 3
    assert f"{path}/manifests" == read(f"--results_folder={path}").plain["manifest_folder"]


@pytest.mark.parametrize("fold", ["03", "3", "1e5", "r0", "true"])
def test_a_fold_stays_text(fold):
    assert read(f"--fold={fold}").plain["fold"] == fold


def test_numbers_are_read_as_written():
    plain = read("--lr=5e-5", "--alpha=.5", "--weight_decay=1e-2", "--warmup=0").plain
    assert [plain[k] for k in ("lr", "alpha", "weight_decay", "warmup")] == [5e-5, 0.5, 0.01, 0]


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--alpha=abc", "a number"),
        ("--alpha=true", "a number"),
        ("--alpha=null", "a number"),
        ("--alpha=.nan", "a number"),
        ("--n_epochs=x", "a whole number"),
        ("--n_epochs=1.5", "a whole number"),
        ("--seed=", "a whole number"),
        ("--freeze=maybe", "true or false"),
        ("--freeze=1", "true or false"),
        ("--loss_weights=3", "name: value"),
        ("--precision=fp61", "fp32, fp16, bf16"),
        ("--eval_precision=fp61", "fp32"),
        ("--debug_batches=many", "int"),
        ("--optimizer_step_limit=many", "int"),
    ],
)
def test_values_of_the_wrong_kind(flag, expected):
    said = refused(flag)
    assert flag.partition("=")[0].removeprefix("--") in said and expected in said


def test_a_value_that_is_no_yaml():
    assert "--labels=[a is not valid YAML" in refused("--labels=[a")


def test_null_switches_off_what_a_users_yaml_switches_on(write):
    path = write("base: cai_mtl.yaml\ntracker: tensorboard\nbackbone_lr: 0.1\n")
    plain = read("--tracker=null", "--backbone_lr=null", yaml=path).plain
    assert plain["tracker"] is None and plain["backbone_lr"] is None


def test_mappings_merge_and_lists_are_read():
    config = read("--loss_weights={emotion: 0.5}", "--labels={ang: angry, '*': null}")
    assert config.plain["loss_weights"] == {"emotion": 0.5, "asr": 0.1}
    assert config.plain["labels"] == {"ang": "angry", "*": None}


# ------------------------------------------------------------------ run options


def test_run_options_pass_through():
    options = read(
        "--device=cuda:1", "--debug", "--debug_batches", "3", "--debug_epochs=4", "--noprogressbar", "--alpha", "0",
        "--ckpt_interval_steps=9", "--jit_module_keys", "a", "b", "--optimizer_step_limit=5",
    ).run_opts  # fmt: skip
    assert options["device"] == "cuda:1" and options["debug"] is True and options["noprogressbar"] is True
    assert options["debug_batches"] == 3 and options["debug_epochs"] == 4 and options["ckpt_interval_steps"] == 9
    assert options["jit_module_keys"] == ["a", "b"]
    assert options["optimizer_step_limit"] == 5  # a number: SpeechBrain compares it with one
    assert options["test_only"] is False


def test_a_yaml_line_with_a_run_options_name_is_the_yamls():
    """SpeechBrain takes such a line from the hyperparameters where the run option is not given."""
    config = read("--precision=bf16", "--max_grad_norm=2.5", "--nonfinite_patience=4")
    plain = config.plain
    assert (plain["precision"], plain["max_grad_norm"], plain["nonfinite_patience"]) == ("bf16", 2.5, 4)
    assert not {"precision", "max_grad_norm", "nonfinite_patience"} & config.run_opts.overridden_args


def test_run_options_that_change_the_science_are_part_of_the_variant():
    assert read("--debug", "--device=cuda:0", "--noprogressbar", "--ckpt_interval_minutes=5").variant() == "default"
    assert read("--optimizer_step_limit=5").variant() == "optimizer_step_limit=5"
    assert read("--remove_vector_weight_decay").science()["remove_vector_weight_decay"] == "True"


# ------------------------------------------------------------------ arguments of objects


@pytest.mark.parametrize(
    ("flag", "where", "hint"),
    [
        ("--opt_class={lrr: 1}", "opt_class: torch.optim.AdamW has no argument 'lrr'", "'lr'"),
        ("--opt_class=!name:torch.optim.SGD {momentun: 0.9}", "opt_class: torch.optim.SGD", "'momentum'"),
        ("--lobe={apply_spec_augmnt: True}", "lobe: ", "'apply_spec_augment'"),
        ("--model={heads: {emotion: {out_featurs: 3}}}", "model.heads.emotion: torch.nn.Linear", "'out_features'"),
        (
            "--augment=!new:speechbrain.augment.augmenter.Augmenter {augmentations: ["
            "!new:speechbrain.augment.time_domain.SpeedPerturb {orig_frq: 16000}]}",
            "augment.augmentations[0]: speechbrain.augment.time_domain.SpeedPerturb",
            "'orig_freq'",
        ),
        ("--epoch_counter={limitt: 3}", "epoch_counter: ", "'limit'"),
        ("--opt_class=!name:torch.optim.SDG {lr: 0.1}", "opt_class: cannot import torch.optim.SDG", "'SGD'"),
        ("--brain_class=!name:recipes.cai_mtl.brain.CaiBran", "brain_class: cannot import", "'CaiBrain'"),
        ("--brain_class=!name:recipes.cai_mlt.brain.CaiBrain", "brain_class: cannot import", "'cai_mtl'"),
        ("--lr=!apply:recipes.cai_mtl.brain.paper_rate [0]", "lr: cannot import", "'paper_learning_rate'"),
    ],
)
def test_mistyped_objects(flag, where, hint):
    said = refused(flag)
    assert where in said and f"did you mean {hint}" in said


def test_all_mistyped_objects_are_listed():
    said = refused("--opt_class={lrr: 1}", "--lobe={sauce: x}", "--n_epochs=3")
    assert "opt_class" in said and "lobe" in said and "'source'" in said


def test_mistyped_arguments_in_a_file(edit):
    assert "did you mean 'betas'" in refused(yaml=edit("  betas: (", "  betass: ("))


def test_another_class_replaces_and_the_same_one_merges():
    replaced = read("--opt_class=!name:torch.optim.SGD {lr: 0.5, momentum: 0.9}")
    text = replaced.resolved()
    assert "betas" not in text and "AdamW" not in text
    merged = read("--opt_class={weight_decay: 0.5}").changed()["opt_class"]
    assert "AdamW" in merged and "betas" in merged and "0.5" in merged and "<lr>" in merged


# ------------------------------------------------------------------ files


def test_a_missing_file_names_the_nearest_and_the_shipped():
    with pytest.raises(UserError) as caught:
        read_config(["hparams/cai_mlt.yaml"], HPARAMS)
    assert "no such file" in str(caught.value) and "did you mean 'cai_mtl.yaml'" in str(caught.value)
    assert "demo.yaml" in str(caught.value)


def test_unknown_keys_of_a_file_are_all_listed(edit):
    said = refused(yaml=edit("alpha: 0.1  ", "alpha: 0.1\nalhpa: 0.2\nn_epoch: 3  "))
    assert "alhpa (did you mean 'alpha'?)" in said and "n_epoch (did you mean 'n_epochs'?)" in said


def test_a_key_named_in_a_comment_only_is_unknown(edit):
    assert "variant" in refused(yaml=edit("alpha: 0.1  ", "variant: x\nalpha: 0.1  "))


def test_a_key_that_another_line_uses_is_known(edit):
    config = read(yaml=edit("weight_decay: 0.0\n", "my_decay: 0.25\nweight_decay: !ref <my_decay>\n"))
    assert config.plain["weight_decay"] == 0.25


def test_missing_lines_of_a_file(edit):
    said = refused(yaml=edit("pooling: mean ", "# pooling: mean "))
    assert "missing lines" in said and said.endswith("pooling")


def test_values_of_the_wrong_kind_in_a_file(edit, write):
    assert "n_epochs: expected a whole number" in refused(yaml=edit("n_epochs: 100", "n_epochs: a hundred"))
    said = refused(yaml=write("base: cai_mtl.yaml\nfreeze: 1\nalpha: much\n"))
    assert "freeze: expected true or false" in said and "alpha: expected a number" in said


def test_duplicate_keys_and_broken_yaml_name_the_file(write):
    assert re.search(r"mine\.yaml is not valid YAML: (.|\n)*duplicate", refused(yaml=write("a: 1\na: 2\n")))
    assert "mine.yaml is not valid YAML" in refused(yaml=write("a: [1\n"))
    assert "mine.yaml: expected lines" in refused(yaml=write("just text\n"))
    assert "mine.yaml: expected lines" in refused(yaml=write(""))


def test_the_system_must_be_known(write):
    text = (HPARAMS / "cai_mtl.yaml").read_text(encoding="utf-8").replace("system: cai_mtl", "system: cai_mlt")
    said = refused(yaml=write(text))
    assert "found 'cai_mlt' (did you mean 'cai_mtl'?)" in said


def test_base_chains(write):
    write("base: cai_mtl.yaml\nalpha: 0.01\npooling: sum\n", "first.yaml")
    path = write("base: first.yaml\nalpha: 0.001\n", "second.yaml")
    config = read(yaml=path)
    assert config.plain["alpha"] == 0.001 and config.plain["pooling"] == "sum" and config.system == "cai_mtl"
    assert config.variant() == "alpha=0.001,pooling=sum"
    said = refused(yaml=write("base: first.yaml\npoolign: sum\n", "third.yaml"))
    assert "third.yaml" in said and "poolign (did you mean 'pooling'?)" in said


def test_a_file_may_have_the_name_of_its_base(write):
    assert read(yaml=write("base: cai_mtl.yaml\nalpha: 0\n", "cai_mtl.yaml")).variant() == "alpha=0"


def test_bases_in_a_circle_or_missing(write):
    write("base: b.yaml\nalpha: 0\n", "a.yaml")
    assert "circle" in refused(yaml=write("base: a.yaml\nalpha: 0\n", "b.yaml"))
    assert "circle" in refused(yaml=write("base: c.yaml\nalpha: 0\n", "c.yaml"))
    assert "no such file" in refused(yaml=write("base: cai_mlt.yaml\n", "d.yaml"))


def test_the_data_folder_must_be_given():
    with pytest.raises(UserError, match="--data_folder"):
        read_config([str(HPARAMS / "cai_mtl.yaml")], HPARAMS)


# ------------------------------------------------------------------ what a run is called


def test_default_and_changed_lines():
    assert read().variant() == "default"
    assert read("--pooling=sum", "--alpha=0").variant() == "alpha=0,pooling=sum"
    assert read("--pooling=sum", "--alpha=0").changed() == {"alpha": "0", "pooling": "sum"}


@pytest.mark.parametrize(
    "flag", ["--alpha=0.1", "--alpha=.1", "--alpha=1e-1", "--max_grad_norm=1", "--freeze=false", "--tokens=letters"]
)
def test_an_override_equal_to_the_default_is_no_change(flag):
    assert read(flag).variant() == "default"
    assert read(flag).science() == read().science()


def test_equal_values_have_one_name():
    assert read("--alpha=0.0").variant() == read("--alpha=0").variant() == "alpha=0"
    assert read("--lr=5e-4").variant() == read("--lr=0.0005").variant() == read("--lr=0.00050").variant()


def test_what_does_not_change_the_science_is_left_out():
    flags = ["--data_folder=/other", "--output_folder=/o", "--results_folder=/r", "--cache_folder=/c", "--seed=7"]
    flags += ["--fold=03", "--corpus=emodb", "--protocol=random", "--selection=valid", "--n_epochs=3"]
    flags += ["--test_every_epoch=True", "--tracker=wandb", "--num_workers=2", "--micro_batch_size=8"]
    assert read(*flags).variant() == "default"


def test_the_old_name_of_a_key_is_understood(tmp_path, caplog):
    assert read("--wav2vec2_hub=/models/a").plain["encoder"] == "/models/a"
    (tmp_path / "old.yaml").write_text("base: cai_mtl.yaml\nwav2vec2_hub: /models/b\n")
    assert read(yaml=tmp_path / "old.yaml").plain["encoder"] == "/models/b"
    assert caplog.messages.count("--wav2vec2_hub is named --encoder now") == 1
    assert any(message.endswith("old.yaml: wav2vec2_hub is named encoder now") for message in caplog.messages)


def test_names_are_fit_for_folders():
    config = read("--encoder=/models/wav2vec2-large/", "--labels={a: b/c, d: e}", "--class_weights=balanced")
    variant = config.variant()
    assert re.fullmatch(r"class_weights=balanced,encoder=wav2vec2-large,labels=[0-9a-f]{8}", variant)
    other = read("--encoder=/models/wav2vec2-large/", "--labels={a: b/c, d: f}", "--class_weights=balanced")
    assert other.variant() != variant


def test_a_name_is_never_too_long_for_a_file_system():
    flags = {k: 0.123456 for k in ("alpha", "warmup", "seen_fraction", "mask_time_prob", "mask_feature_prob", "lr")}
    flags |= {k: 77 for k in ("batch_size", "n_pieces", "beam_size", "mask_time_length", "nonfinite_patience")}
    flags |= {"freeze_feature_extractor": True, "gradient_checkpointing": True, "weighted_sum": True}
    variants = {read(*(f"--{k}={v}" for k, v in flags.items()), f"--weight_decay={w}").variant() for w in (1, 2)}
    assert len(variants) == 2 and all(len(v.encode()) < 255 and "/" not in v for v in variants)


def test_science_differs_where_the_result_would():
    base = read().science()
    for flag in ("--alpha=0", "--seed=2", "--corpus=emodb", "--batch_size=4", "--pooling=sum"):
        assert read(flag).science() != base, flag
    for flag in ("--n_epochs=3", "--results_folder=/r", "--device=cuda:0", "--selection=valid", "--num_workers=1"):
        assert read(flag).science() == base, flag


# ------------------------------------------------------------------ what is built


@pytest.mark.parametrize(
    ("flags", "rate"),
    [((), 5e-5), (("--alpha=0",), 1e-5), (("--alpha=0.001",), 5e-5), (("--alpha=0", "--lr=2e-3"), 2e-3)],
)
def test_the_learning_rate_follows_alpha(flags, rate):
    """Table 1 of the paper, up to what the optimiser is given."""
    text = read(*flags).resolved()
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = load_hyperpyyaml(text[: text.index("encoder:")])["opt_class"](weights)
    assert optimizer.param_groups[0]["lr"] == rate
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999) and optimizer.param_groups[0]["eps"] == 1e-8


def test_plain_has_references_resolved_and_objects_left_out():
    plain = read("--alpha=0.25", "--n_epochs=7").plain
    assert plain["loss_weights"] == {"emotion": 1.0, "asr": 0.25}
    assert plain["early_stopping"] == 7 and plain["manifest_folder"] == "results/manifests"
    assert plain["model"] is None and plain["opt_class"] is None


def test_resolved_is_complete_and_reads_back(write):
    config = read("--alpha=0", "--fold=03")
    text = config.resolved({"n_emotions": 4, "output_folder": "/out", "fold": "03"})
    assert "<alpha>" not in text and "fold: '03'" in text and "n_emotions: 4" in text and "output_folder: /out" in text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_yaml_is_its_own_default_and_knows_its_system(path):
    config = read_config([str(path), "--data_folder=/data"], HPARAMS)
    assert config.system == path.stem and config.variant() == "default"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_line_of_a_shipped_yaml_is_read(path):
    """By another line (!ref <key>), by SpeechBrain, or by the code as plain["key"], hparams["key"], hparams.key."""
    config = read_config([str(path), "--data_folder=/data"], HPARAMS)
    folders = [ROOT / "speechbrain_ser", ROOT / "recipes"]
    code = "\n".join(p.read_text(encoding="utf-8") for f in folders for p in f.rglob("*.py"))
    yaml = re.sub(r"#.*", "", "\n".join(p.read_text(encoding="utf-8") for p in SHIPPED))
    unread = [
        key
        for key in config.tree
        if not key.startswith("__")
        and f"<{key}>" not in yaml
        and not re.search(rf"""(plain|hparams|tree)(\[|\.get\()["']{key}["']|hparams\.{key}\b""", code)
        and key not in config.run_opts.as_dict()
    ]
    assert unread == []


def test_nearest_prefers_the_spelling_that_comes_first():
    assert nearest("SDG", ["SGD", "sgd"]) == " (did you mean 'SGD'?)"
    assert nearest("", ["a"]) == "" and nearest("x", []) == ""
