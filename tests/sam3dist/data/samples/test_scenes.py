import numpy as np

from sam3dist.data.samples.phrases import scene_questions
from sam3dist.data.samples.scenes import make_scene
from sam3dist.data.samples.vocabulary import COLOURS, SHAPES, TEXTURES

SCENES = [make_scene((7, number), side=128) for number in range(40)]


def test_same_seed_gives_the_same_scene_and_another_seed_another():
    first, again, other = make_scene((3, 1)), make_scene((3, 1)), make_scene((3, 2))
    assert np.array_equal(first.image, again.image)
    assert first.things == again.things
    assert not np.array_equal(first.image, other.image)


def test_masks_are_disjoint_and_show_most_of_every_thing():
    for scene in SCENES:
        assert scene.masks.sum(axis=0).max() <= 1
        assert len(scene.masks) == len(scene.things) >= 1
        for mask, thing in zip(scene.masks, scene.things, strict=True):
            if thing.shape == "ball":
                whole = np.pi * (thing.radius * 128) ** 2
                assert 0.72 * whole <= mask.sum() <= 1.03 * whole


def test_plain_things_have_their_colour_where_the_mask_says():
    nearest = []
    for scene in SCENES:
        for mask, thing in zip(scene.masks, scene.things, strict=True):
            if thing.texture == "plain" and thing.colour in ("red", "green", "blue"):
                red, green, blue = np.median(scene.image[mask], axis=0)
                channel = ("red", "green", "blue")[int(np.argmax([red, green, blue]))]
                nearest.append(channel == thing.colour)
    assert len(nearest) > 10
    assert np.mean(nearest) == 1.0


def test_every_shape_colour_and_texture_occurs():
    things = [thing for number in range(120) for thing in make_scene((8, number), side=64).things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.texture for thing in things} == set(TEXTURES)


def named(phrase, thing):
    """An independent reading of a phrase: each word must hold for the thing."""
    words = phrase.split()
    facts = {
        "left": thing.x < 0.5,
        "right": thing.x > 0.5,
        "top": thing.y < 0.5,
        "bottom": thing.y > 0.5,
        "object": True,
        **dict.fromkeys(("on", "at", "the"), True),
    }
    return all(facts.get(word, word in (thing.shape, thing.colour, thing.texture, thing.size)) for word in words)


def test_phrases_name_exactly_the_instances_they_list():
    positives = negatives = 0
    for number, scene in enumerate(SCENES):
        questions = scene_questions(scene.things, np.random.default_rng(number))
        assert len({question.phrase for question in questions}) == len(questions)
        for question in questions:
            expected = tuple(i for i, thing in enumerate(scene.things) if named(question.phrase, thing))
            assert question.instances == expected, question
            positives += bool(expected)
            negatives += not expected
    assert positives > 200
    assert negatives > 150


def test_negatives_are_near_misses():
    """Each negative shares all but one of its words with something in the scene."""
    for number, scene in enumerate(SCENES):
        for question in scene_questions(scene.things, np.random.default_rng(number)):
            words = [word for word in question.phrase.split() if word not in ("object", "on", "at", "the")]
            if not question.instances and len(words) > 1:
                shorter = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
                assert any(named(phrase, thing) for phrase in shorter for thing in scene.things), question
