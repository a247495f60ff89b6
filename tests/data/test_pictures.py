"""Image files reach a network as a viewer shows them, from every source alike; Pillow and numpy say what is right."""

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pyarrow import Table, parquet

from progdist import UserError
from progdist.data import survey
from progdist.data.sources import cropped, load_images
from support.pictures import bytes_of, encoded, every_source, of_size, png

CORNERS = np.zeros((16, 32, 3), np.uint8)
CORNERS[:8, :16], CORNERS[8:, 16:], CORNERS[:8, 16:] = [250, 0, 0], [0, 0, 250], [0, 250, 0]
WHITE, ORANGE = np.array([255.0, 255, 255]), np.array([255.0, 136, 0])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(folder: Path, content: bytes, name: str = "a.png") -> NDArray[np.uint8]:
    """The bytes (H, W, C) of one image file as it is read from a folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return bytes_of(load_images(f"folder:{folder}")[0][0])


def oriented(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpeg": {"quality": 95}, "webp": {"lossless": True}}.get(kind, {})
    return encoded(Image.fromarray(CORNERS), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_images_are_upright_in_every_orientation(tmp_path: Path, kind: str) -> None:
    for orientation in range(1, 9):
        content = oriented(orientation, kind)
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image)
        (tmp_path / f"{orientation}.{kind}").write_bytes(content)
        images = load_images(f"folder:{tmp_path}")
        np.testing.assert_array_equal(bytes_of(images[0][0]), np.asarray(upright))
        assert images.get.size(0) == upright.size  # pyright: ignore[reportFunctionMemberAccess]
        (tmp_path / f"{orientation}.{kind}").unlink()


def test_every_source_turns_alike_and_tells_the_upright_size(tmp_path: Path) -> None:
    """What SDXL is told of an image is the size that a viewer shows, and its crop is that of the upright image."""
    content = oriented(6, "jpeg")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    for kind, source in every_source(tmp_path, [content, content], "jpg").items():
        images = load_images(source)
        assert images.shape == (3, 32, 16), kind
        np.testing.assert_array_equal(bytes_of(images[1][0]), np.asarray(upright))
        assert images.get.frame(0) == (32, 16, 0, 0)  # pyright: ignore[reportFunctionMemberAccess]
    crops = cropped(load_images(f"folder:{tmp_path}/files", size=16), 2, seed=0)
    _, _, top, left = crops.get.frame(1)  # pyright: ignore[reportFunctionMemberAccess]
    np.testing.assert_array_equal(bytes_of(crops[1][0]), np.asarray(upright)[top : top + 16, left : left + 16])


def test_damaged_exif_is_passed_over(tmp_path: Path) -> None:
    for number, exif in enumerate([b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"\0" * 9]):
        assert read(tmp_path / str(number), encoded(Image.fromarray(CORNERS), "png", exif=exif)).shape == (16, 32, 3)


def over(pixels: NDArray[np.uint8], background: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGBA over a background, in real numbers."""
    alpha = pixels[..., 3:] / 255
    return alpha * pixels[..., :3] + (1 - alpha) * background


RGBA = np.random.default_rng(0).integers(0, 256, (1, 16, 4), dtype=np.uint8)
RGBA[0, 0] = [7, 200, 60, 0]


def in_palette(transparency: int | bytes, kind: str = "png") -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 255, 200, 10, 10, 0, 0, 255] + [0] * 759)
    image.putdata([0, 1, 2])
    return encoded(image, kind, transparency=transparency)


