"""The corpus: two books in the public domain, cut into passages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

BOOKS: Final = ("opticks", "devils_dictionary")
PASSAGE_CHARACTERS: Final = 1000
"""A passage ends with the paragraph that reaches this."""

_WORD: Final = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class Passage:
    """Some paragraphs of one book."""

    number: int
    """From 0, across all books."""
    book: str
    text: str

    @property
    def name(self) -> str:
        """Name of the passage, the same in every process and every run."""
        return f"{self.book}-{self.number:04d}"


@cache
def corpus() -> tuple[Passage, ...]:
    """Return every passage of every book, in order."""
    cut = [(book, text) for book in BOOKS for text in _cut(_read(book))]
    return tuple(Passage(number, *each) for number, each in enumerate(cut))


def share(number: int, count: int) -> tuple[Passage, ...]:
    """Return the passages of worker `number` of `count`, from 1; none is shared."""
    return corpus()[number - 1 :: count]


def words(text: str) -> list[str]:
    """Return the words of a text in order: three letters or more, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def _read(book: str) -> str:
    folder = resources.files("outrigger.demo") / "corpus"
    return (folder / f"{book}.txt").read_text(encoding="utf-8")


def _cut(text: str) -> Iterator[str]:
    kept: list[str] = []
    for paragraph in re.split(r"\n{2,}", text):
        kept.append(paragraph)
        if sum(map(len, kept)) >= PASSAGE_CHARACTERS:
            yield "\n\n".join(kept)
            kept = []
    if kept:
        yield "\n\n".join(kept)
