"""Read a classifier without clfew, with only safetensors, torch and torchvision.

    clfew pretrain ./unlabeled --encoder resnet18 --size 96 --init scratch
    clfew finetune --labels 1% --mode linear
    python examples/read_artifact.py runs/finetune-1/classifier.safetensors image.jpg

Prints the most useful fields of the file's metadata and classifies the image. For an input of more than
64 pixels the network is torchvision's own; up to 64 pixels its first layer is a 3×3 convolution and the
max-pooling after it is left out.
"""

import json
import sys

import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from torchvision.transforms.v2 import functional as F


def main(artifact: str, image_file: str) -> None:
    with safe_open(artifact, framework="pt") as file:
        metadata = json.loads(file.metadata()["clfew"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for field in ("kind", "encoder", "size", "side", "mean", "std", "mode", "classes"):
        print(f"{field:<8} {metadata[field]}")

    # An encoder named torchvision:… keeps torchvision's first layers at any size.
    name = metadata["encoder"].removeprefix("torchvision:")
    network = torchvision.models.get_model(name)
    network.fc = torch.nn.Identity()
    if metadata["size"] <= 64 and name == metadata["encoder"]:
        network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    prefix = "classifier.encoder.backbone."
    weights = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
    network.load_state_dict(weights)
    network.eval()

    # clfew caches an image squeezed to a square of `side` pixels and resizes it to `size` with
    # antialiasing. (It also cuts off the ends of images that are longer than 4:3.)
    image = (
        Image.open(image_file).convert("RGB").resize((metadata["side"],) * 2, Image.Resampling.BICUBIC)
    )
    pixels = F.to_dtype(F.to_image(image), torch.float32, scale=True)
    pixels = F.resize(pixels, [metadata["size"]] * 2, antialias=True)
    pixels = F.normalize(pixels, metadata["mean"], metadata["std"])
    with torch.no_grad():
        features = network(pixels[None])
        if metadata["adapter"]:
            layer = "classifier.encoder.adapter"
            features = features @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
        if "classifier.head.centre" in tensors:  # This head takes centred features of length 1.
            features = torch.nn.functional.normalize(features - tensors["classifier.head.centre"])
        logits = features @ tensors["classifier.head.weight"].T + tensors["classifier.head.bias"]
        logits /= metadata["temperature"]
    for name, probability in zip(metadata["classes"], logits.softmax(1)[0].tolist(), strict=True):
        print(f"{probability:6.1%}  {name}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
