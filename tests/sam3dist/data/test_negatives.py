from sam3dist.data.negatives import Confusability


def test_words_families_and_company_make_phrases_confusable():
    confusability = Confusability({"cat": "animal", "dog": "animal", "fork": "kitchen", "knife": "kitchen"})
    for phrases in (["fork", "knife"], ["fork", "cup"], ["cat"], ["cup"]):
        confusability.count(phrases)
    assert confusability.score("dog", "cat") == 1
    assert confusability.score("red cat", "black cat") == 1
    assert confusability.score("knife", "fork") == 1 + 1 / 2  # one of the two images with a fork
    assert confusability.score("fork", "knife") == 1 + 1  # the only image with a knife
    assert confusability.score("boat", "cat") == 0


def test_short_words_in_common_mean_nothing():
    assert Confusability().score("cat on a mat", "dog on a log") == 0


def test_the_most_confusable_phrase_comes_first():
    confusability = Confusability({"cat": "animal", "dog": "animal", "car": "vehicle"})
    order = confusability.hardest_first(["boat", "car", "dog", "cat food"], ["cat"], 5)
    assert set(order[:2]) == {"dog", "cat food"}


def test_ties_fall_differently_in_each_image_but_always_the_same_way():
    names = [f"thing {i} {word}" for i, word in enumerate(("oak", "elm", "fir", "yew"))]
    orders = {tuple(Confusability().hardest_first(names, [], image)) for image in range(20)}
    assert len(orders) > 5
    assert Confusability().hardest_first(names, [], 3) == Confusability().hardest_first(names[::-1], [], 3)
