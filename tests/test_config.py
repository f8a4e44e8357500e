"""From a command line to a checked configuration: what is refused, what it becomes, what a run is called."""

import re
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.training.config import read_config, yaml_named
from speechbrain_ser.training.run import CORPUS_LINES

ROOT = Path(__file__).parents[1]
HPARAMS = ROOT / "hparams"
CAI = HPARAMS / "cai_mtl.yaml"
SHIPPED = sorted(HPARAMS.glob("*.yaml"))


def read(*flags, yaml=CAI):
    given = () if any(f.startswith("--data_folder") for f in flags) else ("--data_folder=/data",)
    return read_config([str(yaml), *given, *flags], HPARAMS)


def refused(*flags, yaml=CAI) -> str:
    with pytest.raises(UserError) as caught:
        read(*flags, yaml=yaml)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    """Write a file of the user's."""

    def write_file(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        # abbreviations, which argparse would take; mistyped
        (["--opt=adam", "--dev=cpu", "--data=x"], ["--opt is unknown", "--opt_class", "--device", "--data_folder"]),
        (["--max=3", "--test"], ["--max is unknown", "--max_grad_norm", "--test is unknown", "--test_only"]),
        (["--alhpa=0", "--devcie=cpu"], ["--alhpa is unknown (did you mean '--alpha'?)", "'--device'", "--devcie"]),
        (["--alhpa", "0"], ["--alhpa is unknown (did you mean '--alpha'?)"]),
        (["oops"], ["oops: expected --key=value"]),
        (["--alhpa=0", "--n_epochs=x", "--freeze=maybe", "--opt=1"], ["--alhpa", "--n_epochs", "--freeze", "--opt "]),
        # given twice, or without a value
        (
            ["--alpha=0", "--alpha", "0", "--device=cpu", "--device", "a"],
            ["--alpha is given", "--device is given"],
        ),
        (["--alpha"], ["--alpha: expected one argument"]),
        (["--device", "--seed=1"], ["--device: expected one argument"]),
        # computed or chosen elsewhere
        (["--grad_accumulation_factor=2", "--auto_mix_prec", "--system=x"], ["batch_size", "--precision=fp16", "YAML"]),
        (["--labels_of=[gender]", "--n_genders=3"], ["--n_genders: comes from the data"]),
        (["--n_tokens=5", "--n_emotions=5"], ["--n_tokens: comes from the data", "--n_emotions: comes from the data"]),
        # of the wrong kind
        (["--alpha=abc", "--n_epochs=1.5", "--labels=[a"], ["--alpha expects a number", "whole", "is not valid YAML"]),
        (["--alpha=true", "--warmup=.nan"], ["--alpha expects a number", "found '.nan'"]),
        (["--alpha=null", "--freeze=1"], ["alpha: expected a number", "--freeze expects true or false"]),
        (["--seed=", "--loss_weights=3", "--precision=fp61"], ["a whole number", "name: value", "fp32, fp16, bf16"]),
        (["--eval_precision=fp61"], ["fp32"]),
        (["--encoder="], ["--encoder expects a text, found none"]),
        (["--debug_batches=many"], ["--debug_batches", "int"]),
        (["--optimizer_step_limit=many"], ["--optimizer_step_limit", "int"]),
    ],
    ids=lambda value: " ".join(value) if value[0][:1] == "-" else "",
)
def test_refused(flags, said):
    found = refused(*flags)
    for words in said:
        assert words in found, found


def test_usage_and_help(capsys):
    for argv in ([], ["--alpha=0"]):
        with pytest.raises(UserError, match="usage"):
            read_config(argv, HPARAMS)
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert not ended.value.code and re.search(r"--alpha(.|\n)*--pooling", capsys.readouterr().out)


@pytest.mark.parametrize("path", ["/a=b/c=d", "/a b/c", "/x: y", "results#1", "/ü", "2024"])
def test_paths_and_folds_stay_text(path):
    config = read(f"--data_folder={path}", f"--output_folder={path}", f"--encoder={path}")
    assert [config.plain[k] for k in ("data_folder", "output_folder", "encoder")] == [path] * 3
    for fold in ("03", "3", "1e5", "r0", "true"):
        assert read(f"--fold={fold}").plain["fold"] == fold


