"""Which layers of a deep network a shallower copy keeps."""

from __future__ import annotations

from collections.abc import Sequence


def even_layers(have: int, want: int) -> list[int]:
    """`want` of `have` layers, evenly spaced, the first and the last among them; a deeper copy repeats layers."""
    if want == 1:
        return [0]
    return [round(index * (have - 1) / (want - 1)) for index in range(want)]


def global_layers(have: int, have_global: Sequence[int], want: int) -> list[int]:
    """Where a copy of depth `want` attends to the whole image, in proportion to where the original does.

    The share of global layers is kept, rounded up; with SAM3's [7, 15, 23, 31] of 32, depth 16 gives [7, 15] and
    depth 24 gives [5, 17, 23]. transformers ignores indexes beyond the depth, so the original's must not be reused.
    """
    count = min(want, len(have_global), -(-len(have_global) * want // have))
    places = [round((have_global[index] + 1) * want / have) - 1 for index in spread(len(have_global), count)]
    return sorted({min(max(place, 0), want - 1) for place in places})


def vision_layers(have: int, have_global: Sequence[int], want: int, want_global: Sequence[int]) -> list[int]:
    """The original's layer for each of the copy's: global from global, windowed from windowed, in order.

    Global layers are matched first, the last with the last. Between two of them the windowed layers are taken
    evenly from those between the two originals, so that the first layer stays the first.
    """
    kept = [have_global[index] for index in spread(len(have_global), len(want_global))]
    sources: list[int] = []
    for place, start, original, original_start in zip(
        [*want_global, want], [-1, *want_global], [*kept, have], [-1, *kept], strict=True
    ):
        between = range(original_start + 1, original)
        # Where the original has no windowed layer to give here, its neighbours are the nearest thing.
        pool = [layer for layer in between if layer not in have_global] or [max(original_start, 0)]
        sources += [pool[index] for index in even_layers(len(pool), place - start - 1)]
        if place < want:
            sources.append(original)
    return sources


def best_layers(scores: Sequence[float], kinds: Sequence[bool], wanted: Sequence[bool]) -> list[int] | None:
    """The layers, in order and each once, whose scores add up to most; None if there is no such choice.

    A layer that attends to the whole image (True in `kinds`) takes a place of its kind in `wanted`, which says what
    the copy's layers do.
    """
    # best[place]: the score of the best choice for the first `place` places, and the choice.
    best: list[tuple[float, list[int]] | None] = [(0.0, []), *[None] * len(wanted)]
    for layer, (score, kind) in enumerate(zip(scores, kinds, strict=True)):
        for place in range(len(wanted), 0, -1):
            before, known = best[place - 1], best[place]
            if before and wanted[place - 1] == kind and (known is None or before[0] + score > known[0]):
                best[place] = (before[0] + score, [*before[1], layer])
    return best[-1] and best[-1][1]


def spread(have: int, want: int) -> list[int]:
    """`want` of `have` indexes at equal distances, the last among them."""
    return [max(round((index + 1) * have / want) - 1, 0) for index in range(want)]
