"""A linear probe: how much of the emotion one layer of a frozen encoder tells a straight line."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from speechbrain.dataio.batch import PaddedData
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from torch import nn

from speechbrain_ser.errors import UserError
from speechbrain_ser.files import link_or_copy, written_whole
from speechbrain_ser.lobes.pretrained import LayerStatistics
from speechbrain_ser.models.heads import MultitaskModel

ENCODER = "encoder."  # before the names of its parameters
ENCODER_FILE = "encoder.pt"  # in a run's save/, beside its checkpoints


@register_checkpoint_hooks
class ProbeModel(MultitaskModel):
    """emotion = h((s - mean) / deviation), s: mean and deviation over time of a layer's frames.

    Which layer, the standardisation and the head are fitted in one go (``recipes/probe``) and set by :meth:`set`. A
    checkpoint holds these alone, as the encoder stays what it was loaded as: see :meth:`keep_encoder`. `heads`,
    `loss_weights` and `seed` are :class:`MultitaskModel`'s. s may be of `join_layers` neighbouring layers, from the
    chosen one on, and `pooling` another one (:class:`~speechbrain_ser.lobes.pretrained.LayerStatistics`).
    """

    holds_encoder = False

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, Callable[..., nn.Module]],
        loss_weights: Mapping[str, float],
        seed: int = 0,
        pooling: str = "mean_std",
        join_layers: int = 1,
    ):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.statistics, self.join_layers = LayerStatistics(encoder, pooling), join_layers
        self.inputs = {"sig": self.statistics}
        size = join_layers * self.statistics.size
        self.register_buffer("layer", torch.tensor(0))
        self.register_buffer("C", torch.tensor(1.0))  # the regression's, for who asks
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.build_heads(heads, loss_weights, size, seed)

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Prepare a model that is not trained any more: it reads waveforms, in batches, up to the chosen layer."""
        super().keep_tasks(tasks)
        self.statistics.stop_after(int(self.layer) + self.join_layers - 1)
        self.inputs = {"sig": None}

    @torch.no_grad()
    def set(self, **found) -> None:
        """Set what was fitted: ``layer``, ``C``, ``mean`` and ``deviation``, ``weight`` and ``bias`` of the head."""
        head = self.heads["emotion"]
        places = {**dict(self.named_buffers(recurse=False)), "weight": head.weight, "bias": head.bias}
        for name, value in found.items():
            places[name].copy_(torch.as_tensor(value))

    def forward(self, sig: PaddedData) -> dict[str, torch.Tensor]:
        """Bring waveforms, or statistics of all states [batch, states, values], to the emotion's logits.

        ``embedding`` is the standardised vector.
        """
        x, lens = sig
        if x.dim() == 2:
            x = self.statistics.of_batch(x, lens)  # [batch, states, values]
        layers = torch.arange(self.join_layers, device=x.device) + self.layer
        embedding = (x[:, layers].flatten(1) - self.mean) / self.deviation
        return {"embedding": embedding, **self.logits(embedding)}

    def keep_encoder(self, save: Path, shared: Path) -> None:
        """Put the encoder's weights into a run's ``save/``: a link to one file in `shared` for all runs with them."""
        file = shared / f"{self.statistics.weights}.pt"
        if not file.is_file():
            with written_whole(file) as temporary:
                torch.save(self.encoder.state_dict(), temporary)
        link_or_copy(file, save / ENCODER_FILE)

    @mark_as_saver
    def save(self, path) -> None:
        """Write everything but the encoder, and the hash of that."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith(ENCODER)}
        torch.save({"model": own, "encoder": self.statistics.weights}, path)

    @mark_as_loader
    def load(self, path, end_of_epoch: bool) -> None:
        """Read it again, and the encoder that is kept beside; another one than it was is a UserError."""
        del end_of_epoch
        found = torch.load(path, map_location="cpu", weights_only=True)
        weights, kept = self.statistics.weights, Path(path).parents[1] / ENCODER_FILE
        if found["encoder"] != weights and kept.is_file():  # a run of an earlier version has none
            self.encoder.load_state_dict(torch.load(kept, map_location="cpu", weights_only=True, mmap=True))
            weights = self.statistics.weights
        if found["encoder"] != weights:
            raise UserError(
                f"{path}: this probe was fitted to the states of another encoder (SHA-256 of its parameters: expected "
                f"{found['encoder'][:16]}…, found {weights[:16]}…): the folder or hub name of the "
                "run's YAML holds other weights than it did"
            )
        encoder = {name: value for name, value in self.state_dict().items() if name.startswith(ENCODER)}
        self.load_state_dict({**encoder, **found["model"]})