def test_values_are_read_as_yaml():
    plain = read("--lr=5e-5", "--alpha", ".5", "--weight_decay=1e-2", "--warmup=0", "--labels={a: b, '*': null}").plain
    assert [plain[k] for k in ("lr", "alpha", "weight_decay", "warmup")] == [5e-5, 0.5, 0.01, 0]
    assert plain["labels"] == {"a": "b", "*": None}


def test_null_switches_off_what_a_users_yaml_switches_on(write):
    path = write("base: cai_mtl.yaml\ntracker: tensorboard\nbackbone_lr: 0.1\n")
    plain = read("--tracker=null", "--backbone_lr=null", yaml=path).plain
    assert plain["tracker"] is None and plain["backbone_lr"] is None


def test_run_options_pass_through():
    """But a line of the YAML that has a run option's name is the YAML's, where SpeechBrain takes it from."""
    flags = ("--debug", "--debug_batches", "3", "--jit_module_keys", "a", "b", "--optimizer_step_limit=5")
    config = read("--precision=bf16", "--max_grad_norm=2.5", "--nonfinite_patience=4", "--device=cuda:1", *flags)
    options = config.run_opts
    assert options["device"] == "cuda:1" and options["debug"] is True and options["test_only"] is False
    assert options["debug_batches"] == 3 and options["jit_module_keys"] == ["a", "b"]
    assert options["optimizer_step_limit"] == 5  # a number: SpeechBrain compares it with one
    assert {"device", "debug", "jit_module_keys"} <= options.overridden_args
    assert [config.plain[k] for k in ("precision", "max_grad_norm", "nonfinite_patience")] == ["bf16", 2.5, 4]
    assert not {"precision", "max_grad_norm", "nonfinite_patience"} & config.run_opts.overridden_args


@pytest.mark.parametrize(
    ("flag", "where", "hint"),
    [
        ("--opt_class={lrr: 1}", "opt_class: torch.optim.AdamW has no argument 'lrr'", "'lr'"),
        ("--opt_class=!name:torch.optim.SGD {momentun: 0.9}", "opt_class: torch.optim.SGD", "'momentum'"),
        ("--model={heads: {emotion: {out_featurs: 3}}}", "model.heads.emotion: torch.nn.Linear", "'out_features'"),
        (
            "--augment=!new:speechbrain.augment.augmenter.Augmenter {augmentations: ["
            "!new:speechbrain.augment.time_domain.SpeedPerturb {orig_frq: 16000}]}",
            "augment.augmentations[0]: speechbrain.augment.time_domain.SpeedPerturb",
            "'orig_freq'",
        ),
        ("--opt_class=!name:torch.optim.SDG {lr: 0.1}", "opt_class: cannot import torch.optim.SDG", "'SGD'"),
        ("--brain_class=!name:recipes.cai_mlt.brain.CaiBrain", "brain_class: cannot import", "'cai_mtl'"),
        ("--lr=!apply:recipes.cai_mtl.brain.paper_rate [0]", "lr: cannot import", "'paper_learning_rate'"),
    ],
)
def test_mistyped_objects(flag, where, hint):
    said = refused(flag, "--lobe={sauce: x}")
    assert where in said and f"did you mean {hint}" in said
    assert "lobe" in said and "'source'" in said  # all are listed


def test_another_class_replaces_and_the_same_one_merges():
    text = read("--opt_class=!name:torch.optim.SGD {lr: 0.5, momentum: 0.9}").resolved()
    assert "betas" not in text and "AdamW" not in text
    merged = read("--opt_class={weight_decay: 0.5}").changed()["opt_class"]
    assert "AdamW" in merged and "betas" in merged and "0.5" in merged and "<lr>" in merged
    assert read("--loss_weights={emotion: 0.5}").plain["loss_weights"] == {"emotion": 0.5, "asr": 0.1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", r"mine\.yaml is not valid YAML: (.|\n)*duplicate"),
        ("a: [1\n", r"mine\.yaml is not valid YAML"),
        ("just text\n", r"mine\.yaml: expected lines"),
        ("", r"mine\.yaml: expected lines"),
        ("base: mine.yaml\nalpha: 0\n", "circle"),
        ("base: cai_mlt.yaml\n", "no such file: .*did you mean 'cai_mtl.yaml'.*demo.yaml"),
        ("base: encoder.yaml\n", "no such file: .*did you mean 'base/encoder.yaml'"),
        ("base: base/training.yaml\nsystem: mine\n", "missing lines: n_epochs, .*hparams/cai_mtl.yaml shows the rest"),
        ("base: cai_mtl.yaml\nfreeze: 1\nalpha: much\n", r"freeze: expected true or (.|\n)*alpha: expected a numb"),
        ("base: cai_mtl.yaml\nsystem: a/b\n", "system: expected a name that is fit for a folder, found 'a/b'"),
        ("base: cai_mtl.yaml\nopt_class: {betass: (0, 1)}\n", "did you mean 'betas'"),
        ("system: cai_mtl\n", "missing lines: .*encoder.*alpha"),
    ],
)
def test_refused_files(write, text, said):
    assert re.search(said, refused(yaml=write(text)))


