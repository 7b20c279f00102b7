"""The three forms of labelled images, and what is said where a form is not kept."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from causal_dfq.data.labelled import Preprocessing, open_labelled
from causal_dfq.errors import DataError

RGB = Preprocessing((3, 4, 6), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
GRAY = Preprocessing((1, 4, 6), (0.5,), (0.5,))


def pixels(count: int = 3, channels: int = 3) -> numpy.ndarray:
    return numpy.random.default_rng(0).integers(0, 256, (count, 4, 6, channels), numpy.uint8)


def expected(images: numpy.ndarray, preprocessing: Preprocessing = RGB) -> torch.Tensor:
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (values - mean) / std


def stacked(path: Path, preprocessing: Preprocessing = RGB) -> tuple[torch.Tensor, list[int]]:
    items = list(map(open_labelled(path, preprocessing).__getitem__, range(3)))
    return torch.stack([image for image, _ in items]), [label for _, label in items]


def write_pictures(folder: Path, names: list[str]) -> None:
    for name, image in zip(names, pixels(), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


def test_archive_is_normalized_by_channel(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "d.npz", images=pixels(), labels=numpy.array([2, 0, 1]))
    images, labels = stacked(tmp_path / "d.npz")
    torch.testing.assert_close(images, expected(pixels()))
    assert labels == [2, 0, 1]


def test_archive_of_gray_images(tmp_path: Path) -> None:
    images = pixels(channels=1)
    numpy.savez(tmp_path / "d.npz", images=images, labels=numpy.array([2, 0, 1]))
    torch.testing.assert_close(stacked(tmp_path / "d.npz", GRAY)[0], expected(images, GRAY))


def test_image_folder_takes_labels_from_sorted_names(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["b/1.png", "a/1.png", "c/1.png"])
    images, labels = stacked(tmp_path)
    assert labels == [0, 1, 2]
    torch.testing.assert_close(images, expected(pixels()[[1, 0, 2]]))


def test_table_takes_labels_and_ignores_other_columns(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", ["x.png", "y.png", "z.png"])
    (tmp_path / "labels.csv").write_text("author,file,label\nme,z.png,7\nme,x.png,5\nyou,y.png,6\n")
    images, labels = stacked(tmp_path)
    assert labels == [7, 5, 6]
    torch.testing.assert_close(images, expected(pixels()[[2, 0, 1]]))


def test_larger_pictures_are_fitted_and_cropped_in_the_middle(tmp_path: Path) -> None:
    image = numpy.zeros((8, 20, 3), numpy.uint8)
    image[:, 4:16] = 255
    numpy.savez(tmp_path / "d.npz", images=image[None], labels=numpy.array([0]))
    picture, _ = open_labelled(tmp_path / "d.npz", Preprocessing((3, 4, 6), (0.0,) * 3, (1.0,) * 3))[0]
    assert picture.shape == (3, 4, 6)
    assert picture.min() > 0.8


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": pixels()}, "no array 'labels'"),
        ({"images": pixels().astype(float), "labels": numpy.arange(3)}, "must be uint8"),
        ({"images": pixels(), "labels": numpy.arange(2)}, "3 images but 2 labels"),
        ({"images": pixels(), "labels": numpy.ones(3)}, "must be integers"),
        ({"images": pixels(0), "labels": numpy.arange(0)}, "holds no image"),
        ({"images": pixels().transpose(0, 3, 1, 2), "labels": numpy.arange(3)}, "1 or 3 channels"),
        ({"images": numpy.array([object()]), "labels": numpy.arange(1)}, "cannot be read"),
    ],
)
def test_archives_of_another_form_are_refused(tmp_path: Path, arrays: dict[str, numpy.ndarray], words: str) -> None:
    numpy.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=words):
        open_labelled(tmp_path / "d.npz", RGB)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,label\n", "needs the columns file and label"),
        ("file,label\nx.png,1\nmissing.png,1\n", r"line 3: .*missing\.png does not exist"),
        ("file,label\nx.png,cat\n", "label 'cat' is no integer"),
        ("file,label\n", "lists no image"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path: Path, table: str, words: str) -> None:
    write_pictures(tmp_path / "images", ["x.png", "y.png", "z.png"])
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=words):
        open_labelled(tmp_path, RGB)


def test_paths_that_are_no_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_labelled(tmp_path / "nothing", RGB)
    with pytest.raises(DataError, match="holds no labelled images"):
        open_labelled(tmp_path, RGB)
    (tmp_path / "d.txt").write_text("x")
    with pytest.raises(DataError, match=r"is no \.npz"):
        open_labelled(tmp_path / "d.txt", RGB)


def test_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "labels.csv").write_text("file,label\nbad.png,0\n")
    with pytest.raises(DataError, match=r"bad\.png cannot be read"):
        open_labelled(tmp_path, RGB)[0]


def test_table_of_a_spreadsheet_with_byte_order_mark(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", ["x.png", "y.png", "z.png"])
    (tmp_path / "labels.csv").write_text("file,label\nz.png,7\nx.png,5\ny.png,6\n", encoding="utf-8-sig")
    assert stacked(tmp_path)[1] == [7, 5, 6]


def test_images_without_table_are_no_class(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", ["x.png", "y.png", "z.png"])
    with pytest.raises(DataError, match=r"images/ but no labels\.csv"):
        open_labelled(tmp_path, RGB)


def test_table_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe.png,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        open_labelled(tmp_path, RGB)
