"""Cai et al. 2021: one wav2vec2, an emotion head on its pooled output and a CTC head on its frames."""

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import nn

from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.lobes.wav2vec2 import absolute_lengths


def build_head(make: Callable[..., nn.Module], in_features: int, name: str, seed: int) -> nn.Module:
    """A head whose initial weights depend on nothing but the seed and its own name.

    Leaving a head out then changes no other random draw: with ``alpha: 0`` the emotion head, the shuffling and every
    dropout mask are what they are with the ASR head beside them.

    Arguments
    ---------
    make : callable
        A constructor that still lacks ``in_features``, as ``!name:torch.nn.Linear`` gives it.
    in_features : int
        Channels of what the head reads.
    name : str
        The task's name.
    seed : int
        The run's seed.

    Returns
    -------
    torch.nn.Module

    Example
    -------
    >>> from functools import partial
    >>> make = partial(nn.Linear, out_features=4)
    >>> a, b = (build_head(make, 8, "emotion", seed=1) for _ in range(2))
    >>> torch.equal(a.weight, b.weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{name}:{seed}".encode()))
        return make(in_features=in_features)


class CaiModel(nn.Module):
    """z = f(x), emotion = h(pool(z)), characters = g(z) (Cai et al. 2021, section 3.1, figure 1).

    Arguments
    ---------
    encoder : torch.nn.Module
        f: waveforms to frames; has ``output_size`` and ``frame_counts`` (see
        :class:`speechbrain_ser.lobes.wav2vec2.Wav2Vec2`).
    pooling : torch.nn.Module
        Over an utterance's own frames (:class:`speechbrain_ser.nnet.pooling.MaskedPooling`).
    heads : mapping of str to callable
        ``emotion`` (h) and ``asr`` (g), constructors that still lack ``in_features``.
    loss_weights : mapping of str to float
        A weight a task; a head of weight 0 is not built (the emotion head always is, and needs a weight).
    seed : int
        Seed of the heads' initial weights.
    """

    tasks = ("emotion", "asr")

    def __init__(
        self,
        encoder: nn.Module,
        pooling: nn.Module,
        heads: Mapping[str, Callable[..., nn.Module]],
        loss_weights: Mapping[str, float],
        seed: int = 0,
    ):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        wanted = active_tasks(loss_weights, self.tasks)
        if "emotion" not in wanted:
            raise UserError("loss_weights: without the emotion task (weight 0) there is nothing to recognise")
        self.heads = nn.ModuleDict({task: build_head(heads[task], encoder.output_size, task, seed) for task in wanted})

    def forward(self, wavs: torch.Tensor, wav_lens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waveforms to the logits of every task.

        Arguments
        ---------
        wavs : torch.Tensor
            [batch, time], 16 kHz, right-padded.
        wav_lens : torch.Tensor
            [batch], relative lengths.

        Returns
        -------
        dict of str to torch.Tensor
            ``emotion`` [batch, classes] logits; ``asr`` [batch, frames, tokens] logits where there is an ASR head;
            ``frames`` [batch] valid frames; ``embedding`` [batch, channels] the pooled vector.
        """
        z = self.encoder(wavs, wav_lens)  # (batch, frames, channels)
        frames = self.encoder.frame_counts(absolute_lengths(wavs, wav_lens))
        embedding = self.pooling(z, frames)  # (batch, channels)
        outputs = {"frames": frames, "embedding": embedding}
        outputs["emotion"] = self.heads["emotion"](embedding)
        if "asr" in self.heads:
            outputs["asr"] = self.heads["asr"](z)
        return outputs


def active_tasks(loss_weights: Mapping[str, float], known: tuple[str, ...]) -> list[str]:
    """The tasks that a set of weights asks for, in the model's order.

    Raises
    ------
    UserError
        For a task the model does not have, or a weight that is not a number >= 0.

    Example
    -------
    >>> active_tasks({"emotion": 1.0, "asr": 0}, ("emotion", "asr"))
    ['emotion']
    """
    if unknown := [task for task in loss_weights if task not in known]:
        raise UserError(f"loss_weights: unknown task '{unknown[0]}'{nearest(unknown[0], known)}")
    for task, weight in loss_weights.items():
        if not (isinstance(weight, (int, float)) and 0 <= weight < float("inf")):
            raise UserError(f"the weight of task '{task}' must be a number >= 0, found {weight!r}")
    if not any(loss_weights.values()):
        raise UserError("every task has weight 0: nothing would be trained")
    return [task for task in known if loss_weights.get(task, 0) > 0]
