"""The papers' pictures, each from a few files as they are distributed."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.cifar import cifar
from hvp_engine.experiments.data.idx import mnist
from hvp_engine.experiments.data.picture_files import aircraft, flowers102, imagenet


def write_picture(file: Path, colour: tuple[int, int, int], size: tuple[int, int] = (300, 400)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, packed: bool) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 3), ("t10k", 2)):
        for kind, array in (
            ("images-idx3-ubyte", generator.integers(0, 256, (count, 28, 28))),
            ("labels-idx1-ubyte", np.arange(count)),
        ):
            content = idx(array)
            name = f"{part}-{kind}"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_compressed_or_not(tmp_path: Path, packed: bool) -> None:
    write_mnist(tmp_path, packed)
    images = mnist({"mnist": tmp_path})
    assert images.train.inputs.shape == (3, 1, 28, 28)
    expected = np.random.default_rng(0).integers(0, 256, (3, 28, 28))
    torch.testing.assert_close(images.train.inputs[:, 0], torch.from_numpy(expected).float() / 255)
    assert images.test.labels.tolist() == [0, 1]


def test_mnist_refuses_files_that_are_cut_off_or_others(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    file = tmp_path / "train-labels-idx1-ubyte"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ConfigurationError, match="has not the bytes that its sizes"):
        mnist({"mnist": tmp_path})
    file.write_bytes(b"text")
    with pytest.raises(ConfigurationError, match="is no IDX file"):
        mnist({"mnist": tmp_path})
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte\.gz"):
        mnist({"mnist": tmp_path})


def write_cifar10(folder: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072)).astype(np.uint8)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": [3, 1]}, protocol=4))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=4))
    return pixels


def test_cifar10_is_read_from_its_six_pickles(tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path)
    images = cifar("cifar10", {"cifar10": tmp_path})
    assert images.train.inputs.shape == (10, 3, 32, 32)
    assert images.test.labels.tolist() == [3, 1]
    assert images.classes == ("cat", "dog")
    red = pixels[0, 0] / 255
    assert float(images.test.inputs[0, 0, 0, 0]) == pytest.approx((red - 0.485) / 0.229, rel=1e-5)


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        content = {b"data": pixels, b"fine_labels": [42], b"coarse_labels": [7]}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=4))
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple"]}, protocol=4))
    assert cifar("cifar100", {"cifar100": tmp_path}).train.labels.tolist() == [42]


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Runs(), b"labels": []}))
    with pytest.raises(ConfigurationError, match=r"data_batch_3 is no file of CIFAR .*print is no part of an array"):
        cifar("cifar10", {"cifar10": tmp_path})
    assert capsys.readouterr().out == ""


def test_imagenet_is_read_as_it_is_drawn_over_all_classes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name, colour in (("n01", (255, 0, 0)), ("n02", (0, 0, 255))):
            for number in range(2):
                write_picture(tmp_path / part / name / f"{number}.JPEG", colour)
    pictures = imagenet({"imagenet": tmp_path})
    assert pictures.classes == ("n01", "n02")
    drawn = pictures.train.draw(4, seed=0)
    assert drawn.inputs.shape == (4, 3, 224, 224)
    assert sorted(drawn.labels.tolist()) == [0, 0, 1, 1]
    red = drawn.inputs[drawn.labels == 0]
    assert float(red[:, 0].mean()) == pytest.approx((1 - 0.485) / 0.229, rel=0.02)
    assert len(next(pictures.test.batches(3, seed=0)).labels) == 3


def test_the_middle_of_a_wide_picture_is_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (512, 256), (0, 0, 0))
    wide.paste((255, 255, 255), (144, 0, 368, 256))
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        wide.save(tmp_path / part / "a" / "0.png")
    pixels = imagenet({"imagenet": tmp_path}).train.draw(1, seed=0).inputs
    assert float(pixels[:, 0].min()) == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There are no pictures in"):
        imagenet({"imagenet": tmp_path})


def test_flowers_are_read_in_torchvisions_layout(tmp_path: Path) -> None:
    from scipy.io import savemat

    folder = tmp_path / "flowers-102"
    for number in range(1, 5):
        write_picture(folder / "jpg" / f"image_{number:05d}.jpg", (40 * number, 0, 0))
    savemat(folder / "imagelabels.mat", {"labels": [[2, 1, 2, 1]]})
    savemat(folder / "setid.mat", {"trnid": [[3, 1]], "valid": [[2]], "tstid": [[4]]})
    flowers = flowers102({"flowers102": tmp_path})
    assert [file.name for file in flowers.train.files] == ["image_00003.jpg", "image_00001.jpg", "image_00002.jpg"]
    assert flowers.train.labels.tolist() == [1, 1, 0]
    assert flowers.test.labels.tolist() == [0]
    (folder / "setid.mat").unlink()
    with pytest.raises(ConfigurationError, match=r"There is no setid\.mat in"):
        flowers102({"flowers102": tmp_path})


def test_aircraft_are_read_by_variant(tmp_path: Path) -> None:
    folder = tmp_path / "fgvc-aircraft-2013b" / "data"
    for number in (1, 2):
        write_picture(folder / "images" / f"000000{number}.jpg", (0, 0, 0))
    (folder / "variants.txt").write_text("707-320\nA300B4\nCessna 172\n")
    (folder / "images_variant_train.txt").write_text("0000001 Cessna 172\n")
    (folder / "images_variant_val.txt").write_text("0000002 707-320\n")
    (folder / "images_variant_test.txt").write_text("0000001 A300B4\n")
    planes = aircraft({"aircraft": folder})
    assert planes.train.labels.tolist() == [2, 0]
    assert planes.test.labels.tolist() == [1]
    (folder / "images" / "0000002.jpg").unlink()
    with pytest.raises(ConfigurationError, match=r"0000002\.jpg is listed and not there"):
        aircraft({"aircraft": folder})
