"""The demo's books and the index its agents keep."""

import pytest

from outrigger.demo.index import Index
from outrigger.demo.passages import BOOKS, Passage, corpus, share, words

ONE = Passage(0, "opticks", "Light and light, colours of it")
TWO = Passage(1, "opticks", "Of the refraction of Light")


def test_corpus_is_about_a_megabyte():
    """The wheel carries both books, cut into passages that keep every paragraph."""
    passages = corpus()
    assert {passage.book for passage in passages} == set(BOOKS)
    assert 900_000 < sum(len(passage.text.encode()) for passage in passages) < 2**20
    assert [passage.number for passage in passages] == list(range(len(passages)))
    assert len({passage.name for passage in passages}) == len(passages)


@pytest.mark.parametrize("count", [1, 3])
def test_shares_are_the_corpus(count):
    """Every passage belongs to exactly one share."""
    shares = [share(number, count) for number in range(1, count + 1)]
    together = sorted(
        (passage for part in shares for passage in part),
        key=lambda passage: passage.number,
    )
    assert together == list(corpus())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_words_are_counted_in_any_case():
    """Words of three letters or more count, whatever their case."""
    assert words("The Light of 1704, PHÆNOMENA") == ["the", "light", "phænomena"]


def test_index_finds_words():
    """A word is found in every passage that holds it, with its count."""
    index = Index()
    index.answered(ONE, {"words": 5.0})
    index.buffered(TWO, "l-1")
    assert index.lookup("LIGHT") == {ONE.name: 2, TWO.name: 1}
    assert index.lookup("nowhere") == {}
    assert index.counts() == {"passages": 2, "words": 5, "letters": 1}
    assert index.has(ONE)
    assert index.has(TWO)
    assert not index.has(Passage(2, "opticks", ""))


def test_state_is_the_same_bytes_in_any_order():
    """What is held decides the state's bytes, not the order it came in."""
    states = []
    for order in ((ONE, TWO), (TWO, ONE)):
        index = Index()
        for passage in order:
            index.answered(passage, {"top": ["light"], "words": 5.0})
        states.append(index.save())
    assert states[0] == states[1]


def test_state_survives_a_restore():
    """An index restored from a state saves the very same bytes."""
    index, woken = Index(), Index()
    for passage in share(1, 100):
        index.answered(passage, {"words": float(len(passage.text))})
    index.buffered(Passage(9999, "opticks", "last word"), "l-9")
    woken.restore(index.save())
    assert woken.save() == index.save()
    assert woken.counts() == index.counts()


def test_garbage_is_no_state():
    """Bytes that are no state are refused, and the index stays as it was."""
    index = Index()
    index.answered(ONE, {})
    with pytest.raises(ValueError, match="Expecting"):
        index.restore(b"nonsense")
    assert index.has(ONE)
