"""A stage of training that recognises no emotion: it reconstructs spectrograms, and is judged by their errors."""

import pandas as pd
from speechbrain.utils.distributed import run_on_main

from speechbrain_ser.evaluation.figures import plot_reconstructions, save_figure
from speechbrain_ser.evaluation.metrics import label_accuracy
from speechbrain_ser.nnet.losses import mean_spectrum_mse, reconstruction_loss
from speechbrain_ser.training.brain import SERBrain
from speechbrain_ser.training.distributed import gathered

N_DRAWN = 3  # utterances in a picture


class PretrainingBrain(SERBrain):
    """Base of the Brains of pre-training (the YAML's ``kind: pretraining``)."""

    tested_parts = ("test", "seen")

    def __init__(self, run, loaders, **kwargs):
        super().__init__(run, loaders, **kwargs)
        self.has_speaker_task = self.measures_seen
        self.measures_seen = True  # known speakers: there the reconstruction and the timbre mean most
        self.drawn = dict.fromkeys((run.fold.seen or run.fold.valid or run.fold.test)[:N_DRAWN])

    def prediction_rows(self, predictions, batch):
        """Return errors of the reconstruction, and of the best spectrum that does not move; the speaker recognised."""
        for k, utterance in enumerate(batch.id):
            if utterance in self.drawn:
                frames = predictions["mel_frames"][k]
                self.drawn[utterance] = [predictions[p][k, :frames].cpu() for p in ("target", "reconstruction")]
        rows = self.run.frame.loc[batch.id]
        columns = {"ID": rows["ID"], "speaker": rows["speaker"], "mse": reconstruction_loss(predictions).tolist()}
        columns["mse_of_mean"] = mean_spectrum_mse(predictions["target"], predictions["mel_frames"]).tolist()
        return pd.DataFrame({**columns, **self._labels_told(predictions, rows)})

    def figures(self, predictions):
        """Return the error of a part's reconstructions."""
        return {"MSE": float(predictions["mse"].mean())}

    def score(self, figures):
        """Return the more the smaller the error."""
        return -figures["MSE"]

    def seen_figures(self, predictions):
        """Return also whether the timbre tells the speakers."""
        return self.figures(predictions) | (super().seen_figures(predictions) if self.has_speaker_task else {})

    def table(self, part):
        """Return the predictions as they are."""
        return self.predictions()

    def report(self, tables):
        """Return the mean errors of each part; the speaker's accuracy where the speakers are known."""
        found = {}
        for part, rows in tables.items():
            found[part] = {
                "n": len(rows),
                **self.figures(rows),
                "MSE_of_mean_spectrum": float(rows["mse_of_mean"].mean()),
            }
            if part == "seen" and self.has_speaker_task:
                found[part]["speaker_accuracy"] = label_accuracy(rows, "speaker")
        return found

    def _log_epoch(self):
        super()._log_epoch()
        epoch = self.row["epoch"]
        if epoch % self.hparams.draw_every == 0 or epoch == self.hparams.n_epochs:
            pairs = {u: pair for drawn in gathered(self.drawn) for u, pair in drawn.items() if pair is not None}
            run_on_main(self._draw, [epoch, {u: pairs[u] for u in self.drawn if u in pairs}])

    def _draw(self, epoch: int, pairs: dict) -> None:
        folder = self.run.folder / "reconstructions"
        folder.mkdir(exist_ok=True)
        save_figure(plot_reconstructions(pairs, f"epoch {epoch}"), folder / f"epoch_{epoch:04d}.png")
