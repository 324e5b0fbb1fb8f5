"""Files of tensors: safetensors for everybody, with a checksum for ourselves."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hvp_engine.errors import RunFolderError
from hvp_engine.system.tensor_files import read_note, read_sealed_tensors, read_tensors, tensor_chunks, write_tensors


def tensors_of_every_kind():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8)
    found = {f"of {kind}": (100 * numbers).to(kind) for kind in kinds}
    found |= {"bool": numbers > 0, "bytes": torch.arange(5, dtype=torch.uint8), "scalar": torch.tensor(3.0)}
    return found | {"empty": torch.zeros(0, 7), "turned": numbers.T, "µ/\x1b": torch.zeros(1)}


def equal(first, second):
    return first.keys() == second.keys() and all(
        (first[key].dtype, first[key].shape) == (second[key].dtype, second[key].shape)
        and torch.equal(first[key], second[key])
        for key in first
    )


def test_tensors_of_every_kind_come_back_and_the_library_reads_them(tmp_path):
    tensors, path = tensors_of_every_kind(), tmp_path / "t.safetensors"
    write_tensors(path, tensors, "job")
    assert equal(read_sealed_tensors(path, "job"), tensors)
    with safe_open(path, framework="pt") as file:
        assert equal({key: file.get_tensor(key) for key in file.keys()}, tensors)  # noqa: SIM118


def test_files_of_the_library_are_read(tmp_path):
    tensors = {key: value.contiguous() for key, value in tensors_of_every_kind().items()}
    save_file(tensors, tmp_path / "t", {"format": "somebody's"})
    assert equal(read_tensors(tmp_path / "t").tensors, tensors)
    assert read_note(tmp_path / "t") == "somebody's"


def test_arrays_of_any_stride_are_written(tmp_path):
    write_tensors(tmp_path / "t", {"n": np.arange(8)[::2]}, "")
    assert read_sealed_tensors(tmp_path / "t", "")["n"].tolist() == [0, 2, 4, 6]


def test_a_file_of_another_job_is_refused(tmp_path):
    write_tensors(tmp_path / "t", {"a": torch.ones(3)}, "one job")
    with pytest.raises(RunFolderError, match="checksum does not fit its content or its job"):
        read_sealed_tensors(tmp_path / "t", "another job")


def test_every_flipped_bit_and_every_missing_end_is_seen_or_changes_nothing(tmp_path):
    tensors, path = (
        {"b": torch.tensor([1.5, -2.0]), "n": torch.tensor([[3], [4]]), "yes": torch.tensor([True])},
        tmp_path / "t",
    )
    write_tensors(path, tensors, "job")
    data, unnoticed = path.read_bytes(), 0
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            assert equal(read_sealed_tensors(path, "job"), tensors)
            unnoticed += 1
        except RunFolderError:
            pass
    assert unnoticed < 32  # the padding of the header
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(RunFolderError, match="not a whole safetensors file"):
            read_sealed_tensors(path, "job")


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{" * 10_000,
        b'{"a": 1}',
        {"a": entry(shape=[1 << 62, 0], data_offsets=[0, 0])},
        {"a": entry(shape=[3])},
        {"a": entry(shape=[-2, -1])},
        {"a": entry(shape=[True, 2])},
        {"a": entry(shape=[2.0])},
        {"a": entry(shape="2")},
        {"a": entry(dtype="F8_E8M0")},
        {"a": entry(dtype=[1])},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(data_offsets=[0, 8, 8])},
        {"a": entry(data_offsets=[8, 16])},
        {"a": entry(), "b": entry()},
        {"a": entry(shape=[10**30], data_offsets=[0, 4 * 10**30])},
        {"a": entry(), "__metadata__": {"format": 3}},
        {"a": entry(), "__metadata__": []},
        {},
    ],
)
def test_headers_that_are_wrong_are_refused_before_anything_is_allocated(tmp_path, monkeypatch, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / "t").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was allocated"))
    with pytest.raises(RunFolderError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "t")


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    for length in (1 << 35, (1 << 64) - 1, 0, 1):
        (tmp_path / "t").write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(8))
        with pytest.raises(RunFolderError, match="not a whole safetensors file"):
            read_tensors(tmp_path / "t")


def test_a_truth_value_that_is_none_is_refused(tmp_path):
    chunks = tensor_chunks({"yes": torch.tensor([True])}, "")
    (tmp_path / "t").write_bytes(b"".join(chunks)[:-1] + b"\x02")
    with pytest.raises(RunFolderError, match="neither true nor false"):
        read_tensors(tmp_path / "t")
