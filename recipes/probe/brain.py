"""The yardstick: multinomial logistic regression on a frozen encoder's mean and deviation over an utterance."""

from speechbrain_ser.nnet.losses import cross_entropy
from speechbrain_ser.training.probing import RegressionBrain


class ProbeBrain(RegressionBrain):
    """The regression's cross-entropy, by which it is tested; scikit-learn solves what others step towards."""

    def compute_forward(self, batch, stage):
        """Call the model: logits of the chosen layer's statistics."""
        return self.modules.model(**self.inputs(batch))

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy, weighted by class; the penalty is no part of what is reported."""
        losses = {"emotion": cross_entropy(predictions["emotion"], batch.emotion, self.class_weights)}
        return self.weighted_sum(losses, predictions, batch, stage)
