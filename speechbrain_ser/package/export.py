"""A run's folder made a package: written beside its place, compared with the run's own model, then renamed."""

import os
import shutil
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

from speechbrain_ser import __version__
from speechbrain_ser.calibration import read_calibration, temperature_of
from speechbrain_ser.dataio import SAMPLE_RATE
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import sha256, write_json, write_text
from speechbrain_ser.lobes.backbone import backbone_settings, preprocessor_settings
from speechbrain_ser.models.inputs import model_inputs
from speechbrain_ser.nnet.lora import merged_state
from speechbrain_ser.package import onnx, speechbrain_layout
from speechbrain_ser.package.card import model_card
from speechbrain_ser.package.classes import build_model
from speechbrain_ser.package.description import TASKS, describe, has_backbone
from speechbrain_ser.package.hub import is_hub_name
from speechbrain_ser.package.layout import (
    BACKBONE,
    BACKBONE_FILES,
    CARD,
    CONFIG,
    FILES,
    FORMAT,
    LABELS,
    ONNX,
    PARAMETERS,
    TOKENS,
    VERSION,
)
from speechbrain_ser.package.load import load_package
from speechbrain_ser.trained import TrainedModel, finished, load_model, read_yaml

SECONDS = (1.5, 0.9, 0.4)  # of the random utterances on which a package is compared with its run
TOLERANCE = 1e-4


def export_run(
    run_folder: str | os.PathLike, out: str | os.PathLike, with_onnx: bool = False, with_speechbrain: bool = False
) -> Path:
    """Write a package; it appears whole or not at all.

    The speaker head and what only training needs (Hsu's decoder and the encoders that it alone reads) stay behind.

    Arguments
    ---------
    run_folder : str or os.PathLike
        Of a finished run that you trust: its YAML is executed.
    out : str or os.PathLike
        The package's folder, which must not exist, or be empty.
    with_onnx : bool
        Also a ``model.onnx`` (Cai's and Ha's systems).
    with_speechbrain : bool
        Also what ``speechbrain.inference.classifiers.EncoderClassifier.from_hparams`` reads.

    Returns
    -------
    pathlib.Path
        The package's folder.

    Raises
    ------
    UserError
        When the folder is taken, the run recognises no emotion or has parts that no package can hold, or the package
        says something else than the run.
    """
    out, run = _free(out), Path(run_folder)
    description = _description(run)
    if with_onnx:
        onnx.check_possible(description)
    trained = load_model(run)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write(temporary, run, trained, description, with_onnx, with_speechbrain)
        _compare(temporary, trained)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _free(out: str | os.PathLike) -> Path:
    out = Path(os.path.abspath(Path(out).expanduser()))
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return out
    if out.exists() or out.is_symlink():
        found = "a folder with files in it" if out.is_dir() else "something else"
        raise UserError(f"{out}: expected a new or an empty folder, found {found}: give another one, or remove it")
    return out


def _description(run: Path) -> dict:
    """Of the run's model; read from the YAML, before anything of it is executed."""
    path = finished(run) / "hyperparams.yaml"
    tree = read_yaml(path)
    if tree.get("kind") == "pretraining":
        system = tree.get("system")
        raise UserError(
            f"{run}: {system} recognises no emotion: it is the pre-training of another system, to export instead"
        )
    return describe(tree, str(path))


def _write(folder: Path, run: Path, trained: TrainedModel, description: dict, with_onnx: bool, with_speechbrain: bool):
    """Everything but the hashes first, config.json with them last."""
    classes, calibration = trained.classes, _calibration(run, trained.epoch)
    write_json(classes, folder / LABELS)
    if has_asr := "asr" in description["arguments"]["heads"]:
        shutil.copyfile(run / "save" / "tokens.json", folder / TOKENS)
    if has_backbone(description):
        _write_backbone(folder, trained.model)
    model = build_model(description, str(run / "hyperparams.yaml"), str(folder / BACKBONE))
    _write_parameters(folder / PARAMETERS, model, trained.model)
    if with_onnx:
        onnx.write_onnx(model, folder / ONNX)
    if with_speechbrain:
        speechbrain_layout.write(folder, description, classes, calibration)
    lines = trained.lines
    config = {
        "format": FORMAT,
        "format_version": VERSION,
        "speechbrain_ser": __version__,
        "model": description,
        "classes": classes,
        "decoding": {"kind": lines["decoding"], "beam_size": lines["beam_size"]} if has_asr else None,
        "sample_rate": SAMPLE_RATE,
        "calibration": calibration,
        "files": {name: sha256(folder / name) for name in FILES if (folder / name).is_file()},
    }
    write_text(_card(run, trained, config), folder / CARD)
    write_json(config, folder / CONFIG)


def _calibration(run: Path, epoch: int) -> dict | None:
    """The run's, unless it is that of other parameters."""
    found = read_calibration(run)
    _, reason = temperature_of(found, epoch)
    return found if found is None or reason is None else {"temperature": None, "reason": reason}


def _write_backbone(folder: Path, model: nn.Module) -> None:
    (folder / BACKBONE).mkdir()
    config, preprocessor = (folder / name for name in BACKBONE_FILES)
    write_json(backbone_settings(model.encoder.model.config.to_dict()), config)
    write_json(preprocessor_settings(model.encoder), preprocessor)


def _write_parameters(path: Path, model: nn.Module, trained: nn.Module) -> None:
    """Of the run's parameters those that the package's model has; the model gets them as well."""
    state = merged_state(trained)  # a package's layers are plain ones
    if lacking := [name for name in model.state_dict() if name not in state]:
        raise UserError(f"the run's model lacks {', '.join(lacking[:5])}, which its description has")
    state = {name: state[name].detach().cpu().clone().contiguous() for name in model.state_dict()}
    model.load_state_dict(state)
    save_file(state, path, {"format": "pt"})
    path.chmod((path.parent / LABELS).stat().st_mode & 0o777)  # safetensors' files are the owner's alone


def _card(run: Path, trained: TrainedModel, config: dict) -> str:
    path = run / "predictions.csv"
    if not path.is_file():
        raise UserError(f"{path}: expected the predictions of a finished run, found none")
    predictions = pd.read_csv(path, dtype=str, keep_default_na=False)
    return model_card(trained.metrics, predictions, config, _start(trained.lines))


def _start(lines: dict) -> str | None:
    """What the backbone's parameters were before the training: a hub name, and never a path of this machine."""
    if not (name := lines.get("encoder") or lines.get("wav2vec2_hub")):  # of older runs
        return None
    if "build_backbone" not in lines:  # a mapping: it was drawn in these sizes
        return "random parameters"
    return f"`{name}`" if is_hub_name(name) else "a backbone in a folder of whoever trained it"


def _compare(folder: Path, trained: TrainedModel) -> None:
    """The package must say what the run says, on a padded batch of noise."""
    package = load_package(folder)
    trained.model.keep_tasks(set(TASKS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wavs = [torch.randn(int(s * SAMPLE_RATE)) for s in SECONDS]
    expected, found = (_outputs(model, wavs) for model in (trained.model, package.model))
    for name, value in expected.items():
        worst = float((value - found[name]).abs().max() / value.abs().max().clamp(min=1))
        if not worst <= TOLERANCE:
            raise UserError(f"the package's {name} logits differ from the run's by {worst:.1e}: nothing is written")


def _outputs(model: nn.Module, wavs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        outputs = model(**model_inputs(model, wavs, "cpu"))
    return {name: outputs[name] for name in TASKS if name in outputs}