GREY_AND_ALPHA = RGBA[..., [0, 0, 0, 3]]
TRANSPARENT: dict[str, tuple[bytes, NDArray[np.uint8]]] = {
    "RGBA png": (encoded(Image.fromarray(RGBA), "png"), RGBA),
    "RGBA webp": (encoded(Image.fromarray(RGBA), "webp", lossless=True, exact=True), RGBA),
    "RGBA tiff": (encoded(Image.fromarray(RGBA), "tiff"), RGBA),
    "RGBA tga": (encoded(Image.fromarray(RGBA), "tga"), RGBA),
    "LA png": (encoded(Image.fromarray(GREY_AND_ALPHA[..., 2:], "LA"), "png"), GREY_AND_ALPHA),
    "palette, one": (in_palette(0), np.array([[[0, 0, 0, 0], [200, 10, 10, 255], [0, 0, 255, 255]]], np.uint8)),
    "palette, several": (
        in_palette(bytes([0, 128, 255])),
        np.array([[[255, 0, 255, 0], [200, 10, 10, 128], [0, 0, 255, 255]]], np.uint8),
    ),
    "GIF": (in_palette(1, "gif"), np.array([[[255, 0, 255, 255], [0, 0, 0, 0], [0, 0, 255, 255]]], np.uint8)),
    "tRNS of RGB": (
        png(8, 2, bytes([1, 2, 3, 4, 5, 6]), 2, struct.pack(">HHH", 1, 2, 3)),
        np.array([[[0, 0, 0, 0], [4, 5, 6, 255]]], np.uint8),
    ),
    "tRNS of RGB of 16 bits": (
        png(16, 2, struct.pack(">6H", 0x180, 0x280, 0x380, 0xFFFF, 0, 0), 2, struct.pack(">HHH", 0x180, 0x280, 0x380)),
        np.array([[[0, 0, 0, 0], [255, 0, 0, 255]]], np.uint8),
    ),
    "tRNS of grey": (
        png(8, 0, bytes([0, 100, 255]), 3, struct.pack(">H", 100)),
        np.array([[[0, 0, 0, 255], [0, 0, 0, 0], [255, 255, 255, 255]]], np.uint8),
    ),
    "tRNS of grey of 2 bits": (
        png(2, 0, bytes([0b00011011]), 4, struct.pack(">H", 1)),
        np.array([[[0, 0, 0, 255], [0, 0, 0, 0], [170, 170, 170, 255], [255, 255, 255, 255]]], np.uint8),
    ),
    "tRNS of grey of 1 bit": (
        png(1, 0, bytes([0b01000000]), 2, struct.pack(">H", 0)),
        np.array([[[0, 0, 0, 0], [255, 255, 255, 255]]], np.uint8),
    ),
    "tRNS of grey of 16 bits": (
        png(16, 0, struct.pack(">3H", 0, 500, 65535), 3, struct.pack(">H", 500)),
        np.array([[[0, 0, 0, 255], [0, 0, 0, 0], [255, 255, 255, 255]]], np.uint8),
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_show_the_background(tmp_path: Path, name: str) -> None:
    content, pixels = TRANSPARENT[name]
    (tmp_path / "a.png").write_bytes(content)
    for background, colour in ((None, WHITE), ("#ff8800", ORANGE), ("black", 0 * WHITE)):
        with warnings.catch_warnings(action="error"):
            images = load_images(f"folder:{tmp_path}", background=background, channels=3)
            found = bytes_of(images[0][0]).astype(float)
        assert np.abs(found - over(pixels, colour)).max() <= 1  # rounded to bytes


def test_premultiplied_alpha_is_divided_out(tmp_path: Path) -> None:
    """A TIFF of ExtraSamples 1 (associated alpha, TIFF 6.0, section 18): 100 of 128 is 200 of 255."""
    content = encoded(Image.fromarray(np.array([[[0, 0, 0, 0], [100, 5, 5, 128]]], np.uint8)), "tiff")
    tag = struct.pack("<HHI", 338, 3, 1)
    place = content.index(tag) + len(tag)
    found = read(tmp_path / "a", content[:place] + struct.pack("<H", 1) + content[place + 2 :], "a.tiff")
    expected = over(np.array([[[0, 0, 0, 0], [199, 10, 10, 128]]], np.uint8), WHITE)
    assert np.abs(found - expected).max() <= 1


def test_grey_with_alpha_stays_grey_on_a_grey_background(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(TRANSPARENT["LA png"][0])
    assert load_images(f"folder:{tmp_path}").shape == (1, 1, 16)
    assert load_images(f"folder:{tmp_path}", background="red").shape == (3, 1, 16)
    deep = png(16, 4, struct.pack(">4H", 2560, 0, 51200, 65535), 2)
    assert read(tmp_path / "deep", deep).tolist() == [[[255], [200]]]


def test_every_source_composes_and_says_how_many(tmp_path: Path) -> None:
    plain = encoded(Image.fromarray(RGBA[..., :3]), "png")
    files = [TRANSPARENT["RGBA png"][0], plain, TRANSPARENT["RGBA png"][0]]
    for source in every_source(tmp_path, files).values():
        said: list[str] = []
        images = load_images(source, background="black", notify=said.append)
        assert np.abs(bytes_of(images[2][0]) - over(RGBA, 0 * WHITE)).max() <= 1
        composed = [line for line in said if "transparency" in line]
        assert composed == [f"{source}: 2 of 3 images have transparency: they are composed on black (data.background)"]


@pytest.mark.parametrize("background", ["#ff880080", "nocolour", "", 7, (255, 255, 255)])
def test_backgrounds_are_opaque_colours(tmp_path: Path, background: str) -> None:
    (tmp_path / "a.png").write_bytes(TRANSPARENT["RGBA png"][0])
    with pytest.raises(UserError, match="background") as caught:
        load_images(f"folder:{tmp_path}", background=background)
    assert "\n" not in str(caught.value)


def test_arrays_have_no_background() -> None:
    with pytest.raises(UserError, match="applies only to image files"):
        load_images("digits", background="black")


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP: dict[str, tuple[bytes, str]] = {
    "16 bits": (encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), "png"), "png"),
    "12 bits in 16": (encoded(Image.fromarray(np.rint(RAMP / 255 * 4095).astype(np.uint16)), "png"), "png"),
    "10 bits in 16": (encoded(Image.fromarray(np.rint(RAMP / 255 * 1023).astype(np.uint16)), "tiff"), "tiff"),
    "14 bits in 16": (encoded(Image.fromarray(np.rint(RAMP / 255 * 16383).astype(np.uint16)), "tiff"), "tiff"),
    "8 bits in 32": (encoded(Image.fromarray(RAMP.astype(np.int32)), "tiff"), "tiff"),
    "16 bits in 32": (encoded(Image.fromarray(RAMP.astype(np.int32) * 257), "tiff"), "tiff"),
    "floats to 1": (encoded(Image.fromarray((RAMP / 255).astype(np.float32)), "tiff"), "tiff"),
    "floats to 255": (encoded(Image.fromarray(RAMP.astype(np.float32)), "tiff"), "tiff"),
    "PGM of 65535": (b"P5 16 16 65535\n" + (RAMP.astype(">u2") * 257).tobytes(), "pgm"),
    "PGM of 4095": (b"P5 16 16 4095\n" + np.rint(RAMP / 255 * 4095).astype(">u2").tobytes(), "pgm"),
    "PFM": (b"Pf\n16 16\n-1.0\n" + (RAMP[::-1] / 255).astype("<f4").tobytes(), "pfm"),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_are_scaled_by_their_range(tmp_path: Path, name: str) -> None:
    content, suffix = DEEP[name]
    found = read(tmp_path / "a", content, f"a.{suffix}")
    assert found.shape == (16, 16, 1)
    assert np.abs(found[..., 0].astype(int) - RAMP).max() <= (1 if "10" in name else 0)


def test_the_range_is_that_of_the_set(tmp_path: Path) -> None:
    """A dark image among bright ones stays dark; one that becomes brighter than all that were looked at is white."""
    for number, top in enumerate([4000, 10, 4095]):
        Image.fromarray(np.full((2, 2), top, np.uint16)).save(tmp_path / f"{number}.png")
    images = load_images(f"folder:{tmp_path}", notify=(said := []).append)
    assert [int(bytes_of(images[index][0])[0, 0, 0]) for index in range(3)] == [249, 1, 255]
    assert said == [
        f"folder:{tmp_path}: 3 of 3 images have more than 8 bits (mode I;16): their range of 0 to 4,095 is scaled to 8"
    ]
    Image.fromarray(np.full((2, 2), 60000, np.uint16)).save(tmp_path / "2.png")
    assert (images[2][0] == 1).all()


@pytest.mark.parametrize("bright", [0, 37, 100, 199])
def test_one_bright_image_among_hundreds_of_16_bits_tells_white(tmp_path: Path, bright: int) -> None:
    tops = [5000 if number == bright else 700 + number for number in range(200)]
    for number, top in enumerate(tops):
        Image.fromarray(np.full((2, 2), top, np.uint16)).save(tmp_path / f"{number:03}.png")
    images = load_images(f"folder:{tmp_path}", notify=lambda line: None)
    found = [int(bytes_of(images[index][0])[0, 0, 0]) for index in range(200)]
    assert found == [round(255 * top / 16383) for top in tops]  # the least range that holds all: 14 bits


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[-1.0, 1]], np.float32), "mode F with values from -1 to 1"),
        (np.array([[0.0, 1.5]], np.float32), "mode F with values from 0 to 1.5"),
        (np.array([[0.0, np.nan]], np.float32), "mode F with values that are not finite"),
        (np.array([[np.inf, 1]], np.float32), "mode F with values that are not finite"),
        (np.array([[0, 2**30]], np.int32), "mode I with values from 0 to 1.07374e"),
        (np.array([[-7, 200]], np.int32), "mode I with values from -7 to 200"),
        (np.array([[0, 9]], np.int32), "mode I with values from 0 to 9"),
    ],
)
def test_a_range_that_is_not_known_is_refused_by_name(tmp_path: Path, values: NDArray[np.generic], says: str) -> None:
    Image.fromarray(np.zeros((1, 2), values.dtype)).save(tmp_path / "a.tiff")
    Image.fromarray(values).save(tmp_path / "b.tiff")
    images = load_images(f"folder:{tmp_path}")
    with pytest.raises(UserError) as caught:
        images[1]
    assert f"{tmp_path}/b.tiff cannot be read as an image ({says}" in str(caught.value)


