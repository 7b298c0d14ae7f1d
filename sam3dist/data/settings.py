"""What `prepare` can be told."""

from __future__ import annotations

from dataclasses import dataclass

from sam3dist.errors import ConfigError


@dataclass(frozen=True)
class PrepareSettings:
    """A plain data class rather than pydantic: shards are also made where only the library is installed."""

    exhaustive: bool = True
    """COCO input that does not say what is exhaustive: every category is annotated in every image, so an absent
    one is a negative. False: the file tells nothing about absence."""
    max_negatives_per_image: int = 32
    """Phrases kept that name nothing in an image, the most confusable first."""
    max_phrase_chars: int = 200
    """A longer phrase is set aside: it is a caption, and the text tower reads 32 tokens."""
    max_pixels: int = 50_000_000
    """Images with more pixels are set aside before decoding."""
    max_side: int | None = None
    """Images whose longer side has more pixels are stored smaller, with their masks; None keeps all as they are."""
    max_rejected_share: float = 0.05
    """More images, pairs or annotations set aside than this share fails the whole preparation."""
    rows_per_group: int = 32
    """Rows of a row group, the unit that is shuffled and handed to a worker."""
    rows_per_shard: int = 1024
    """Rows of a Parquet file."""
    threads: int = 2
    """Images checked at a time."""

    def __post_init__(self) -> None:
        for name in ("max_phrase_chars", "max_pixels", "rows_per_group", "rows_per_shard", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be 1 or more.")
        if self.max_side is not None and self.max_side < 16:
            raise ConfigError(f"max_side={self.max_side} must be 16 or more, or null.")
        if self.max_negatives_per_image < 0:
            raise ConfigError(f"max_negatives_per_image={self.max_negatives_per_image} must be 0 or more.")
        if not 0 <= self.max_rejected_share <= 1:
            raise ConfigError(f"max_rejected_share={self.max_rejected_share} must lie between 0 and 1.")
