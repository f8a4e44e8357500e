"""A linear probe of a frozen encoder: layer and C chosen on speakers left out of the training part, then the fit."""

import hashlib
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import speechbrain as sb
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from speechbrain.utils.distributed import if_main_process, run_on_main
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from speechbrain_ser.data.batches import load_audio
from speechbrain_ser.data.protocols import TEXT_DISJOINT
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.metrics import emotion_metrics
from speechbrain_ser.files import write_csv
from speechbrain_ser.nnet.augment import WaveformAugmentation
from speechbrain_ser.nnet.losses import cross_entropy
from speechbrain_ser.processing.cache import FeatureCache
from speechbrain_ser.training.brain import SERBrain
from speechbrain_ser.training.signals import stop_wish

logger = logging.getLogger(__name__)

# so small are the products that threads wait for each other, spinning, forty times longer than they compute
one_thread = threadpool_limits.wrap(limits=1)

SCORES = "inner_scores.csv"
FEWEST_SPEAKERS = 3  # below, too few would be trained on where one is left out
INNER_FOLDS = 5  # where it is not speakers who are left out
TEXT_GROUPS = 4  # of a training part from which one of five groups of texts is missing
COARSE, FINE = 1e-4, 1e-6  # the optimiser's tolerance: to compare by accuracies, and for the model that is kept
STEPS = 10_000
NEVER = -1e3  # logit of a class that no training utterance has


