"""Ha 2023: Cai's model with a speaker head behind gradient reversal."""

import torch
from torch import nn

from speechbrain_ser.models.cai import CaiModel
from speechbrain_ser.nnet.gradient_reversal import GradientReversal


class HaModel(CaiModel):
    """speaker = i(reverse(pool(z))), beside Cai's emotion and characters (Ha 2023, section III.C).

    Arguments
    ---------
    reversal : bool
        Reverse the speaker head's gradient; False lets it through ("forward" in the paper's Table III).
    schedule : str
        Of the reversal's strength, see :class:`speechbrain_ser.nnet.gradient_reversal.GradientReversal`.
    """

    tasks = (*CaiModel.tasks, "speaker")

    def __init__(self, encoder, pooling, heads, loss_weights, seed=0, reversal=True, schedule="constant"):
        super().__init__(encoder, pooling, heads, loss_weights, seed)
        self.reversal = GradientReversal(schedule=schedule) if reversal else nn.Identity()

    def read(self, task: str, x: torch.Tensor) -> torch.Tensor:
        """Return the vector as it is; for the speaker's head, reversed."""
        return self.reversal(x) if task == "speaker" else x
