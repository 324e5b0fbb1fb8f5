"""Files of a run folder, written whole or not at all."""

import numpy as np
import pytest
import torch

from hvp_engine.errors import RunFolderError
from hvp_engine.system import files


def test_full_disk_met_by_safetensors_is_explained(tmp_path, monkeypatch):
    def full(*_):
        raise files.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(RunFolderError, match="disk is full"):
        files.write_tensors_atomic(tmp_path / "t.safetensors", {"a": np.ones(3)})
    assert not list(tmp_path.iterdir())


def test_tensors_of_every_kind_are_written(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3).T.to(torch.bfloat16), "n": np.arange(4)[::2]}
    files.write_tensors_atomic(tmp_path / "t", tensors, {"key": "value"})
    read, metadata = files.read_tensors(tmp_path / "t")
    assert torch.equal(read["b"], tensors["b"])
    assert read["n"].tolist() == [0, 2]
    assert metadata["key"] == "value"
