"""CTC logits to text: greedy, or SpeechBrain's beam search."""

import re

import torch
from speechbrain.decoders.ctc import CTCBeamSearcher, ctc_greedy_decode

from speechbrain_ser.data.text import WORD
from speechbrain_ser.errors import UserError, nearest

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
