"""Renders scenes of shaded, textured objects on a surface, with the exact visible mask of each.

Objects are signed distance functions, so that edges are anti-aliased, bevels get normals, and the mask is what the
picture shows: a pixel belongs to an object where the object covers at least half of it and nothing lies on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from sam3dist.data.samples.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES, Thing

SPLITS = {"teacher": 1, "teacher-val": 2, "shards": 3}
"""First word of every seed, so that nothing the embedded teacher was trained on is in a data set made later."""

TILT = 0.3
"""Things stand upright, give or take this angle in radians."""

MIN_VISIBLE = 0.75
"""An object of which less than this share shows is placed anew."""


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # [side, side, 3] uint8
    things: tuple[Thing, ...]
    masks: np.ndarray  # [N, side, side] bool, what is visible of each thing


def make_scene(seed: int | tuple[int, ...], side: int = 256) -> Scene:
    """The scene of this seed: the same picture, things and masks on every call."""
    rng = np.random.default_rng(seed)
    light = _unit(np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.9, -0.2), rng.uniform(0.6, 1.1)]))
    canvas = _surface(rng, side, light)
    things, coverages = _place(rng, side)
    for index in range(len(things)):
        _paint(canvas, rng, things[index], light)
    owner = np.full((side, side), -1, dtype=np.int8)
    for index, (rows, columns, coverage) in enumerate(coverages):
        owner[rows, columns][coverage >= 0.5] = index
    masks = owner[None] == np.arange(len(things), dtype=np.int8)[:, None, None]
    return Scene(_develop(canvas, rng, side), tuple(things), masks)


# --- where things go


def _place(rng: np.random.Generator, side: int) -> tuple[list[Thing], list[tuple[slice, slice, np.ndarray]]]:
    """Two to four things, later ones on top, each visible enough; colours and shapes repeat often, as distractors."""
    palette = rng.choice(list(COLOURS), size=3, replace=False)
    shapes = rng.choice(SHAPES, size=3, replace=False)
    wanted = int(rng.integers(2, 5))
    things: list[Thing] = []
    coverages: list[tuple[slice, slice, np.ndarray]] = []
    for _ in range(wanted * 8):
        if len(things) == wanted:
            break
        size = str(rng.choice(list(SIZES), p=[0.3, 0.4, 0.3]))
        radius = float(rng.uniform(*SIZES[size]))
        thing = Thing(
            shape=str(rng.choice(shapes)) if rng.random() < 0.7 else str(rng.choice(SHAPES)),
            colour=str(rng.choice(palette)) if rng.random() < 0.7 else str(rng.choice(list(COLOURS))),
            texture=str(rng.choice(TEXTURES, p=[0.4, 0.2, 0.2, 0.2])),
            size=size,
            x=float(rng.uniform(radius + 0.01, 0.99 - radius)),
            y=float(rng.uniform(radius + 0.01, 0.99 - radius)),
            radius=radius,
            angle=float(rng.uniform(-TILT, TILT) - np.pi / 2),  # tips point up
        )
        window = _window(thing, side)
        coverage = _coverage(_distance(thing, *_local_grid(thing, window, side)), thing, side)
        if _all_visible([*coverages, (*window, coverage)], side):
            things.append(thing)
            coverages.append((*window, coverage))
    return things, coverages


def _all_visible(coverages: list[tuple[slice, slice, np.ndarray]], side: int) -> bool:
    owner = np.full((side, side), -1, dtype=np.int8)
    for index, (rows, columns, coverage) in enumerate(coverages):
        owner[rows, columns][coverage >= 0.5] = index
    return all(
        (owner[rows, columns] == index).sum() >= MIN_VISIBLE * (coverage >= 0.5).sum()
        for index, (rows, columns, coverage) in enumerate(coverages)
    )


def _window(thing: Thing, side: int, margin: float = 1.1) -> tuple[slice, slice]:
    """The rows and columns that hold the thing."""
    reach = thing.radius * margin

    def span(centre: float) -> slice:
        return slice(max(0, int((centre - reach) * side)), min(side, int(np.ceil((centre + reach) * side)) + 1))

    return span(thing.y), span(thing.x)


def _local_grid(thing: Thing, window: tuple[slice, slice], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the window's pixel centres in the thing's own turned frame, in units of its radius."""
    rows, columns = window
    y = ((np.arange(rows.start, rows.stop) + 0.5) / side - thing.y)[:, None] / thing.radius
    x = ((np.arange(columns.start, columns.stop) + 0.5) / side - thing.x)[None, :] / thing.radius
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return (cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32)


