"""The three forms of labelled images, and what is said where a form is not kept."""

import io
import struct
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


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    numpy.savez_compressed(file, images=pixels(), labels=numpy.arange(3))
    content = file.read_bytes()
    first = 30 + sum(struct.unpack("<HH", content[26:30]))
    for place, value in ((first, 0xFF), (content.index(b"PK\x01\x02") + 8, 1)):
        file.write_bytes(content[:place] + bytes([content[place] ^ value]) + content[place + 1 :])
        with pytest.raises(DataError, match=r"d\.npz cannot be read as an \.npz: ."):
            open_labelled(file, RGB)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"d\.npz cannot be read as an \.npz: ."):
        open_labelled(file, RGB)


def test_single_array_under_the_name_of_an_archive_is_told(tmp_path: Path) -> None:
    with (tmp_path / "d.npz").open("wb") as file:
        numpy.save(file, pixels())
    with pytest.raises(DataError, match=r"d\.npz is a single array, no \.npz: .*numpy\.savez"):
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


def test_picture_that_fails_while_it_is_decoded_is_named(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(pixels()[0]).save(content, "PNG")
    head, pixel_data = content.getvalue().split(b"IDAT")
    damaged = {
        # A SyntaxError: half of the pixels, and then a chunk without a name.
        "chunk.png": head[:-4] + struct.pack(">I", 9) + b"IDAT" + pixel_data[:9] + bytes(12),
        # A ValueError: the first chunk has no content.
        "header.png": head[:8] + bytes(4) + b"IHDR" + bytes(4),
    }
    for name, bad in damaged.items():
        one_picture(tmp_path, name).write_bytes(bad)
        with pytest.raises(DataError, match=rf"{name} cannot be read as a picture: \w"):
            open_labelled(tmp_path, RGB)[0]


def test_picture_too_large_for_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pixels()[0]).save(one_picture(tmp_path, "large.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(DataError, match=r"large\.png cannot be read as a picture: Image size \(24 pixels\) exceeds"):
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


def one_picture(folder: Path, name: str) -> Path:
    (folder / "labels.csv").write_text(f"file,label\n{name},0\n")
    return folder / name


@pytest.mark.parametrize("preprocessing", [RGB, GRAY])
@pytest.mark.parametrize("name", ["d.png", "d.tif", "d.pgm"])
def test_gray_pictures_of_16_bits_keep_their_values(tmp_path: Path, name: str, preprocessing: Preprocessing) -> None:
    gray = pixels(1, 1)
    Image.fromarray(gray[0, :, :, 0].astype(numpy.uint16) * 257).save(one_picture(tmp_path, name))
    image, _ = open_labelled(tmp_path, preprocessing)[0]
    channels = preprocessing.input_shape[0]
    torch.testing.assert_close(image, expected(gray.repeat(channels, 3), preprocessing)[0])


def test_gray_pictures_of_16_bits_with_the_high_byte_first_keep_their_values(tmp_path: Path) -> None:
    gray = pixels(1, 1)
    values = (gray[0, :, :, 0].astype(numpy.uint16) * 257).astype(">u2")
    Image.frombytes("I;16B", (6, 4), values.tobytes()).save(one_picture(tmp_path, "d.tif"))
    torch.testing.assert_close(open_labelled(tmp_path, GRAY)[0][0], expected(gray, GRAY)[0])


def test_gray_pictures_of_12_bits_have_their_white_at_4095(tmp_path: Path) -> None:
    # Values of 0x555, a third of the largest.
    values = b"\x55" * (4 * 6 * 12 // 8)
    # Width, height, bits, no compression, zero is black, where the rows are, channels, rows, their bytes.
    tags = {256: 6, 257: 4, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: len(values)}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(tags)) + entries + bytes(4)
    one_picture(tmp_path, "d.tif").write_bytes(content)
    third = numpy.full((1, 4, 6, 1), 255 // 3, numpy.uint8)
    torch.testing.assert_close(open_labelled(tmp_path, GRAY)[0][0], expected(third, GRAY)[0])


@pytest.mark.parametrize(("kind", "words"), [(numpy.float32, "fractions"), (numpy.int32, "32-bit integers")])
def test_pictures_whose_white_is_not_known_are_refused(tmp_path: Path, kind: type, words: str) -> None:
    Image.fromarray(pixels(1, 1)[0, :, :, 0].astype(kind)).save(one_picture(tmp_path, "d.tif"))
    with pytest.raises(DataError, match=rf"d\.tif holds {words}, .*: save it in 8 bits"):
        open_labelled(tmp_path, RGB)[0]
