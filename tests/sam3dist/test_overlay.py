import numpy as np
from PIL import Image

from sam3dist.overlay import FILL, MAX_SIDE, PALETTE, overlay


def square(side: int, top: int, bottom: int) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    mask[top:bottom, top:bottom] = True
    return mask


def test_the_inside_is_tinted_the_edge_coloured_and_the_rest_untouched():
    image = Image.new("RGB", (200, 200), (100, 100, 100))
    drawn = np.asarray(overlay(image, [square(200, 60, 140)], ["x 0.50"])).astype(float)
    ink = np.array(PALETTE[0])
    assert np.allclose(drawn[100, 100], 100 + FILL * (ink - 100), atol=0.5)
    assert np.array_equal(drawn[139, 100], ink)  # the inner edge
    assert np.allclose(drawn[140, 100], 35, atol=0.5)  # the dark line around it
    assert np.array_equal(drawn[180, 180], [100, 100, 100])


def test_instances_have_colours_of_their_own_and_the_first_is_on_top():
    image = Image.new("RGB", (200, 200))
    drawn = np.asarray(overlay(image, [square(200, 80, 120), square(200, 50, 150)], ["a", "b"]))
    assert np.array_equal(drawn[119, 100], PALETTE[0])
    assert np.array_equal(drawn[149, 100], PALETTE[1])
    assert len(set(PALETTE)) == len(PALETTE)


def test_labels_do_not_cover_each_other():
    image = Image.new("RGB", (300, 300))
    masks = [square(300, 100, 200)] * 3
    drawn = np.asarray(overlay(image, masks, ["one 0.90", "two 0.80", "three 0.70"]))
    areas = [(drawn == color).all(axis=2).any(axis=1).sum() for color in PALETTE[:3]]
    assert min(areas) >= 10  # rows in which each label's own colour shows


def test_a_label_stays_inside_the_image():
    image = Image.new("RGB", (60, 40))
    assert overlay(image, [square(40, 0, 40)[:, :40].repeat(2, axis=1)[:, :60]], ["a long phrase 0.99"]).size == (
        60,
        40,
    )


def test_huge_images_are_drawn_smaller():
    mask = np.zeros((1000, 4096), dtype=bool)
    mask[200:800, 1000:3000] = True
    drawn = overlay(Image.new("RGB", (4096, 1000)), [mask], ["wide"])
    assert drawn.size == (MAX_SIDE, 500)
    assert np.asarray(drawn)[250, 1000].any()


def test_nothing_found_leaves_the_image_as_it_is():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(overlay(image, [], [])), np.asarray(image))
    empty = np.zeros((50, 70), dtype=bool)
    assert np.array_equal(np.asarray(overlay(image, [empty], ["nothing"])), np.asarray(image))