# --- what things look like


def _distance(thing: Thing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline, negative inside, in units of the outer radius."""
    if thing.shape == "ball":
        return np.hypot(x, y) - 1
    if thing.shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72) - 0.28
    if thing.shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.72
    if thing.shape == "cross":
        across, along = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
        return np.maximum(across - 0.29, along - 0.94)
    angle, reach = np.arctan2(y, x), np.hypot(x, y)
    if thing.shape == "triangle":
        third = 2 * np.pi / 3
        return reach * np.cos((angle % third) - third / 2) - 0.5
    assert thing.shape == "star", thing.shape
    fifth = 2 * np.pi / 5
    folded = np.abs((angle + fifth / 2) % fifth - fifth / 2)  # 0 at a tip, fifth / 2 at a notch
    # The edge is the line from the tip (1, 0) to the notch.
    notch = 0.46 * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    normal = np.array([notch[1], 1 - notch[0]]) / np.hypot(notch[1], 1 - notch[0])
    return reach * (np.cos(folded) * normal[0] + np.sin(folded) * normal[1]) - normal[0]


def _coverage(distance: np.ndarray, thing: Thing, side: int) -> np.ndarray:
    """Share of each pixel inside the outline, 0..1, from a one-pixel ramp."""
    return np.clip(0.5 - distance * thing.radius * side, 0, 1)


def _paint(canvas: np.ndarray, rng: np.random.Generator, thing: Thing, light: np.ndarray) -> None:
    """Draws the thing and its shadow onto the canvas of linear light."""
    side = canvas.shape[0]
    _cast_shadow(canvas, thing, light)
    window = _window(thing, side)
    x, y = _local_grid(thing, window, side)
    distance = _distance(thing, x, y)
    coverage = _coverage(distance, thing, side)[..., None]
    colour = _textured(thing, rng, x, y)
    normal = _normals(thing, distance, x, y)
    diffuse = np.clip(normal @ light, 0, 1)[..., None]
    half_way = _unit(light + np.array([0, 0, 1.0]))
    gloss = rng.uniform(0.05, 0.45)
    highlight = gloss * np.clip(normal @ half_way, 0, 1)[..., None] ** 40
    lit = colour * (0.38 + 0.72 * diffuse) + highlight
    canvas[window] = canvas[window] * (1 - coverage) + lit * coverage


def _textured(thing: Thing, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Surface colour [h, w, 3]; the named colour covers most of it."""
    base = np.clip(np.array(COLOURS[thing.colour]) * rng.uniform(0.88, 1.1) + rng.normal(0, 0.015, 3), 0.02, 1)
    if thing.colour in ("white", "black"):  # stay clearly white and clearly black under any pattern
        second = base * 0.55 if thing.colour == "white" else base + 0.3
    else:
        second = base * 0.28 if base.mean() > 0.45 else base * 0.35 + 0.58
    period = rng.uniform(0.45, 0.58)
    if thing.texture == "striped":
        pattern = np.cos(2 * np.pi * x / period) > 0.35
    elif thing.texture == "dotted":
        u, v = (x / period) % 1 - 0.5, (y / period) % 1 - 0.5
        pattern = np.hypot(u, v) < 0.27
    elif thing.texture == "checkered":
        pattern = (np.floor(x / period * 1.7) + np.floor(y / period * 1.7)) % 2 == 0
    else:
        pattern = np.zeros(x.shape, dtype=bool)
    return np.where(pattern[..., None], second, base)


def _normals(thing: Thing, distance: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit surface normals [h, w, 3] in image axes (x right, y down, z to the viewer): a dome, or a bevelled plate."""
    if thing.shape == "ball":
        u, v, z = x, y, np.sqrt(np.clip(1 - x**2 - y**2, 0.02, 1))
    else:
        v, u = np.gradient(distance)
        steep = np.clip(1 + distance / 0.16, 0, 1) * 0.75
        length = np.hypot(u, v) + 1e-6
        z = np.sqrt(1 - steep**2)
        # The gradient is taken along rows and columns already, so only the dome needs turning back.
        return np.stack([u / length * steep, v / length * steep, z], axis=-1)
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    return np.stack([cos * u - sin * v, sin * u + cos * v, z], axis=-1)


def _cast_shadow(canvas: np.ndarray, thing: Thing, light: np.ndarray) -> None:
    """Darkens the surface on the side away from the light, softer farther out."""
    side = canvas.shape[0]
    shift = -light[:2] / light[2] * thing.radius * 0.22
    moved = Thing(**{**vars(thing), "x": thing.x + float(shift[0]), "y": thing.y + float(shift[1])})
    window = _window(moved, side, margin=1.35)
    distance = _distance(moved, *_local_grid(moved, window, side))
    canvas[window] *= 1 - 0.5 * np.clip(0.5 - distance / 0.35, 0, 1)[..., None]


# --- what they lie on, and the camera


def _surface(rng: np.random.Generator, side: int, light: np.ndarray) -> np.ndarray:
    """A table top or wall of muted colour with grain, stains and a few nameless scraps, as linear light."""
    tone = rng.uniform(0.25, 0.62) * (1 + rng.uniform(-0.16, 0.16, 3))
    rough = _clouds(rng, side, (3, 9, 27), (1.0, 0.5, 0.3))
    if rng.random() < 0.5:  # grain runs along one axis, as in wood or brushed metal
        stretched = _clouds(rng, side, (5, 40), (0.6, 1.0), squeeze=8)
        rough = 0.5 * rough + (stretched if rng.random() < 0.5 else stretched.T)
    canvas = tone[None, None, :] * (1 + rng.uniform(0.06, 0.2) * rough[..., None])
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    canvas *= (1 + 0.45 * (light[0] * x + light[1] * y))[..., None]
    for _ in range(int(rng.integers(0, 4))):
        _scrap(canvas, rng)
    return canvas.astype(np.float32)


def _scrap(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """A pebble or crumb that no phrase names: small, greyish, lumpy."""
    side = canvas.shape[0]
    y, x = np.mgrid[0:side, 0:side] / side
    cx, cy, radius = rng.uniform(0.03, 0.97), rng.uniform(0.03, 0.97), rng.uniform(0.015, 0.04)
    angle = np.arctan2(y - cy, x - cx)
    lumpy = radius * (1 + 0.25 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.12 * np.sin(5 * angle + rng.uniform(0, 6)))
    inside = np.clip((lumpy - np.hypot(x - cx, y - cy)) * side + 0.5, 0, 1)[..., None]
    canvas[:] = canvas * (1 - inside) + rng.uniform(0.2, 0.6) * (1 + rng.uniform(-0.1, 0.1, 3)) * inside


def _clouds(
    rng: np.random.Generator, side: int, cells: tuple[int, ...], weights: tuple[float, ...], squeeze: int = 1
) -> np.ndarray:
    """Smooth noise [side, side] of about unit variance: random grids enlarged and added."""
    total = np.zeros((side, side), dtype=np.float32)
    for count, weight in zip(cells, weights, strict=True):
        grid = rng.normal(size=(count + 2, max(2, count // squeeze) + 1)).astype(np.float32)
        total += weight * np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))
    return total


def _develop(canvas: np.ndarray, rng: np.random.Generator, side: int) -> np.ndarray:
    """What a camera makes of the light: vignette, exposure, white balance, a little blur, noise, gamma."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    canvas = canvas * (1 - rng.uniform(0.1, 0.5) * (x**2 + y**2))[..., None]
    canvas = canvas * rng.uniform(0.85, 1.15) * (1 + rng.uniform(-0.05, 0.05, 3))
    display = np.clip(canvas, 0, 1) ** 0.8
    picture = Image.fromarray((display * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.8)) * side / 256)
    )
    noisy = np.asarray(picture) + rng.normal(0, rng.uniform(1, 5), size=(side, side, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
