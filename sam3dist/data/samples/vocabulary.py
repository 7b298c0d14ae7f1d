"""What the generated scenes contain, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.11, 0.12),
    "yellow": (0.93, 0.78, 0.10),
    "green": (0.14, 0.56, 0.20),
    "blue": (0.12, 0.29, 0.80),
    "purple": (0.52, 0.16, 0.64),
    "white": (0.94, 0.94, 0.93),
    "black": (0.07, 0.07, 0.08),
}
"""Linear base colour, 0..1, before light and jitter."""

SHAPES = ("ball", "ring", "square", "triangle", "star", "cross")
TEXTURES = ("plain", "striped", "dotted", "checkered")

SIZES = {"small": (0.15, 0.175), "medium": (0.21, 0.24), "large": (0.28, 0.31)}
"""Outer radius over the side of the image; the gaps keep every size word unambiguous."""

POSITIONS = {
    "on the left": (0, -1),
    "on the right": (0, 1),
    "at the top": (1, -1),
    "at the bottom": (1, 1),
}
"""Words -> (axis: 0 is x and 1 is y, side of the middle)."""

POSITION_MARGIN = 0.07
"""A centre nearer to the middle than this share of the side is on neither side."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene; x and y are its centre and radius its outer radius, as shares of the side."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float  # radians


@dataclass(frozen=True)
class Wanted:
    """What a phrase asks for; None leaves an attribute open."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None
    position: str | None = None

    def phrase(self) -> str:
        """The words, in the order English puts them: "large striped blue ring on the left"."""
        words = (self.size, self.texture, self.colour, self.shape or "object", self.position)
        return " ".join(word for word in words if word)

    def matches(self, thing: Thing) -> bool | None:
        """Whether the phrase names the thing; None where only its place is too near the middle to tell."""
        for attribute in ("shape", "colour", "texture", "size"):
            wanted = getattr(self, attribute)
            if wanted is not None and wanted != getattr(thing, attribute):
                return False
        if self.position is None:
            return True
        axis, side = POSITIONS[self.position]
        offset = ((thing.x, thing.y)[axis] - 0.5) * side
        return None if abs(offset) < POSITION_MARGIN else offset > 0
