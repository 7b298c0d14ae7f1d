"""Which rows go to which worker, and which of an epoch are left when the number of workers changes.

References to rows go round the workers in blocks, epoch after epoch, as Ray Data hands them out. So what a worker has
seen after so many batches follows from the seed, the shards and the history of the run alone, and nothing but the
history (data/segments.py) need be kept. When the number of workers or the size of a batch changes, the rows that are
left of the epochs somebody has begun are shared out evenly, and after them the first epoch that nobody has begun
goes round as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count

import numpy as np

from sam3dist.data.epoch import MIX_GROUPS, mixing
from sam3dist.data.segments import Segment
from sam3dist.data.shards import RowGroup, cut

Share = tuple[np.ndarray, np.ndarray]
"""Numbers of rows [rows] int64, reference after reference, and how many each reference has [references] int64."""


@dataclass(frozen=True)
class Unseen:
    """What nobody has trained on: all from the epoch `first` on, and what is `left` of those before it.

    Epoch -> sorted numbers [rows] int64.
    """

    left: Mapping[int, np.ndarray] = field(default_factory=dict)
    first: int = 0


@dataclass(frozen=True)
class Shares:
    """The rows of some shards and how they are shared in a run with this seed. Rows are numbered through the shards."""

    row_groups: Sequence[RowGroup]
    seed: int
    _cuts: dict[int, Share] = field(default_factory=dict, init=False, repr=False)

    def dealt(self, segment: Segment, rank: int) -> Iterator[tuple[int, RowGroup]]:
        """The epoch and the reference of everything that goes round to this rank, for ever."""
        pieces = cut(self.row_groups, segment.cut_for)
        for epoch in count():
            order, owners = self._round(segment, epoch, len(pieces))
            for place in order[owners == rank]:
                yield epoch, pieces[place]

    def unseen(self, segments: Sequence[Segment]) -> Unseen:
        """What is left after these segments."""
        unseen = Unseen()
        for segment in segments:
            unseen = self._after(segment, unseen)
        return unseen

    def of_rank(self, unseen: Unseen, rank: int, world_size: int) -> list[tuple[int, list[RowGroup]]]:
        """The share of one rank in what is left of each begun epoch. Ranks differ by one row of an epoch at most."""
        return [
            (epoch, self._references(self._parts(epoch, left, world_size)[rank])) for epoch, left in unseen.left.items()
        ]

    def _after(self, segment: Segment, unseen: Unseen) -> Unseen:
        """What is left after the batches of a segment, which began with `unseen`."""
        begun = np.zeros(segment.world_size, np.int64)  # batches of each rank before the epoch at hand
        left: dict[int, np.ndarray] = {}
        for epoch, rows, shares in self._epochs(segment, unseen):
            if epoch >= unseen.first and begun.min() >= segment.batches:
                return Unseen(left, epoch)
            batches = -(-rows // segment.images_per_batch)
            drawn = np.clip(segment.batches - begun, 0, batches)
            if (drawn < batches).any():
                seen = np.minimum(drawn * segment.images_per_batch, rows)
                parts = [self._rest(epoch, share, int(some)) for share, some in zip(shares(), seen, strict=True)]
                left[epoch] = self._sorted(np.concatenate(parts))
            begun += batches
        raise AssertionError("epochs never end")

    def _epochs(self, segment: Segment, unseen: Unseen) -> Iterator[tuple[int, np.ndarray, Callable[[], list[Share]]]]:
        """Each epoch of a segment, the rows [ranks] that the ranks have in it, and what gives their shares.

        First what was left, then what goes round.
        """
        ranks = segment.world_size
        for epoch, left in unseen.left.items():
            yield epoch, _even(len(left), ranks), partial(self._parts, epoch, left, ranks)
        pieces = self._pieces(segment.cut_for)
        for epoch in count(unseen.first):
            order, owners = self._round(segment, epoch, len(pieces[1]))
            rows = np.bincount(owners, weights=pieces[1][order], minlength=ranks).astype(np.int64)
            yield epoch, rows, partial(_taken, pieces, [order[owners == rank] for rank in range(ranks)])

    def _round(self, segment: Segment, epoch: int, pieces: int) -> tuple[np.ndarray, np.ndarray]:
        """The order [pieces] of an epoch, and which rank [pieces] has each place in it."""
        places = epoch * pieces + np.arange(pieces)
        return piece_order(self.seed, epoch, pieces), places // segment.per_block % segment.world_size

    def _parts(self, epoch: int, left: np.ndarray, world_size: int) -> list[Share]:
        """The rows that are left in even parts, row groups in an order of their own but hardly ever torn apart."""
        _, starts, sizes = np.unique(self._group_of[left], return_index=True, return_counts=True)
        order = np.random.default_rng((self.seed, epoch, 2)).permutation(len(sizes))
        numbers = left[_runs(starts[order], sizes[order])]
        ends = np.cumsum(_even(len(left), world_size))[:-1]
        parts = zip(np.split(numbers, ends), np.split(np.repeat(order, sizes[order]), ends), strict=True)
        return [(mine, _lengths(of)) for mine, of in parts]

    def _rest(self, epoch: int, share: Share, seen: int) -> np.ndarray:
        """The rows of a share that are not among the first `seen` of those as an epoch mixes them."""
        numbers, sizes = share
        rng = mixing(self.seed, epoch)
        start = 0
        mixes = np.add.reduceat(sizes, np.arange(0, len(sizes), MIX_GROUPS)) if seen else ()
        for size in map(int, mixes):
            order = rng.permutation(size)
            if seen < start + size:
                rest = start + order[seen - start :]
                return np.concatenate([numbers[rest], numbers[start + size :]])
            start += size
        return numbers[start:]

    def _references(self, share: Share) -> list[RowGroup]:
        numbers, sizes = share
        found = []
        for places in np.split(numbers, np.cumsum(sizes)[:-1]) if len(sizes) else ():
            number = self._group_of[places[0]]
            group = self.row_groups[number]
            whole = len(places) == group.rows
            chosen = None if whole else tuple((places - self._starts[number]).tolist())
            found.append(replace(group, chosen=chosen))
        return found

    @cached_property
    def _starts(self) -> np.ndarray:
        """The number [row groups] of each row group's first row."""
        rows = np.array([group.rows for group in self.row_groups])
        return np.cumsum(rows) - rows

    @cached_property
    def _group_of(self) -> np.ndarray:
        """The number [rows] of the row group that each row is in."""
        return np.repeat(np.arange(len(self.row_groups)), [group.rows for group in self.row_groups])

    def _sorted(self, numbers: np.ndarray) -> np.ndarray:
        """The same numbers of rows in order; takes a tenth of the time of sorting."""
        among = np.zeros(len(self._group_of), bool)
        among[numbers] = True
        return np.flatnonzero(among)

    def _pieces(self, workers: int) -> Share:
        """All that goes round in an epoch where row groups are cut for so many workers."""
        if workers not in self._cuts:
            self._cuts[workers] = self._cut(workers)
        return self._cuts[workers]

    def _cut(self, workers: int) -> Share:
        known = {(group.path, group.index): start for group, start in zip(self.row_groups, self._starts, strict=True)}
        pieces = cut(self.row_groups, workers)
        first = np.array([known[piece.path, piece.index] + piece.part for piece in pieces])
        sizes = np.array([len(piece.places) for piece in pieces])
        steps = np.array([piece.parts for piece in pieces])
        within = _runs(np.zeros_like(sizes), sizes)
        return np.repeat(first, sizes) + within * np.repeat(steps, sizes), sizes


def piece_order(seed: int, epoch: int, pieces: int) -> np.ndarray:
    """The order [pieces] in which the references of an epoch go round."""
    return np.random.default_rng((seed, epoch)).permutation(pieces)


def _even(rows: int, parts: int) -> np.ndarray:
    """How many rows [parts] each of some even parts has."""
    return rows // parts + (np.arange(parts) < rows % parts)


def _taken(pieces: Share, choices: Sequence[np.ndarray]) -> list[Share]:
    """The share that has each choice of pieces."""
    numbers, sizes = pieces
    starts = np.cumsum(sizes) - sizes
    return [(numbers[_runs(starts[chosen], sizes[chosen])], sizes[chosen]) for chosen in choices]


def _runs(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each run, as many as its size, one run after the other."""
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)


def _lengths(values: np.ndarray) -> np.ndarray:
    """How long each run of equal values is."""
    if not len(values):
        return np.zeros(0, np.int64)
    return np.diff(np.flatnonzero(values[1:] != values[:-1]) + 1, prepend=0, append=len(values))
