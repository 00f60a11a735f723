import errno
import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from clfew.data import cache_arrays, cache_building, image_cache, workers
from clfew.data.cache_arrays import RowReader
from clfew.data.cache_listing import clear_image_caches, list_image_caches
from clfew.data.decode import load_square
from clfew.data.image_cache import open_image_cache, typical_side
from clfew.data.sources import open_source
from clfew.data.workers import content_digest
from clfew.errors import UserError


@pytest.fixture
def folder(image_folder):
    return image_folder({"cat": 3, "dog": 3})


def leftovers(cache):
    return [path.name for path in cache.iterdir() if not (path / "store.json").exists()]


def forbid_decoding(monkeypatch):
    def fail(content, side, *rest):
        raise AssertionError("decoded again")

    monkeypatch.setattr(workers, "load_square", fail)


def test_pixels_aspects_and_digests_are_those_of_each_file(folder, put):
    put(folder / "cat" / "wide.png", width=30, height=20)
    source = open_source(str(folder))
    opened = open_image_cache(source, 12)
    assert opened.pixels.shape == (7, 12, 12, 3) and opened.side == 12
    assert opened.good.tolist() == list(range(7)) and opened.bad == []
    for i, name in enumerate(source.identities):
        content = (folder / name).read_bytes()
        pixels, aspect = load_square(content, 12)
        assert np.array_equal(opened.pixels[i], pixels)
        assert opened.aspects[i] == pytest.approx(aspect)
        assert opened.digests[i] == content_digest(content)
    assert opened.aspects.max() == pytest.approx(1.5)


def test_opening_again_does_not_decode(folder, monkeypatch):
    first = open_image_cache(open_source(str(folder)), 12)
    forbid_decoding(monkeypatch)
    again = open_image_cache(open_source(str(folder)), 12)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.digests, again.digests)
    with pytest.raises(AssertionError, match="decoded again"):
        open_image_cache(open_source(str(folder)), 13)


def test_a_changed_folder_gets_a_new_image_cache(folder, put):
    before = open_image_cache(open_source(str(folder)), 12)
    put(folder / "cat" / "000.png", label=4, width=17)
    after = open_image_cache(open_source(str(folder)), 12)
    assert not np.array_equal(before.pixels[0], after.pixels[0])
    assert np.array_equal(before.pixels[1:], after.pixels[1:])


def test_bad_images_are_listed_with_a_reason_and_left_out(folder):
    (folder / "cat" / "001.png").write_bytes(b"<html>")
    (folder / "dog" / "000.png").write_bytes(b"")
    source = open_source(str(folder))
    for _ in range(2):  # Built, then read back.
        opened = open_image_cache(source, 12)
        assert opened.good.tolist() == [0, 2, 4, 5]
        assert [name for name, _ in opened.bad] == ["cat/001.png", "dog/000.png"]
        assert ["not an image" in opened.bad[0][1], opened.bad[1][1]] == [True, "empty file"]


