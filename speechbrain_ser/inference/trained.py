"""A trained run's model, to use: built from the run's own YAML, with the parameters of the epoch that it tested."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml
from torch import nn

from speechbrain_ser.data.text import load_tokens
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.calibration import read_calibration
from speechbrain_ser.evaluation.metrics import SELECTIONS
from speechbrain_ser.files import read_json, sha256
from speechbrain_ser.models.checkpoints import CheckpointReader, find_epoch, load_parameters


@dataclass
class TrainedModel:
    """What a run learned."""

    model: nn.Module  # in evaluation mode, on the CPU
    metrics: dict  # the run's metrics.json
    epoch: int  # whose parameters these are
    lines: dict  # of the run's hyperparams.yaml, those that are text or numbers
    parameters: Path  # their file
    folder: Path  # the run's

    @property
    def digest(self) -> str:
        """By which the model's results are known."""
        return sha256(self.parameters)[:16]

    @property
    def classes(self) -> list[str]:
        """In the order of the logits."""
        return read_json(self.folder / "save" / "classes.json")

    @property
    def tokens(self):
        """What the ASR head spells with; None where there is none."""
        path = self.folder / "save" / "tokens.json"
        try:
            return load_tokens(path) if "asr" in self.model.heads else None
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: expected what a run writes, found something else ({error!r})") from error

    @property
    def decoding(self) -> dict:
        """Kind and beam size of the search for a transcript."""
        return {"kind": self.lines["decoding"], "beam_size": self.lines["beam_size"]}

    @property
    def calibration(self) -> dict | None:
        """Its calibration.json, where there is one."""
        return read_calibration(self.folder)

    @property
    def inputs(self) -> dict:
        """What the model reads, by name: extractors of features, None for waveforms."""
        return self.model.inputs


def load_model(run_folder: str | os.PathLike) -> TrainedModel:
    """Load the model of a finished run: ``results/<system>/<corpus>-<protocol>/<variant>/<fold>/<seed>``.

    The run's ``hyperparams.yaml`` is executed, as every SpeechBrain YAML is: load only runs that you trust.
    """
    folder = finished(run_folder)
    metrics = read_json(folder / "metrics.json")
    checkpoint = find_epoch(CheckpointReader(folder / "save"), max_key=SELECTIONS[metrics["selection"]].score)
    if checkpoint is None:
        raise UserError(f"{folder / 'save'}: expected a checkpoint of a finished epoch, found none")
    tree = read_yaml(folder / "hyperparams.yaml")
    model = _build(tree, folder / "hyperparams.yaml")
    try:
        load_parameters(model, checkpoint)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{checkpoint.path}: its parameters do not fit the run's own model: {error}") from error
    lines = {name: value for name, value in tree.items() if value is None or isinstance(value, str | int | float)}
    parameters = Path(checkpoint.paramfiles["model"])
    return TrainedModel(model.eval(), metrics, checkpoint.meta["epoch"], lines, parameters, folder)


def finished(run_folder: str | os.PathLike) -> Path:
    """Return a run's folder; a run that is not finished is a UserError."""
    folder = Path(run_folder)
    if lacking := [n for n in ("hyperparams.yaml", "metrics.json") if not (folder / n).is_file()]:
        raise UserError(f"{folder}: expected the folder of a finished run, found no {' and no '.join(lacking)}")
    return folder


def read_yaml(path: Path) -> dict:
    """Return the YAML with its tags, nothing of it executed."""
    try:
        tree = ruamel.yaml.YAML().load(path.read_text(encoding="utf-8"))
    except ruamel.yaml.error.YAMLError as error:
        raise UserError(f"{path}: expected YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected lines `name: value`, found {type(tree).__name__}")
    return tree


def _build(tree: dict, path: Path) -> nn.Module:
    """Build the line `model` alone, with what it refers to: no optimiser, no Brain, no seed for the whole program."""
    yaml = ruamel.yaml.YAML()
    yaml.width = 10_000
    stream = io.StringIO()
    try:
        yaml.dump({"model": tree["model"]}, stream)
        return load_hyperpyyaml(io.StringIO(stream.getvalue()))["model"]
    except (ruamel.yaml.error.YAMLError, ImportError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no model can be built from it: {error}") from error
