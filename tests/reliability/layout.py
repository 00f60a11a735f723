"""Writes the corpus to a folder of two classes, with pipes and links, odd names, and a growing file."""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from corpus import GOOD, RGB, File, picture, png
from damaged import BAD

GROWING = "a/growing.png"
NAMES = [
    b"two\nlines.png", b"carriage\rreturn.png", b"tab\tstop.png", b"\x1b[31mred\x1b[2J.png",
    "🐈 кот 猫.png".encode(), b"latin caf\xe9.png", b"\xff\xfe.png", "\u202egnp.exe.png".encode(),
    b"<script>alert(1)<!--.png", b"it's \"quoted\", with commas.png", b"=1+1.png", b"+1.png",
    b"-rf.png", b"@SUM(A1).png", b"\t=1.png", b"'=1.png", b"%s{0}$HOME`.png", b" spaces .png",
    b"#.png", b"x" * 251 + b".png", b"UPPER.PNG", b"no-extension-but-this.jpeg",
]  # fmt: skip
"""Names of good files, in the bytes that the system stores."""


def odd_names() -> Iterator[File]:
    for number, name in enumerate(NAMES):
        pixels = picture(100 + number)
        yield File(os.fsdecode(name), png(pixels, 8, RGB), pixels)


SECRET = "b/secret.png"
NOT_ALLOWED = f"""
import os
from clfew.data import decode
def open_what_may_be(path, *mode):
    if os.fspath(path).endswith({SECRET!r}):
        raise PermissionError(13, "Permission denied")
    return open(path, *mode)
decode.open = open_what_may_be
"""
"""Makes a file unreadable, also for root, who may read every file."""


def lay_out(folder: Path) -> tuple[dict[str, File], dict[str, str]]:
    """Writes the corpus below `folder`, half of it into a/ and half into b/.

    Returns the good files by name, and a pattern for the reason of each bad file.
    """
    good: dict[str, File] = {}
    bad: dict[str, str] = {}
    for label in "ab":
        (folder / label).mkdir(parents=True)
    for number, file in enumerate([*GOOD, *odd_names(), *BAD]):
        name = f"{'ab'[number % 2]}/{file.name}"
        (folder / name).write_bytes(file.content)
        if file.pixels is None:
            bad[name] = file.reason
        else:
            good[name] = file
    pixels = picture(200)
    good["b/a folder.jpg/inside.png"] = File("inside.png", png(pixels, 8, RGB), pixels)
    good[GROWING] = File("growing.png", png(picture(201), 8, RGB), picture(201))
    (folder / "b/a folder.jpg").mkdir()
    for name in ("b/a folder.jpg/inside.png", GROWING):
        (folder / name).write_bytes(good[name].content)
    (folder / "b/empty folder.png").mkdir()
    (folder / "b/round").symlink_to("..")
    (folder / "a/link.png").symlink_to("../b/a folder.jpg/inside.png")
    good["a/link.png"] = good["b/a folder.jpg/inside.png"]
    (folder / "a/nowhere.png").symlink_to("gone.png")
    (folder / "a/itself.png").symlink_to("itself.png")
    (folder / "a/there.png").symlink_to("back.png")
    (folder / "a/back.png").symlink_to("there.png")
    os.mkfifo(folder / "a/pipe.png")
    os.mknod(folder / "b/socket.png", stat.S_IFSOCK | 0o600)
    (folder / "b/device.png").symlink_to("/dev/zero")
    (folder / SECRET).write_bytes(png(pixels, 8, RGB))
    bad["a/nowhere.png"] = "a link to a file that is not here"
    bad[SECRET] = "Permission denied"
    bad |= dict.fromkeys(("a/itself.png", "a/there.png", "a/back.png"), "symbolic links")
    bad |= dict.fromkeys(("a/pipe.png", "b/socket.png", "b/device.png"), "not a regular file")
    return good, bad


@contextlib.contextmanager
def growing(file: Path) -> Iterator[None]:
    """A context in which bytes are appended to the file again and again."""
    stop = threading.Event()

    def grow() -> None:
        with open(file, "ab", 0) as end:
            while not stop.wait(0.01):
                end.write(b"more")

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def state_of(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """Returns mode, time of change, and content or target of everything below a folder."""
    found: dict[bytes, tuple[object, ...]] = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            found[path] = (status.st_mode, status.st_mtime_ns, content)
    return found
