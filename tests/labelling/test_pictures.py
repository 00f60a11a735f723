"""The images of the page: the pixels alone, whatever else is in the files."""

import io
import threading

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from clfew.data.sources import open_source
from clfew.labelling import pictures as module
from clfew.labelling.pictures import EXACT, SIDES, Pictures
from clfew.labelling.server import Refused

SECRETS = (b"Secret", b"Exif", b"ICC_PROFILE", b"Photoshop", b"http", b"tEXt", b"iTXt", b"iCCP", b"eXIf")


def draw(label, number, width, height):
    """Noise around a colour."""
    random = np.random.default_rng([label, number])
    pixels = random.integers(0, 60, (height, width, 3)) + 60 * label
    return Image.fromarray(pixels.astype(np.uint8))


def exif(orientation=1):
    """EXIF with a camera's name, a place and an orientation."""
    made = Image.Exif()
    made[0x010F], made[0x010E], made[0x0112] = "SecretCamera", "SecretWords", orientation
    made.get_ifd(0x8825).update(
        {1: "N", 2: (48.0, 51.0, 29.9), 3: "E", 4: (2.0, 17.0, 40.2), 29: "Secret"}
    )
    return made


def profile():
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def jpeg(image, **more):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", comment=b"SecretWords", icc_profile=profile(), **{"exif": exif()} | more)
    # A preview, as cameras write it behind the image.
    preview = io.BytesIO()
    draw(1, 1, 16, 16).save(preview, "JPEG", comment=b"SecretPreview")
    return buffer.getvalue() + preview.getvalue()


def png(image):
    buffer, words = io.BytesIO(), PngImagePlugin.PngInfo()
    words.add_text("Comment", "SecretWords")
    words.add_itxt("XML:com.adobe.xmp", "<x>http://Secret</x>", zip=False)
    image.save(buffer, "PNG", pnginfo=words, exif=exif(), icc_profile=profile())
    return buffer.getvalue()


def tiff(image):
    buffer, tags = io.BytesIO(), TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[315] = "SecretWords", "SecretArtist"
    image.save(buffer, "TIFF", tiffinfo=tags, icc_profile=profile())
    return buffer.getvalue()


def webp(image):
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, exif=exif(), icc_profile=profile(), xmp=b"http://Secret")
    return buffer.getvalue()


def gif(image):
    buffer = io.BytesIO()
    image.save(buffer, "GIF", comment=b"SecretWords")
    return buffer.getvalue()


MAKERS = {"jpg": jpeg, "png": png, "tif": tiff, "webp": webp, "gif": gif}


@pytest.fixture
def shown(tmp_path):
    """shown({"a.jpg": bytes}) opens a folder of these files; `gone` has what could not be shown."""

    def make(files):
        folder = tmp_path / "photos"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        source = open_source(str(folder))
        pictures = Pictures(source, lambda number, reason: pictures.lost.append((number, reason)))
        pictures.lost, pictures.folder, pictures.names = [], folder, source.identities
        return pictures

    return make


def opened(sent):
    return Image.open(io.BytesIO(sent[0]))


@pytest.mark.parametrize("ending", MAKERS)
@pytest.mark.parametrize("size", SIDES)
@pytest.mark.parametrize("side", [40, 400])
def test_nothing_but_the_pixels_is_sent(shown, ending, size, side):
    content = MAKERS[ending](draw(0, 0, side, side))
    assert b"Secret" in content, "else the test would show nothing"
    body, kind = shown({f"a.{ending}": content})(0, size)
    assert not [each for each in SECRETS if each in body]
    image = Image.open(io.BytesIO(body))
    assert kind == f"image/{image.format.lower()}"
    left = {
        key for key in image.info if key not in ("jfif", "jfif_version", "jfif_unit", "jfif_density")
    }
    assert not left and not dict(image.getexif())
    assert len(Image.open(io.BytesIO(body)).tobytes()) == 3 * image.width * image.height
    marker = b"\xff\xd9" if kind == "image/jpeg" else b"IEND\xaeB`\x82"
    assert body.endswith(marker) and body.count(b"\xff\xd8\xff") == (kind == "image/jpeg")