def test_a_reference_to_no_line(write):
    with pytest.raises(UserError, match='The reference "own" is not valid: it has no such line'):
        read(yaml=write("base: cai_mtl.yaml\nlr: !ref <own>\n")).plain  # noqa: B018


def test_base_chains(write):
    write("base: cai_mtl.yaml\nalpha: 0.01\npooling: sum\n", "first.yaml")
    config = read(yaml=write("base: first.yaml\nalpha: 0.001\n", "second.yaml"))
    assert config.system == "cai_mtl" and config.variant() == "alpha=0.001,pooling=sum"
    # a file may have the name of its base
    assert read(yaml=write("base: cai_mtl.yaml\nalpha: 0\n", "cai_mtl.yaml")).variant() == "alpha=0"
    write("base: b.yaml\nalpha: 0\n", "a.yaml")
    assert "circle" in refused(yaml=write("base: a.yaml\nalpha: 0\n", "b.yaml"))


def test_a_whole_copy_with_other_values(write):
    text = CAI.read_text(encoding="utf-8")
    assert read(yaml=write(text.replace("n_epochs: 100", "n_epochs: 7"))).plain["n_epochs"] == 7
    said = refused(yaml=write(text.replace("n_epochs: 100", "n_epochs: a hundred")))
    assert "n_epochs: expected a whole number" in said


def test_old_names(write, caplog):
    path = write("base: cai_mtl.yaml\nwav2vec2_hub: /models/b\ntokens: !ref <wav2vec2_hub>\n")
    plain = read(yaml=path).plain
    assert plain["encoder"] == plain["tokens"] == "/models/b"
    assert read("--wav2vec2_hub=/models/a", yaml=path).variant() == read("--encoder=/models/a", yaml=path).variant()
    assert "--encoder is given twice" in refused("--wav2vec2_hub=a", "--encoder=b")
    new = "wav2vec2_hub is named {}encoder now"
    assert caplog.messages == [f"{path}: {new.format('')}", f"--{new.format('--')}"]  # each once


OWN = """
base: cai_mtl.yaml
system: own
lr: !ref <own_lr>
own_lr: 0.25
gender_weight: 0.5
brain_class: !name:own_brain.OwnBrain
"""
OWN_BRAIN = """
from recipes.cai_mtl.brain import CaiBrain


class OwnBrain(CaiBrain):
    def weight(self):
        return self.hparams.gender_weight
"""


def test_a_system_of_the_users_own(write, caplog):
    """The Brain is found beside the YAML; own keys are read by other lines or by it; the file is its own default."""
    write(OWN_BRAIN, "own_brain.py")
    config = read(yaml=write(OWN))
    assert config.system == "own" and config.variant() == "default" and not caplog.messages
    assert config.science()["gender_weight"] == "0.5"
    assert config.plain["lr"] == 0.25 and "!ref" not in re.sub("#.*", "", config.resolved())
    assert read("--gender_weight=1", "--own_lr=0.1", yaml=write(OWN)).variant() == "gender_weight=1,own_lr=0.1"
    assert "--gender_wieght is unknown (did you mean '--gender_weight'?)" in refused(
        "--gender_wieght=1", yaml=write(OWN)
    )
    assert "did you mean 'OwnBrain'" in refused(yaml=write(OWN.replace("OwnBrain", "OwnBrian")))


def test_a_line_that_nothing_reads_is_a_warning(write, caplog):
    path = write("base: cai_mtl.yaml\nalhpa: 0.2  # not alpha\n")
    assert read(yaml=path).changed() == {"alhpa": "0.2"}
    assert caplog.messages == [f"{path}: nothing reads the line 'alhpa:' (did you mean 'alpha'?)"]


