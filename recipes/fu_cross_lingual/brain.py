"""Fu et al. 2021, a multitask CNN-BLSTM with attention: L = gamma * L_emotion + theta * L_speaker (section 3.3)."""

import logging

from speechbrain_ser.data.batches import samples_of
from speechbrain_ser.nnet.losses import emotion_loss, speaker_loss
from speechbrain_ser.training.brain import SERBrain

logger = logging.getLogger(__name__)


class FuBrain(SERBrain):
    """The paper's equations; data, statistics, checkpoints and logs are SERBrain's."""

    def losses(self, predictions, batch):
        """Cross-entropy of each task, one value an utterance (section 3.3)."""
        losses = {"emotion": emotion_loss(predictions["emotion"], batch.emotion, self.class_weights)}
        if "speaker" in predictions:
            losses["speaker"] = speaker_loss(predictions["speaker"], batch.speaker)
        return losses

    def on_fit_start(self):
        """Says what is cut, and measures the bands on the fold's training utterances before a checkpoint is loaded."""
        model = self.model
        self._report_cut(model)
        if model.standardize is not None:
            (name,) = model.inputs
            dataset = self.loaders["train"].dataset
            items = (dataset[k][name] for k in range(len(dataset)))
            model.standardize.fit(items if name == "feats" else (model.features(x[None])[0].cpu() for x in items))
        super().on_fit_start()

    def _report_cut(self, model):
        """An utterance longer than the fixed length loses its end, or both, or where it is cut at random either."""
        counts = model.features.frame_counts(samples_of(self.data.frame["duration"]))
        if model.fixed_length and (n := int((counts > model.fixed_length).sum())):
            seconds = model.fixed_length * model.features.hop_seconds
            logger.warning(
                f"{n} of {len(counts)} utterances are longer than {model.fixed_length} frames ({seconds:.1f} s) and "
                f"cut (cut: {model.cut}); the longest has {counts.max()}. fixed_length: 0 takes them whole"
            )
