"""The imports of every file, read without running them, against the layers of the design."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ("sam3dist", "cluster") for path in (ROOT / folder).rglob("*.py"))

LAYERS = (
    "types errors config wording boxes",
    "data models latency metrics predictions targets matching losses task imitation terms overlay answers teaching",
    "strategies engine evaluate export objective predict compare visualize plots figures page tables report"
    " knobs importances insight charts parallel card scene_teacher scene_vision",
    "cluster",
    "cli verbs __main__",
)
"""Parts of sam3dist, and cluster, lowest first: a file imports from its own layer and from those before it."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, at_run_time: bool = True, at_import: bool = False) -> Iterator[str]:
    """Every module a file imports; at_run_time leaves TYPE_CHECKING blocks out, at_import what functions import."""
    yield from _imports(ast.parse(path.read_text()), name_of(path), at_run_time, at_import)


def _imports(node: ast.AST, module: str, at_run_time: bool, at_import: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module}: relative import"
            assert child.module is not None
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif at_run_time and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from _imports(ast.Module(child.orelse, []), module, at_run_time, at_import)
        elif at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        else:
            yield from _imports(child, module, at_run_time, at_import)


def uses(path: Path, package: str, **how: bool) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imports(path, **how))


def within(path: Path, *places: str) -> bool:
    name = name_of(path)
    return any(name == place or name.startswith(place + ".") for place in places)


def layer(name: str) -> int | None:
    package, _, rest = name.partition(".")
    head = rest.partition(".")[0] if package == "sam3dist" else package
    return next((number for number, heads in enumerate(LAYERS) if head in heads.split()), None)


def offenders(package: str, *allowed: str, **how: bool) -> list[str]:
    return [name_of(path) for path in FILES if uses(path, package, **how) and not within(path, *allowed)]


def test_the_reader_of_imports_sees_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    file = tmp_path / "sample.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport a.b as c\n"
        "if TYPE_CHECKING:\n    import typed\nelse:\n    import untyped\n"
        "def f():\n    from late import g\n"
    )
    assert {"a.b", "untyped", "late", "late.g"} <= set(imports(file))
    assert "typed" not in set(imports(file))
    assert "typed" in set(imports(file, at_run_time=False))
    assert "late" not in set(imports(file, at_import=True))
    assert uses(file, "a")
    assert not uses(file, "a.bc")


def test_both_packages_are_read():
    names = {name_of(path) for path in FILES}
    assert {"cluster", "sam3dist.cli", "sam3dist.config.load"} <= names
    assert len(names) > 40


def test_only_cluster_imports_ray():
    assert offenders("ray", "cluster", at_run_time=False) == []


def test_only_its_strategy_imports_deepspeed():
    assert offenders("deepspeed", "sam3dist.strategies.deepspeed", at_run_time=False) == []


def test_only_models_import_the_libraries_of_networks():
    for package in ("transformers", "open_clip", "timm", "huggingface_hub", "peft"):
        assert offenders(package, "sam3dist.models", "sam3dist.scene_teacher", "sam3dist.scene_vision") == [], package


def test_only_config_and_those_who_compose_import_the_configuration():
    # scene_teacher is a program of its own that makes what the package ships.
    composing = ("sam3dist.config", "sam3dist.cli", "sam3dist.verbs", "sam3dist.scene_teacher", "cluster")
    plain = "sam3dist.config.plain"
    for path in FILES:
        if not within(path, *composing):
            found = [name for name in imports(path) if name.startswith("sam3dist.config")]
            assert all(name.startswith(plain) for name in found), f"{name_of(path)} imports {found}"
    assert offenders("pydantic", "sam3dist.config", "sam3dist.verbs") == []


def test_the_layer_of_taught_answers_reaches_for_networks_only_when_it_must():
    """Drivers read stored answers and ask what a foreign teacher is; loading transformers takes ten seconds."""
    for path in FILES:
        if within(path, "sam3dist.teaching", "cluster.taught", "cluster.teach"):
            found = {name for name in imports(path, at_import=True) if name.startswith("sam3dist.models")}
            assert all(name.startswith("sam3dist.models.source") for name in found), f"{name_of(path)} imports {found}"


def test_plain_configurations_need_no_pydantic():
    for name in ("plain", "__init__"):
        path = ROOT / "sam3dist" / "config" / f"{name}.py"
        assert not uses(path, "pydantic")
        assert all(not name.startswith("sam3dist.config") for name in imports(path))


def test_libraries_for_people_wait_until_they_are_used():
    """A training node may lack them, and `sam3dist --help` must not pay for them."""
    homes = ("sam3dist.page",)  # itself imported when a report is written
    drawing, tracking = ("matplotlib", "plotly", "jinja2", "rich"), ("tensorboard", "wandb", "mlflow")
    for package in (*drawing, *tracking, "pycocotools", "ftfy", "peft"):
        assert offenders(package, *homes, at_import=True) == [], package
    assert offenders("optuna", "cluster", at_import=True) == []


@pytest.mark.parametrize("package", ["torch", "transformers", "ray", "pydantic", "numpy", "cluster", "yaml"])
def test_the_command_line_starts_without_heavy_imports(package: str):
    for path in FILES:
        if within(path, "sam3dist.cli", "sam3dist.verbs", "sam3dist.__main__"):
            assert not uses(path, package, at_import=True), name_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_dependencies_point_one_way(path: Path):
    own = layer(name_of(path))
    if name_of(path) == "sam3dist":
        return
    assert own is not None, f"{name_of(path)} has no layer: add it to LAYERS"
    for name in imports(path):
        other = layer(name)
        assert other is None or other <= own, f"{name_of(path)} imports {name} of a later layer"
        if name.startswith("cluster") or name.startswith("sam3dist.verbs") or name.startswith("sam3dist.cli"):
            assert within(path, "cluster", "sam3dist.cli", "sam3dist.verbs", "sam3dist.__main__"), name_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_fits_in_one_reading(path: Path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 350
    assert not lines or lines[0].startswith('"""') or path.name == "__init__.py", "says what it is about"
