"""Random pieces of utterances, the same of every signal that describes them."""

import torch


def random_crop(
    signals: dict[str, torch.Tensor], counts: torch.LongTensor, shortest: int, longest: int
) -> tuple[dict[str, torch.Tensor], torch.LongTensor]:
    """A piece of each utterance, of a random length at a random place (SpeechSplit: 64 to 128 frames).

    An utterance that is not longer than the length drawn for it is taken whole. Two numbers an utterance are drawn
    from torch's global CPU generator, whatever its length and device, so that checkpointed training repeats them.

    Arguments
    ---------
    signals : dict of str to torch.Tensor
        [batch, frames, …] each, frame by frame of the same utterances.
    counts : torch.LongTensor
        Own frames of each utterance [batch], 1 to frames.
    shortest, longest : int
        Frames of a piece, both possible.

    Returns
    -------
    cropped : dict of str to torch.Tensor
        [batch, longest piece, …] each; past a piece's end stand whatever frames.
    counts : torch.LongTensor
        Own frames of each piece [batch].

    Raises
    ------
    ValueError
        When the lengths are out of order.

    Example
    -------
    >>> mel = torch.arange(10.0).repeat(2, 1)[:, :, None]  # two utterances of up to ten frames
    >>> cropped, counts = random_crop({"mel": mel}, torch.tensor([10, 3]), 4, 4)
    >>> cropped["mel"].shape, counts, cropped["mel"][1, :3, 0]
    (torch.Size([2, 4, 1]), tensor([4, 3]), tensor([0., 1., 2.]))
    """
    if not 1 <= shortest <= longest:
        raise ValueError(f"expected 1 <= shortest <= longest, found {shortest} and {longest}")
    own = counts.cpu()
    draws = torch.rand(2, len(own), dtype=torch.float64)
    pieces = torch.minimum(own, shortest + (draws[0] * (longest - shortest + 1)).long())  # [batch]
    starts = (draws[1] * (own - pieces + 1)).long()
    places = starts[:, None] + torch.arange(int(pieces.max()))  # [batch, frames of the longest piece]
    cropped = {}
    for name, signal in signals.items():
        index = places.clamp(max=signal.shape[1] - 1).to(signal.device)
        index = index.reshape(*index.shape, *[1] * (signal.dim() - 2))
        cropped[name] = signal.take_along_dim(index, dim=1)
    return cropped, pieces.to(counts.device)
