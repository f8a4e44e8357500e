"""Ha 2023, "SER via multi-task learning with speaker normalization": L = L_SER + alpha * L_ASR + beta * L_sid."""

from speechbrain import Stage

from recipes.cai_mtl.brain import CaiBrain
from speechbrain_ser.nnet.losses import cross_entropy


class HaBrain(CaiBrain):
    """Cai's equations and the speaker's cross-entropy; the reversal of its gradient is the model's."""

    def compute_forward(self, batch, stage):
        """Call the model, whose reversal may follow the training's progress."""
        if stage == Stage.TRAIN:
            self.model.reversal.progress = self.optimizer_step / self.total_steps
        return super().compute_forward(batch, stage)

    def compute_objectives(self, predictions, batch, stage, **more):
        """L = L_SER + alpha * L_ASR + beta * L_sid, of the speakers who are trained on (section III.C)."""
        if "speaker" in predictions:  # beta > 0
            more["speaker"] = cross_entropy(predictions["speaker"], batch.speaker)
        return super().compute_objectives(predictions, batch, stage, **more)
