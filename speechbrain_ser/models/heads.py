"""What a model reads of waveforms, its heads, and the text that the logits of an ASR head spell."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from speechbrain.dataio.batch import PaddedData
from speechbrain.decoders.ctc import CTCBeamSearcher, ctc_greedy_decode
from speechbrain.utils.data_utils import batch_pad_right
from torch import nn

from speechbrain_ser.data.labels import DIMENSIONS
from speechbrain_ser.data.text import WORD
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.nnet.initialization import build_seeded
from speechbrain_ser.nnet.losses import ccc_loss, ccc_terms

RUN_ON = 0.1  # share of a step in the running means, as in batch normalisation


class DimensionHead(nn.Module):
    """A rating, such as valence, of the utterances' vectors [batch, channels] in the corpus's own unit: [batch].

    It is m + s (w v + b) with mean m and deviation s of the training part's ratings (``scale``). ``running`` are the
    means that :func:`~speechbrain_ser.nnet.losses.ccc_loss` needs, of which the first begins as 0: a squared error.
    """

    def __init__(self, in_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, 1)
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))
        self.register_buffer("running", torch.tensor([0.0, 1.0]))
        self.terms: list[torch.Tensor] = []  # of the utterances of a step so far

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the ratings."""
        return self.scale[0] + self.scale[1] * self.linear(vector).squeeze(-1).float()

    def loss(self, rating: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the CCC's loss [batch], 0 where there is no target (NaN)."""
        is_known = ~target.isnan()
        terms = ccc_terms(*((each - self.scale[0]) / self.scale[1] for each in (rating, target.nan_to_num())))
        if self.training:
            self.terms.append(terms.detach()[is_known].cpu())
        return ccc_loss(terms, self.running) * is_known

    def end_step(self, terms: Sequence[torch.Tensor]) -> None:
        """Move the running means on, by the terms of all the step's utterances, whichever process had them."""
        found, self.terms = torch.cat(list(terms)), []
        if len(found) and found.isfinite().all():
            self.running.lerp_(found.mean(0).to(self.running), RUN_ON)


class MultitaskModel(nn.Module):
    """An encoder and a head a task.

    A head that a model does not name itself reads the utterance's vector: a further task (gender, age) is a line of
    ``heads`` and one of ``loss_weights`` in the YAML, and its logits are among the outputs under its name. Dimensions
    (:data:`~speechbrain_ser.data.labels.DIMENSIONS`) need the weight alone, and their ratings [batch] are in its place.

    Every ``forward`` takes what ``inputs`` names, each a pair of data, right-padded, and relative lengths [batch]
    (PaddedData): ``sig`` waveforms [batch, time] at 16 kHz, or the encoder's ``features`` of them; ``feats`` and
    ``mel`` [batch, frames, bands]; ``f0`` [batch, frames]. It returns by task logits [batch, classes] (``asr``:
    [batch, frames, tokens], with ``frames`` [batch] valid ones), and ``embedding`` [batch, channels], the utterance's
    vector.

    Arguments
    ---------
    heads : mapping of str to callable
        By task, constructors that still lack ``in_features``.
    loss_weights : mapping of str to float
        A weight a task; a head of weight 0 is not built, and the emotion, or a dimension, needs a weight.
    seed : int
        Of the initial weights; those of a head depend on it and the task's name alone.

    Attributes
    ----------
    inputs : dict
        By name, None for waveforms, else the features (with ``extract``) that make the input of a waveform.
    """

    tasks: tuple[str, ...] = ("emotion",)  # those that the model knows of itself
    without_head: tuple[str, ...] = ()
    holds_encoder = True  # whether checkpoints have its parameters

    def build_heads(
        self,
        makers: Mapping[str, Callable[..., nn.Module]],
        loss_weights: Mapping[str, float],
        in_features: int | None,
        seed: int,
        **others: int,
    ) -> None:
        """Build a head for each task of a weight above 0; its channels are `others`' for it, else `in_features`."""
        if "emotion" in self.tasks:
            makers = {name: DimensionHead for name in DIMENSIONS if name in loss_weights} | dict(makers)
        further = [task for task in makers if task not in self.tasks]
        active = active_tasks(loss_weights, [*self.tasks, *further])
        if unweighted := [task for task in further if task not in loss_weights]:
            raise UserError(f"loss_weights: no line for the head '{unweighted[0]}' (0 leaves it out)")
        if "emotion" in self.tasks and not {"emotion", *DIMENSIONS} & {*active}:
            raise UserError("loss_weights: without the emotion task (weight 0) there is nothing to recognise")
        wanted = [task for task in active if task not in self.without_head]
        if lacking := [task for task in wanted if task not in makers]:
            found = ", ".join(makers) or "none"
            raise UserError(f"heads: no model can be built without one for task '{lacking[0]}', found {found}")
        sizes = {task: others.get(task, in_features) for task in wanted}
        self.heads = nn.ModuleDict({t: build_seeded(makers[t], t, seed, in_features=n) for t, n in sizes.items()})

    def logits(self, vector: torch.Tensor, **others: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each head's output of the utterances' vectors [batch, channels], or of what `others` has for it."""
        return {task: head(self.read(task, others.get(task, vector))) for task, head in self.heads.items()}

    def read(self, task: str, x: torch.Tensor) -> torch.Tensor:
        """Return what a task's head reads of what it is given; a model may change it on the way."""
        return x

    @property
    def min_samples(self) -> int:
        """Samples of the shortest utterance that gives a frame."""
        return self.encoder.min_samples

    def frame_counts(self, n_samples: torch.Tensor) -> torch.Tensor:
        """Return the frames that the encoder gives for so many samples."""
        return self.encoder.frame_counts(n_samples)

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove what only others need, for a model that is used and not trained any more; emotion, dimensions stay."""
        for task in set(self.heads) - {"emotion", *DIMENSIONS, *tasks}:
            del self.heads[task]


def active_tasks(loss_weights: Mapping[str, float], known: Sequence[str]) -> list[str]:
    """Return the tasks of a weight above 0, in the order of `known`."""
    if unknown := [task for task in loss_weights if task not in known]:
        raise UserError(f"loss_weights: unknown task '{unknown[0]}'{nearest(unknown[0], known)}")
    for task, weight in loss_weights.items():
        if not (isinstance(weight, (int, float)) and 0 <= weight < float("inf")):
            raise UserError(f"the weight of task '{task}' must be a number >= 0, found {weight!r}")
    if not any(loss_weights.values()):
        raise UserError("every task has weight 0: nothing would be trained")
    return [task for task in known if loss_weights.get(task, 0) > 0]


def signals_of(model: MultitaskModel, wav: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a model reads of one waveform [time], 16 kHz, on the CPU: [time] or [frames, …], by name."""
    return {name: wav if features is None else features.extract(wav) for name, features in model.inputs.items()}


def padded(signals: Sequence[Mapping[str, torch.Tensor]], device: str | torch.device) -> dict[str, PaddedData]:
    """Return several waveforms' signals as the keyword arguments of a model's forward pass."""
    inputs = {name: batch_pad_right([each[name] for each in signals]) for name in signals[0]}
    return {name: PaddedData(*(part.to(device) for part in pair)) for name, pair in inputs.items()}


@torch.no_grad()
def model_inputs(
    model: MultitaskModel, wavs: Sequence[torch.Tensor], device: str | torch.device
) -> dict[str, PaddedData]:
    """Return the keyword arguments of a model's forward pass on several waveforms [time], 16 kHz, on the CPU."""
    return padded([signals_of(model, wav) for wav in wavs], device)


KINDS = ("greedy", "beam")


class Decoder:
    """Turns a batch of CTC logits into texts, spelled with `tokens`, by ``greedy`` or ``beam`` search.

    Example
    -------
    >>> from speechbrain_ser.data.text import CharacterTokens
    >>> tokens = CharacterTokens(["<blank>", "|", "A", "B"])
    >>> logits = 10.0 * torch.nn.functional.one_hot(torch.tensor([[2, 2, 0, 2, 1, 3, 3]]), 4)
    >>> Decoder(tokens, "greedy")(logits, torch.tensor([7])), Decoder(tokens, "beam")(logits, torch.tensor([6]))
    (['AA B'], ['AA B'])
    """

    def __init__(self, tokens, kind: str = "greedy", beam_size: int = 20):
        if kind not in KINDS:
            raise UserError(f"decoding: '{kind}' is unknown{nearest(kind, KINDS)}; known: {', '.join(KINDS)}")
        self.tokens = tokens
        self.searcher = None
        if kind == "beam":
            # <unk> and its like spell nothing, as in the greedy transcript
            special = {label: "" for label in tokens.labels if re.fullmatch(r"<.+>", label)}
            vocabulary = [{**special, WORD: " "}.get(label, label) for label in tokens.labels]
            self.searcher = CTCBeamSearcher(tokens.blank, vocabulary, beam_size=beam_size)

    def __call__(self, logits: torch.Tensor, frames: torch.Tensor) -> list[str]:
        """Return the texts of logits [batch, frames, tokens], of which `frames` [batch] are valid."""
        log_probs = logits.float().log_softmax(-1).cpu()
        # SpeechBrain rounds length * frames in the greedy search, and cuts its decimals off in the beam search
        lengths = (frames.cpu() + 0.25) / logits.shape[1]
        if self.searcher is None:
            return [self.tokens.decode(i) for i in ctc_greedy_decode(log_probs, lengths, self.tokens.blank)]
        return [" ".join(beams[0].text.split()) for beams in self.searcher(log_probs, lengths)]
