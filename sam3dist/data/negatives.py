"""Orders the phrases that name nothing in an image by how easily they are mistaken for one that does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from zlib import crc32


class Confusability:
    """Simple statistics of phrases, not of pixels:

    one point for a word in common ("wine glass", "glass vase"), one for a common supercategory ("cat", "dog"), and
    the share of the present phrase's images in which the other one appears too ("fork" where there is a "knife").
    Memory grows with the square of the number of categories, not with the images.
    """

    def __init__(self, supercategories: Mapping[str, str] | None = None) -> None:
        self._supercategories = dict(supercategories or {})
        self._images: Counter[str] = Counter()
        self._together: Counter[tuple[str, str]] = Counter()
        self._words: dict[str, frozenset[str]] = {}

    def count(self, phrases: Iterable[str]) -> None:
        """Takes in the phrases that are present in one image."""
        present = set(phrases)
        self._images.update(present)
        self._together.update((one, other) for one in present for other in present if one != other)

    def score(self, absent: str, present: str) -> float:
        """How easily a phrase is mistaken for one that is present, 0 to 3."""
        family = self._supercategories.get(absent)
        related = family is not None and family == self._supercategories.get(present)
        shared = not self._split(absent).isdisjoint(self._split(present))
        often = self._together[present, absent] / max(self._images[present], 1)
        return related + shared + often

    def hardest_first(self, absent: Iterable[str], present: Iterable[str], image_id: int) -> list[str]:
        """The absent phrases, the most confusable with any present one first.

        Ties, and all of them where nothing is present, are in an order that depends on the image, so that a cap
        does not cut off the same phrases everywhere.
        """
        there = list(present)

        def key(phrase: str) -> tuple[float, int, str]:
            hardest = max((self.score(phrase, other) for other in there), default=0.0)
            return -hardest, crc32(f"{image_id} {phrase}".encode()), phrase

        return sorted(set(absent), key=key)

    def _split(self, phrase: str) -> frozenset[str]:
        if len(self._words) > 100_000:  # free text has no end of phrases
            self._words.clear()
        if phrase not in self._words:
            self._words[phrase] = frozenset(word for word in phrase.lower().split() if len(word) > 2)
        return self._words[phrase]
