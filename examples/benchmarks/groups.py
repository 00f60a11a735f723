"""What joins images to groups by their pixels alone, and what a split by image reports without it.

    python examples/benchmarks/groups.py DATA --pictures FOLDER [--only bursts]

DATA holds the folders sign-digits, fashion-mnist-6k, aerial and photos.

sets: how many images of each set are joined to others (none of these sets has bursts); FOLDER/SET.png
shows them. copies: the fraction of copies of 150 images a set that join with their original. bursts: 30
photographs, each as 20 frames that move a little, get worse light and noise, with labels drawn by lot
for each photograph, so that half of them are right by chance. The accuracy on the held-out fifth of a
linear classifier on pretrained features, with its 95 % interval, and what of a split by image would have
been learned from.

Results go to results/groups.json; what the file contains is not measured again.
"""

import argparse
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import Results
from PIL import Image

from clfew.data import near
from clfew.data.decode import load_square
from clfew.data.groups import groups_of
from clfew.data.held_out import split_source
from clfew.data.image_cache import open_image_cache
from clfew.data.sources import open_source
from clfew.finetuning.metrics import accuracy_interval

HERE = Path(__file__).parent / "results"
SETS = {"sign-digits": 64, "fashion-mnist-6k": 28, "aerial": 64, "photos": 64}
"""The side of the cached images."""

STEPS = (0.005, 0.01, 0.02)
"""How far a frame is from the one before, as a part of the picture's side (standard deviation)."""


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smaller(image, factor):
    return image.resize((max(8, round(image.width * factor)), max(8, round(image.height * factor))))


COPIES = {
    "JPEG at quality 60": lambda image: encoded(image, "JPEG", quality=60),
    "half the size": lambda image: encoded(smaller(image, 0.5)),
    "a third of it, JPEG at quality 60": lambda image: encoded(
        smaller(image, 1 / 3), "JPEG", quality=60
    ),
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "less contrast": lambda image: encoded(
        Image.blend(image, Image.new("RGB", image.size, "grey"), 0.2)
    ),
}


def sets(data, pictures):
    rows = {}
    for name, side in SETS.items():
        source = open_source(str(data / name))
        cache = open_image_cache(source, side)
        groups = groups_of(source, cache)
        sizes = np.bincount(groups, minlength=len(groups))
        several = np.flatnonzero(sizes > 1)
        rows[name] = {
            "images": len(source),
            "joined": int(sizes[several].sum()),
            "groups": len(several),
            "largest": int(sizes.max()),
        }
        if pictures and len(several):
            strips = [show(cache, np.flatnonzero(groups == first)) for first in several[:60]]
            Image.fromarray(np.concatenate(strips)).save(pictures / f"{name}.png")
        print(name, rows[name])
    return rows


def show(cache, members, most=8, side=64):
    """Returns the images of a group side by side."""
    shown = [Image.fromarray(cache.pixels[i]).resize((side, side)) for i in members[:most]]
    blank = [Image.new("RGB", (side, side), "white")] * (most - len(shown))
    return np.concatenate([np.asarray(image) for image in shown + blank], axis=1)


def copies(data):
    rows = {}
    for name, side in SETS.items():
        source = open_source(str(data / name))
        chosen = np.linspace(0, len(source) - 1, min(150, len(source))).astype(int)
        originals = [Image.open(io.BytesIO(source.content(int(i)))).convert("RGB") for i in chosen]
        pixels = open_image_cache(source, side).pixels
        rows[name] = {}
        for kind, copy in COPIES.items():
            others = np.stack([load_square(copy(image), side)[0] for image in originals])
            both = np.concatenate([pixels, others])
            names = [*source.identities, *(f"copies/{i}" for i in range(len(others)))]
            found = near.near_pairs(both, np.arange(len(both)), names).pairs
            expected = np.stack([chosen, len(pixels) + np.arange(len(others))], 1)
            joined = np.isin(expected @ [len(both), 1], found @ [len(both), 1])
            rows[name][kind] = round(float(joined.mean()), 3)
        print(name, rows[name])
    return rows


def burst(image, step, frames, random):
    """Returns frames (frames, 64, 64, 3) of a camera that moves over a picture."""
    width, height = image.size
    place, result = np.zeros(2), []
    for _ in range(frames):
        place = np.clip(place + random.normal(0, step, 2), -0.1, 0.1)
        left, top = (0.1 + place) * (width, height)
        box = (int(left), int(top), int(left + 0.8 * width), int(top + 0.8 * height))
        pixels = np.asarray(image.crop(box).resize((64, 64)), float)
        worse = pixels * (1 + random.normal(0, 0.03)) + random.normal(0, 4, pixels.shape)
        result.append(worse.clip(0, 255).astype(np.uint8))
    return np.stack(result)


def bursts(data, folder):
    from clfew import finetune

    rows = {}
    photos = open_source(str(data / "photos"))
    for step in STEPS:
        random = np.random.default_rng(0)
        chosen = random.permutation(len(photos))[:30]
        classes = random.permutation(["a", "b"] * 15)
        place = folder / f"bursts-{step}"
        for number, index in enumerate(chosen):
            image = Image.open(io.BytesIO(photos.content(int(index)))).convert("RGB")
            (place / classes[number]).mkdir(parents=True, exist_ok=True)
            for frame, pixels in enumerate(burst(image, step, 20, random)):
                file = place / classes[number] / f"IMG_{20 * number + frame:04}.jpg"
                Image.fromarray(pixels).save(file, quality=90)
        source = open_source(str(place))
        cache = open_image_cache(source, 64)
        groups = groups_of(source, cache)
        numbers = np.array([int(name[-8:-4]) // 20 for name in source.identities])
        rows[str(step)] = {
            "groups": len(np.unique(groups)),
            "joined wrongly": sum(len(set(numbers[groups == g])) > 1 for g in np.unique(groups)),
        }
        for rule, name in ((4, "by image"), (source.rule, "in groups")):
            split = split_source(replace(source, rule=rule), cache, 0, rule)
            leaking = np.isin(numbers[split.test], numbers[split.pool]).mean()
            rows[str(step)][f"test images of photographs learned from, {name}"] = round(
                float(leaking), 3
            )
        _, result = finetune(
            str(place), labels="all", init="imagenet", mode="linear", out=folder / f"run-{step}"
        )
        rows[str(step)]["accuracy in groups"] = result["mean"]
        rows[str(step)]["interval in groups"] = result["ci95"]
        tested = np.arange(result["test_images"]) < round(result["mean"] * result["test_images"])
        rows[str(step)]["interval, were images independent"] = list(
            accuracy_interval(tested.astype(float))
        )
        print(step, rows[str(step)])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=Path, required=True, help="folder for pictures and bursts")
    parser.add_argument("--only", choices=("sets", "copies", "bursts"))
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    results = Results(HERE / "groups.json")
    measures = {
        "sets": lambda: sets(arguments.data, arguments.pictures),
        "copies": lambda: copies(arguments.data),
        "bursts": lambda: bursts(arguments.data, arguments.pictures),
    }
    for name, measure in measures.items():
        if arguments.only in (None, name):
            results.get(name, measure)


if __name__ == "__main__":
    main()
