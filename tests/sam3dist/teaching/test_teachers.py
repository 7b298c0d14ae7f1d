"""Teachers of every kind: opened, told apart by their files, and asked for whole shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch.testing import assert_close

from cluster.taught import stored_answers, wanted
from cluster.trainer import absolute_paths
from sam3dist.answers import MASK_LIMIT, decoded, imitable
from sam3dist.config.distill import DataConfig, DistillConfig, EvalConfig, TeacherConfig
from sam3dist.data.decode import collate, decode_row
from sam3dist.data.samples.write import scene_shards
from sam3dist.data.shards import Shards, open_shards, read_rows
from sam3dist.errors import ConfigError
from sam3dist.models.segmenter import segment
from sam3dist.teaching.codec import decode_answer, stack_answers
from sam3dist.teaching.store import AnswerStore, Identity, answers_path
from sam3dist.teaching.teach import teach_shard
from sam3dist.teaching.teachers import Teacher, known_of, open_teacher, teacher_fingerprint
from tests.sam3dist.tiny_sam import SIDE, lora, save_tiny_sam

HALVES = """
    import torch
    from pathlib import Path
    from sam3dist.teaching.outputs import semantic_outputs

    class Halves:
        \"\"\"Finds the left half of every image in every phrase with an "r".\"\"\"
        image_size = 64
        feature_names = ()
        files = (Path(__file__).with_name("weights.bin"),)

        def __call__(self, batch):
            logits = torch.linspace(5, -5, 16).expand(len(batch.prompts), 16, 16)
            return semantic_outputs(logits, torch.tensor([6.0 if "r" in phrase else -6.0 for phrase in batch.prompts]))

    class Late(Halves):
        def __init__(self, device):
            self.device = device
            self.image_size = 32
            self.files = ()

        image_size = property(lambda self: self.side, lambda self, side: setattr(self, "side", side))

    def broken():
        raise RuntimeError("no weights\\nhere")

    def no_teacher():
        return 3

    number = 3
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file of teachers, and its weights."""
    file = tmp_path / "halves.py"
    file.write_text(dedent(HALVES))
    (tmp_path / "weights.bin").write_bytes(b"weights")
    return file


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return open_shards(scene_shards(tmp_path_factory.mktemp("scenes"), 6, seed=4, side=SIDE))


def flip(file: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_a_network_of_sam3_answers_as_it_does_itself(tiny_teacher_dir, tiny_teacher, make_batch):
    config = TeacherConfig(source=str(tiny_teacher_dir))
    teacher = open_teacher(config, "cpu")
    tiny_teacher.geometry_token = True
    assert (teacher.image_size, teacher.feature_names) == (112, ("vision", "encoder"))
    with torch.no_grad():
        said, expected = teacher(make_batch()), segment(tiny_teacher, make_batch())
    assert torch.equal(said.mask_logits, expected.mask_logits)
    known = known_of(config)
    assert (known.image_size, known.feature_names) == (112, tuple(said.features))
    assert known.geometry_token
    assert not known_of(TeacherConfig(source=str(tiny_teacher_dir), geometry_token=False)).geometry_token


def test_a_sam_is_known_by_its_files(tmp_path):
    config = TeacherConfig(source=str(save_tiny_sam(tmp_path)))
    known, teacher = known_of(config), open_teacher(config, "cpu")
    assert known.image_size == teacher.image_size == SIDE
    assert known.feature_names == teacher.feature_names == ()


def test_the_fingerprint_of_a_sam_is_of_its_weights_and_its_adapter_wherever_they_lie(tmp_path):
    def printed(folder: Path, adapter: bool = True) -> str:
        given = str(folder / "adapter") if adapter else None
        return teacher_fingerprint(TeacherConfig(source=str(folder / "sam"), adapter=given))

    home = tmp_path / "home"
    save_tiny_sam(home / "sam")
    lora(home / "adapter")
    shutil.copytree(home, tmp_path / "elsewhere")
    found = {printed(home), printed(tmp_path / "elsewhere")}
    assert len(found) == 1
    found.add(printed(home, adapter=False))
    for name in ("sam/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        flip(home / name)
        found.add(printed(home))
    assert len(found) == 5


def test_the_fingerprint_of_a_foreign_teacher_is_of_its_file_and_those_it_names(foreign, tmp_path):
    shutil.copytree(foreign.parent, tmp_path / "elsewhere")
    homes = [TeacherConfig(source=f"{folder}/halves.py:Halves") for folder in (tmp_path, tmp_path / "elsewhere")]
    assert teacher_fingerprint(homes[0]) == teacher_fingerprint(homes[1])
    found = {teacher_fingerprint(homes[0])}
    flip(tmp_path / "weights.bin")
    found.add(teacher_fingerprint(homes[0]))
    foreign.write_text(foreign.read_text() + "#")
    found.add(teacher_fingerprint(homes[0]))
    assert len(found) == 3


def test_a_foreign_class_that_says_all_of_itself_is_not_made_to_be_known(foreign):
    foreign.write_text(foreign.read_text() + "\n\nHalves.__init__ = lambda self: broken()\n")
    known = known_of(TeacherConfig(source=f"{foreign}:Halves"))
    assert (known.image_size, known.feature_names) == (64, ())


def test_a_foreign_teacher_that_needs_the_device_gets_it(foreign):
    config = TeacherConfig(source=f"{foreign}:Late")
    assert open_teacher(config, "cuda:3").device == "cuda:3"
    assert known_of(config).image_size == 32


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", r"cannot be made \(RuntimeError: no weights here\)"),
        ("no_teacher", "gives no teacher; it needs image_size, feature_names and __call__"),
        ("number", "halves.py defines no class or function 'number'"),
        ("Nothing", "halves.py defines no class or function 'Nothing'"),
    ],
)
def test_a_foreign_file_that_gives_no_teacher_is_one_line(foreign, name, reason):
    config = TeacherConfig(source=f"{foreign}:{name}")
    for ask in (lambda: open_teacher(config, "cpu"), lambda: known_of(config)):
        with pytest.raises(ConfigError, match=reason) as caught:
            ask()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"teacher.source={foreign}:{name}")


def test_a_foreign_file_that_is_missing_or_fails_is_one_line(foreign):
    with pytest.raises(ConfigError, match=r"there is no file .*other\.py; give FILE\.py:NAME"):
        known_of(TeacherConfig(source=f"{foreign.with_name('other.py')}:Halves"))
    foreign.write_text("import nothing_of_that_name")
    with pytest.raises(ConfigError, match=r"the file fails \(ModuleNotFoundError: No module named 'nothing_of"):
        open_teacher(TeacherConfig(source=f"{foreign}:Halves"), "cpu")


def test_an_adapter_is_for_sam_only(foreign, tiny_teacher_dir):
    for source in (f"{foreign}:Halves", str(tiny_teacher_dir), "embedded"):
        config = TeacherConfig(source=source, adapter="there")
        for ask in (lambda given: open_teacher(given, "cpu"), known_of):
            with pytest.raises(ConfigError, match=r"teacher\.adapter=there: .* is no SAM"):
                ask(config)


def test_a_geometry_token_is_for_sam3_only(foreign, tmp_path):
    for source in (str(save_tiny_sam(tmp_path)), str(foreign) + ":Halves"):
        config = TeacherConfig(source=source, geometry_token=True)
        for ask in (known_of, lambda config: open_teacher(config, "cpu")):
            with pytest.raises(ConfigError, match=r"teacher\.geometry_token=true: .* is no SAM3"):
                ask(config)


def test_features_that_a_teacher_lacks_are_refused_before_anything_starts(foreign, shards):
    data = DataConfig(train=str(Path(shards.row_groups[0].path).parent))
    config = DistillConfig(teacher=TeacherConfig(source=f"{foreign}:Halves", mode="stored"), data=data)
    with pytest.raises(ConfigError, match=r"this teacher has no vision and no encoder features; set distillation\.gam"):
        stored_answers(config)
    assert wanted(config, with_features=False) == Identity(
        teacher_fingerprint(config.teacher), "auto", 64, shards.content_hash, features=()
    )


@pytest.mark.parametrize("teacher", [{"adapter": "there"}, {"source": "mine.py:Mine"}])
def test_a_run_that_asks_teachers_of_other_kinds_itself_is_refused(teacher):
    with pytest.raises(ConfigError, match=r"teacher\.(adapter|source)=.*run `sam3dist teach` and set teacher\.mode"):
        stored_answers(DistillConfig(teacher=TeacherConfig(**teacher)))


def test_workers_elsewhere_find_the_file_and_the_adapter(foreign, monkeypatch):
    monkeypatch.chdir(foreign.parent)
    config = DistillConfig(teacher=TeacherConfig(source="halves.py:Halves", adapter="lora"))
    assert absolute_paths(config) == {
        "teacher.source": f"{foreign}:Halves",
        "teacher.adapter": str(foreign.parent / "lora"),
    }


def stored_equals_said(teacher: Teacher, shards: Shards, folder: Path) -> tuple[int, ...]:
    """The numbers of instances of all prompts, once their stored answers were found to be what the teacher says."""
    data, limits = DataConfig(decode_threads=1), EvalConfig(images_per_batch=2, prompts_per_batch=8)
    path = answers_path(folder, Path(shards.row_groups[0].path).name)
    taught = teach_shard(list(shards.row_groups), path, teacher, teacher.image_size, (), data, limits)
    assert taught["rejected"] == {}
    store = AnswerStore(folder, Identity("t", "auto", teacher.image_size, shards.content_hash, ()), ())
    counts: tuple[int, ...] = ()
    for group in shards.row_groups:
        for row in store.answered(group, read_rows(group)):
            said = imitable(teacher(collate([decode_row(row, row.prompts, teacher.image_size, 10**7)])))
            found = decoded(stack_answers([decode_answer(prompt.taught["answer"]) for prompt in row.prompts], {}))
            assert found.counts == said.counts
            assert_close(found.presence_logits, said.presence_logits)
            assert_close(found.boxes, said.boxes, rtol=0, atol=1e-5)
            for ours, theirs in (
                (found.mask_logits, said.mask_logits),
                (found.semantic_logits, said.semantic_logits),
            ):
                assert torch.equal(ours > 0, theirs > 0) or (theirs[(ours > 0) != (theirs > 0)] == 0).all()
                assert ((ours - theirs).abs() <= 0.01 + 0.05 * theirs.abs()).all()
                assert ours.abs().max() < MASK_LIMIT + 0.5
            for ours, theirs, count in zip(found.query_logits, said.query_logits, said.counts, strict=True):
                # Beyond the best background the row's batch, with other images in it, decides on the number of queries.
                assert_close(ours[: count + 1], theirs[: count + 1], rtol=1e-3, atol=1e-2)
            counts += said.counts
    return counts


def test_a_store_written_by_sam_has_its_answers(shards, tmp_path):
    save_tiny_sam(tmp_path / "sam")
    lora(tmp_path / "adapter")
    config = TeacherConfig(source=str(tmp_path / "sam"), adapter=str(tmp_path / "adapter"))
    folder = tmp_path / "answers"
    folder.mkdir()
    counts = stored_equals_said(open_teacher(config, "cpu"), shards, folder)
    named = [len(prompt.instances) for group in shards.row_groups for row in read_rows(group) for prompt in row.prompts]
    assert list(counts) == named
    assert 0 in named
    assert max(named) > 1


def test_a_store_written_by_a_foreign_teacher_has_its_answers(shards, foreign, tmp_path):
    folder = tmp_path / "answers"
    folder.mkdir()
    counts = stored_equals_said(open_teacher(TeacherConfig(source=f"{foreign}:Halves"), "cpu"), shards, folder)
    prompts = [prompt for group in shards.row_groups for row in read_rows(group) for prompt in row.prompts]
    assert list(counts) == [int("r" in prompt.phrase) for prompt in prompts]
    assert set(counts) == {0, 1}
