"""The phrases asked of a scene: those that name something in it, and near misses that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sam3dist.data.samples.vocabulary import COLOURS, POSITIONS, SHAPES, TEXTURES, Thing, Wanted

# How often each combination of words is asked: mostly what a thing is and how it looks.
FORMS: dict[tuple[str, ...], float] = {
    ("shape",): 3.0,
    ("colour", "shape"): 5.0,
    ("texture", "shape"): 1.5,
    ("texture", "colour", "shape"): 1.5,
    ("size", "shape"): 1.0,
    ("size", "colour", "shape"): 0.5,
    ("shape", "position"): 1.0,
    ("colour", "shape", "position"): 0.5,
    ("colour",): 1.0,
}

VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "texture": tuple(texture for texture in TEXTURES if texture != "plain"),
    "size": ("small", "large"),
    "position": tuple(POSITIONS),
}


@dataclass(frozen=True)
class Question:
    """A phrase and the things it names, as indices into the scene; none for a negative."""

    phrase: str
    instances: tuple[int, ...]


def scene_questions(
    things: Sequence[Thing],
    rng: np.random.Generator,
    positives: int = 8,
    negatives: int = 6,
    asked_forms: Mapping[tuple[str, ...], float] = FORMS,
) -> list[Question]:
    """Up to `positives` phrases that name something and up to `negatives` that name nothing, no phrase twice.

    Negatives are hard: a phrase that would fit a thing of the scene, with one word exchanged. A phrase whose answer
    would be a matter of opinion (a thing too near the middle to be left or right) is never asked.
    """
    asked: dict[str, Question] = {}
    count = {True: 0, False: 0}
    limit = {True: positives, False: negatives}
    forms, weights = list(asked_forms), np.array(list(asked_forms.values()))
    for _ in range(12 * (positives + negatives)):
        if all(count[kind] >= limit[kind] for kind in count):
            break
        form = forms[rng.choice(len(forms), p=weights / weights.sum())]
        wanted = _describe(things[int(rng.integers(len(things)))], form, rng)
        if wanted is None:
            continue
        if count[True] >= positives or rng.random() < 0.5:
            changed = form[rng.integers(len(form))]
            others = [value for value in VALUES[changed] if value != getattr(wanted, changed)]
            wanted = replace(wanted, **{changed: others[rng.integers(len(others))]})
        answers = [wanted.matches(thing) for thing in things]
        if None in answers:
            continue
        instances = tuple(index for index, named in enumerate(answers) if named)
        positive = bool(instances)
        if wanted.phrase() not in asked and count[positive] < limit[positive]:
            asked[wanted.phrase()] = Question(wanted.phrase(), instances)
            count[positive] += 1
    return list(asked.values())


def _describe(thing: Thing, form: tuple[str, ...], rng: np.random.Generator) -> Wanted | None:
    """The thing in the words of `form`, or None where it has no such word."""
    chosen: dict[str, str] = {}
    for attribute in form:
        if attribute == "position":
            fitting = [words for words in POSITIONS if Wanted(position=words).matches(thing)]
            if not fitting:
                return None
            chosen[attribute] = fitting[rng.integers(len(fitting))]
        else:
            chosen[attribute] = getattr(thing, attribute)
    if chosen.get("size") == "medium" or chosen.get("texture") == "plain":  # nobody says so
        return None
    return Wanted(**chosen)
