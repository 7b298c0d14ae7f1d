"""Networks in every layout in which SAM3 is published, and in those of our runs, written by a reduced configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam3Config, Sam3Model, Sam3Processor, Sam3VideoConfig, Sam3VideoModel

from sam3dist.cli import main
from sam3dist.errors import CheckpointError, ConfigError
from sam3dist.models.checkpoint import save_segmenter
from sam3dist.models.layouts import find
from sam3dist.models.segmenter import Segmenter, segment
from sam3dist.models.settings import WeightsSettings
from sam3dist.models.teacher import fingerprint, load_teacher
from sam3dist.models.text import clip_tokenizer
from sam3dist.models.weights import require_same, write
from tests.conftest import tiny_config
from tests.sam3dist.models.fake_hub import COMMIT, pretend, serving
from tests.sam3dist.models.test_meta_weights import Intruder, as_meta
from tests.sam3dist.promised import assert_promised
from tests.sam3dist.runs import newest_checkpoint, run, settings

WHOLE = WeightsSettings()


def quiet(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def converted(source: Path, out: Path, **chosen: Any) -> tuple[dict[str, Any], Path]:
    """The report of the verb, and where it wrote."""
    words = [f"{key}={value}" for key, value in chosen.items()]
    assert main(["weights", str(source), str(out), *words]) == 0
    report = json.loads((out / "report.json").read_text())
    assert_promised(report)
    return report, out


def refusal(source: Path | str, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a verb that refuses."""
    capsys.readouterr()
    assert main(["weights", str(source), str(out), *words]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def state_in(directory: Path) -> dict[str, Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_holds(directory: Path, network: Segmenter, dtype: torch.dtype = torch.float32) -> None:
    found, expected = state_in(directory), network.net.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value.to(dtype)), name


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_directory_is_written_in_any_precision(
    tiny_teacher_dir, tiny_teacher, tmp_path, make_batch, precision, dtype
):
    report, out = converted(tiny_teacher_dir, tmp_path / "out", precision=precision)
    assert_holds(out, tiny_teacher, dtype)
    assert report["parameters"] == sum(value.numel() for value in tiny_teacher.net.state_dict().values())
    assert report["bytes"] == sum((out / name).stat().st_size for name in report["sha256"])
    assert report["dtype"] == precision
    assert report["left_out"] == []
    # Plain transformers loads it, and a teacher of it computes in float32 whatever the files hold.
    assert Sam3Model.from_pretrained(out).dtype == dtype
    assert Sam3Processor.from_pretrained(out).tokenizer("a dog").input_ids == tiny_teacher.tokenizer("a dog").input_ids
    teacher = load_teacher(out)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    rounded = tiny_teacher.net.state_dict()
    tiny_teacher.net.load_state_dict({name: value.to(dtype).float() for name, value in rounded.items()})
    tiny_teacher.geometry_token = True
    assert torch.equal(segment(teacher, make_batch()).boxes, segment(tiny_teacher, make_batch()).boxes.detach())


def test_weights_of_many_megabytes_become_several_files(tiny_teacher_dir, tiny_teacher, tmp_path):
    _, out = converted(tiny_teacher_dir, tmp_path / "out", max_shard_mb=1)
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert_holds(out, tiny_teacher)
    assert_holds(converted(out, tmp_path / "again")[1], tiny_teacher)


@pytest.fixture
def meta_dir(tiny_teacher: Segmenter, tiny_teacher_dir: Path, tmp_path: Path) -> Path:
    """Meta's file of a tiny network, with the configuration that says how tiny."""
    folder = tmp_path / "meta"
    folder.mkdir()
    torch.save({"model": as_meta(tiny_teacher.net.state_dict())}, folder / "sam3.pt")
    for file in tiny_teacher_dir.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_metas_file_is_converted_and_what_has_no_place_is_told(meta_dir, tiny_teacher, tmp_path):
    report, out = converted(meta_dir, tmp_path / "out")
    assert_holds(out, tiny_teacher)
    assert report["source"]["kind"] == "meta"
    left_out = {item["name"]: item for item in report["left_out"]}
    assert left_out["tracker"] == {"name": "tracker", "tensors": 1, "parameters": 2}
    assert left_out["detector"]["tensors"] == 3  # rotary frequencies, the tracker's neck, point prompts
    assert load_teacher(out).geometry_token


def test_a_key_of_metas_file_too_few_or_too_many_is_named(meta_dir, tmp_path, capsys):
    state = torch.load(meta_dir / "sam3.pt", weights_only=True)["model"]
    extra = state | {"detector.backbone.adapter.weight": torch.ones(1)}
    torch.save(extra, meta_dir / "sam3.pt")
    assert "unexpected: backbone.adapter.weight." in refusal(meta_dir, tmp_path / "out", capsys)
    del state["detector.geometry_encoder.cls_embed.weight"]
    torch.save(state, meta_dir / "sam3.pt")
    assert "missing: geometry_encoder.cls_embed.weight." in refusal(meta_dir, tmp_path / "out", capsys)


def tiny_video_model(detector: Sam3Config) -> Sam3VideoModel:
    """The kind of network that facebook/sam3 is, with the given detector and as small a tracker."""
    tracker = {
        "vision_config": detector.vision_config.to_dict(),
        "image_size": 112,
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 112, "mask_input_channels": 4},
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "iou_head_hidden_dim": 16,
        },
        "memory_attention_hidden_size": 32,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 16,
        "mask_downsampler_embed_dim": 32,
        "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 32,
        "memory_fuser_num_layers": 1,
    }
    torch.manual_seed(0)
    return Sam3VideoModel(Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=tracker))


