"""SA-Co style pairs -> questions: each entry of `images` is one image and one phrase, with its own annotations.

A pair without annotations is a verified negative. Boxes and areas are shares of the image; masks are in pixels.
Pairs that name the same file become one image, whose id is that of its first pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sam3dist.data.negatives import Confusability
from sam3dist.data.prompts import clean_phrase
from sam3dist.data.records import ImageRecord, Question, annotated_size
from sam3dist.data.rejects import Reject, Rejects
from sam3dist.data.spill import Spill

if TYPE_CHECKING:
    from sam3dist.data.settings import PrepareSettings


def saco_records(spill: Spill, settings: PrepareSettings, rejects: Rejects) -> Iterator[ImageRecord]:
    """The images of an SA-Co style file with their questions, in the order of their first pairs."""
    # Free phrases have no supercategories, and counts of them would grow with the data: words only.
    confusability = Confusability()
    for file_name, pairs in spill.entries_by_file():
        asked: dict[str, Question] = {}
        seen: set[str] = set()
        size: tuple[int, int] | None = None
        for pair in pairs:
            try:
                phrase = clean_phrase(pair.get("text_input"), settings.max_phrase_chars)
                here = annotated_size(pair)
                if size is not None and here != size:
                    raise Reject("bad size", f"{here} where an earlier pair of {file_name!a:.60} says {size}")
                if phrase.lower() in seen:
                    raise Reject("duplicate phrase", f"{phrase!a:.60} was asked of {file_name!a:.60} before")
            except Reject as reject:
                rejects.add("pair", pair["id"], reject)
                continue
            size = here
            seen.add(phrase.lower())
            question = _question(spill, pair, phrase)
            if question is not None:
                asked[phrase] = question
        if size is None:
            continue
        present = [phrase for phrase, question in asked.items() if question.present]
        absent = [phrase for phrase, question in asked.items() if not question.present]
        number = int(pairs[0]["id"])
        negatives = confusability.hardest_first(absent, present, number)[: settings.max_negatives_per_image]
        yield ImageRecord(number, file_name, *size, tuple(asked[phrase] for phrase in present + negatives))


def _question(spill: Spill, pair: dict, phrase: str) -> Question | None:
    """The question of a pair; None where nothing is known: no annotation, but not exhaustive either."""
    found = spill.annotations(pair["id"])
    exhaustive = bool(pair.get("is_instance_exhaustive", True)) and not spill.doubts(pair["id"])
    if not found and not exhaustive:
        return None
    return Question(phrase, bool(found), exhaustive, tuple(found))
