"""Labelled images for evaluation: an ImageFolder, a folder with labels.csv, or an .npz."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as transforms

from causal_dfq.errors import DataError

# Where Pillow opens 16 bits in its mode of 32-bit integers, scaled to all of the 16.
_FORMATS_OF_SIXTEEN_BITS = ("PNG", "PPM")


@dataclass(frozen=True)
class Preprocessing:
    """Input shape (C, H, W), and the normalization of pixels in [0, 1], one value a channel."""

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, image: Image.Image) -> Tensor:
        """A picture of 8 bits a channel, any size -> float32 (C, H, W); the shorter side is fitted, the rest cropped.

        Raises:
            DataError: the network wants neither 1 nor 3 channels.
        """
        channels, height, width = self.input_shape
        if channels not in (1, 3):
            raise DataError(f"pictures have 1 or 3 channels, but the network wants {channels}")
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            factor = max(height / image.height, width / image.width)
            size = [max(height, round(image.height * factor)), max(width, round(image.width * factor))]
            resized = transforms.resize(image, size, antialias=True)
            image = transforms.center_crop(resized, [height, width])
        pixels = transforms.pil_to_tensor(image).float() / 255
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        normalized: Tensor = (pixels - mean) / std
        return normalized


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Pictures and labels; item i is a normalized image (C, H, W) and its label.

    `input_shape`: of an image, (C, H, W). `class_folders`: how many folders the labels were counted from, where they
    were.
    """

    def __init__(
        self,
        source: str,
        labels: list[int],
        picture: Callable[[int], Image.Image],
        preprocessing: Preprocessing,
        class_folders: int | None = None,
    ) -> None:
        self.source = source
        self.input_shape = preprocessing.input_shape
        self.class_folders = class_folders
        self.labels = labels
        self._picture = picture
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._preprocessing.normalize(self._picture(index)), self.labels[index]


def open_labelled(path: Path, preprocessing: Preprocessing) -> LabelledImages:
    """Opens the labelled images at a path.

    Raises:
        DataError: nothing there, none of the three forms, or a form that is not kept.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: give a folder of labelled images or an .npz")
    if path.is_file():
        if path.suffix != ".npz":
            raise DataError(f"{path} is no .npz: give an .npz with `images` and `labels`, or a folder")
        return _open_archive(path, preprocessing)
    if (path / "labels.csv").exists():
        return _open_csv(path, preprocessing)
    return _open_image_folder(path, preprocessing)


def _open_archive(path: Path, preprocessing: Preprocessing) -> LabelledImages:
    try:
        archive = numpy.load(path, allow_pickle=False)
        # What numpy.save writes is read under any name.
        if not isinstance(archive, numpy.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array, no .npz: write `images` and `labels` with numpy.savez")
        with archive:
            missing = [name for name in ("images", "labels") if name not in archive]
            if missing:
                found = ", ".join(archive.files)
                raise DataError(f"{path} has no array {missing[0]!r}, only: {found}")
            images, labels = archive["images"], archive["labels"]
    # A RuntimeError is of an archive that is encrypted, or compressed in a way that Python does not know.
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz: {str(error) or 'it ends too early'}") from error
    if images.dtype != numpy.uint8 or images.ndim not in (3, 4):
        raise DataError(f"{path}: `images` must be uint8 (N, H, W, C), but it is {images.dtype} {images.shape}")
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        raise DataError(f"{path}: `images` must have 1 or 3 channels at the end, but its shape is {images.shape}")
    if not numpy.issubdtype(labels.dtype, numpy.integer) or labels.ndim != 1:
        raise DataError(f"{path}: `labels` must be integers (N), but it is {labels.dtype} {labels.shape}")
    if len(images) != len(labels):
        raise DataError(f"{path} has {len(images)} images but {len(labels)} labels")
    if len(images) == 0:
        raise DataError(f"{path} holds no image")
    gray = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
    return LabelledImages(str(path), labels.tolist(), lambda index: Image.fromarray(gray[index]), preprocessing)


def _open_csv(path: Path, preprocessing: Preprocessing) -> LabelledImages:
    table = path / "labels.csv"
    files, labels = [], []
    for number, row in enumerate(_read_rows(table), start=2):
        candidates = [folder / (row["file"] or "") for folder in (path / "images", path)]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            raise DataError(f"{table}, line {number}: {candidates[0]} does not exist")
        try:
            labels.append(int(row["label"]))
        except (TypeError, ValueError) as error:
            raise DataError(f"{table}, line {number}: label {row['label']!r} is no integer") from error
        files.append(found)
    if not files:
        raise DataError(f"{table} lists no image")
    return LabelledImages(str(path), labels, _picture_of_file(files), preprocessing)


def _read_rows(table: Path) -> list[dict[str, str]]:
    try:
        # Spreadsheets put a byte order mark before the first column's name.
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames, list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as comma-separated UTF-8 text: {error}") from error
    if not {"file", "label"} <= set(columns or ()):
        raise DataError(f"{table} needs the columns file and label, but it has: {columns}")
    return rows


def _open_image_folder(path: Path, preprocessing: Preprocessing) -> LabelledImages:
    try:
        folder = ImageFolder(str(path))
    except (FileNotFoundError, RuntimeError) as error:
        raise DataError(
            f"{path} holds no labelled images: it needs one folder a class, or images/ and labels.csv ({error})"
        ) from error
    if folder.classes == ["images"]:
        raise DataError(f"{path} has images/ but no labels.csv: add one with the columns file and label")
    samples = folder.samples
    labels = [label for _, label in samples]
    picture = _picture_of_file([Path(file) for file, _ in samples])
    return LabelledImages(str(path), labels, picture, preprocessing, class_folders=len(folder.classes))


def _picture_of_file(files: list[Path]) -> Callable[[int], Image.Image]:
    return lambda index: _decode(files[index])


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    # Pillow's decoders have errors of many kinds for a damaged picture, and one of its own for a very large one.
    except Exception as error:
        raise DataError(f"{path} cannot be read as a picture: {str(error) or type(error).__name__}") from error
    return _in_eight_bits(image, path)


def _in_eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """A gray picture of more than 8 bits with its white at 255; any other as it is.

    Pillow's own conversion takes everything above 255 for white.

    Raises:
        DataError: the file does not tell which value is white.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in _FORMATS_OF_SIXTEEN_BITS):
        raise DataError(
            f"{path} holds {'fractions' if image.mode == 'F' else '32-bit integers'}, and nothing tells which value is "
            "white: save it in 8 bits, or as a PNG of 16 bits"
        )
    # Some cameras write 12 bits.
    bits = image.tag_v2[BITSPERSAMPLE][0] if isinstance(image, TiffImageFile) else 16
    return Image.fromarray(numpy.rint(numpy.asarray(image) * (255 / (2**bits - 1))).astype(numpy.uint8))
