"""What a student got right and wrong, in six panels; the plots over trials and steps are in plots.py.

N masks of an image of H x W pixels; for drawing, everything is scaled to a longer side of SIDE pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from sam3dist.metrics.iou import iou
from sam3dist.overlay import PALETTE
from sam3dist.plots import INK, MUTED, STUDENT, TEACHER, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

SIDE = 640
FOUND, FALSE, MISSED = "#00a67d", "#e4572e", "#f2c14e"  # apart for colour-blind eyes, too


def six_panels(
    image: np.ndarray,
    truth: Sequence[np.ndarray],
    teacher: Sequence[np.ndarray],
    student: Sequence[np.ndarray],
    *,
    phrase: str,
    path: Path,
    crowd: np.ndarray | None = None,
) -> Path:
    """`path`, with the drawn panels: the image and its phrase, truth, teacher, student, both, and the differences.

    image: [H, W, 3] uint8. truth, teacher, student: the masks [H, W] bool of each instance, none where there is
    nothing. crowd: pixels [H, W] that count neither way; they are hatched in the last panel. IoUs are those of
    the unions at full resolution, as the evaluation counts them. The same object has the same colour in all panels.
    """
    from matplotlib.patches import Patch

    size = image.shape[:2]
    counted = np.ones(size, dtype=bool) if crowd is None else ~crowd
    truth_union, teacher_union, student_union = (_union(masks, size) & counted for masks in (truth, teacher, student))
    small = [[_scaled(mask) for mask in masks] for masks in (truth, teacher, student)]
    photo = _scaled_photo(image)
    dim = _dimmed(photo)
    colors = _object_colors(*small)

    with styled():
        figure, axes = _six_axes(photo.shape[0] / photo.shape[1])
        axes[0].imshow(photo)
        _title(axes[0], f"“{_shortened(phrase)}”", "the image and the phrase")
        answers = (
            ("Truth", _count(truth, "nothing to find"), INK),
            ("Teacher", _verdict(teacher_union, truth_union, teacher), TEACHER),
            ("Student", _verdict(student_union, truth_union, student), STUDENT),
        )
        for axis, masks, inks, (name, said, color) in zip(axes[1:4], small, colors, answers, strict=True):
            axis.imshow(_painted(dim, masks, inks))
            _title(axis, name, said, color)

        axes[4].imshow(_both(photo, _scaled(teacher_union), _scaled(student_union)))
        _title(axes[4], "Teacher and student", _agreement(teacher_union, student_union))
        _legend(axes[4], [Patch(color=TEACHER, label="teacher"), Patch(color=STUDENT, label="student")])

        seen, wanted = _scaled(student_union), _scaled(truth_union)
        parts = ((seen & wanted, FOUND, "found"), (seen & ~wanted, FALSE, "false"), (wanted & ~seen, MISSED, "missed"))
        axes[5].imshow(_painted(dim, [p for p, _, _ in parts], [_rgb(c) for _, c, _ in parts], fill=0.85, edge=0))
        handles = [Patch(color=color, label=name) for _, color, name in parts]
        if crowd is not None:
            axes[5].contourf(_scaled(crowd), levels=[0.5, 1.5], colors="none", hatches=["////"])
            handles.append(Patch(facecolor=MUTED, edgecolor="white", hatch="////", label="not counted"))
        _title(axes[5], "Student against truth", _shares(student_union, truth_union))
        _legend(axes[5], handles)
        return save(figure, path)


def _six_axes(aspect: float) -> tuple[Figure, list[Axes]]:
    """A figure of two rows of three axes for pictures of height / width `aspect`, with bands for titles and legends."""
    from matplotlib.figure import Figure

    panel, gap, margin, title, legend = 4.0, 0.18, 0.2, 0.56, 0.36  # inches
    height = panel * aspect
    whole = (2 * margin + 3 * panel + 2 * gap, 2 * (title + height) + gap + legend + margin)
    figure = Figure(figsize=whole)
    axes = []
    for row in range(2):
        bottom = margin + legend + (1 - row) * (height + title + gap) - 0.1
        for column in range(3):
            left = margin + column * (panel + gap)
            box = (left / whole[0], bottom / whole[1], panel / whole[0], height / whole[1])
            axis = figure.add_axes(box)
            axis.set_axis_off()
            axes.append(axis)
    return figure, axes


def _object_colors(
    truth: list[np.ndarray], teacher: list[np.ndarray], student: list[np.ndarray]
) -> list[list[np.ndarray]]:
    """Colours [3] for the masks of each: an object keeps the colour of the true instance it overlaps most.

    What overlaps no true instance is matched with what the teacher found besides, and else gets the next colour.
    """
    known: list[np.ndarray] = list(truth)
    colors = [[_palette(number) for number in range(len(truth))]]
    for masks in (teacher, student):
        overlap = np.array([[(mask & other).sum() for other in known] for mask in masks], dtype=np.int64)
        numbers: dict[int, int] = {}
        if overlap.size:
            rows, columns = linear_sum_assignment(overlap, maximize=True)
            numbers = {int(r): int(c) for r, c in zip(rows, columns, strict=True) if overlap[r, c]}
        own = []
        for index, mask in enumerate(masks):
            if index not in numbers:
                numbers[index] = len(known)
                known.append(mask)
            own.append(_palette(numbers[index]))
        colors.append(own)
    return colors


def _painted(
    base: np.ndarray, masks: Sequence[np.ndarray], colors: Sequence[np.ndarray], fill: float = 0.55, edge: int = 2
) -> np.ndarray:
    """A copy of the picture [h, w, 3] uint8 with tinted masks, the first on top; `edge` pixels inside are opaque."""
    pixels = base.astype(np.float32)
    for mask, color in reversed(list(zip(masks, colors, strict=True))):
        pixels[mask] += fill * (color - pixels[mask])
        if edge:
            pixels[mask & ~ndimage.binary_erosion(mask, iterations=edge, border_value=1)] = color
    return pixels.round().astype(np.uint8)


def _both(photo: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """The photograph with both unions; outlines lie side by side where they agree, the student's inside."""
    around = ndimage.binary_dilation(teacher, iterations=3) & ~teacher
    filled = _painted(photo, [student, teacher], [_rgb(STUDENT), _rgb(TEACHER)], fill=0.25, edge=0)
    edge = student & ~ndimage.binary_erosion(student, iterations=3, border_value=1)
    return _painted(filled, [edge, around], [_rgb(STUDENT), _rgb(TEACHER)], fill=1, edge=0)


