"""Which stored answers a run reads, asked once by its driver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sam3dist.answers import imitated_features
from sam3dist.data.shards import open_shards
from sam3dist.errors import ConfigError
from sam3dist.teaching.store import DEFAULT_NAME, AnswerStore, Identity, open_answers
from sam3dist.teaching.teachers import foreign_file, known_of

if TYPE_CHECKING:
    from sam3dist.config.distill import DistillConfig


def stored_answers(config: DistillConfig, with_features: bool | None = None) -> AnswerStore | None:
    """The store that a run with `teacher.mode=stored` reads; None where it asks its teacher, or has none to ask.

    with_features: whether features are read, too; None follows from the configuration. Reads the teacher's files once,
    to know that the answers are its own. Raises DataError for a store that is missing, unfinished or of something else,
    and ConfigError for a teacher that cannot have what is asked.
    """
    if config.teacher.mode == "online":
        require_askable(config)
        return None
    if not teaches(config):
        return None
    require_followed(config)
    return open_answers(answers_folder(config), wanted(config, with_features), config.teacher.source)


def require_askable(config: DistillConfig) -> None:
    """ConfigError for a teacher that only `sam3dist teach` can ask."""
    source, adapter = config.teacher.source, config.teacher.adapter
    if adapter is not None or foreign_file(source) is not None:
        given = f"source={source}" if adapter is None else f"adapter={adapter}"
        raise ConfigError(
            f"teacher.{given}: only SAM3s are asked in every step; run `sam3dist teach` and set teacher.mode=stored."
        )


def require_followed(config: DistillConfig) -> None:
    """ConfigError for a run that looks at images in a way that stored answers cannot follow."""
    if config.data.crop_share < 1:
        raise ConfigError(
            f"data.crop_share={config.data.crop_share:g}: stored answers are to whole images and cannot follow a crop; "
            "set it to 1, or teacher.mode=online."
        )


def wanted(config: DistillConfig, with_features: bool | None = None) -> Identity:
    """What the answers of a run's teacher to its training shards are of; with_features as for `stored_answers`.

    ConfigError where the teacher has no such features.
    """
    known = known_of(config.teacher)
    names = imitated_features(config.distillation)
    if with_features is not None:
        names = config.distillation.features if with_features else ()
    missing = [name for name in names if name not in known.feature_names]
    if missing:
        raise ConfigError(
            f"teacher.source={config.teacher.source}: this teacher has no {' and no '.join(missing)} features; set "
            "distillation.gamma=0."
        )
    data = open_shards(str(config.data.train)).content_hash
    precision, token = config.teacher.precision, known.geometry_token
    return Identity(known.fingerprint, precision, known.image_size, data, names, geometry_token=token)


def teaches(config: DistillConfig) -> bool:
    """Whether a run learns anything from its teacher."""
    return config.distillation.beta > 0 or config.distillation.gamma > 0


def shape_source(config: DistillConfig) -> str:
    """The network whose shape and weights the student starts from; ConfigError for a teacher that has none."""
    if config.student.like is not None:
        return config.student.like
    if foreign_file(config.teacher.source) is not None:
        raise ConfigError(
            f"student.like: name a network of SAM3's architecture to start from; {config.teacher.source} is none."
        )
    return config.teacher.source


def answers_folder(config: DistillConfig) -> Path:
    """Where the answers to the training shards are."""
    return Path(config.teacher.answers or Path(str(config.data.train)) / DEFAULT_NAME)