@pytest.fixture
def video_dir(tiny_teacher: Segmenter, tiny_teacher_dir: Path, tmp_path: Path) -> Path:
    """transformers' own video model with the tiny teacher as its detector, as facebook/sam3 is laid out."""
    video = tiny_video_model(tiny_config(len(clip_tokenizer(256))))
    video.detector_model.load_state_dict(tiny_teacher.net.state_dict())
    video.save_pretrained(tmp_path / "video")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (tmp_path / "video" / name).write_bytes((tiny_teacher_dir / name).read_bytes())
    return tmp_path / "video"


def test_of_a_video_model_the_detector_is_taken(video_dir, tiny_teacher, tmp_path):
    report, out = converted(video_dir, tmp_path / "out")
    assert_holds(out, tiny_teacher)
    assert json.loads((out / "config.json").read_text())["model_type"] == "sam3"
    held = load_file(video_dir / "model.safetensors")
    for part in ("tracker_model", "tracker_neck"):
        values = [value for name, value in held.items() if name.startswith(f"{part}.")]
        expected = {"name": part, "tensors": len(values), "parameters": sum(value.numel() for value in values)}
        assert expected in report["left_out"]
    assert len(report["left_out"]) == 2


@pytest.mark.parametrize("video", [False, True], ids=["detector", "video model"])
def test_a_directory_with_pickles_only_is_read_without_running_them(
    video_dir, tiny_teacher, tiny_teacher_dir, tmp_path, video
):
    folder = video_dir if video else tmp_path / "plain"
    if not video:
        save_segmenter(tiny_teacher, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    for number, half in enumerate((names[::2], names[1::2]), start=1):
        torch.save({name: state[name] for name in half}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    report, out = converted(folder, tmp_path / "out")
    assert report["source"]["kind"] == "pickle"
    assert_holds(out, tiny_teacher)


@pytest.mark.parametrize("name", ["sam3.pt", "pytorch_model.bin"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tiny_teacher_dir, tmp_path, capsys, name):
    folder, target = tmp_path / "evil", tmp_path / "was_here"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_teacher_dir / "config.json").read_bytes())
    torch.save({"model": Intruder(target)}, folder / name)
    assert "refused, because it holds more than tensors and could run code." in refusal(folder, tmp_path / "o", capsys)
    assert not target.exists()


def test_safetensors_are_preferred_to_pickles_beside_them(tiny_teacher, tmp_path):
    folder, target = tmp_path / "both", tmp_path / "was_here"
    save_segmenter(tiny_teacher, folder)
    for name in ("sam3.pt", "pytorch_model.bin"):
        torch.save({"model": Intruder(target)}, folder / name)
    report, out = converted(folder, tmp_path / "out")
    assert_holds(out, tiny_teacher)
    assert {item["name"] for item in report["left_out"]} == {"sam3.pt", "pytorch_model.bin"}
    assert not target.exists()


@pytest.mark.parametrize("of", ["run", "checkpoint"])
def test_of_a_training_run_the_student_alone_is_taken(tiny_teacher, tmp_path, of):
    _, pupil = run(settings(optim={"steps": 1}), tiny_teacher, tmp_path / "run" / "checkpoints")
    checkpoint = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    (tmp_path / "run" / "report.json").write_text(json.dumps({"checkpoint": str(checkpoint)}))
    report, out = converted(tmp_path / "run" if of == "run" else checkpoint, tmp_path / "out")
    assert_holds(out, pupil.student)
    left_out = {item["name"]: item["bytes"] for item in report["left_out"]}
    assert left_out.keys() == {"config.yaml", "state.json", "files.json", "training"}
    assert left_out["training"] == sum(file.stat().st_size for file in (checkpoint / "training").rglob("*"))
    # The report beside the network is no part of it, and does not lead elsewhere.
    before = fingerprint(out)
    (out / "report.json").write_text(json.dumps({"verb": "weights", "checkpoint": "/elsewhere"}))
    assert fingerprint(out) == before
    assert load_teacher(out)


@pytest.mark.parametrize("layout", ["facebook/sam3", "both", "pickle only"])
def test_a_model_of_the_hub_is_fetched_and_converted(video_dir, meta_dir, tiny_teacher, tmp_path, monkeypatch, layout):
    files = {file.name: file.read_bytes() for file in video_dir.iterdir()} if layout != "pickle only" else {}
    if layout != "facebook/sam3":
        files |= {file.name: file.read_bytes() for file in meta_dir.iterdir() if file.name not in files}
    files |= {"README.md": b"# SAM3", "original/notes.json": b"{}"}
    used = "sam3.pt" if layout == "pickle only" else "model.safetensors"
    with serving({"meta/sam3": files}) as hub:
        pretend(hub, monkeypatch, tmp_path)
        hub.cuts = [100, 5_000]
        report, out = converted("meta/sam3", tmp_path / "out", precision="bf16")
    assert_holds(out, tiny_teacher, torch.bfloat16)
    assert report["source"]["repository"] == "meta/sam3"
    assert report["source"]["commit"] == COMMIT
    fetched = {name for name, _, _ in hub.asked}
    assert {used, "config.json", "tokenizer.json"} <= fetched
    assert not fetched & ({"README.md", "original/notes.json", "sam3.pt", "model.safetensors"} - {used})
    assert {"name": "README.md", "bytes": 6} in report["left_out"]
    assert [item.name for item in out.iterdir() if item.name.startswith(".")] == []


def test_a_gated_model_leaves_one_line_and_nothing_to_mend(
    tmp_path, monkeypatch, capsys, tiny_teacher_dir, tiny_teacher
):
    files = {file.name: file.read_bytes() for file in tiny_teacher_dir.iterdir()}
    with serving({"meta/sam3": files}) as hub:
        pretend(hub, monkeypatch, tmp_path)
        hub.gated = True
        line = refusal("meta/sam3", tmp_path / "out", capsys)
        assert line.startswith("sam3dist: meta/sam3 is gated: accept its licence on")
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        assert_holds(converted("meta/sam3", tmp_path / "out")[1], tiny_teacher)


def test_a_directory_that_holds_something_is_not_written_to(tiny_teacher_dir, tmp_path, capsys):
    _, out = converted(tiny_teacher_dir, tmp_path / "out")
    before = {file: file.read_bytes() for file in out.iterdir()}
    assert "holds config.json already; give another OUT_DIR" in refusal(tiny_teacher_dir, out, capsys)
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_numbers_beyond_fp16_are_refused_and_named(tiny_teacher, tmp_path):
    tiny_teacher.net.text_projection.bias.data[0] = 1e5
    with pytest.raises(ConfigError, match=r"precision=fp16: text_projection\.bias holds numbers beyond its range"):
        write(tiny_teacher, tmp_path / "out", WeightsSettings(precision="fp16"), quiet)
    tiny_teacher.net.text_projection.bias.data[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"text_projection\.bias holds NaN or infinity"):
        write(tiny_teacher, tmp_path / "out", WHOLE, quiet)
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_weight_that_changed_on_disk_is_noticed(tiny_teacher, tmp_path):
    save_segmenter(tiny_teacher, tmp_path)
    require_same(tiny_teacher.net.state_dict(), tmp_path, quiet)
    state = load_file(tmp_path / "model.safetensors")
    state["text_projection.bias"][3] += 1e-3
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"text_projection\.bias is not as it was written"):
        require_same(tiny_teacher.net.state_dict(), tmp_path, quiet)
    save_file({"text_projection.weight": state["text_projection.weight"]}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{len(state) - 1} weights were not written"):
        require_same(tiny_teacher.net.state_dict(), tmp_path, quiet)


def test_a_directory_without_a_network_says_what_was_expected(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "sam3"}')
    with pytest.raises(CheckpointError, match=r"holds no network; expected config\.json with model\.safetensors or"):
        find(str(tmp_path), WHOLE, tmp_path / "downloads", quiet)
    with pytest.raises(CheckpointError, match="does not exist; give a directory"):
        find("./nowhere", WHOLE, tmp_path / "downloads", quiet)


def test_settings_out_of_range_are_one_line(tmp_path, capsys, tiny_teacher_dir):
    out = tmp_path / "out"
    assert "precision=int8: must be one of fp32, bf16, fp16" in refusal(tiny_teacher_dir, out, capsys, "precision=int8")
    assert "max_shard_mb=0 must be 1 or more" in refusal(tiny_teacher_dir, out, capsys, "max_shard_mb=0")
    assert not out.exists()
