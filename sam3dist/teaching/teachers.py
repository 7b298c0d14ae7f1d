"""Who can be asked: SAM3 and its students, SAM with or without an adapter, or whatever a file of yours makes."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sam3dist.errors import ConfigError, Sam3DistError
from sam3dist.models.source import files_sha256
from sam3dist.types import PromptBatch, SegOutputs

if TYPE_CHECKING:
    from sam3dist.config.distill import TeacherConfig
    from sam3dist.models.segmenter import Segmenter

FOREIGN = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")
FACTS = ("image_size", "feature_names", "files")
"""What is asked of a foreign teacher that is a class with all three; of any other, one has to be made."""


class Teacher(Protocol):
    """Answers any batch. It may also have `files`, the paths that decide its answers."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that it is shown."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Which of "vision" and "encoder" its outputs have."""

    def __call__(self, batch: PromptBatch) -> SegOutputs:
        """Its answers to all prompts of a batch, which comes on the CPU."""


@dataclass(frozen=True)
class Known:
    """What can be told of a teacher before it is asked."""

    fingerprint: str
    """SHA-256 of the files that decide its answers, the same wherever they lie."""
    image_size: int
    feature_names: tuple[str, ...]
    geometry_token: bool = False
    """Whether it is asked with the token of SAM3's geometry encoder."""


def open_teacher(teacher: TeacherConfig, device: str | torch.device) -> Teacher:
    """The teacher, ready to be asked, on the device where it can be there.

    teacher.source: what `load_teacher` takes, the directory or Hugging Face id of a SAM, or FILE.py:NAME: NAME is
    called, with the device if it has a parameter of that name, and gives a Teacher. Raises ConfigError and
    CheckpointError for what cannot be loaded.
    """
    foreign = foreign_maker(teacher)
    if foreign is not None:
        return _made(foreign, teacher.source, device)
    if _is_sam(teacher):
        from sam3dist.models.sam1 import load_sam

        return load_sam(teacher.source, teacher.adapter, device, teacher.precision)
    from sam3dist.models.teacher import load_teacher

    return Sam3Teacher(load_teacher(teacher.source, device, teacher.precision, teacher.geometry_token))


def known_of(teacher: TeacherConfig) -> Known:
    """What can be told of `open_teacher`'s teacher; weights are read for their checksum only.

    A foreign one is made, on the CPU, unless it is a class with all of FACTS.
    """
    foreign = foreign_maker(teacher)
    if foreign is not None:
        return _known_foreign(foreign, teacher.source)
    # Here, for the sake of drivers that need none: the libraries of networks take ten seconds to load.
    from sam3dist.models.geometry import uses_geometry_token
    from sam3dist.models.teacher import fingerprint, teacher_config

    if _is_sam(teacher):
        from sam3dist.models.sam1 import SamTeacher, sam_config, sam_fingerprint, sam_image_size

        side = sam_image_size(sam_config(teacher.source))
        return Known(sam_fingerprint(teacher.source, teacher.adapter), side, SamTeacher.feature_names)
    config = teacher_config(teacher.source)
    token = uses_geometry_token(config, teacher.geometry_token)
    return Known(fingerprint(teacher.source), int(config.image_size), Sam3Teacher.feature_names, token)


def teacher_fingerprint(teacher: TeacherConfig) -> str:
    """SHA-256 of the files that decide the teacher's answers, the same wherever they lie."""
    return known_of(teacher).fingerprint


class Sam3Teacher:
    """A network of SAM3's architecture."""

    feature_names: tuple[str, ...] = ("vision", "encoder")

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    @property
    def image_size(self) -> int:
        return self.segmenter.image_size

    def __call__(self, batch: PromptBatch) -> SegOutputs:
        from sam3dist.models.segmenter import segment

        return segment(self.segmenter, batch.to(self.segmenter.device))


def foreign_file(source: str) -> tuple[Path, str] | None:
    """The file and the name in it, of a source that is FILE.py:NAME; else None."""
    parts = FOREIGN.fullmatch(source)
    return None if parts is None else (Path(parts["file"]).expanduser(), parts["name"])


def foreign_maker(teacher: TeacherConfig) -> Callable[..., Any] | None:
    """What FILE.py:NAME names, its file run; None for any other source. ConfigError where there is no such thing."""
    found = foreign_file(teacher.source)
    if found is None:
        return None
    _refuse_adapter(teacher)
    _refuse_geometry_token(teacher)
    file, name = found
    where = f"teacher.source={teacher.source}"
    if not file.is_file():
        raise ConfigError(f"{where}: there is no file {file}; give FILE.py:NAME.")
    spec = importlib.util.spec_from_file_location(f"teacher_of_{file.stem}", file)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a foreign file can fail in any way
        raise _failed(f"{where}: the file fails", error) from error
    maker = getattr(module, name, None)
    if not callable(maker):
        raise ConfigError(f"{where}: {file.name} defines no class or function {name!r} that makes a teacher.")
    return maker


def _made(maker: Callable[..., Any], source: str, device: str | torch.device) -> Teacher:
    where = f"teacher.source={source}"
    given = {"device": device} if "device" in inspect.signature(maker).parameters else {}
    try:
        made: Teacher = maker(**given)
    except Exception as error:  # a foreign class can fail in any way
        raise _failed(f"{where}: cannot be made", error) from error
    if not (callable(made) and hasattr(made, "image_size") and hasattr(made, "feature_names")):
        raise ConfigError(f"{where}: gives no teacher; it needs image_size, feature_names and __call__(batch).")
    return made


def _known_foreign(maker: Callable[..., Any], source: str) -> Known:
    declared = all(not isinstance(getattr(maker, fact, property()), property) for fact in FACTS)
    facts: Any = maker if declared else _made(maker, source, "cpu")
    found = foreign_file(source)
    assert found is not None, "it was made from that file"
    files: Sequence[Path | str] = getattr(facts, "files", ())
    return Known(
        files_sha256([found[0], *(Path(file) for file in files)]),
        int(facts.image_size),
        tuple(facts.feature_names),
    )


def _is_sam(teacher: TeacherConfig) -> bool:
    from sam3dist.models.teacher import model_type

    if model_type(teacher.source) == "sam":
        _refuse_geometry_token(teacher)
        return True
    _refuse_adapter(teacher)
    return False


def _refuse_adapter(teacher: TeacherConfig) -> None:
    if teacher.adapter is not None:
        raise ConfigError(
            f"teacher.adapter={teacher.adapter}: {teacher.source} is no SAM (1), and only those take an adapter; "
            "set it to null."
        )


def _refuse_geometry_token(teacher: TeacherConfig) -> None:
    if teacher.geometry_token:
        raise ConfigError(
            f"teacher.geometry_token=true: {teacher.source} is no SAM3, and only those have one; set it to null."
        )


def _failed(what: str, error: Exception) -> ConfigError:
    said = str(error) if isinstance(error, Sam3DistError) else f"{type(error).__name__}: {error}"
    return ConfigError(f"{what} ({' '.join(said.split())[:300]}).")
