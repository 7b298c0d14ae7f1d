"""Training states from elsewhere: what could run code is refused before it does."""

import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from sam3dist.errors import CheckpointError
from sam3dist.strategies.saved_state import SavedState

TREE = {"weights": {"a.b": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}, "optimizer": {}}


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.call, (["touch", str(self.file)],)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    dcp.save(TREE, checkpoint_id=tmp_path / "saved", no_dist=True)
    return tmp_path / "saved"


def test_tensors_come_back_in_place(saved: Path):
    state = SavedState(saved)
    assert state.names == {"weights.a.b", "weights.count"}
    tensor = torch.zeros(2, 3)
    state.load({"weights": {"a.b": tensor}})
    assert torch.equal(tensor, TREE["weights"]["a.b"])


def test_a_list_of_contents_that_runs_code_is_refused(saved: Path, tmp_path: Path):
    pickled = pickle.dumps(Touches(tmp_path / "hacked"))
    pickle.loads(pickled)
    assert (tmp_path / "hacked").exists()  # it would
    (tmp_path / "hacked").unlink()
    (saved / ".metadata").write_bytes(pickled)
    with pytest.raises(CheckpointError, match=r"\.metadata: refused, because it asks for subprocess\.call"):
        SavedState(saved)
    assert not (tmp_path / "hacked").exists()


def test_code_hidden_in_a_genuine_list_of_contents_is_refused(saved: Path, tmp_path: Path):
    contents = pickle.loads((saved / ".metadata").read_bytes())
    contents.planner_data = Touches(tmp_path / "hacked")
    (saved / ".metadata").write_bytes(pickle.dumps(contents))
    with pytest.raises(CheckpointError, match=r"asks for subprocess\.call and could run code"):
        SavedState(saved)
    assert not (tmp_path / "hacked").exists()


def test_a_value_that_is_no_tensor_is_refused(tmp_path: Path):
    # DCP would unpickle it.
    dcp.save({**TREE, "loss_scale": Touches(tmp_path / "hacked")}, checkpoint_id=tmp_path / "saved", no_dist=True)
    with pytest.raises(CheckpointError, match="refused, because loss_scale in it is no tensor"):
        SavedState(tmp_path / "saved")
    assert not (tmp_path / "hacked").exists()


def test_other_pickles_are_no_list_of_contents(saved: Path):
    (saved / ".metadata").write_bytes(pickle.dumps({"weights": 3}))
    with pytest.raises(CheckpointError, match="it is a dict, not the metadata of DCP"):
        SavedState(saved)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"weights": {"c": torch.zeros(2)}}, r"saved: cannot be resumed \(Missing key in checkpoint state_dict: w"),
        ({"weights": {"a.b": torch.zeros(3, 2)}}, r"saved: cannot be resumed \(Size mismatch .* for weights.a.b\)\."),
    ],
)
def test_what_does_not_fit_is_a_checkpoint_error(saved: Path, tree: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        SavedState(saved).load(tree)


def test_nothing_there_is_a_checkpoint_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"nowhere: cannot be resumed \(.*No such file"):
        SavedState(tmp_path / "nowhere")