def test_other_colours_are_right_or_refused(tmp_path: Path) -> None:
    """CMYK is (255 - c)(255 - k) / 255; YCbCr without chroma is grey (JFIF); LAB has no such formula here."""
    cmyk = Image.new("CMYK", (2, 1), (255, 0, 51, 0))
    assert read(tmp_path / "a", encoded(cmyk, "tiff"), "a.tiff")[0, 0].tolist() == [0, 255, 204]
    assert read(tmp_path / "b", encoded(Image.new("YCbCr", (2, 1), (90, 128, 128)), "tiff"))[0, 0].tolist() == [90] * 3
    assert read(tmp_path / "c", encoded(Image.new("1", (2, 1), 1), "png")).tolist() == [[[255], [255]]]
    wide = png(16, 2, struct.pack(">3H", 0, 257 * 100, 65535), 1)
    assert read(tmp_path / "d", wide).tolist() == [[[0, 100, 255]]]
    with pytest.raises(UserError, match=r"lab\.tiff .*its mode is LAB, expected grey, RGB"):
        read(tmp_path / "e", encoded(Image.new("LAB", (2, 1), (200, 5, 5)), "tiff"), "lab.tiff")


def test_of_animations_the_first_frame_is_read_and_that_is_said(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    for kind in ("gif", "webp", "png", "tiff"):
        first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[second])
    images = load_images(f"folder:{tmp_path}", notify=(said := []).append)
    assert all(np.abs(bytes_of(image)[0, 0].astype(int) - [255, 0, 0]).max() < 3 for image, _ in images)
    assert said == [f"folder:{tmp_path}: 4 of 4 images have several frames: the first is read"]


