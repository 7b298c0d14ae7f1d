"""Which dotted keys a configuration has, and what they allow."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Model = type[BaseModel]


def kinds(annotation: Any) -> dict[str, Model]:
    """The classes a section chooses among by its `kind`, by that kind; empty for any other annotation."""
    members = [get_args(arm)[0] if get_origin(arm) is Annotated else arm for arm in get_args(annotation)]
    classes = [arm for arm in members if isinstance(arm, type) and issubclass(arm, BaseModel)]
    return {get_args(arm.model_fields["kind"].annotation)[0]: arm for arm in classes if "kind" in arm.model_fields}


def section(annotation: Any, content: Mapping[str, Any] | None = None) -> Model | None:
    """The class of a section that holds `content`; None when the annotation is that of a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    by_kind = kinds(annotation)
    if not by_kind:
        return None
    return by_kind.get((content or {}).get("kind", ""), next(iter(by_kind.values())))


def fields(model: Model, content: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every settable key with its field, in order of declaration; `content` tells which kinds are chosen."""
    for name, field in model.model_fields.items():
        inner = (content or {}).get(name)
        inner = inner if isinstance(inner, Mapping) else None
        below = section(field.annotation, inner)
        if below is None:
            yield prefix + name, field
        else:
            yield from fields(below, inner, f"{prefix}{name}.")


def kind_that_knows(model: Model, key: str) -> str | None:
    """The setting, as "strategy.kind=fsdp", under which a key exists that the chosen kind does not have; or several."""
    head, _, rest = key.partition(".")
    field = model.model_fields.get(head)
    if field is None or not rest:
        return None
    knowing = [kind for kind, arm in kinds(field.annotation).items() if rest in arm.model_fields]
    return f"{head}.kind={' or '.join(knowing)}" if knowing else None


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word most like the given one; for dotted keys a likeness of the last part is enough."""
    known = list(words)
    whole = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    if whole:
        return whole[0]
    leaf = word.rpartition(".")[2]
    leaves = difflib.get_close_matches(leaf, [key.rpartition(".")[2] for key in known], n=1, cutoff=0.75)
    if leaves:
        matching = [key for key in known if key.rpartition(".")[2] == leaves[0]]
        return max(matching, key=lambda key: difflib.SequenceMatcher(None, word, key).ratio())
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.5)), None)


def is_text(annotation: Any) -> bool:
    """Whether the field holds free text, so that 2024 stays the name of a directory and becomes no number."""
    return annotation is str or set(get_args(annotation)) == {str, type(None)}


def is_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def allowed(field: FieldInfo) -> str:
    """What the field takes, in words: "a number above 0 and at most 100", "one of ddp, fsdp"."""
    kind, bounds, optional = _in_words(field)
    joint = " of " if bounds.startswith("at") else " "
    text = f"{kind}{joint}{bounds}" if bounds else kind
    return f"{text}, or null" if optional else text


def limits(field: FieldInfo) -> str:
    """`allowed` beside a value that shows the type: "at least 1, or null"; empty if anything of its type goes."""
    kind, bounds, optional = _in_words(field)
    text = bounds or (kind if "one of" in kind else "")
    return f"{text}, or null" if text and optional else text


def _in_words(field: FieldInfo) -> tuple[str, str, bool]:
    """The type, the bounds, and whether null is allowed."""
    annotation, optional = field.annotation, False
    arms = [arm for arm in get_args(annotation) if arm is not type(None)]
    if type(None) in get_args(annotation) and len(arms) == 1:
        annotation, optional = arms[0], True
    bounds = field.metadata
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)[0], [*bounds, *get_args(annotation)[1].metadata]
    return _type_in_words(annotation), _bounds_in_words(bounds), optional


def _type_in_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if is_tuple(annotation):
        inner = _type_in_words(get_args(annotation)[0])
        return f"a list, each {inner}" if inner.startswith("one of") else "a list"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(annotation, "a mapping")


def _bounds_in_words(metadata: Iterable[Any]) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return " and ".join(
        f"{word} {getattr(bound, name):g}"
        for name, word in words.items()
        for bound in metadata
        if getattr(bound, name, None) is not None
    )
