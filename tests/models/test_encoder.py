import pytest
import torch
from torch import nn

from clfew.errors import UserError
from clfew.models import backbones
from clfew.models.backbones import register_encoder
from clfew.models.encoder import Encoder

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]

# A network of each family, the image size it is tested at, and its number of features.
NETWORKS = {
    "resnet18": (32, 512),
    "resnet50": (64, 2048),
    "mobilenet_v2": (32, 1280),
    "mobilenet_v3_small": (32, 576),
    "efficientnet_b0": (32, 1280),
    "convnext_tiny": (64, 768),
    "densenet121": (64, 1024),
    "vgg11": (64, 512 * 7 * 7),
    "alexnet": (64, 256 * 6 * 6),
    "squeezenet1_0": (64, 512),
    "vit_b_16": (64, 768),
    "swin_t": (64, 768),
    "maxvit_t": (224, 512),
    "googlenet": (64, 1024),
    "inception_v3": (96, 2048),
    "shufflenet_v2_x0_5": (32, 1024),
    "mnasnet0_5": (32, 1280),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision_networks_give_features_instead_of_classes(name):
    size, dim = NETWORKS[name]
    # On the meta device shapes and layers exist without memory or arithmetic.
    with torch.device("meta"):
        encoder = Encoder(name, size, MEAN, STD)
        features = encoder.eval()(torch.zeros(2, 3, size, size))
    assert encoder.dim == dim
    assert features.shape == (2, dim)
    outputs = [m.out_features for m in encoder.modules() if isinstance(m, nn.Linear)]
    channels = [m.out_channels for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert 1000 not in outputs + channels


@pytest.mark.parametrize(
    ("name", "size", "dim"), [("regnet_y_400mf", 32, 440), ("squeezenet1_1", 40, 512)]
)
def test_torchvision_networks_compute_and_have_gradients(name, size, dim):
    torch.manual_seed(0)
    encoder = Encoder(name, size, MEAN, STD)
    features = encoder(torch.rand(3, 3, size, size))
    assert features.shape == (3, dim) and features.isfinite().all()
    features.square().mean().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, parameter_name


def test_building_an_encoder_leaves_it_in_training_mode_with_untouched_statistics():
    encoder = Encoder("resnet8-w8", 16, MEAN, STD)
    assert all(module.training for module in encoder.modules())
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.num_batches_tracked == 0 for m in norms)


def test_small_images_get_a_stem_that_keeps_their_size():
    backbone = Encoder("resnet18", 32, MEAN, STD).backbone
    assert (backbone.conv1.kernel_size, backbone.conv1.stride) == ((3, 3), (1, 1))
    assert backbone.conv1.bias is None
    assert isinstance(backbone.maxpool, nn.Identity)
    seen = []
    backbone.layer1.register_forward_hook(lambda *args: seen.append(args[2].shape))
    backbone(torch.zeros(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32)]


@pytest.mark.parametrize(("size", "is_small"), [(64, True), (65, False), (96, False)])
def test_larger_images_keep_the_stem_of_the_network(size, is_small):
    with torch.device("meta"):
        backbone = Encoder("resnet18", size, MEAN, STD).backbone
    assert backbone.conv1.kernel_size == ((3, 3) if is_small else (7, 7))
    assert backbone.conv1.stride == ((1, 1) if is_small else (2, 2))
    assert isinstance(backbone.maxpool, nn.Identity if is_small else nn.MaxPool2d)


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_0"])
def test_the_first_pooling_is_removed_in_every_family_that_has_one(name):
    with torch.device("meta"):
        small, large = Encoder(name, 64, MEAN, STD), Encoder(name, 96, MEAN, STD)
    assert sum(isinstance(m, nn.MaxPool2d) for m in large.modules()) == 1 + sum(
        isinstance(m, nn.MaxPool2d) for m in small.modules()
    )


@pytest.mark.parametrize("name", ["vgg11", "convnext_tiny", "vit_b_16"])
def test_stems_without_a_strided_convolution_or_of_patches_stay(name):
    def shapes(network):
        return [(m.kernel_size, m.stride) for m in network.modules() if isinstance(m, nn.Conv2d)]

    with torch.device("meta"):
        assert shapes(Encoder(name, 64, MEAN, STD)) == shapes(Encoder(name, 96, MEAN, STD))


def test_images_are_normalised_before_the_backbone():
    encoder = Encoder("resnet8-w8", 16, MEAN, STD).eval()
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.rand(2, 3, 16, 16)
    encoder(images)
    for channel in range(3):
        expected = (images[:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(seen[0][:, channel], expected)
    # An artifact has mean and std in its metadata, not among its weights.
    assert not {"mean", "std"} & set(encoder.state_dict())


@pytest.mark.parametrize(
    ("name", "suggestion"), [("resnet19", "resnet18"), ("efficentnet_b0", "efficientnet_b0")]
)
def test_an_unknown_name_suggests_one_that_is_known(name, suggestion):
    with pytest.raises(UserError, match=f"no encoder named '{name}'") as error:
        Encoder(name, 32, MEAN, STD)
    assert suggestion in error.value.hint


@pytest.mark.parametrize("name", ["", "zzzz", "fasterrcnn_resnet50_fpn", "resnet7-w32", "resnet8-w0"])
def test_names_of_other_things_are_no_encoders(name):
    with pytest.raises(UserError):
        Encoder(name, 32, MEAN, STD)


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 40), ("maxvit_t", 64), ("inception_v3", 32)])
def test_a_size_that_a_network_cannot_take_is_a_user_error(name, size):
    with torch.device("meta"), pytest.raises(UserError) as error:
        Encoder(name, size, MEAN, STD)
    assert name in error.value.message and "--size" in error.value.hint