@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        ("--alpha=.1 --max_grad_norm=1 --freeze=false --tokens=letters --debug", "default"),
        ("--alpha=1e-1", "default"),
        ("--pooling=sum --alpha=0.0", "alpha=0,pooling=sum"),
        ("--lr=0.00050", "lr=0.0005"),
        ("--batch_size=4 --optimizer_step_limit=5", "batch_size=4,optimizer_step_limit=5"),
        ("--remove_vector_weight_decay", "remove_vector_weight_decay=True"),
        ("--data_folder=/other --output_folder=/o --results_folder=/r --cache_folder=/c --n_epochs=3", "default"),
        ("--selection=valid --test_every_epoch=True --tracker=wandb --num_workers=2 --device=cuda:0", "default"),
        ("--micro_batch_size=8 --noprogressbar --ckpt_interval_minutes=5", "default"),
        ("--text_folds=2 --speaker_folds=4", "default"),  # its protocol has neither
    ],
)
def test_only_what_changes_the_science_is_in_the_name(flags, variant):
    config = read(*flags.split())
    assert config.variant() == variant and (config.science() == read().science()) is (variant == "default")


def test_what_is_in_the_path_is_science_but_not_in_the_name():
    config = read("--seed=7", "--fold=03", "--corpus=emodb", "--protocol=random")
    assert config.variant() == "default" and config.science() != read().science()


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


@pytest.mark.parametrize(
    ("flags", "rate"),
    [((), 5e-5), (("--alpha=0",), 1e-5), (("--alpha=0.001",), 5e-5), (("--alpha=0", "--lr=2e-3"), 2e-3)],
)
def test_the_learning_rate_follows_alpha(flags, rate):
    """Table 1 of the paper, up to what the optimiser is given."""
    lines = re.findall(r"^(?:lr|opt_class):.*\n(?:  .*\n)*", read(*flags).resolved(), re.MULTILINE)
    optimizer = load_hyperpyyaml("".join(lines))["opt_class"]([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == rate
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999) and optimizer.param_groups[0]["eps"] == 1e-8


def test_plain_has_references_resolved_and_objects_left_out():
    plain = read("--alpha=0.25", "--n_epochs=7").plain
    assert plain["loss_weights"] == {"emotion": 1.0, "asr": 0.25}
    assert plain["early_stopping"] == 7 and plain["manifest_folder"] == "results/manifests"
    assert plain["model"] is None and plain["opt_class"] is None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_yamls(path, write):
    """Each is its own default; what a run writes down is whole; every line is read."""
    config = read(yaml=path)
    assert config.system == path.stem and config.variant() == "default"
    text = config.resolved({"n_emotions": 4, "output_folder": "/out", "fold": "03"})
    assert "!ref" not in re.sub("#.*", "", text) and not re.search("^base:", text, re.MULTILINE)
    assert "fold: '03'" in text and "output_folder: /out" in text
    assert read(yaml=write(text)).plain.keys() >= config.plain.keys()
    code = "\n".join(p.read_text() for f in ("speechbrain_ser", "recipes") for p in (ROOT / f).rglob("*.py"))
    yaml = re.sub(r"#.*", "", "\n".join(p.read_text(encoding="utf-8") for p in HPARAMS.rglob("*.yaml")))
    unread = [
        key
        for key in config.tree
        if not key.startswith("__")
        and f"<{key}>" not in yaml
        and not re.search(rf"""(plain|hparams|tree)(\[|\.get\()["']{key}["']|hparams\.{key}\b""", code)
        and key not in (*config.run_opts.as_dict(), *CORPUS_LINES)
    ]
    assert unread == []


def test_a_shipped_yaml_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cai_mtl", "cai_mtl.yaml", "hparams/cai_mtl.yaml", "hparams/cai_mtl"):
        assert yaml_named(name, HPARAMS) == HPARAMS / "cai_mtl.yaml"
    assert yaml_named("tables/cai_table3", HPARAMS) == HPARAMS / "tables" / "cai_table3.yaml"
    Path("cai_mtl.yaml").touch()
    assert yaml_named("cai_mtl.yaml", HPARAMS) == Path("cai_mtl.yaml")
    assert yaml_named("mine.yaml", HPARAMS) == Path("mine.yaml")


def test_nearest_prefers_the_spelling_that_comes_first():
    assert nearest("SDG", ["SGD", "sgd"]) == " (did you mean 'SGD'?)"
    assert nearest("", ["a"]) == "" and nearest("x", []) == ""
