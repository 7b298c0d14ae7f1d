"""Text towers of students: what a phrase is read as depends on the phrase alone; open_clip's weights are its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch.testing import assert_close
from transformers import CLIPTextConfig, Sam3LiteTextTextConfig

from sam3dist.config.distill import StudentSpec
from sam3dist.errors import CheckpointError
from sam3dist.models.segmenter import segment
from sam3dist.models.student import build_student, student_config
from sam3dist.models.text import text_rule, tokenize, valid_tokens
from sam3dist.models.text_towers import mobile_clips

TOWERS = {
    "the teacher's": {},
    "lite": {"text_tower": "lite", "text_width": 64, "text_depth": 2},
    "repmixer": {"text_tower": "repmixer", "text_width": 64, "text_depth": 3},
    "bidirectional MobileCLIP": {"text_tower": "MobileCLIP2-S0"},
    "causal MobileCLIP": {"text_tower": "MobileCLIP-B"},
}
PHRASE, LONG = "!( fish", "the small striped yellow fish on the left of the old boat"


@pytest.mark.parametrize("spec", TOWERS.values(), ids=TOWERS.keys())
def test_what_a_phrase_is_read_as_depends_on_the_phrase_alone(spec, tiny_teacher):
    student = build_student(StudentSpec(init="copy", **spec), tiny_teacher, seed=1).eval()
    net, rule = student.net, text_rule(student.net.config)
    with torch.no_grad():
        alone, _ = student.read((PHRASE,))
        length = alone.shape[1]
        together, mask = student.read((LONG, PHRASE))
        assert mask.sum(1).tolist()[1] == length < mask.shape[1]
        assert_close(together[1:, :length], alone, rtol=1e-4, atol=1e-5)

        ids, _ = tokenize(student.tokenizer, [PHRASE], rule.context)
        assert (ids == 0).any(), "the id that open_clip fills rows with is a token of this phrase"
        for filling in (0, 5, rule.end):
            rows = F.pad(ids, (0, rule.context - length), value=filling)
            read = net.get_text_features(input_ids=rows, attention_mask=valid_tokens(rows, rule.end)).pooler_output
            assert_close(read[:, :length], alone, rtol=1e-4, atol=1e-5)


def open_clip_tower(name: str, vocabulary: int) -> TextTransformer:
    """open_clip's own text tower, randomly initialised, that gives every token's features."""
    shape = {**mobile_clips()[name], "vocab_size": vocabulary}
    torch.manual_seed(3)
    tower = TextTransformer(**shape, pool_type="none", proj_type="none").eval()
    for parameter in tower.parameters():  # its norms start at 1 and 0, where a mistake would not show
        parameter.data += 0.02 * torch.randn_like(parameter)
    return tower


@pytest.mark.parametrize(
    ("name", "kind"), [("MobileCLIP2-S0", Sam3LiteTextTextConfig), ("MobileCLIP-B", CLIPTextConfig)]
)
def test_a_tower_with_open_clips_weights_reads_as_it_does(name, kind, tiny_teacher, tmp_path):
    vocabulary = len(tiny_teacher.tokenizer)
    theirs = open_clip_tower(name, vocabulary)
    state = {f"text.{key}": value for key, value in theirs.state_dict().items() if key != "attn_mask"}
    state |= {"text.text_projection": torch.zeros(512, 512), "visual.x": torch.zeros(1), "logit_scale": torch.zeros(())}
    torch.save({"state_dict": state}, tmp_path / "clip.pt")
    spec = StudentSpec(text_tower=name, text_weights=str(tmp_path / "clip.pt"), init="random")
    student = build_student(spec, tiny_teacher, seed=1).eval()
    assert isinstance(student.net.config.text_config, kind)
    ids, mask = tokenize(student.tokenizer, [PHRASE, LONG], student.max_tokens)
    with torch.no_grad():
        ours = student.net.get_text_features(input_ids=ids, attention_mask=mask).last_hidden_state
        for row, valid, read in zip(ids, mask.bool(), ours, strict=True):
            count = int(valid.sum())
            # A causal tower of open_clip takes whole rows only; one that reads in both directions has no mask for them.
            given = row[:count] if theirs.attn_mask is None else F.pad(row[:count], (0, 77 - count))
            assert_close(read[:count], theirs(given[None])[0, :count], rtol=1e-4, atol=1e-4)


def test_every_mobile_clip_of_open_clip_can_be_a_tower(tiny_teacher):
    known = mobile_clips()
    assert {"MobileCLIP-S1", "MobileCLIP2-S0", "MobileCLIP2-S4", "MobileCLIP2-L-14"} <= known.keys()
    for name, shape in known.items():
        text = student_config(StudentSpec(text_tower=name), tiny_teacher.net.config).text_config
        assert (text.hidden_size, text.num_hidden_layers) == (shape["width"], shape["layers"])


def test_wrong_weights_of_a_tower_are_one_line(tiny_teacher, tmp_path, monkeypatch):
    def build(weights):
        return build_student(
            StudentSpec(init="copy", text_tower="MobileCLIP2-S0", text_weights=str(weights)), tiny_teacher, seed=1
        )

    with pytest.raises(CheckpointError, match=r"nowhere: .*neither a file nor one of open_clip's tags: dfndr2b"):
        build("nowhere")
    state = {f"text.{key}": value for key, value in open_clip_tower("MobileCLIP2-S0", 20).state_dict().items()}
    torch.save(state, tmp_path / "words.pt")
    with pytest.raises(CheckpointError, match=r"words.pt: no weights for MobileCLIP2-S0 .*size mismatch"):
        build(tmp_path / "words.pt")
    torch.save({k: v for k, v in state.items() if "resblocks.3." not in k}, tmp_path / "layers.pt")
    with pytest.raises(CheckpointError, match=r"layers.pt: .*another architecture: layers.3"):
        build(tmp_path / "layers.pt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="dfndr2b: no weights for MobileCLIP2-S0") as one:
        build("dfndr2b")
    assert "\n" not in str(one.value)


def test_a_student_that_starts_from_other_words_still_answers(tiny_teacher, make_batch):
    student = build_student(
        StudentSpec(init="copy", text_tower="clip", text_width=16, text_depth=1), tiny_teacher, seed=1
    )
    assert torch.isfinite(segment(student.eval(), make_batch()).mask_logits).all()
