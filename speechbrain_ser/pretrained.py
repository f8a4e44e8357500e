"""Stage 2 starts from what stage 1 learned: the decomposition and the speaker head (Hsu et al. 2023, section 2.3)."""

import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from speechbrain_ser.checkpoints import WholeCheckpointer, find_epoch
from speechbrain_ser.errors import UserError

logger = logging.getLogger(__name__)

DECOMPOSITION, SPEAKER = "decomposition.", "heads.speaker."


def load_stage_1(model: nn.Module, run_folder: str | os.PathLike, speakers: Sequence[str]) -> None:
    """Take over the parameters of a pre-training run, through SpeechBrain's Pretrainer.

    Arguments
    ---------
    model : HsuModel
        Its decomposition may have fewer parts than stage 1's; its speaker head, where it has one, is stage 1's as
        far as the speakers are.
    run_folder : str or os.PathLike
        Of a run of hsu_pretrain.yaml.
    speakers : sequence of str
        Of the model's speaker head, in the order of its logits.

    Raises
    ------
    UserError
        Without a checkpoint there, or with one that does not fit.
    """
    save = Path(run_folder) / "save"
    checkpoint = find_epoch(WholeCheckpointer(save))  # the last one's
    if checkpoint is None:
        raise UserError(f"pretrained: {run_folder} holds no checkpoint of a finished epoch")
    theirs = json.loads((save / "speakers.json").read_text(encoding="utf-8"))
    hook = partial(_take_over, theirs=theirs, ours=list(speakers))
    pretrainer = Pretrainer(
        loadables={"model": model}, paths={"model": str(checkpoint.paramfiles["model"])}, custom_hooks={"model": hook}
    )
    pretrainer.collect_files()
    pretrainer.load_collected()
    logger.info(f"started from {run_folder}, epoch {checkpoint.meta['epoch']}")


def _take_over(model: nn.Module, path: str | os.PathLike, theirs: list[str], ours: list[str]) -> None:
    """Copy what both models have; rows of the speaker head by the speakers' names."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith((DECOMPOSITION, SPEAKER))}
    taken = {name: state[name] for name in wanted if name in state}
    if strangers := sorted(set(ours) - set(theirs)):
        if any(name.startswith(SPEAKER) for name in wanted):
            raise UserError(f"pretrained: {path} knows no speakers {', '.join(strangers)}, who are trained on here")
    else:
        rows = [theirs.index(speaker) for speaker in ours]
        taken |= {name: value[rows] for name, value in taken.items() if name.startswith(SPEAKER)}
    wrong = [
        f"{name}: there {list(taken[name].shape) if name in taken else 'absent'}, here {list(value.shape)}"
        for name, value in wanted.items()
        if (name not in taken and not name.startswith(SPEAKER)) or (name in taken and taken[name].shape != value.shape)
    ]
    if wrong:
        more = f"\n  … and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise UserError("\n  ".join([f"pretrained: {path} has other sizes:", *wrong[:10]]) + more)
    model.load_state_dict(taken, strict=False)
