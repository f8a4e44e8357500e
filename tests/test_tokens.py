"""What the recogniser spells with, and how logits become text."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from speechbrain_ser.data.batches import make_dataset
from speechbrain_ser.data.corpora.emodb import TEXTS
from speechbrain_ser.data.labels import UNKNOWN
from speechbrain_ser.data.text import (
    LETTERS,
    CharacterTokens,
    build_tokens,
    load_tokens,
    normalise_transcript,
    save_tokens,
)
from speechbrain_ser.errors import UserError
from speechbrain_ser.models.heads import Decoder
from speechbrain_ser.nnet.losses import ctc_loss, frames_needed

PUBLISHED = Path(__file__).parent / "data" / "cai_tiny" / "vocab.json"
GERMAN = list(TEXTS.values())  # EMO-DB's ten sentences


def test_the_papers_32_are_the_published_vocabulary():
    published = json.loads(PUBLISHED.read_text())
    tokens = build_tokens("letters", [])
    assert len(tokens) == 32 and tokens.blank == published["<pad>"] == 0
    assert {label: i for i, label in enumerate(tokens.labels)} == published


def test_letters_delete_what_is_outside_and_count_it():
    tokens = build_tokens("letters", GERMAN)
    assert tokens.encode("It's a {LG} cat.") == [10, 6, 27, 12, 4, 7, 4, 19, 7, 6]
    assert tokens.encode("{LAUGHTER}") == [] and tokens.encode("|<s>") == []
    assert tokens.decode([4, 7, 4, 4, 19, 1, 2, 3]) == "A C"
    assert tokens.decode(tokens.encode("könnte 2 für's")) == "KNNTE FR'S"
    assert tokens.deleted([*GERMAN, "Room 101!", "it's {LAUGH} fine"]) == {"Ü": 4, "Ö": 1, "1": 2, "0": 1}


def test_characters_are_those_of_the_training_transcripts():
    tokens = build_tokens("characters", GERMAN)
    letters = set("".join(GERMAN).upper()) - set(" .,?")
    assert tokens.labels == ["<blank>", "|", *sorted(letters)] and {"Ü", "Ö"} <= letters
    for text in GERMAN:
        assert tokens.decode(tokens.encode(text)) == normalise_transcript(text)
    assert not tokens.deleted(GERMAN) and tokens.deleted(["Quatsch"]) == {"Q": 1}
    assert build_tokens("characters", GERMAN[::-1]).labels == tokens.labels


def test_sentencepiece_round_trip_and_determinism():
    tokens = build_tokens("sentencepiece", GERMAN, 60)
    assert tokens.blank == 0 and 30 < len(tokens) <= 60
    for text in GERMAN:
        encoded = tokens.encode(text)
        assert not {0, 1} & {*encoded}  # neither blank nor unknown
        assert tokens.decode(encoded) == normalise_transcript(text)
    assert build_tokens("sentencepiece", GERMAN, 60).state() == tokens.state()
    tiny = build_tokens("sentencepiece", ["Hallo du", "{LAUGH}", ""], 1000)
    assert tiny.decode(tiny.encode("du hallo")) == "DU HALLO"


@pytest.mark.parametrize("kind", ["letters", "characters", "sentencepiece"])
def test_tokens_are_saved_and_loaded(tmp_path, kind):
    tokens = build_tokens(kind, GERMAN, 60)
    save_tokens(tokens, tmp_path / "tokens.json")
    loaded = load_tokens(tmp_path / "tokens.json")
    assert loaded.state() == tokens.state() and loaded.labels == tokens.labels
    assert loaded.encode(GERMAN[3]) == tokens.encode(GERMAN[3])
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.json"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_tokens("sentence_piece", GERMAN), "did you mean 'sentencepiece'"),
        (lambda: build_tokens("sentencepiece", GERMAN, 5), "n_pieces: 5"),
        (lambda: build_tokens("characters", ["", "{LAUGH}"]), "no training utterance has a transcript"),
        (lambda: build_tokens("sentencepiece", ["", "{LAUGH}"]), "no training utterance has a transcript"),
        (lambda: Decoder(CharacterTokens(LETTERS), "gredy"), "did you mean 'greedy'"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(UserError, match=message):
        make()


# ------------------------------------------------------------------ decoding


def logits_of(path, n_tokens):
    return torch.nn.functional.one_hot(torch.tensor([path]), n_tokens) * 10.0 - 5.0


@pytest.mark.parametrize("kind", ["greedy", "beam"])
@pytest.mark.parametrize("n_frames", [3, 22, 23, 37, 41, 799])
def test_every_valid_frame_is_read_and_no_other(kind, n_frames):
    """The last valid frame spells A; what follows spells B."""
    tokens = CharacterTokens(["<blank>", "|", "A", "B"])
    decode = Decoder(tokens, kind)
    for valid in [*range(1, min(n_frames, 42)), n_frames - 1, n_frames]:
        path = [0] * (valid - 1) + [2] + [3] * (n_frames - valid)
        assert decode(logits_of(path, 4), torch.tensor([valid])) == ["A"], valid


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_special_tokens_spell_nothing_and_pieces_are_joined(kind):
    path = [LETTERS.index(c) for c in ("<unk>", "H", "H", "<pad>", "|", "<s>", "I", "</s>", "|")]
    assert Decoder(CharacterTokens(LETTERS), kind)(logits_of(path, 32), torch.tensor([9])) == ["H I"]
    tokens = build_tokens("sentencepiece", GERMAN, 60)
    path = [i for token in tokens.encode("Das will sie") for i in (token, 0)]
    assert Decoder(tokens, kind)(logits_of(path, len(tokens)), torch.tensor([len(path)])) == ["DAS WILL SIE"]


def test_beam_search_adds_up_what_greedy_overlooks():
    """Two frames: blank .4, A .35, B .25. Best path: blank blank, .16; but 'A' has .35² + 2 * .35 * .4 = .4025."""
    tokens = CharacterTokens(["<blank>", "|", "A", "B"])
    logits = torch.tensor([0.4, 1e-9, 0.35, 0.25]).log().repeat(1, 2, 1)
    assert Decoder(tokens, "greedy")(logits, torch.tensor([2])) == [""]
    assert Decoder(tokens, "beam", 10)(logits, torch.tensor([2])) == ["A"]


# ------------------------------------------------------------------ CTC


def enumerate_ctc(probabilities, target):
    """P(target) by going through every path."""
    n_frames, n_tokens = probabilities.shape
    total = 0.0
    for path in torch.cartesian_prod(*[torch.arange(n_tokens)] * n_frames).tolist():
        collapsed = [t for k, t in enumerate(path) if k == 0 or path[k - 1] != t]
        if [t for t in collapsed if t] == target:
            total += float(torch.tensor([probabilities[k, t] for k, t in enumerate(path)]).prod())
    return total


def test_ctc_is_the_sum_over_all_paths():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 3)
    frames, targets = torch.tensor([4, 3, 2]), [[1, 2], [1, 1], []]
    loss = ctc_loss(logits, frames, [torch.tensor(t, dtype=torch.long) for t in targets])
    for k, target in enumerate(targets):
        expected = enumerate_ctc(logits[k, : frames[k]].softmax(-1), target)
        assert float(loss[k].neg().exp()) == pytest.approx(expected, rel=1e-5)


def test_what_nobody_has_written_down_teaches_nothing_in_any_batch():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 3, requires_grad=True)
    frames, targets = torch.tensor([4, 3, 2]), [torch.tensor(t) for t in ([1, 2], [UNKNOWN], [2])]
    loss = ctc_loss(logits, frames, targets)
    loss.sum().backward()
    assert loss[1] == 0 and not logits.grad[1].any() and logits.grad[0].any() and logits.grad[2].any()
    alone = [ctc_loss(logits[k : k + 1], frames[k : k + 1], targets[k : k + 1]) for k in range(3)]
    assert loss.tolist() == pytest.approx(torch.cat(alone).tolist())


@pytest.mark.parametrize("kind", ["letters", "characters", "sentencepiece"])
def test_tokens_of_laughter_and_of_what_nobody_has_written_down(kind):
    encode = build_tokens(kind, GERMAN, 40).encode
    frame = pd.DataFrame({"wav": "", "transcript": ["", "{LAUGH}", "ja"]}, index=list("abc"))
    unknown, laughter, word = (make_dataset(frame, {}, {}, encode)[k]["tokens"] for k in range(3))
    assert unknown == [UNKNOWN] and laughter == [] and word == encode("ja")
    if kind == "letters":  # it has none of them
        assert make_dataset(frame.assign(transcript="привет"), {}, {}, encode)[0]["tokens"] == [UNKNOWN]


def test_ctc_without_tokens_at_all_and_without_a_path():
    logits = torch.zeros(2, 2, 3, requires_grad=True)
    empty = [torch.tensor([], dtype=torch.long)] * 2
    assert ctc_loss(logits, torch.tensor([2, 1]), empty).exp().tolist() == pytest.approx([9, 3])
    loss = ctc_loss(logits, torch.tensor([2, 2]), [torch.tensor([1, 1]), torch.tensor([1])])
    assert loss[0] == 0 and loss[1] > 0  # 1 1 needs a blank between
    loss.sum().backward()
    assert logits.grad[0].abs().sum() == 0 and logits.grad.isfinite().all()
    assert frames_needed([1, 1]) == 3 and frames_needed([]) == 0 and frames_needed([1, 2, 1]) == 3