class Copies(NamedTuple):
    """What augmentation makes of the training utterances, so many times each."""

    x: list[np.ndarray]  # of each copy [utterances, states, values]
    heard: list[list[set[int]]]  # by copy and utterance, who babbles behind it: indices of training utterances

    def rows(self, x: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what may be trained on where `train` (indices) is: values, utterances, and their weights [rows].

        A copy behind which somebody babbles who is left out is left out as well. An utterance has the weight 1 in all,
        so that C means what it means without copies.
        """
        trained = set(train.tolist())
        rows = [(x[train], train)]
        for copy, heard in zip(self.x, self.heard, strict=True):
            kept = np.array([k for k in train if heard[k] <= trained], int)
            rows.append((copy[kept], kept))
        values, of = (np.concatenate(each) for each in zip(*rows, strict=True))
        return values, of, 1 / np.bincount(of)[of]


class LayerChoice:
    """A grid of layers and C, and what is best on inner folds.

    Arguments
    ---------
    encoder : torch.nn.Module
        Has ``states`` and ``min_samples``: it is asked once how many states it gives.
    layers : sequence of int, optional
        States to choose from: 0 is the transformer's input, k the output of layer k. None: all.
    C : sequence of float
        Inverse strengths of the L2 penalty, as scikit-learn has them: the smaller, the simpler.
    join_layers : int
        How many neighbouring states, from each on, are one choice.
    """

    def __init__(self, encoder, layers: Sequence[int] | None, C: Sequence[float], join_layers: int = 1):
        with torch.no_grad():
            n_states = len(encoder.states(torch.zeros(1, encoder.min_samples), torch.ones(1))[0])
        if isinstance(join_layers, bool) or not isinstance(join_layers, int) or not 1 <= join_layers <= n_states:
            raise UserError(f"join_layers: expected a whole number from 1 to {n_states}, found {join_layers!r}")
        self.join_layers, n_states = join_layers, n_states - join_layers + 1
        self.layers = list(range(n_states)) if layers is None else _each(layers, "layers")
        if wrong := [k for k in self.layers if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k < n_states]:
            raise UserError(f"layers: expected whole numbers from 0 to {n_states - 1}, found {wrong[0]!r}")
        self.strengths = _each(C, "C")
        if wrong := [c for c in self.strengths if not (isinstance(c, int | float) and 0 < c < math.inf)]:
            raise UserError(f"C: expected numbers > 0, found {wrong[0]!r}")
        self.strengths.sort()  # each starts where the simpler one before it has ended

    def scores(
        self,
        x: np.ndarray,
        emotion: np.ndarray,
        speaker: np.ndarray,
        weight: np.ndarray | None = None,
        text: np.ndarray | None = None,
        copies: Copies | None = None,
    ) -> pd.DataFrame:
        """Return WA and UA of every ``layer`` and ``C`` (a row each) on utterances that were left out, pooled.

        Arguments
        ---------
        x : numpy.ndarray
            [utterances, states, values], of the training part alone.
        emotion, speaker : numpy.ndarray
            [utterances], the class by index and who speaks; ``""`` where that is not known.
        weight : numpy.ndarray, optional
            [utterances], of each in the loss.
        text : numpy.ndarray, optional
            [utterances], what each says, where no text that is tested may be trained on.
        copies : Copies, optional
            Of the utterances, that are trained on as well, and told where their speaker is left out: what is chosen
            must serve changed recordings, too.
        """
        folds, how = inner_folds(emotion, speaker)
        if text is not None:
            folds, how = without_texts(folds, emotion, text), f"{how}, each once a group of texts"
        logger.info(f"{len(self.layers)} layers x {len(self.strengths)} C are compared on {how}")
        tested = np.unique(np.concatenate([test for _, test in folds]))
        classes, rows = np.unique(emotion), []
        for layer in tqdm(self.layers, "layers", disable=None):
            of_layer = self.joined_copies(copies, layer)
            said = self._left_out(self.joined(x, layer).astype(np.float32), emotion, folds, weight, of_layer)
            for c, predicted in zip(self.strengths, said[..., tested], strict=True):
                found = emotion_metrics(np.resize(emotion[tested], predicted.size), predicted.ravel(), classes)
                rows.append({"layer": layer, "C": c, "WA": found["WA"], "UA": found["UA"]})
        return pd.DataFrame(rows)

    def joined(self, x: np.ndarray, layer: int) -> np.ndarray:
        """Return the values of a layer, and of those above that are joined to it [utterances, layers * values]."""
        return x[:, layer : layer + self.join_layers].reshape(len(x), -1)

    def joined_copies(self, copies: Copies | None, layer: int) -> Copies | None:
        """Return copies with the values of a layer in the place of all, as :meth:`joined` has them."""
        return None if copies is None else copies._replace(x=[self.joined(copy, layer) for copy in copies.x])

    @one_thread
    def _left_out(self, x, emotion, folds, weight, copies=None) -> np.ndarray:
        """What is said of each utterance, and its copies, by a model that has not seen it [C, versions, utterances]."""
        versions = [x] if copies is None else [x, *copies.x]
        said = np.empty((len(self.strengths), len(versions), len(emotion)), emotion.dtype)
        for train, test in folds:
            stop_wish.heed()  # nothing is lost: there is no checkpoint yet
            if len(classes := np.unique(emotion[train])) == 1:
                said[:, :, test] = classes
                continue
            values, of, weights = training_rows(x, train, weight, copies)
            scaler = StandardScaler().fit(values)
            known, unknown = scaler.transform(values), scaler.transform(np.concatenate([v[test] for v in versions]))
            if len(known) < known.shape[1]:
                # the same problem in as many dimensions as there are utterances: a rotation changes no L2 penalty
                rotation, rotated = np.linalg.qr(known.T)
                known, unknown = np.ascontiguousarray(rotated.T), unknown @ rotation
            regression = LogisticRegression(tol=COARSE, max_iter=STEPS, warm_start=True)
            for k, c in enumerate(self.strengths):
                regression.set_params(C=c).fit(known, emotion[of], weights)
                said[k][:, test] = regression.predict(unknown).reshape(len(versions), -1)
        return said


def training_rows(x: np.ndarray, train: np.ndarray, weight: np.ndarray | None, copies: Copies | None):
    """Return what a regression is fitted to: values [rows, …], whose they are [rows], and weights [rows] or None."""
    if copies is None:
        return x[train], train, None if weight is None else weight[train]
    values, of, shares = copies.rows(x, train)
    return values, of, shares if weight is None else shares * weight[of]


class RegressionBrain(SERBrain):
    """A Brain of one epoch, in which scikit-learn solves what others step towards; all around it is SERBrain's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.hparams.n_epochs != 1:
            raise UserError(f"n_epochs: a regression is solved at once, expected 1, found {self.hparams.n_epochs}")
        if set(self.model.heads) != {"emotion"} or self.run.votes is not None:
            raise UserError("a probe learns the emotion alone: it takes no votes, and no weights of other heads")
        if not isinstance(self.hparams.augment, WaveformAugmentation | None):
            raise UserError("augment: expected speechbrain_ser.nnet.augment.WaveformAugmentation, or null")

    def init_optimizers(self):
        self.scheduler = None

    def settings(self):
        """Return what was chosen, in the place of a learning rate."""
        return {"layer": int(self.model.layer), "C": float(f"{self.model.C.item():.6g}")}

    facts = settings  # of metrics.json, too

    def _fit_train(self, train_set, epoch, enable):
        """In the place of gradient steps: choose on inner speakers, fit on the whole training part."""
        self.on_stage_start(sb.Stage.TRAIN, epoch)
        items = [train_set.dataset[k] for k in range(len(train_set.dataset))]
        x = torch.stack([item["sig"] for item in items])  # (utterances, states, values), the same in every process
        emotion = torch.tensor([item["emotion"] for item in items])
        weights = None if self.class_weights is None else self.class_weights.cpu()
        of_each = None if weights is None else weights.numpy()[emotion]
        self._fit(x.numpy(), emotion.numpy(), of_each, self._copies())
        with torch.no_grad():
            logits = self.model((x.to(self.device), None))["emotion"].cpu()
        self.tally.add(loss=cross_entropy(logits, emotion, weights), WA=logits.argmax(-1) == emotion)
        self.on_stage_end(sb.Stage.TRAIN, None, epoch)

    def _copies(self) -> Copies | None:
        """Statistics of changed copies of the training utterances, computed once and kept."""
        augment, rows, features = self.hparams.augment, self.run.part("train"), self.model.inputs["sig"]
        if augment is None:
            return None
        names, places = dict(zip(rows["wav"], rows["ID"], strict=True)), {name: k for k, name in enumerate(rows["ID"])}
        heard_of = hashlib.sha256(rows[["ID", "speaker", "recording"]].to_csv(index=False).encode()).hexdigest()
        settings = {**features.settings, **augment.settings, "train": heard_of}
        found, heard = [], []
        for turn in range(1, self.hparams.augmented_copies + 1):

            def changed(path: str, turn=turn) -> torch.Tensor:
                stop_wish.heed()
                return augment(load_audio(path), names[path], turn)

            folder = Path(self.hparams.cache_folder, "features")
            cache = FeatureCache(folder, {**settings, "copy": turn}, features.extract, changed)
            cache.fill(rows["wav"], progress=if_main_process())
            found.append(torch.stack([cache[path] for path in rows["wav"]]).numpy())
            heard.append([{places[name] for name in augment.heard(one, turn)} for one in rows["ID"]])
        return Copies(found, heard)

    def _fit(self, x: np.ndarray, emotion: np.ndarray, weight: np.ndarray | None, copies: Copies | None = None) -> None:
        rows = self.run.part("train")
        if len(found := rows["emotion"].unique()) < 2:
            raise UserError(f"a probe needs two emotions at least in the training part, found {', '.join(found)}")
        speaker = (rows["corpus"] + ":" + rows["speaker"]).where(rows["speaker"] != "", "").to_numpy(str)
        # what is chosen must serve texts that are as new as those of the test part
        script = rows.get("script", pd.Series("", rows.index))  # never cut, as in the protocol's own groups
        said = script.where(script != "", rows["text"]).to_numpy(str)
        text = said if self.run.config.plain["protocol"] in TEXT_DISJOINT else None
        scores = self.hparams.choice.scores(x, emotion, speaker, weight, text, copies)
        layer, strength = best(scores)
        run_on_main(write_csv, [scores, self.run.folder / SCORES])
        logger.info(f"chosen: layer {layer}, C {strength:g} (inner WA {scores['WA'].max():.1%})")
        choice = self.hparams.choice
        joined, copies = choice.joined(x, layer), choice.joined_copies(copies, layer)
        values, of, weights = training_rows(joined, np.arange(len(x)), weight, copies)
        pipeline = fit_regression(values, emotion[of], strength, weights)
        self.model.set(layer=layer, C=strength, **parameters_of(pipeline, len(self.run.classes)))


def inner_folds(emotion: np.ndarray, speaker: np.ndarray) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Return who is trained on and who is left out in turn (indices), and the same in words.

    Each speaker is left out; stratified fifths where speakers are not known, or too few.
    """
    speakers = np.unique(speaker)
    if len(speakers) >= FEWEST_SPEAKERS and "" not in speakers:
        folds = [(np.flatnonzero(speaker != who), np.flatnonzero(speaker == who)) for who in speakers]
        return folds, f"{len(speakers)} inner speakers left out one by one"
    why = "not all speakers are known" if "" in speakers else f"there are only {len(speakers)} speakers"
    n_folds = min(INNER_FOLDS, max(np.unique(emotion, return_counts=True)[1]))
    if n_folds < 2:
        raise UserError(f"expected two training utterances of an emotion at least, found {len(emotion)} in all")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        folds = list(StratifiedKFold(n_folds, shuffle=True, random_state=0).split(emotion, emotion))
    return folds, f"{n_folds} stratified folds whose speakers are NOT left out ({why})"


def without_texts(folds: list, emotion: np.ndarray, text: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each of :func:`inner_folds` once a group of texts: those are tested, all others trained on."""
    n_groups = min(TEXT_GROUPS, len(np.unique(text)))
    if n_groups < 2:
        return folds
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        dealt = StratifiedGroupKFold(n_groups).split(emotion, emotion, text)
        groups = [np.isin(np.arange(len(text)), tested) for _, tested in dealt]
    found = [(train[~group[train]], test[group[test]]) for train, test in folds for group in groups]
    return [(train, test) for train, test in found if len(train) and len(test)] or folds


def best(scores: pd.DataFrame) -> tuple[int, float]:
    """Return layer and C of the highest WA; of equal ones the lowest layer, then the smallest C."""
    row = scores.loc[scores["WA"].idxmax()]
    return int(row["layer"]), float(row["C"])


@one_thread
def fit_regression(x: np.ndarray, emotion: np.ndarray, C: float, weight: np.ndarray | None = None) -> Pipeline:
    """Fit standardisation and multinomial logistic regression to `x` [utterances, values]."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=FINE, max_iter=STEPS))
    return pipeline.fit(x.astype(np.float64), emotion, logisticregression__sample_weight=weight)


def parameters_of(pipeline: Pipeline, n_classes: int) -> dict[str, np.ndarray]:
    """Return a fitted pipeline as a standardisation and a linear layer with a logit for every class.

    The training part may lack some of the corpus's classes. Of ``mean``, ``deviation`` [values], ``weight``
    [classes, values] and ``bias`` [classes] the softmax is the pipeline's ``predict_proba``.
    """
    scaler, regression = pipeline.steps[0][1], pipeline.steps[1][1]
    weight, bias, present = regression.coef_, regression.intercept_, regression.classes_
    if len(present) == 2:  # scikit-learn has the logit of the second class, that of the first is 0
        weight, bias = np.stack([0 * weight[0], weight[0]]), np.append(0 * bias, bias)
    weights, biases = np.zeros((n_classes, weight.shape[1])), np.full(n_classes, NEVER)
    weights[present], biases[present] = weight, bias
    return {"mean": scaler.mean_, "deviation": scaler.scale_, "weight": weights, "bias": biases}


def _each(values, name: str) -> list:
    values = list(values) if isinstance(values, list | tuple) else [values]
    if not values or len(set(map(str, values))) < len(values):
        raise UserError(f"{name}: expected a list of different values, found {values}")
    return values