def test_small_images_are_sent_exactly(shown):
    images = {f"{side}.png": draw(2, side, side, side // 2 + 1) for side in (1, 16, EXACT)}
    pictures = shown({name: png(image) for name, image in images.items()})
    for number, name in enumerate(pictures.names):
        for size in SIDES:
            sent = pictures(number, size)
            assert sent[1] == "image/png"
            assert np.array_equal(np.asarray(opened(sent)), np.asarray(images[name]))


@pytest.mark.parametrize("shape", [(2000, 1000), (300, 5000), (129, 20), (1600, 1600)])
def test_large_images_are_made_smaller_and_never_larger(shown, shape):
    pictures = shown({"a.jpg": jpeg(Image.new("RGB", shape, "teal"))})
    for size, longest in SIDES.items():
        image = opened(pictures(0, size))
        scale = min(1, longest / max(shape))
        expected = [max(1, round(scale * side)) for side in shape]
        assert max(image.size) <= longest
        assert all(abs(one - other) <= 1 for one, other in zip(image.size, expected, strict=True))
        assert image.mode == "RGB"


def test_images_are_upright(shown):
    """A left half in red, turned in the file by each orientation, is sent as it is to be seen."""
    upright = Image.new("RGB", (300, 200), "blue")
    upright.paste("red", (0, 0, 150, 200))
    turn = Image.Transpose
    stored = {
        1: upright,
        3: upright.transpose(turn.ROTATE_180),
        6: upright.transpose(turn.ROTATE_90),
        8: upright.transpose(turn.ROTATE_270),
    }
    pictures = shown({f"{n}.jpg": jpeg(image, exif=exif(n), quality=95) for n, image in stored.items()})
    for number in range(len(stored)):
        for size in SIDES:
            image = opened(pictures(number, size))
            assert image.size == (300, 200), pictures.names[number]
            left, right = image.getpixel((20, 100)), image.getpixel((280, 100))
            assert left[0] > 200 > 60 > left[2] and right[2] > 200 > 60 > right[0]


def test_transparency_is_on_white_and_grey_is_rgb(shown):
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    pictures = shown({"a.png": png(clear), "b.png": png(Image.new("L", (20, 20), 7))})
    assert opened(pictures(0, "large")).getpixel((3, 3)) == (255, 255, 255)
    assert opened(pictures(1, "large")).getpixel((3, 3)) == (7, 7, 7)


def test_a_file_that_is_gone_or_damaged_is_refused_and_reported(shown):
    whole = png(draw(0, 0, 64, 64))
    pictures = shown({"a.png": whole, "b.png": whole, "c.png": whole, "d.png": whole})
    (pictures.folder / "a.png").unlink()
    (pictures.folder / "b.png").write_bytes(whole[: len(whole) // 2])
    (pictures.folder / "c.png").write_bytes(b"<svg onload=alert(1)>")
    for number in range(3):
        with pytest.raises(Refused) as refused:
            pictures(number, "large")
        assert refused.value.status == 410 and "cannot be shown" in refused.value.sentence
        assert pictures.lost[-1][0] == number and pictures.lost[-1][1]
    assert pictures(3, "large")[1] == "image/png" and len(pictures.lost) == 3


@pytest.mark.parametrize("number", [-1, 2, 10**9 - 1])
def test_a_number_out_of_range_is_no_image(shown, number):
    pictures = shown({"a.png": png(draw(0, 0, 8, 8)), "b.png": png(draw(0, 1, 8, 8))})
    with pytest.raises(Refused) as refused:
        pictures(number, "small")
    assert refused.value.status == 404 and not pictures.lost


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(shown, monkeypatch):
    files = {f"{i}.png": png(draw(0, i, 100, 100)) for i in range(6)}
    pictures = shown(files)
    one = len(pictures(0, "large")[0])
    monkeypatch.setattr(module, "MOST_BYTES", int(3.5 * one))
    for number in (1, 2, 0, 3):
        pictures(number, "large")
    assert [number for number, _ in pictures._kept] == [2, 0, 3]
    for number in range(6):
        pictures(number, "small")
        held = sum(len(content) for content, _ in pictures._kept.values())
        assert pictures._bytes == held <= module.MOST_BYTES
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    pictures(0, "large")
    assert len(pictures._kept) == 1, "the last one is kept, however large"


def test_an_image_is_decoded_once(shown, monkeypatch):
    pictures, decoded, decode = shown({"a.png": png(draw(0, 0, 64, 64))}), [], module.decode
    monkeypatch.setattr(module, "decode", lambda *each: decoded.append(1) or decode(*each))
    assert pictures(0, "large") == pictures(0, "large") and len(decoded) == 1
    pictures(0, "small")
    assert len(decoded) == 2


def test_many_threads_get_the_same_bytes(shown, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 30_000)
    pictures = shown({f"{i}.png": png(draw(0, i, 60, 60)) for i in range(5)})
    expected, wrong = {i: pictures(i, "large") for i in range(5)}, []

    def look(seed):
        for number in np.random.default_rng(seed).integers(0, 5, 60).tolist():
            if pictures(number, "large") != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert not wrong and pictures._bytes == sum(len(c) for c, _ in pictures._kept.values())
