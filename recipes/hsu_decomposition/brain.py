"""Hsu et al. 2023, decomposed speech beside wav2vec2: L = a_S L_S + a_MSE L_MSE + a_CTC L_CTC + a_E L_E (eq. 5)."""

from recipes.cai_mtl.brain import CaiBrain
from speechbrain_ser.models.hsu import load_stage_1
from speechbrain_ser.nnet.losses import cross_entropy, reconstruction_loss
from speechbrain_ser.training.brain import PretrainingBrain


class HsuPretrainBrain(PretrainingBrain):
    """Stage 1: content, pitch, rhythm and timbre, and from them the spectrogram again; no emotion yet."""

    def compute_forward(self, batch, stage):
        """Call the model: codes, the reconstruction of them and the speaker of the timbre (figure 2)."""
        return self.modules.model(**self.inputs(batch))

    def compute_objectives(self, predictions, batch, stage):
        """L = omega * L_S + (1 - omega) * L_MSE (eq. 7, of equations 4 and 3)."""
        losses = {"reconstruction": reconstruction_loss(predictions)}
        if "speaker" in predictions:  # omega > 0
            losses["speaker"] = cross_entropy(predictions["speaker"], batch.speaker)
        return self.weighted_sum(losses, predictions, batch, stage)


class HsuBrain(CaiBrain):
    """Stage 2: Cai's equations, the reconstruction and the speaker of the timbre, from stage 1's parameters."""

    def on_fit_start(self):
        """Start from stage 1; a checkpoint of this run, where there is one, replaces it."""
        if self.hparams.pretrained:
            load_stage_1(self.model, self.hparams.pretrained, self.run.labels["speaker"])
        super().on_fit_start()

    def compute_forward(self, batch, stage):
        """Call the model: wav2vec2 and the codes for the emotion, each for tasks of its own (figure 1)."""
        return self.modules.model(**self.inputs(batch))

    def compute_objectives(self, predictions, batch, stage, **more):
        """L = a_E * L_E + a_CTC * L_CTC + a_MSE * L_MSE + a_S * L_S (eq. 5, of equations 1 to 4)."""
        if "reconstruction" in predictions:  # a_MSE > 0
            more["reconstruction"] = reconstruction_loss(predictions)
        if "speaker" in predictions:  # a_S > 0
            more["speaker"] = cross_entropy(predictions["speaker"], batch.speaker)
        return super().compute_objectives(predictions, batch, stage, **more)
