"""Ha 2023, "SER via multi-task learning with speaker normalization": L = L_SER + alpha * L_ASR + beta * L_sid."""

from recipes.cai_mtl.brain import CaiBrain
from speechbrain_ser.nnet.losses import speaker_loss


class HaBrain(CaiBrain):
    """Cai's equations and the speaker's cross-entropy; the reversal is the model's."""

    def losses(self, predictions, batch):
        """Cai's two, and L_sid of the speakers who are trained on (section III.C)."""
        losses = super().losses(predictions, batch)
        if "speaker" in predictions:
            losses["speaker"] = speaker_loss(predictions["speaker"], batch.speaker)
        return losses

    def on_fit_batch_start(self, batch, should_step):
        """A scheduled reversal follows the training's progress."""
        super().on_fit_batch_start(batch, should_step)
        self.model.reversal.progress = self.optimizer_step / self.total_steps
