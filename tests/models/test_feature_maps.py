import pytest
import torch

from clfew.errors import UserError
from clfew.models.encoder import Encoder, freeze_statistics
from clfew.models.feature_maps import stage_modules


def encoder(name, size, **options):
    torch.manual_seed(0)
    return Encoder(name, size, [0.5] * 3, [0.25] * 3, **options).eval()


@pytest.mark.parametrize(
    ("name", "size", "sides"),
    [
        ("resnet8-w16", 24, [12, 6, 3]), ("resnet8-w16", 64, [32, 16, 8, 4]),
        ("resnet18", 32, [32, 16, 8, 4]), ("torchvision:resnet18", 64, [32, 16, 8, 4, 2]),
        ("mobilenet_v3_small", 96, [48, 24, 12, 6, 3]), ("split:resnet8-w8", 24, [12, 6, 3]),
    ],
)  # fmt: skip
@torch.no_grad()
def test_stages_end_where_the_resolution_changes(name, size, sides):
    network = encoder(name, size)
    maps = network.maps(torch.rand(2, 3, size, size))
    assert [m.shape[2] for m in maps] == sides
    inputs = torch.rand(2, 3, size, size)
    # The features of these networks are the mean of the last map; others have layers after it.
    if name.startswith(("resnet", "torchvision")):
        torch.testing.assert_close(
            network.maps(network.prepare(inputs))[-1].mean((2, 3)), network(inputs)
        )


def test_computing_shapes_leaves_every_layer_in_its_mode():
    network = encoder("resnet8-w16", 24).train()
    freeze_statistics(network.backbone[1])
    before = [module.training for module in network.modules()]
    assert len(set(before)) == 2 and network.map_shapes()
    assert [module.training for module in network.modules()] == before


@torch.no_grad()
def test_features_of_a_stage_are_the_mean_of_its_maps():
    network = encoder("resnet8-w16", 24)
    inputs = torch.rand(3, 3, 24, 24)
    second = network.read_at(2)
    assert second.dim == 32 and network.dim == 64
    expected = network.maps(network.prepare(inputs))[1].mean((2, 3))
    torch.testing.assert_close(second(inputs), expected)


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="has 3 stages, there is no stage 4"):
        encoder("resnet8-w16", 24).read_at(4)


def test_a_transformer_has_no_feature_maps():
    with pytest.raises(UserError, match="no feature maps"):
        encoder("vit_b_16", 32).maps(torch.zeros(2, 3, 32, 32))
    with pytest.raises(UserError, match="no feature maps"):
        stage_modules(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 8)), 8)
