"""What a model said of a labelled corpus, whoever made it, and what must be known of the figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from speechbrain_ser.evaluation.calibration import cross_fitted, utterance_scores, with_temperature

AS_IT_CAME, REFITTED = "as it came", "refitted"
LEAST_POSTERIOR = float(np.finfo(np.float32).eps)  # a smaller one counts as this, as in scikit-learn's log loss


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions of a model, as a run writes them, with its posteriors in full."""

    model: str
    where: str  # corpus, protocol and folds
    classes: Sequence[str]  # all of the model's, in the order of the posteriors
    predictions: pd.DataFrame  # no speaker is known (""), or all are
    posteriors: np.ndarray  # [utterances, classes]
    leak: str | None  # in words, what the model knows of the corpus
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """Model and corpus, and what is wrong with that."""
        return f"{self.model} on {self.where}" + (". LEAKY" if self.leak else "")

    @cached_property
    def ways(self) -> dict[str, np.ndarray]:
        """Each utterance's temperature [utterances], by way of getting posteriors.

        Those that are refitted come from other speakers' utterances, where speakers are known and several.
        """
        speakers = self.predictions["speaker"]
        found = {AS_IT_CAME: np.ones(len(speakers))}
        if speakers.nunique() > 1:
            found[REFITTED] = cross_fitted(self.logits, self._true, speakers)
        return found

    @cached_property
    def logits(self) -> np.ndarray:
        """Log posteriors, which do as logits do."""
        return np.log(np.clip(self.posteriors, LEAST_POSTERIOR, 1))

    @property
    def _true(self) -> np.ndarray:
        return pd.Index(self.classes).get_indexer(self.predictions["emotion"])

    def scores(self, way: str) -> pd.DataFrame:
        """Return :func:`utterance_scores` with speaker, fold and seed, as tables of calibration read them."""
        log_posteriors = with_temperature(self.logits, self.ways[way][:, None])
        return utterance_scores(log_posteriors, self._true).assign(
            speaker=self.predictions["speaker"].to_numpy(), fold="", seed=0
        )
