"""Folders of pictures that are not there, not whole or not pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pruning_lab.datasets.image_folder import image_folder
from tests.bad_inputs.attempts import TEXT, check_refused


def pictures(root, **counts):
    """``root/PART/CLASS/*.png``."""
    for name, count in counts.items():
        part, label = name.split("_")
        (root / part / label).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(root / part / label / f"{number}.png")
    return root


def folder(root, **counts):
    counts = counts or {"train_ape": 10, "train_bee": 10, "test_ape": 4, "test_bee": 4}
    return pictures(root, **counts)


def opened(root, **options):
    return image_folder(str(root), **{"size": 8, "score": 4, "val": 4} | options)


def without(root, content):
    """The pictures with one that holds something else."""
    (folder(root) / "test" / "ape" / "0.png").write_bytes(content)
    return opened(root)


def text_alone(root):
    for path in (folder(root) / "train" / "ape").iterdir():
        path.rename(path.with_suffix(".txt"))
    return opened(root)


def forbidden(root, place):
    """As for one who may not read ``place``; the superuser is never refused."""
    folder(root)
    scan = os.scandir

    def refused(path="."):
        if Path(path) == root / place:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        return opened(root)


def changed(root, change, late=False):
    """The fingerprint of the pictures with one changed: before they are looked at, or ``late``."""
    path = folder(root) / "test" / "ape" / "0.png"
    found = opened(root) if late else None
    change(path)
    return (found or opened(root)).fingerprint()


LONG = PngImagePlugin.PngInfo()
LONG.add_text("prompt", "x" * 2**21, zip=True)


def cut_short(root):
    """A picture that begins well, and is found out when it is read."""
    path = folder(root) / "test" / "ape" / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return opened(root).test[0]


PICTURES = {
    "nothing": (lambda root: opened(root), "train is not a folder"),
    "root null": (lambda root: image_folder(None), f"dataset.root=None {TEXT}"),
    "root a number": (lambda root: image_folder(5), f"dataset.root=5 {TEXT}"),
    "root a file": (lambda root: opened("/etc/passwd"), "/etc/passwd/train is not a folder"),
    "no classes": (
        lambda root: opened(pictures(root, train_ape=0, test_ape=0).parent / root.name / "train",
                            train_folder="ape", test_folder="ape"),
        "ape cannot be read: Couldn't find any class folder",
    ),
    "one class": (
        lambda root: opened(folder(root, train_ape=20, test_ape=4)),
        "has one class, ape; it needs at least two",
    ),
    "another class": (
        lambda root: opened(folder(root, train_ape=9, train_bee=9, test_ape=4, test_cat=4)),
        "different classes; only one of them has bee, cat. Both need a folder for every class",
    ),
    "too few": (
        lambda root: opened(folder(root, train_ape=1, train_bee=9, test_ape=4, test_bee=4)),
        "dataset.val=4 is not possible: 10 samples of 2 classes",
    ),
    "text alone": (text_alone, "train cannot be read: Found no valid file for the classes ape"),
    "text for a picture": (lambda root: without(root, b"not a picture"),
                           r"0.png cannot be read as a picture: .*Delete or replace it"),
    "an empty file": (lambda root: without(root, b""), "0.png cannot be read as a picture"),
    "half a picture": (cut_short, "0.png cannot be read as a picture: .*Delete or replace it"),
    "182 million pixels": (
        lambda root: changed(root, Image.new("1", (14000, 13000)).save),
        "0.png cannot be read as a picture: DecompressionBombError: .*Delete",
    ),
    "a text of 2 MB": (
        lambda root: changed(root, lambda path: Image.new("1", (9, 9)).save(path, pnginfo=LONG)),
        "0.png cannot be read as a picture: ValueError: Decompressed data too large",
    ),
    "gone": (lambda root: changed(root, Path.unlink, late=True), "0.png cannot be .*No such file"),
    "a root that is no text": (
        lambda root: opened(f"{root}/\udcc4"), r"dataset.root=.*/\\udcc4 .* text in UTF-8",
    ),
    "tests from the training": (
        lambda root: image_folder(
            str(folder(root, train_ape=10, train_bee=10)), test_folder="train", size=8, score=4,
            val=4, test=None, train=4,
        ).fingerprint(),
        "images of dataset.train are in dataset.test, too",
    ),
    "a folder closed": (lambda root: forbidden(root, "train"), "train cannot be read: .*denied"),
    "a class closed": (
        lambda root: forbidden(root, "test/bee"), "test cannot be read: .*file for the classes bee",
    ),
    "augment": (lambda root: opened(root, augment="no"), "dataset.augment=no .*true or false"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_that_cannot_be_used(case, tmp_path, monkeypatch):
    check_refused(PICTURES[case], tmp_path, monkeypatch)


def test_names_in_any_bytes_are_read(tmp_path):
    folder(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "ape" / "0.png").rename(tmp_path / part / "ape" / "\udcc4\udce3.png")
    before = opened(tmp_path).fingerprint()
    for part in ("train", "test"):
        (tmp_path / part / "bee").rename(tmp_path / part / "\udcc4\udce3")
    assert opened(tmp_path).fingerprint() == before


def test_a_file_that_is_no_picture_beside_pictures_is_passed_over(tmp_path):
    (folder(tmp_path) / "train" / "ape" / "notes.txt").write_text("seen at noon")
    assert len(opened(tmp_path).train) == 20 - 4 - 4
