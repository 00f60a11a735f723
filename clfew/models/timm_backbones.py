"""Builds timm's networks (`timm:NAME`); the extra clfew[timm] installs timm."""

from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from clfew.errors import UserError

PREFIX = "timm:"


def import_timm() -> Any:
    """Returns the module timm. Raises UserError if it is not installed."""
    try:
        # This may run inside a meta device context, in which torch 2.6 cannot import its own parts.
        with torch.device("cpu"):
            import timm
    except ImportError:
        raise UserError(
            "Encoders named timm:… need the package timm.", "install it: pip install 'clfew[timm]'"
        ) from None
    return timm


def is_installed() -> bool:
    try:
        import_timm()
    except UserError:
        return False
    return True


def pretrained_settings(name: str) -> Any:
    """Returns timm's settings of a network's pretrained weights: mean, std, input_size,
    fixed_input_size, hf_hub_id and the like. Raises UserError for a name that timm does not know."""
    timm = import_timm()
    bare = name.removeprefix(PREFIX)
    # timm would read names with a colon from a hub or a disk, which building a network must not do.
    if ":" in bare or not timm.is_model(bare):
        known = timm.list_models()
        close = get_close_matches(bare.split(".")[0], known, n=3)
        raise UserError(
            f"timm has no network named '{bare}'.",
            f"did you mean {' or '.join(PREFIX + c for c in close)}?"
            if close
            else f"known names are, for example, {PREFIX}resnet18 and {PREFIX}vit_small_patch14_dinov2.",
        )
    settings = timm.models.get_pretrained_cfg(bare, allow_unregistered=True)
    if settings is None:
        tags = timm.list_pretrained(f"{bare.split('.')[0]}.*")
        raise UserError(
            f"timm has no weights named '{bare}'.",
            f"it has {', '.join(PREFIX + tag for tag in tags[:3])}." if tags else "leave out the tag.",
        )
    return settings


def build(name: str, size: int) -> nn.Module:
    """Builds a network without its classifier and with random weights, for images of `size` pixels.

    Raises UserError if timm does not know it or it cannot take that size."""
    settings = pretrained_settings(name)
    # A network of patches has one embedding for each position in the image, so its size is fixed.
    fixed = {"img_size": size} if settings.fixed_input_size else {}
    try:
        return import_timm().create_model(
            name.removeprefix(PREFIX), pretrained=False, num_classes=0, **fixed
        )
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} cannot be built for images of {size} pixels: {reason}.",
            f"its own size is {settings.input_size[-1]}: --size {settings.input_size[-1]}",
        ) from None
