"""What a demo agent knows: an inverted index, and what became of each passage."""

import json
import threading
from typing import Any

from outrigger.demo.passages import Passage, words


class Index:
    """Which passages hold which word. Safe on any thread.

    Its state is the same bytes for the same contents: sorted, without times.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._postings: dict[str, dict[str, int]] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._letters: dict[str, str] = {}

    def answered(self, passage: Passage, answer: dict[str, Any]) -> None:
        """Index a passage that the tool answered for."""
        with self._lock:
            self._add(passage)
            self._answers[passage.name] = answer

    def buffered(self, passage: Passage, letter_id: str) -> None:
        """Index a passage whose call became a letter."""
        with self._lock:
            self._add(passage)
            self._letters[passage.name] = letter_id

    def has(self, passage: Passage) -> bool:
        """Return whether the passage is dealt with."""
        with self._lock:
            return passage.name in self._answers or passage.name in self._letters

    def lookup(self, word: str) -> dict[str, int]:
        """Return how often the word is in each passage that holds it."""
        with self._lock:
            return dict(self._postings.get(word.lower(), {}))

    def counts(self) -> dict[str, int]:
        """Return how many passages, words and letters it holds."""
        with self._lock:
            return {
                "passages": len(self._answers) + len(self._letters),
                "words": len(self._postings),
                "letters": len(self._letters),
            }

    def save(self) -> bytes:
        """Return the whole state."""
        with self._lock:
            state = {
                "answers": self._answers,
                "letters": self._letters,
                "postings": self._postings,
            }
            return json.dumps(
                state, sort_keys=True, separators=(",", ":"), ensure_ascii=False
            ).encode()

    def restore(self, state: bytes) -> None:
        """Hold what `save` gave.

        Raises:
            ValueError: the bytes are not a state.
        """
        held = json.loads(state)
        with self._lock:
            self._answers = held["answers"]
            self._letters = held["letters"]
            self._postings = held["postings"]

    def _add(self, passage: Passage) -> None:
        for word in words(passage.text):
            posting = self._postings.setdefault(word, {})
            posting[passage.name] = posting.get(passage.name, 0) + 1
