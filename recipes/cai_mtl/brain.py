"""Cai et al. 2021, "Speech Emotion Recognition with Multi-task Learning": L = L_CE + alpha * L_CTC (eq. 3)."""

from speechbrain_ser.nnet.losses import ctc_loss
from speechbrain_ser.training.brain import SERBrain


class CaiBrain(SERBrain):
    """The paper's equations; data, statistics, checkpoints and logs are SERBrain's."""

    def compute_forward(self, batch, stage):
        """Call the model: emotion = h(pool(f(x))), characters = g(f(x)) (section 3.1)."""
        return self.modules.model(**self.inputs(batch))

    def compute_objectives(self, predictions, batch, stage, **more):
        """L = L_CE + alpha * L_CTC (eq. 3, of eq. 2 and 1), and `more`: the losses that a system adds to them."""
        losses = self.emotion_loss(predictions, batch)  # L_CE
        if "asr" in predictions:  # alpha > 0
            losses["asr"] = ctc_loss(predictions["asr"], predictions["frames"], batch.tokens, self.run.tokens.blank)
        return self.weighted_sum({**losses, **more}, predictions, batch, stage)


def paper_learning_rate(alpha: float) -> float:
    """Return Table 1's: 1e-5 if alpha = 0 (larger ones diverge), 5e-5 otherwise.

    Example
    -------
    >>> paper_learning_rate(0), paper_learning_rate(0.1)
    (1e-05, 5e-05)
    """
    return 1e-5 if alpha == 0 else 5e-5
