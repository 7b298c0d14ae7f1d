from pathlib import Path

from sam3dist.config.load import load_preset, to_yaml, with_overrides

CHANGES = {
    "optim.steps": 300,
    "eval.every_steps": 300,
    "checkpoint.every_steps": 300,
    "strategy.use_gpu": True,
}
FILE = Path(__file__).parents[2] / "gpu" / "config.yaml"


def test_gpu_checks_use_the_smoke_preset_as_it_is_today():
    """The GPU machine has no pydantic, so it reads resolved YAML; to renew it, write `expected` to FILE."""
    expected = to_yaml(with_overrides(load_preset("smoke"), CHANGES))
    assert FILE.read_text(encoding="utf-8") == expected
