"""Cai et al. 2021, "Speech Emotion Recognition with Multi-task Learning": L = L_CE + alpha * L_CTC (eq. 3)."""

from speechbrain_ser.nnet.losses import ctc_loss, emotion_loss
from speechbrain_ser.training.brain import SERBrain


class CaiBrain(SERBrain):
    """The paper's equations; data, statistics, checkpoints and logs are SERBrain's."""

    def losses(self, predictions, batch):
        """Equations 1 and 2, one value an utterance: CTC summed over its characters, and cross-entropy."""
        losses = {"emotion": emotion_loss(predictions["emotion"], batch.emotion, self.class_weights)}
        if "asr" in predictions:
            losses["asr"] = ctc_loss(predictions["asr"], predictions["frames"], batch.tokens, self.tokens.blank)
        return losses


def paper_learning_rate(alpha: float) -> float:
    """Table 1: 1e-5 if alpha = 0 (larger ones diverge), 5e-5 otherwise.

    Example
    -------
    >>> paper_learning_rate(0), paper_learning_rate(0.1)
    (1e-05, 5e-05)
    """
    return 1e-5 if alpha == 0 else 5e-5
