from __future__ import annotations

from pathlib import Path

import pytest

from tests.sam3dist.data.coco_folder import CocoFolder


@pytest.fixture
def coco(tmp_path: Path) -> CocoFolder:
    """An empty data set with the categories cat, dog and traffic_light."""
    return CocoFolder(tmp_path)