def _title(axis: Axes, name: str, said: str, color: str = INK) -> None:
    size = min(12.0, 12 * 38 / len(name))  # about what fits the width of a panel
    lines: Any = ((name, 20, {"color": color, "size": size, "weight": "bold"}), (said, 6, {"color": MUTED}))
    for text, height, look in lines:
        axis.annotate(text, (0, 1), (0, height), xycoords="axes fraction", textcoords="offset points", **look)


def _legend(axis: Axes, handles: list[Patch]) -> None:
    axis.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        borderaxespad=0.5,
        borderpad=0,
        ncols=len(handles),
        fontsize=9.5,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.4,
        labelcolor=MUTED,
    )


def _verdict(found: np.ndarray, truth: np.ndarray, masks: Sequence[np.ndarray]) -> str:
    if truth.any():
        return f"IoU {_iou(found, truth):.2f}, {_count(masks, 'finds nothing')}"
    return f"false alarm: {_count(masks, '')}" if found.any() else "rightly finds nothing"


def _agreement(teacher: np.ndarray, student: np.ndarray) -> str:
    if teacher.any() or student.any():
        return f"IoU with each other {_iou(teacher, student):.2f}"
    return "both find nothing"


def _shares(found: np.ndarray, truth: np.ndarray) -> str:
    """Found, missed and false pixels in parts of the truth's, or of the image's where nothing is true."""
    area, false = int(truth.sum()), int((found & ~truth).sum())
    if not area:
        return f"nothing to find; {false / truth.size:.0%} of the image is false" if false else "nothing to find"
    share = int((found & truth).sum()) / area
    return f"{share:.0%} found, {1 - share:.0%} missed, {false / area:.0%} too much"


def _count(masks: Sequence[np.ndarray], none: str) -> str:
    return f"{len(masks)} instance{'s' if len(masks) > 1 else ''}" if len(masks) else none


def _iou(one: np.ndarray, two: np.ndarray) -> float:
    return iou(int((one & two).sum()), int(one.sum()), int(two.sum()))


def _union(masks: Sequence[np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    union = np.zeros(size, dtype=bool)
    for mask in masks:
        union |= mask
    return union


def _target(size: tuple[int, ...]) -> tuple[int, int]:
    """(width, height) whose longer side is SIDE."""
    scale = SIDE / max(size)
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _scaled(mask: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(_target(mask.shape), Image.Resampling.BOX)) >= 128


def _scaled_photo(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(_target(image.shape[:2]), Image.Resampling.LANCZOS))


def _dimmed(photo: np.ndarray) -> np.ndarray:
    """The picture in grey and darker, so that colours are masks and nothing else."""
    grey = photo.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.repeat((20 + 0.5 * grey)[..., None], 3, axis=2).astype(np.uint8)


def _palette(number: int) -> np.ndarray:
    return np.array(PALETTE[number % len(PALETTE)], dtype=np.float32)


def _rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)


def _shortened(phrase: str, limit: int = 48) -> str:
    return phrase if len(phrase) <= limit else phrase[: limit - 1].rstrip() + "…"