def test_what_pillow_opens_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "teal")
    kinds = {
        "a.JPG": "jpeg", "b.jfif": "jpeg", "c.jpe": "jpeg", "d.ppm": "ppm", "e.jp2": "jpeg2000", "f": "png",
        "g.tga": "tga", "h.webp": "webp", "i.pcx": "pcx", "j.ico": "ico", "k.qoi": "qoi", "l.dds": "dds",
    }  # fmt: skip
    for name, kind in kinds.items():
        image.save(tmp_path / name, kind, **({"sizes": [(8, 8)]} if kind == "ico" else {}))
    for name in ("notes.txt", "more.txt", "LICENSE", "a.csv", "a.pdf", ".hidden.png"):
        (tmp_path / name).write_text("text")
    os.mkfifo(tmp_path / "fifo.png")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder.png").mkdir()
    image.save(tmp_path / "folder.png" / "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "null.png").symlink_to("/dev/null")
    images = load_images(f"folder:{tmp_path}", notify=(said := []).append)
    assert (len(images), images.classes) == (len(kinds), ())
    assert all(np.abs(bytes_of(image)[0, 0].astype(int) - [0, 128, 128]).max() < 4 for image, _ in images)
    assert said == [
        f"folder:{tmp_path}: skipped 12 files that are not images (3 links to nothing, 3 special files, 2 .txt, "
        "1 .csv, 1 .pdf, 1 folders named as images, 1 without suffix)"
    ]


def test_captions_belong_to_their_images(tmp_path: Path) -> None:
    source = every_source(tmp_path, [encoded(Image.new("RGB", (2, 2)), "png")])["captions"]
    assert load_images(source).notes == ()


def test_a_size_limit_is_the_same_in_every_source(tmp_path: Path) -> None:
    """Pillow's: twice MAX_IMAGE_PIXELS. Between once and twice it warns, and the header can be read."""
    small = encoded(Image.new("L", (8, 8)), "png")
    for source in every_source(tmp_path, [small, small, of_size(30_000, 30_000)]).values():
        images = load_images(source)
        with pytest.raises(UserError, match="more pixels than Pillow's limit of 178,956,970: reduce") as caught:
            images[2]
        assert "\n" not in str(caught.value)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.png").write_bytes(small)
    (tmp_path / "b" / "b.png").write_bytes(of_size(12_000, 12_000))
    with warnings.catch_warnings(action="error"):
        assert load_images(f"folder:{tmp_path}/b").get.size(1) == (12_000, 12_000)  # pyright: ignore


def test_a_table_may_name_files_and_have_empty_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(oriented(6, "png"))
    rows = [{"bytes": None, "path": f"{tmp_path}/a.png"}, {"bytes": None, "path": None}]
    for number, cells in enumerate((rows, [f"{tmp_path}/a.png", None])):
        parquet.write_table(Table.from_pydict({"image": cells}), tmp_path / f"{number}.parquet")
        for kind in ("parquet", "hub"):
            place = tmp_path / f"{kind} {number}"
            place.mkdir()
            (place / "a.parquet").write_bytes((tmp_path / f"{number}.parquet").read_bytes())
            images = load_images(f"{kind}:{place}", notify=(said := []).append)
            assert images[0][0].shape == (3, 32, 16)
            assert "1 of 2 images cannot be read, the first: " in said[0] and "row 1 is empty: remove" in said[0]
            with pytest.raises(UserError, match="row 1 is empty: remove"):
                images[1]


@pytest.mark.parametrize("grey", [0, 3, 7])
def test_a_mixture_of_grey_and_colour_is_read_in_colour(tmp_path: Path, grey: int) -> None:
    pictures = [Image.new("L" if number == grey else "RGB", (8, 8), number) for number in range(8)]
    for kind, source in every_source(tmp_path, [encoded(picture, "png") for picture in pictures]).items():
        said: list[str] = []
        images = load_images(source, notify=said.append)
        assert [tuple(image.shape) for image, _ in images] == [(3, 8, 8)] * 8, kind
        np.testing.assert_array_equal(bytes_of(images[grey][0])[0, 0], [grey] * 3)
        assert said[-1] == f"{source}: 1 of 8 images are grey, the others in colour: all are read as RGB"
    assert load_images(f"folder:{tmp_path}/files", channels=1).shape == (1, 8, 8)


def test_colour_where_only_grey_was_seen_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("progdist.data.images.LOOKED", 2)
    for number in range(4):
        Image.new("RGB" if number == 1 else "L", (8, 8)).save(tmp_path / f"{number}.png")
    images = load_images(f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"image 1 is in colour.* set data\.channels to 3, or channels=3 from Python"):
        images[1]


def test_a_survey_is_evenly_spread() -> None:
    assert survey.spread(7, 10) == list(range(7))
    assert survey.spread(10, 4) == [0, 2, 5, 7]
