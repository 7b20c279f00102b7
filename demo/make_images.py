"""Writes demo/fashion_mnist_2000.npz: the first 2,000 test images of Fashion-MNIST.

python demo/make_images.py FOLDER    (Debian's package dataset-fashion-mnist)
"""

from pathlib import Path
from typing import Annotated

import numpy
import typer

from causal_dfq.zoo.training_data import read_fashion_mnist


def main(folder: Annotated[Path, typer.Argument(help="Folder of t10k-images-idx3-ubyte.gz.")]) -> None:
    """Reads the test split and writes its first 2,000 images."""
    test = read_fashion_mnist(folder, "t10k")
    images = test.images[:2000].permute(0, 2, 3, 1).numpy()
    path = Path(__file__).parent / "fashion_mnist_2000.npz"
    numpy.savez_compressed(path, images=images, labels=test.labels[:2000].numpy())


if __name__ == "__main__":
    typer.run(main)
