"""Hsu et al. 2023, decomposed speech beside wav2vec2: L = a_S L_S + a_MSE L_MSE + a_CTC L_CTC + a_E L_E (eq. 5)."""

from pathlib import Path

import pandas as pd
from speechbrain.utils.distributed import run_on_main

from recipes.cai_mtl.brain import CaiBrain
from speechbrain_ser.evaluation.figures import plot_reconstructions, save_figure
from speechbrain_ser.evaluation.metrics import speaker_accuracy
from speechbrain_ser.models.hsu import load_stage_1
from speechbrain_ser.nnet.losses import mean_spectrum_mse, reconstruction_loss, speaker_loss
from speechbrain_ser.training.brain import SERBrain
from speechbrain_ser.training.distributed import gathered

N_DRAWN = 3  # utterances in a picture


class HsuPretrainBrain(SERBrain):
    """Stage 1: L = omega L_S + (1 - omega) L_MSE (eq. 7); it recognises no emotion, so its figures are its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.measures_seen = True  # known speakers: there the reconstruction and the timbre mean most
        fold = self.data.fold
        self.drawn = dict.fromkeys((fold.seen or fold.valid or fold.test)[:N_DRAWN])

    def losses(self, predictions, batch):
        """Equations 3 and 4, one value an utterance."""
        losses = {"reconstruction": reconstruction_loss(predictions)}
        if "speaker" in predictions:
            losses["speaker"] = speaker_loss(predictions["speaker"], batch.speaker)
        return losses

    def prediction_rows(self, predictions, batch):
        """Errors of the reconstruction, and of the best spectrum that does not move; the speaker recognised."""
        errors = reconstruction_loss(predictions).tolist()
        still = mean_spectrum_mse(predictions["target"], predictions["mel_frames"]).tolist()
        rows = []
        for k, utterance in enumerate(batch.id):
            row = {"ID": utterance, "speaker": self.data.frame.at[utterance, "speaker"]}
            row |= {"mse": errors[k], "mse_of_mean": still[k]}
            if "speaker" in predictions:
                row["speaker_predicted"] = self.data.speakers[int(predictions["speaker"][k].argmax())]
            if utterance in self.drawn:
                frames = predictions["mel_frames"][k]
                self.drawn[utterance] = [predictions[p][k, :frames].cpu() for p in ("target", "reconstruction")]
            rows.append(row)
        return rows

    def figures(self, predictions: pd.DataFrame) -> dict:
        """The error of a part's reconstructions."""
        return {"MSE": float(predictions["mse"].mean())}

    def score(self, figures: dict) -> float:
        """The smallest error is the best."""
        return -figures["MSE"]

    def seen_figures(self, predictions: pd.DataFrame) -> dict:
        """Also whether the timbre tells the speakers."""
        told = {"speaker_accuracy": speaker_accuracy(predictions)} if self.has_speaker_task else {}
        return {**self.figures(predictions), **told}

    def _log_epoch(self):
        super()._log_epoch()
        epoch = self.row["epoch"]
        if epoch % self.hparams.draw_every == 0 or epoch == self.hparams.n_epochs:
            pairs = {u: pair for drawn in gathered(self.drawn) for u, pair in drawn.items() if pair is not None}
            run_on_main(self._draw, [epoch, {u: pairs[u] for u in self.drawn if u in pairs}])

    def _draw(self, epoch: int, pairs: dict) -> None:
        folder = Path(self.hparams.output_folder) / "reconstructions"
        folder.mkdir(exist_ok=True)
        save_figure(plot_reconstructions(pairs, f"epoch {epoch}"), folder / f"epoch_{epoch:04d}.png")


class HsuBrain(CaiBrain):
    """Stage 2: Cai's equations, the reconstruction and the speaker of the timbre, from stage 1's parameters."""

    def losses(self, predictions, batch):
        """Equations 1 to 4, one value an utterance."""
        losses = super().losses(predictions, batch)
        if "reconstruction" in predictions:
            losses["reconstruction"] = reconstruction_loss(predictions)
        if "speaker" in predictions:
            losses["speaker"] = speaker_loss(predictions["speaker"], batch.speaker)
        return losses

    def prediction_rows(self, predictions, batch):
        """Recognition's, with the error of the reconstruction."""
        rows = super().prediction_rows(predictions, batch)
        if "reconstruction" in predictions:
            for row, error in zip(rows, reconstruction_loss(predictions).tolist(), strict=True):
                row["mse"] = error
        return rows

    def on_fit_start(self):
        """Stage 1's parameters first; a checkpoint of this run, where there is one, replaces them."""
        if self.hparams.pretrained:
            load_stage_1(self.model, self.hparams.pretrained, self.data.speakers)
        super().on_fit_start()
