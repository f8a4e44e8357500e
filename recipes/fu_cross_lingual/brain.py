"""Fu et al. 2021, a multitask CNN-BLSTM with attention: L = gamma * L_emotion + theta * L_speaker (section 3.3)."""

from speechbrain_ser.nnet.losses import cross_entropy
from speechbrain_ser.training.brain import SERBrain


class FuBrain(SERBrain):
    """The paper's equations; data, statistics, checkpoints and logs are SERBrain's."""

    def compute_forward(self, batch, stage):
        """Call the model: emotion and speaker of a log-mel spectrogram's vector (figure 1)."""
        return self.modules.model(**self.inputs(batch))

    def compute_objectives(self, predictions, batch, stage, **more):
        """L = gamma * L_emotion + theta * L_speaker, and `more`: the losses that a system adds to them."""
        losses = self.emotion_loss(predictions, batch)
        if "speaker" in predictions:  # theta > 0
            losses["speaker"] = cross_entropy(predictions["speaker"], batch.speaker)
        return self.weighted_sum({**losses, **more}, predictions, batch, stage)
