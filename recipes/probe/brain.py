"""The yardstick: multinomial logistic regression on a frozen encoder's mean and deviation over an utterance."""

import logging
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import run_on_main

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import write_csv
from speechbrain_ser.nnet.losses import emotion_loss
from speechbrain_ser.training.brain import SERBrain
from speechbrain_ser.training.probing import best, fit_regression, parameters_of

logger = logging.getLogger(__name__)

SCORES = "inner_scores.csv"


class ProbeBrain(SERBrain):
    """One epoch, in which scikit-learn solves what others step towards; all around it is SERBrain's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.hparams.n_epochs != 1:
            raise UserError(f"n_epochs: a regression is solved at once, expected 1, found {self.hparams.n_epochs}")

    def init_optimizers(self):
        """There are none."""
        self.scheduler = None

    def losses(self, predictions, batch):
        """Cross-entropy, one value an utterance."""
        return {"emotion": emotion_loss(predictions["emotion"], batch.emotion, self.class_weights)}

    def settings(self):
        """What was chosen, in the place of a learning rate."""
        return {"layer": int(self.model.layer), "C": float(f"{self.model.C.item():.6g}")}

    def facts(self):
        """What was chosen, also in metrics.json."""
        return self.settings()

    def _fit_train(self, train_set, epoch, enable):
        """In the place of gradient steps: choose on inner speakers, fit on the whole training part."""
        self.on_stage_start(sb.Stage.TRAIN, epoch)
        x, emotion = self._training_part(train_set.dataset)  # the same in every process
        self._fit(x.numpy(), emotion.numpy())
        with torch.no_grad():
            logits = self.model((x.to(self.device), None))["emotion"].cpu()
        weights = None if self.class_weights is None else self.class_weights.cpu()
        self.tally.add(loss=emotion_loss(logits, emotion, weights), WA=logits.argmax(-1) == emotion)
        self.on_stage_end(sb.Stage.TRAIN, None, epoch)

    def _training_part(self, dataset) -> tuple[torch.Tensor, torch.Tensor]:
        """Statistics [utterances, states, values] and the indices of the emotions, in the order of ``fold.train``."""
        items = [dataset[k] for k in range(len(dataset))]
        return torch.stack([item["sig"] for item in items]), torch.tensor([item["emotion_index"] for item in items])

    def _fit(self, x: np.ndarray, emotion: np.ndarray) -> None:
        rows = self.data.frame.loc[list(self.data.fold.train)]
        speaker = (rows["corpus"] + ":" + rows["speaker"]).where(rows["speaker"] != "", "").to_numpy(str)
        weight = None if self.class_weights is None else self.class_weights.cpu().numpy()[emotion]
        scores = self.hparams.choice.scores(x, emotion, speaker, weight)
        layer, strength = best(scores)
        run_on_main(write_csv, [scores, Path(self.hparams.output_folder) / SCORES])
        logger.info(f"chosen: layer {layer}, C {strength:g} (inner WA {scores['WA'].max():.1%})")
        pipeline = fit_regression(x[:, layer], emotion, strength, weight)
        self.model.set(layer=layer, C=strength, **parameters_of(pipeline, len(self.data.classes)))