@pytest.mark.parametrize(("depth", "width"), [(8, 8), (14, 8), (20, 16)])
def test_small_resnets_have_the_depth_and_width_of_their_name(depth, width):
    encoder = Encoder(f"resnet{depth}-w{width}", 32, MEAN, STD)
    assert encoder.dim == 4 * width
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    # The depth in the name counts the classifier, which the encoder does not have.
    assert len(convolutions) == depth - 1
    assert convolutions[0].out_channels == width
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 4 * width)


@pytest.mark.parametrize("size", [8, 16, 24, 28, 32, 48, 49, 64, 96, 97, 128, 192, 224])
def test_small_resnets_bring_images_to_12_to_24_pixels_before_their_stages(size):
    with torch.device("meta"):
        backbone = Encoder("resnet8-w8", size, MEAN, STD).backbone
        first_block = next(i for i, m in enumerate(backbone) if hasattr(m, "conv2"))
        side = backbone[:first_block](torch.zeros(1, 3, size, size)).shape[-1]
    assert min(size, 12) <= side <= 24


@pytest.mark.parametrize(
    "name", ["resnet8-w4", "resnet8-w12", "resnet9-w8", "resnet2-w8", "resnet8-w1024"]
)
def test_impossible_small_resnets_are_refused_with_a_list_of_possible_ones(name):
    # Widths below 8 end in a segmentation fault: oneDNN's backward pass of a strided 1×1 convolution
    # in channels-last writes beyond its memory on AVX2 (torch 2.15).
    with pytest.raises(UserError, match=f"no encoder named '{name}'") as error:
        Encoder(name, 16, MEAN, STD)
    assert "resnetD-wW" in error.value.hint


def test_a_registered_network_is_an_encoder_by_its_name(monkeypatch):
    monkeypatch.setattr(backbones, "_REGISTERED", {})
    register_encoder("mine", lambda size: nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 5)))
    encoder = Encoder("mine", 8, MEAN, STD)
    assert encoder.dim == 5 and encoder(torch.rand(2, 3, 8, 8)).shape == (2, 5)
