"""The part of an axis that is kept where nothing was measured: evenly spaced pairs of neighbours.

The part depends on the two lengths alone, so that channels of one space stay the same everywhere. Evenly and in
pairs, because channels come in sine and cosine pairs of falling frequency, one half for y and one for x: every
second pair of a position code of 256 channels is the position code of 128 channels.
"""

from __future__ import annotations


def evenly(have: int, want: int, blocks: int = 2) -> list[int]:
    """`want` of `have` channels: in each of `blocks` equal parts the same, evenly spaced pairs of neighbours.

    Lengths that do not divide into that many pairs give the leading channels.
    """
    if have % (2 * blocks) or want % (2 * blocks):
        return list(range(want))
    pairs, kept_pairs = have // (2 * blocks), want // (2 * blocks)
    return [
        2 * (block * pairs + pair * pairs // kept_pairs) + side
        for block in range(blocks)
        for pair in range(kept_pairs)
        for side in (0, 1)
    ]


def even_heads(have_heads: int, have: int, want_heads: int, want: int) -> list[int] | None:
    """Channels of whole heads as far as heads are as wide as the original's, else the same part of each head.

    None where the copy has more heads than the original, or wider ones.
    """
    per_head, want_per_head = have // have_heads, want // want_heads
    if want_heads > have_heads or want_per_head > per_head:
        return None
    channels = evenly(per_head, want_per_head)  # rotary positions, too, are pairs, half of them for each axis
    return of_heads(evenly(have_heads, want_heads), per_head, channels)


def of_heads(heads: list[int], per_head: int, channels: list[int] | None = None) -> list[int]:
    """These channels of these heads; None are all."""
    return [head * per_head + channel for head in heads for channel in channels or range(per_head)]
