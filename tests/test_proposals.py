"""Texts that the rescorer proposes: their likelihood by brute force, reading by pieces, and what may come of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from planted import ALPHABET, TOKENS
from test_beam import folder, frames  # noqa: F401, a fixture
from test_rescorer import CONFIG, PIECES, TEXTS, make, states

from core.beam import BeamDecoder, LanguageModel, make_decoder
from core.decoder import GreedyDecoder, draft, reads_after
from core.likelihood import log_likelihoods, without_pauses
from core.pieces import BEGIN, END
from core.proposals import GUESS, Change, Proposals, ReadingDecoder, differences
from core.rescorer import Reading, Rescorer


def collapse(path: tuple[int, ...], silent: tuple[int, int]) -> tuple[int, ...]:
    """Labels of a path; delimiters once between words, and none at the ends."""
    blank, delimiter = silent
    labels = [k for k, _ in itertools.groupby(path) if k != blank]
    words = [tuple(of) for is_gap, of in itertools.groupby(labels, lambda k: k == delimiter) if not is_gap]
    return tuple(itertools.chain(*([delimiter, *word] for word in words)))[1:]


def test_a_text_is_as_likely_as_all_its_paths() -> None:
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.full(4, 0.5), 7)).astype(np.float32)
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(4), repeat=7):
        text = collapse(path, (0, 1))
        sums[text] = sums.get(text, 0.0) + float(np.exp(log_probs[range(7), path].sum(dtype=np.float64)))
    assert sum(sums.values()) == pytest.approx(1, abs=1e-5)
    texts = list(sums)
    found = log_likelihoods(log_probs, texts, (0, 1))
    np.testing.assert_allclose(np.exp(found), list(sums.values()), rtol=1e-5)
    alone = [float(log_likelihoods(log_probs, [text], (0, 1))[0]) for text in texts]
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    assert log_likelihoods(log_probs, [(2,) * 8, (2, 2, 2, 2, 2)], (0, 1)).tolist() == [-np.inf] * 2
    assert log_likelihoods(log_probs, [], (0, 1)).shape == (0,)
    assert log_likelihoods(log_probs[:0], [(), (2,)], (0, 1)).tolist() == [0, -np.inf]


def test_long_frames_are_followed_where_texts_may_be() -> None:
    rng = np.random.default_rng(1)
    log_probs = np.log(rng.dirichlet(np.full(len(TOKENS), 0.1), 400) + 1e-12).astype(np.float32)
    texts = [tuple(rng.integers(2, len(TOKENS), 120).tolist()) for _ in range(2)]
    texts += [texts[0][:60] + texts[0][62:], texts[1][:100]]
    labels = [torch.tensor(text) for text in texts]
    lengths = torch.tensor([len(text) for text in texts])
    expected = -torch.nn.functional.ctc_loss(  # counts no delimiters as silence
        torch.from_numpy(without_delimiters(log_probs)).double()[:, None].expand(-1, 4, -1),
        torch.cat(labels),
        torch.full((4,), 400),
        lengths,
        reduction="none",
    )
    found = log_likelihoods(without_delimiters(log_probs), texts, (0, 1))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_frames_that_are_surely_blank_say_nothing_of_a_text() -> None:
    rng = np.random.default_rng(2)
    log_probs = np.log(rng.dirichlet(np.full(4, 0.5), 12) + 1e-9).astype(np.float32)
    blank = np.log(np.array([1 - 3e-4, 1e-4, 1e-4, 1e-4], np.float32))
    whole = np.concatenate([np.insert(log_probs, [0, 5, 5, 5, 9], blank, axis=0), [blank] * 3])
    said = without_pauses(whole, 0)
    np.testing.assert_array_equal(said, np.insert(log_probs, [0, 5, 9, 12], blank, axis=0))
    texts = [(2, 3), (3, 3, 2), (2, 1, 3), (3,)]
    found, expected = (log_likelihoods(rows, texts, (0, 1)) for rows in (said, whole))
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert without_pauses(whole[:0], 0).shape == (0, 4)


def without_delimiters(log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.arange(len(TOKENS)) == 1, -1e4, log_probs).astype(np.float32)


def test_pieces_read_one_by_one_are_those_read_at_once() -> None:
    rescorer, heard = make(), states(30)
    one, whole = Reading(rescorer, heard), Reading(rescorer, heard)
    nodes = whole.read(TEXTS)
    for text in TEXTS:
        node = 0
        one.catch_up()
        for piece in one.encode(text):
            node = one.tree.follow(node, piece)
            one.catch_up()
    again = one.read(TEXTS)
    assert one.tree.pieces == whole.tree.pieces
    np.testing.assert_allclose(one.log_probs, whole.log_probs, atol=1e-4)
    assert [one.log_prob(of) for of in again] == pytest.approx([whole.log_prob(of) for of in nodes], abs=1e-3)
    assert len(one.kept[0][0][0, 0]) % 64 == 0
    with torch.no_grad():
        read = torch.tensor([[BEGIN, *rescorer.pieces.encode("THE CAT")]])
        expected = rescorer(torch.from_numpy(heard)[None], read)[0].log_softmax(-1)
    np.testing.assert_allclose(one.log_probs[one.read(["THE CAT"])[0]], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "trimmed"),
    [
        (Change(0, 2, ("A", "D")), Change(1, 2, ("D",))),
        (Change(1, 3, ("B",)), Change(2, 3, ())),
        (Change(1, 1, ("X",)), Change(1, 1, ("X",))),
        (Change(1, 2, ("X", "B")), Change(1, 1, ("X",))),
        (Change(0, 3, ("A", "B", "C")), Change(3, 3, ())),
    ],
)
def test_changes_keep_what_stays(change: Change, trimmed: Change) -> None:
    words = ["A", "B", "C"]
    assert change.trimmed(words) == trimmed and trimmed.of(words) == change.of(words)


@given(st.lists(st.sampled_from("ABC"), max_size=8), st.lists(st.sampled_from("ABC"), min_size=1, max_size=8))
def test_differences_lead_from_one_text_to_the_other(words: list[str], others: list[str]) -> None:
    found = differences(" ".join(words), " ".join(others))
    assert all(one.is_beside(other) or one is other for one in found for other in found)
    for change in reversed(found):
        assert change.of(words) != words
        words = change.of(words)
    assert words == others and differences("A B", "") == []


def test_changes_beside_each_other() -> None:
    one = Change(1, 2, ("X",))
    assert (
        one.is_beside(Change(2, 3, ())) and one.is_beside(Change(0, 1, ("Y",))) and one.is_beside(Change(4, 4, ("Z",)))
    )
    for other in (one, Change(1, 3, ()), Change(2, 2, ("Z",)), Change(1, 1, ("Z",))):
        assert not one.is_beside(other) and not other.is_beside(one)


class Wishing(Rescorer):
    """Says what it was told, whatever it read before, as far as the place in the text goes."""

    def __init__(self, text: str, frames: float = 0.3) -> None:
        super().__init__(replace(CONFIG, n_best=1, frames=frames, alone=1.0, weight=1.0))
        self.wish = [*self.pieces.encode(text), END]

    def following(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*x.shape[:2], self.embedding.num_embeddings)
        for row, place in enumerate(self.read_at.tolist()):
            logits[0, row, self.wish[min(place, len(self.wish) - 1)]] = 8
        return logits

    def embed(self, read: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self.read_at = places
        return super().embed(read, places)


def said(decoder: BeamDecoder | ReadingDecoder, rows: NDArray[np.float32]) -> str:
    return " ".join(word.text for word in decoder(rows, 0, states(len(rows))))


@pytest.mark.parametrize("kind", [ReadingDecoder, BeamDecoder])
def test_what_was_misheard_is_put_right(kind: type) -> None:
    rows = frames("THE CUT SET", {5: "A", 9: "A"}, sure=0.9)
    decoder = kind(ALPHABET, rescorer=Wishing("THE CAT SAT"))
    assert said(decoder, rows) == "THE CAT SAT"
    assert said(kind(ALPHABET, rescorer=Wishing("THE CAT SAT", frames=40.0)), rows) == "THE CUT SET"
    assert " ".join(word.text for word in decoder(rows, 0)) == "THE CUT SET"  # a partial
    words = decoder(rows, 100, states(len(rows)))
    assert [(word.start_frame, word.end_frame) for word in words] == [(100, 105), (108, 113), (116, 121)]


def test_the_decoder_writes_by_itself() -> None:
    rows = frames("THE CUT SET SINGS")
    for wish in ("THE CAT SAT", "SINGING", "A CAT THE CAT SAT A CAT", ""):
        proposals = Proposals(Wishing(wish), ALPHABET, rows, states(len(rows)))
        proposals.consider(["THE CUT SET SINGS", "CUT"])
        assert proposals.write() == wish
    endless = Wishing("THE CAT SAT")
    endless.wish.pop()  # its last piece again and again
    proposals = Proposals(endless, ALPHABET, rows, states(len(rows)))
    proposals.consider(["THE CUT"])
    assert proposals.write().startswith("THE CAT SAT SAT SAT") and len(proposals.write().split()) < 30


def test_what_a_text_goes_on_with_is_read_with_a_new_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    n_readings = 0
    catch_up = Reading.catch_up

    def counted(self: Reading) -> None:
        nonlocal n_readings
        n_readings += self.n_read < len(self.tree.pieces)
        catch_up(self)

    monkeypatch.setattr(Reading, "catch_up", counted)
    text, wish = "CAT THE CAT SING A THE CAT", "CAT CAT CAT SING A THE CAT"
    needed = []
    for n_guessed in (GUESS, 0):
        monkeypatch.setattr("core.proposals.GUESS", n_guessed)
        proposals = Proposals(Wishing(wish), ALPHABET, frames(text), states(len(frames(text))))
        proposals.consider([text])
        n_readings = 0
        assert proposals.write() == wish
        needed.append(n_readings)
    guessed, alone = needed
    assert guessed < alone


@pytest.mark.parametrize(
    ("piece", "rest", "behind"),
    [
        ("c", [" a", "b", "c", " d"], [" d"]),  # is one of them
        ("x", [" a", "b", " d"], [" a", "b", " d"]),  # goes on with the word before
        (" x", [" a", "b", " d"], [" d"]),  # a word in place of another
        (" x", [" a"], []),
        (" x", [], []),
    ],
)
def test_where_a_text_goes_on_behind_another_piece(piece: str, rest: list[str], behind: list[str]) -> None:
    known = [" a", "b", "c", " d", "x", " x"]
    pieces = SimpleNamespace(begins=lambda i: known[i].startswith(" "))
    proposals = Proposals(SimpleNamespace(pieces=pieces), ALPHABET, frames("A"), states(1))  # type: ignore[arg-type]
    assert [known[i] for i in proposals.behind(known.index(piece), [known.index(of) for of in rest])] == behind


def test_what_was_not_heard_is_not_said() -> None:
    rows = frames("THE CAT SAT")
    for wish in ("SINGING", "THE CAT SAT THE CAT SAT THE CAT SAT", "A", ""):
        for kind in (ReadingDecoder, BeamDecoder):
            assert said(kind(ALPHABET, rescorer=Wishing(wish, frames=2.0)), rows) == "THE CAT SAT"
            assert kind(ALPHABET, rescorer=Wishing(wish, frames=0.0))(rows[1::2], 0, states(11)) == []  # silence


def test_the_language_model_has_its_say(folder) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    decoder = BeamDecoder(ALPHABET, LanguageModel.load(folder), {"otter": 3.0, "sea cat": 5.0})
    texts = ["THE CAT SAT", "THE CAT SET", "THE SEE OTTER", "BOOKKEEPER SEES", "A SEA CAT"]
    found = decoder.prior(texts)
    for text, prior in zip(texts, found, strict=True):
        rows = frames(text)
        decoder_rows = np.pad(rows, ((0, 1), (0, 0)), constant_values=-1e4)
        decoder_rows[-1, 1] = 0
        weight = max(decoder.weights.values())
        beams = decoder.engine.decode_beams(
            decoder_rows, beam_width=500, beam_prune_logp=-500, token_min_logp=-9.0,
            hotwords=list(decoder.hotwords), hotword_weight=weight,
        )  # fmt: skip
        own = next(beam for beam in beams if beam[0] == text)
        assert prior == pytest.approx(own[4] - own[3] - decoder.excess(text, weight), abs=0.05), text
    assert found[0] > found[1]
    assert BeamDecoder(ALPHABET).prior(texts) == [0.0] * len(texts)


def test_a_letter_that_was_hardly_heard_may_be_none(folder) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """The empty text is among the best then."""
    probs = np.full((9, len(ALPHABET.tokens)), 1e-6, np.float32)
    probs[:, ALPHABET.blank] = 0.98
    probs[4, [ALPHABET.tokens.index("A"), ALPHABET.blank]] = 0.5, 0.4
    rows = np.log(probs / probs.sum(1, keepdims=True))
    model = LanguageModel.load(folder)
    for hotwords in ({}, {"sea": 3.0}):
        for own in (model, None):
            for wish in ("A", ""):
                decoder = BeamDecoder(ALPHABET, own, hotwords, rescorer=Wishing(wish, frames=0.01))
                assert said(decoder, rows) in {"A", wish}
                assert np.isfinite(decoder.prior(["", "A"])).all()


def test_scores_add_up() -> None:
    rescorer, heard = make(replace(CONFIG, weight=0.5)), states(30)
    rows = frames("THE CAT SAT")
    proposals = Proposals(rescorer, ALPHABET, rows, heard, lambda texts: [2.0] * len(texts), True)
    assert proposals.best(["THE CAT SAT", "THE CAT"]) in proposals.scores
    labels = [proposals.labels(text) for text in proposals.scores]
    likely = log_likelihoods(rows, labels, ALPHABET.silent)
    # The tree joins texts again after what they differ in: those of the first call are exact.
    for (text, score), by_frames in list(zip(proposals.scores.items(), likely, strict=True))[:2]:
        expected = rescorer.config.frames * by_frames + 2 + 0.5 * rescorer.score(heard, [text])[0]
        assert score == pytest.approx(expected, abs=1e-3)
    assert Proposals(rescorer, ALPHABET, rows, heard).best([]) == ""
    assert Proposals(rescorer, ALPHABET, rows[:3], heard).best(["THE CAT SAT"]) == "THE CAT SAT"  # no room for it


def test_any_pieces_lead_to_texts_of_the_alphabet() -> None:
    """Whatever a network that learned nothing proposes, in texts with words that it has no pieces for."""
    rows = frames("THE CAT ÉÉ SAT".replace("É", "X"))
    for seed in range(6):
        config = replace(CONFIG, pieces=(*PIECES, " é", "7", " 7"), alone=3.0, frames=0.001)
        proposals = Proposals(make(config, seed), ALPHABET, rows, states(len(rows), seed))
        text = proposals.best(["THE CAT XX SAT"])
        assert len(proposals.scores) > 3 and set("".join(proposals.judged)) <= {*"ABCDEFGHIJKLMNOPQRSTUVWXYZ' "}
        assert proposals.scores[text] == max(proposals.scores.values())
    few = replace(CONFIG, pieces=tuple(piece for piece in PIECES if "x" not in piece), alone=3.0, frames=0.001)
    assert Proposals(make(few), ALPHABET, rows, states(len(rows))).best(["XX CAT XX"])
    short = replace(CONFIG, max_length=4)
    assert Proposals(make(short), ALPHABET, rows, states(len(rows))).best(["THE CAT SAT THE CAT"])


def test_it_is_used_without_a_language_model() -> None:
    rescorer = make()
    model = SimpleNamespace(alphabet=ALPHABET, directory=None, name="mine", rescorer=lambda: rescorer)
    decoder = make_decoder(model)  # type: ignore[arg-type]
    assert isinstance(decoder, ReadingDecoder) and reads_after(decoder) == CONFIG.n_blocks
    assert isinstance(draft(decoder), GreedyDecoder)
    assert isinstance(make_decoder(model, "none"), ReadingDecoder)  # type: ignore[arg-type]
    assert isinstance(make_decoder(model, "letters"), GreedyDecoder)  # type: ignore[arg-type]
    rescorer.config = replace(CONFIG, is_proposing=False)
    assert isinstance(make_decoder(model), GreedyDecoder)  # type: ignore[arg-type]
