"""In every Python of the cluster: at the step in the file SPOIL, while it is there, rank 1's student answers NaN.

Python imports a module of this name before anything else; the run's own code stays as it is.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "sam3dist.engine.loop"


class Spoiler(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def and_spoil(module: ModuleType) -> None:
            load(module)
            spoil(module)

        spec.loader.exec_module = and_spoil  # type: ignore[method-assign]
        return spec


def spoil(loop: Any) -> None:
    plain = loop._Run.step

    def step(run: Any) -> None:
        hooks = []
        wanted = Path(os.environ["SPOIL"])
        if run.strategy.rank == 1 and wanted.is_file() and run.state.step + 1 == int(wanted.read_text()):
            layer = run.pupil.student.net.detr_encoder.layers[0]
            hooks = [layer.register_forward_hook(lambda module, inputs, output: output * float("nan"))]
        plain(run)
        for hook in hooks:
            hook.remove()

    loop._Run.step = step


if "SPOIL" in os.environ:
    sys.meta_path.insert(0, Spoiler())