def test_more_than_half_bad_is_a_user_error_that_leaves_nothing(folder, cache):
    for name in ("cat/000", "cat/001", "cat/002"):
        (folder / f"{name}.png").write_bytes(b"broken")
    assert len(open_image_cache(open_source(str(folder)), 12).bad) == 3
    (folder / "dog" / "000.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"4 of 6 images .* cat/000.png: not an image"):
        open_image_cache(open_source(str(folder)), 12)
    assert len(list(cache.iterdir())) == 1 and leftovers(cache) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_build_that_fails_leaves_nothing_behind(folder, cache, error):
    def fail(done, total, *rest):
        if done == total:
            raise error

    with pytest.raises(error):
        open_image_cache(open_source(str(folder)), 12, fail)
    assert list(cache.iterdir()) == []
    assert len(open_image_cache(open_source(str(folder)), 12).good) == 6


def test_too_little_space_is_a_user_error_before_anything_is_decoded(folder, cache, monkeypatch):
    forbid_decoding(monkeypatch)
    usage = type(cache_building.shutil.disk_usage("/"))(100, 90, 10)
    monkeypatch.setattr(cache_building.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="2,592 bytes") as error:
        open_image_cache(open_source(str(folder)), 12)
    assert "CLFEW_CACHE" in error.value.hint
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate on this system")
def test_a_disk_that_others_filled_is_a_user_error_that_leaves_nothing(folder, cache, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left"):
        open_image_cache(open_source(str(folder)), 12)
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_made_is_a_user_error(folder, cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("CLFEW_CACHE", str(cache / "file" / "below"))
    with pytest.raises(UserError, match="cannot be saved"):
        open_image_cache(open_source(str(folder)), 12)


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_folders_of_killed_builds_are_removed_and_those_of_running_ones_kept(folder, cache):
    host = socket.gethostname()
    dead = cache / f".{host}-{dead_process()}-abc"
    alive = cache / f".{host}-{os.getpid()}-abc"
    other_machine = cache / f".not-{host}-{dead_process()}-abc"
    # A disk may be shared with a machine whose name begins with this one's.
    second = cache / f".{host}-2-{dead_process()}-abc"
    for path in (dead, alive, other_machine, second):
        path.mkdir()
        (path / "pixels.safetensors").write_bytes(bytes(10))
    open_image_cache(open_source(str(folder)), 12)
    assert not dead.exists() and alive.exists() and other_machine.exists()
    assert second.exists()


def test_two_builders_at_once_both_get_the_image_cache(folder, cache, tmp_path):
    # Each decodes its images and then waits for the other to do so, so that both rename.
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from clfew.data import cache_arrays, cache_building, image_cache, workers
        from clfew.data.sources import open_source

        folder, meeting, me, other = sys.argv[1:]

        def progress(done, total):
            if done == total:
                Path(meeting, me).touch()
                end = time.monotonic() + 60
                while not Path(meeting, other).exists():
                    assert time.monotonic() < end, "the other did not finish decoding"
                    time.sleep(0.01)

        opened = image_cache.open_image_cache(open_source(folder), 12, progress)
        print(len(opened.good), int(opened.pixels.astype("int64").sum()))
    """)
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(tmp_path), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for names in (("a", "b"), ("b", "a"))
    ]
    results = [builder.communicate(timeout=90) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], results
    expected = int(open_image_cache(open_source(str(folder)), 12).pixels.astype("int64").sum())
    assert [out.split() for out, _ in results] == [["6", str(expected)]] * 2
    assert len(list(cache.iterdir())) == 1


def test_a_damaged_image_cache_is_a_user_error_and_clearing_removes_it(folder, cache):
    source = open_source(str(folder))
    open_image_cache(source, 12)
    pixels = next(cache.glob("*/pixels.safetensors"))
    pixels.write_bytes(pixels.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged") as error:
        open_image_cache(source, 12)
    assert "clfew cache --clear" in error.value.hint
    clear_image_caches()
    assert len(open_image_cache(source, 12).good) == 6


@pytest.mark.parametrize("content", ["{", "{}", None])
def test_clearing_removes_an_image_cache_without_readable_metadata(folder, cache, content):
    source = open_source(str(folder))
    open_image_cache(source, 12)
    metadata = next(cache.glob("*/store.json"))
    metadata.unlink()  # As a clearing that was killed leaves it.
    if content is not None:
        metadata.write_text(content)
    clear_image_caches()
    assert len(open_image_cache(source, 12).good) == 6


def test_folders_that_cannot_be_removed_are_returned(folder, cache, monkeypatch):
    open_image_cache(open_source(str(folder)), 12)
    monkeypatch.setattr("shutil.rmtree", lambda *arguments, **options: None)
    (left,) = clear_image_caches()
    assert left.parent == cache


def test_image_caches_are_listed_and_cleared(folder, cache):
    assert list_image_caches() == []
    for side in (12, 14):
        open_image_cache(open_source(str(folder)), side)
    (cache / ".other-1-x").mkdir()
    listed = list_image_caches()
    assert {(s.images, s.side, s.source) for s in listed} == {(6, n, str(folder)) for n in (12, 14)}
    assert all(s.bytes > 6 * s.side**2 * 3 for s in listed)
    clear_image_caches()
    assert list_image_caches() == [] and (cache / ".other-1-x").exists()


def test_the_typical_side_is_the_median_of_the_shorter_sides(tmp_path, put):
    for number, (width, height) in enumerate([(10, 90), (90, 20), (30, 30)]):
        put(tmp_path / "images" / f"{number}.png", width=width, height=height)
    source = open_source(str(tmp_path / "images"))
    assert typical_side(source) == 20
    (tmp_path / "images" / "0.png").write_bytes(b"broken")
    assert typical_side(source) == 25
    for number in (1, 2):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="None of the images"):
        typical_side(source)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CLFEW_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_arrays.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("CLFEW_CACHE")
    assert cache_arrays.cache_folder() == tmp_path / "b" / "clfew"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_arrays.cache_folder() == tmp_path / "c" / ".cache" / "clfew"


def test_rows_are_read_from_the_file_not_through_the_mapping(folder, monkeypatch):
    pixels = open_image_cache(open_source(str(folder)), 12).pixels
    rows = np.array([4, 0, 4, 5])
    expected = np.array(pixels[rows])
    reader = RowReader(pixels)
    monkeypatch.setattr(np.memmap, "__getitem__", None)  # Touching the mapping would fail.
    assert np.array_equal(reader(rows), expected)
    assert reader(rows[:0]).shape == (0, 12, 12, 3)
    reader.close()


def test_rows_can_still_be_read_when_the_image_cache_is_cleared_meanwhile(folder):
    pixels = open_image_cache(open_source(str(folder)), 12).pixels
    expected = np.array(pixels)
    reader = RowReader(pixels)
    clear_image_caches()
    assert not list_image_caches()
    assert np.array_equal(reader(np.arange(6)), expected)


def test_rows_missing_from_a_truncated_file_are_a_user_error(folder):
    pixels = open_image_cache(open_source(str(folder)), 12).pixels
    reader = RowReader(pixels)
    os.truncate(pixels.filename, pixels.offset + 3 * 12 * 12 * 3)
    assert reader(np.array([2])).shape == (1, 12, 12, 3)
    with pytest.raises(UserError, match="shorter") as raised:
        reader(np.array([3]))
    assert "clfew cache --clear" in raised.value.hint


def test_rows_are_read_from_the_mapping_if_the_image_cache_was_cleared_before(folder):
    pixels = open_image_cache(open_source(str(folder)), 12).pixels
    expected = np.array(pixels)
    clear_image_caches()
    assert np.array_equal(RowReader(pixels)(np.arange(6)), expected)


def test_a_filesystem_may_return_less_at_a_time_than_requested(folder, monkeypatch):
    pixels = open_image_cache(open_source(str(folder)), 12).pixels
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, into, at: whole(file, [into[0][:7]], at))
    assert np.array_equal(RowReader(pixels)(np.arange(6)), np.array(pixels))


@pytest.mark.parametrize("part", [slice(1, None), slice(None, None, 2)])
def test_rows_of_a_part_of_a_mapped_array_are_those_of_the_part(folder, part):
    pixels = open_image_cache(open_source(str(folder)), 12).pixels
    rows = np.array([2, 0])
    assert np.array_equal(RowReader(pixels[part])(rows), np.array(pixels)[part][rows])
    assert np.array_equal(RowReader(np.array(pixels))(rows), np.array(pixels)[rows])


@pytest.mark.parametrize(("flat", "is_said"), [(0, False), (1, False), (2, True), (20, True)])
def test_many_images_of_one_flat_colour_are_reported(image_folder, capsys, flat, is_said):
    folder = image_folder({"": 20})
    for number in range(flat):
        Image.new("RGB", (16, 16), (number, 9, 9)).save(folder / f"{number:03d}.png")
    image_cache.cached_images(open_source(str(folder)), 12)
    err = capsys.readouterr().err
    assert ("of one flat colour, such as 000.png" in err) == is_said
    assert (f"{flat} of 20 images" in err) == is_said
