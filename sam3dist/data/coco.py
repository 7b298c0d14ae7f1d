"""COCO instances -> questions: every category of an image is a phrase, categories known to be absent are negatives.

What is known to be absent, first rule that applies:

1. the image's `neg_category_ids` (LVIS, and data sets checked by people);
2. `info.sources[image.source].exhaustive_category_ids`: what is annotated completely in images of this source;
3. plain COCO: every category, unless the settings say that annotation is not exhaustive.

LVIS's `not_exhaustive_category_ids` and a `dropped_tiny` table mark categories of which only some instances are
annotated. A category with an annotation that was set aside is neither a negative nor exhaustive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sam3dist.data.negatives import Confusability
from sam3dist.data.prompts import clean_category
from sam3dist.data.records import ImageRecord, Question, annotated_size, integers
from sam3dist.data.rejects import Reject, Rejects
from sam3dist.data.spill import Spill, record_id

if TYPE_CHECKING:
    from sam3dist.data.settings import PrepareSettings


def coco_records(spill: Spill, settings: PrepareSettings, rejects: Rejects) -> Iterator[ImageRecord]:
    """The images of a COCO instances file with their questions, in file order."""
    phrase_of, families = _categories(spill.heads.get("categories"), settings, rejects)
    ids_of: dict[str, set[int]] = defaultdict(set)
    for category, phrase in phrase_of.items():
        ids_of[phrase].add(category)
    confusability = Confusability(families)
    for together in spill.categories_together():
        confusability.count(phrase_of[category] for category in together if category in phrase_of)
    sources = _sources(spill.heads.get("info"))

    for image in spill.entries():
        number = image["id"]
        try:
            height, width = annotated_size(image)
        except Reject as reject:
            rejects.add("image", number, reject)
            continue
        answers = _by_phrase(spill.annotations(number), phrase_of, rejects)
        shown = {annotation["category_id"] for found in answers.values() for annotation in found}
        partly = integers(list(spill.doubts(number))) | integers(image.get("dropped_tiny"))
        partly |= integers(image.get("not_exhaustive_category_ids"))
        annotated = _annotated_completely(image, set(phrase_of), sources, settings) - partly
        absent = integers(image["neg_category_ids"]) if "neg_category_ids" in image else annotated
        for category in sorted(absent & shown) if "neg_category_ids" in image else ():
            rejects.add("negative", number, Reject("negative is present", f"category {category} is annotated"))
        absent = absent - shown - partly
        questions = [
            Question(phrase, True, ids_of[phrase] <= annotated, tuple(found)) for phrase, found in answers.items()
        ]
        negatives = confusability.hardest_first(
            (phrase for phrase, ids in ids_of.items() if ids <= absent), answers, number
        )
        questions += [Question(phrase, False, True) for phrase in negatives[: settings.max_negatives_per_image]]
        yield ImageRecord(number, image["file_name"], height, width, tuple(questions))


def _categories(records: Any, settings: PrepareSettings, rejects: Rejects) -> tuple[dict[int, str], dict[str, str]]:
    """Category id -> phrase, and phrase -> supercategory."""
    phrases: dict[int, str] = {}
    families: dict[str, str] = {}
    for record in records if isinstance(records, list) else []:
        try:
            number = record_id(record, "id")
            if number in phrases:
                raise Reject("duplicate category id", f"id {number} was there before")
            phrases[number] = clean_category(record.get("name"), settings.max_phrase_chars)
        except Reject as reject:
            rejects.add("category", record.get("id") if isinstance(record, dict) else None, reject)
            continue
        family = record.get("supercategory")
        # Exporters write "none" or the data set's name for all; a family of one word for everything says nothing.
        if isinstance(family, str) and family.lower() not in ("", "none"):
            families[phrases[number]] = family
    if len(set(families.values())) < 2:
        families.clear()
    return phrases, families


def _sources(info: Any) -> dict[str, set[int]] | None:
    """Source -> the categories annotated completely in its images; None where the file does not say."""
    sources = info.get("sources") if isinstance(info, dict) else None
    if not isinstance(sources, dict):
        return None
    return {
        name: integers(source.get("exhaustive_category_ids"))
        for name, source in sources.items()
        if isinstance(source, dict)
    }


def _by_phrase(annotations: list[dict], phrase_of: dict[int, str], rejects: Rejects) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = defaultdict(list)
    for annotation in annotations:
        category = annotation.get("category_id")
        phrase = None if category is None else phrase_of.get(category)
        if phrase is None:
            unknown = Reject("unknown category id", f"category_id {category} has no name")
            rejects.add("annotation", annotation["id"], unknown)
        else:
            found[phrase].append(annotation)
    return found


def _annotated_completely(
    image: dict, categories: set[int], sources: dict[str, set[int]] | None, settings: PrepareSettings
) -> set[int]:
    if sources is not None:
        return set(sources.get(str(image.get("source")), ()))
    return set(categories) if settings.exhaustive else set()
