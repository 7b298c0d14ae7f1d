"""Phrases: how they are cleaned, and which of an image's phrases a training step asks."""

from __future__ import annotations

import re
import unicodedata
from random import Random
from typing import TYPE_CHECKING, Any

from sam3dist.data.rejects import Reject

if TYPE_CHECKING:
    from sam3dist.data.rows import Prompt


def clean_phrase(text: Any, max_chars: int) -> str:
    """The phrase in one line of NFC text; raises Reject for what is no phrase."""
    if not isinstance(text, str):
        raise Reject("empty phrase", f"{text!r:.60} is no text")
    phrase = " ".join(unicodedata.normalize("NFC", text).split())
    if not phrase:
        raise Reject("empty phrase", "nothing but white space")
    if len(phrase) > max_chars:
        raise Reject("huge phrase", f"{len(phrase)} characters, max_phrase_chars={max_chars}")
    # Half a surrogate pair survives JSON but neither Parquet nor a tokenizer.
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in phrase):
        raise Reject("bad characters", f"control characters or broken UTF-16 in {phrase!a:.60}")
    return phrase


def clean_category(name: Any, max_chars: int) -> str:
    """The phrase a category name stands for: lower case, words apart, no remark in brackets.

    "traffic_light" -> "traffic light"; LVIS's "bow_(weapon)" -> "bow". Raises Reject for a nameless category.
    """
    if not isinstance(name, str) or not name.strip():
        raise Reject("nameless category", f"name {name!r:.60}")
    words = name.replace("_", " ").lower()
    return clean_phrase(re.sub(r"\s*\([^)]*\)", " ", words).strip() or words, max_chars)


def draw_prompts(prompts: tuple[Prompt, ...], wanted: int, negative_share: float, rng: Random) -> list[Prompt]:
    """At most `wanted` of an image's phrases, with `negative_share` of them negatives in expectation.

    Positives are drawn evenly. Negatives are drawn with weights 1, 1/2, 1/3, ... in their stored order, so that
    the most confusable come often and all of them sometimes. An image with few positives gets fewer negatives,
    to keep the share; one without positives gets negatives only, one without negatives positives only.
    """
    positives = [prompt for prompt in prompts if prompt.present]
    negatives = [prompt for prompt in prompts if not prompt.present]
    expected = wanted * negative_share
    if 0 < len(positives) < wanted - expected:
        expected = len(positives) * negative_share / (1 - negative_share)
    num_negatives = min(int(expected + rng.random()), len(negatives))  # one of two neighbours, right in the mean
    num_positives = min(wanted - num_negatives, len(positives))
    chosen = rng.sample(positives, num_positives)
    # Events that happen at rates 1, 1/2, 1/3, ...: the first ones are drawn with these weights.
    times = {rng.expovariate(1 / place): negative for place, negative in enumerate(negatives, 1)}
    return chosen + [times[time] for time in sorted(times)[:num_negatives]]
