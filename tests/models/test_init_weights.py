"""--init: weights on the machine, weights that must be fetched, and its errors offline."""

import hashlib
import urllib.error
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torchvision

from clfew.errors import UserError
from clfew.methods.simclr import projector
from clfew.models import init_weights as init_weights_module
from clfew.models import pretrained, timm_backbones
from clfew.models.artifacts import save_encoder
from clfew.models.encoder import Encoder
from clfew.models.init_weights import find_init_weights, load_init_weights
from clfew.models.metadata import ArtifactMetadata

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """A machine without weights of torchvision, of a hub or of the package, and without a network."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(pretrained, "lite0_file", lambda: None)
    original = pretrained._torchvision_weights

    def weights_of(name):
        weights = original(name)
        if weights not in urls:
            return weights
        return SimpleNamespace(url=urls[weights], transforms=weights.transforms, meta=weights.meta)

    urls.clear()
    monkeypatch.setattr(pretrained, "_torchvision_weights", weights_of)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


urls = {}
"""The addresses of weights that a test has put in torchvision's folder, instead of the real ones."""


def put_torchvision(tmp_path, name="resnet18"):
    """Writes the file that torchvision would have fetched."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    network = torchvision.models.get_model(name)
    torch.save(network.state_dict(), folder / "new")
    # The name ends in the digest of what torchvision publishes, so here in that of this file.
    digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
    (folder / "new").rename(folder / f"{name}-{digest}.pth")
    urls[weights] = f"https://download.pytorch.org/models/{name}-{digest}.pth"
    return network


def test_scratch_has_no_init_weights():
    assert find_init_weights("scratch", "auto", CPU) == (None, "as asked for")


def test_auto_starts_from_scratch_on_a_bare_machine_and_suggests_better_weights():
    found, why = find_init_weights("auto", "auto", CPU)
    assert found is None and "clfew[lite]" in why and "--init imagenet" in why
    assert "no pretrained weights of resnet8-w32" in find_init_weights("auto", "resnet8-w32", CPU)[1]
    assert "--init imagenet" in find_init_weights("auto", "resnet18", CPU)[1]


def test_auto_takes_what_torchvision_fetched_before(tmp_path):
    network = put_torchvision(tmp_path)
    for encoder in ("auto", "resnet18"):
        found, why = find_init_weights("auto", encoder, CPU)
        assert found.encoder == "torchvision:resnet18" and "on this machine" in why
    encoder = Encoder(found.encoder, 96, found.expected.mean, found.expected.std)
    load_init_weights(found, encoder)
    assert torch.equal(encoder.backbone.layer1[0].conv1.weight, network.layer1[0].conv1.weight)
    # It keeps its stem at a size at which an encoder from scratch would get another.
    small = Encoder(found.encoder, 32, found.expected.mean, found.expected.std)
    load_init_weights(found, small)
    assert small.backbone.conv1.kernel_size == (7, 7)


def test_auto_takes_the_larger_of_two_networks_on_a_gpu(tmp_path):
    put_torchvision(tmp_path)
    put_torchvision(tmp_path, "resnet50")
    assert find_init_weights("auto", "auto", GPU)[0].encoder == "torchvision:resnet50"
    assert find_init_weights("auto", "auto", CPU)[0].encoder == "torchvision:resnet18"


def test_auto_never_fetches(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("auto fetched something")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", fail)
    for encoder in ("auto", "resnet18", "timm:resnet18"):
        assert find_init_weights("auto", encoder, CPU)[0] is None


@pytest.mark.parametrize(
    "encoder", ["auto", "resnet18", "timm:resnet18", "timm:vit_small_patch14_dinov2"]
)
def test_imagenet_offline_is_one_sentence_and_a_hint(encoder):
    pytest.importorskip("timm", reason="needs pip install 'clfew[timm]', as the extra test does")
    found, _ = find_init_weights("imagenet", encoder, CPU)
    size = found.expected.size if found.expected.fixed else 96
    network = Encoder(found.encoder, size, found.expected.mean, found.expected.std)
    with pytest.raises(UserError, match="cannot be fetched") as error:
        load_init_weights(found, network)
    assert "--init FILE" in error.value.hint and "--init scratch" in error.value.hint


def test_a_damaged_cached_file_is_one_sentence(tmp_path):
    put_torchvision(tmp_path)
    path = next((tmp_path / "hub" / "checkpoints").iterdir())
    path.write_bytes(path.read_bytes()[:1000])
    found, _ = find_init_weights("auto", "resnet18", CPU)
    with pytest.raises(UserError):
        load_init_weights(found, Encoder(found.encoder, 96, [0.5] * 3, [0.5] * 3))


def test_a_cached_file_that_is_not_the_published_one_is_not_read(tmp_path, monkeypatch):
    """--init auto takes such files unasked, and a pickle can run anything."""
    put_torchvision(tmp_path)
    path = next((tmp_path / "hub" / "checkpoints").iterdir())
    path.write_bytes(path.read_bytes() + b" ")
    monkeypatch.setattr(pretrained, "read_state", None)  # Calling it would fail.
    found, _ = find_init_weights("auto", "resnet18", CPU)
    with pytest.raises(UserError, match="its digest differs") as error:
        load_init_weights(found, Encoder(found.encoder, 96, [0.5] * 3, [0.5] * 3))
    assert "remove it" in error.value.hint


class Harm:
    def __reduce__(self):
        return open, ("harm", "w")


def test_a_cached_file_that_runs_code_is_refused_even_with_its_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_torchvision(tmp_path)
    folder = tmp_path / "hub" / "checkpoints"
    next(folder.iterdir()).unlink()
    torch.save({"conv1.weight": Harm()}, folder / "new")
    digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
    (folder / "new").rename(folder / f"resnet18-{digest}.pth")
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    urls[weights] = f"https://download.pytorch.org/models/resnet18-{digest}.pth"
    found, _ = find_init_weights("auto", "resnet18", CPU)
    with pytest.raises(UserError):
        load_init_weights(found, Encoder(found.encoder, 96, [0.5] * 3, [0.5] * 3))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_the_normalisation_is_that_of_the_weights(name):
    """googlenet and inception_v3 are built without the layer that would turn ImageNet's into theirs."""
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    wanted = (
        ([0.5] * 3,) * 2 if name in ("googlenet", "inception_v3") else (transforms.mean, transforms.std)
    )
    expected = pretrained.expected(f"torchvision:{name}")
    assert (expected.mean, expected.std) == tuple(map(list, wanted))


def test_efficientnet_v2_l_is_given_what_it_was_trained_with():
    assert pretrained.expected("efficientnet_v2_l").mean == [0.5] * 3


def test_small_resnets_have_no_imagenet_weights():
    with pytest.raises(UserError, match="no ImageNet weights for resnet8-w32"):
        find_init_weights("imagenet", "resnet8-w32", CPU)


def test_without_timm_the_hint_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert not timm_backbones.is_installed()
    with pytest.raises(UserError) as error:
        find_init_weights("imagenet", "timm:resnet18", CPU)
    assert "clfew[timm]" in error.value.hint
    assert find_init_weights("auto", "auto", CPU)[0] is None


@torch.no_grad()
def test_timms_weights_come_from_its_hubs_cache(tmp_path):
    timm = pytest.importorskip("timm", reason="needs pip install 'clfew[timm]', as the extra test does")
    torch.manual_seed(1)
    network = timm.create_model("test_vit", pretrained=False).eval()
    settings = timm.models.get_pretrained_cfg("test_vit")
    repository = tmp_path / "hf" / ("models--" + settings.hf_hub_id.replace("/", "--"))
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    safetensors.torch.save_file(network.state_dict(), snapshot / "model.safetensors")
    found, why = find_init_weights("auto", "timm:test_vit", CPU)
    assert found is not None and "on this machine" in why
    # The network's own size and normalisation.
    expected = found.expected
    assert (expected.size, expected.fixed) == (settings.input_size[-1], True)
    assert expected.mean == pytest.approx(settings.mean) and expected.std == pytest.approx(settings.std)
    encoder = Encoder(found.encoder, expected.size, expected.mean, expected.std).eval()
    load_init_weights(found, encoder)
    images = torch.rand(2, 3, expected.size, expected.size)
    features = network.forward_head(
        network.forward_features((images - encoder.mean) / encoder.std), pre_logits=True
    )
    torch.testing.assert_close(encoder(images), features)


def test_dinov2s_size_and_normalisation_are_respected():
    pytest.importorskip("timm", reason="needs pip install 'clfew[timm]', as the extra test does")
    expected = find_init_weights("imagenet", "timm:vit_small_patch14_dinov2", CPU)[0].expected
    assert (expected.size, expected.fixed) == (518, True)
    assert expected.mean == pytest.approx([0.485, 0.456, 0.406])


def test_unknown_timm_names_get_a_suggestion():
    pytest.importorskip("timm", reason="needs pip install 'clfew[timm]', as the extra test does")
    with pytest.raises(UserError) as error:
        find_init_weights("imagenet", "timm:resnt18", CPU)
    assert "timm:resnet18" in error.value.hint
    for name in ("timm:hf-hub:somebody/model", "timm:local-dir:/tmp"):
        with pytest.raises(UserError, match="no network named"):
            find_init_weights("imagenet", name, CPU)


@pytest.fixture
def own(tmp_path):
    run = tmp_path / "pretrain-1"
    run.mkdir()
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.2] * 3)
    metadata = ArtifactMetadata(
        "encoder", "resnet8-w8", 16, 16, [0.5] * 3, [0.2] * 3, 32, "simclr", True, "0.1.0", 64
    )
    save_encoder(
        run / "encoder.safetensors", encoder, projector(32, 64, 128), metadata, torch.arange(3).numpy()
    )
    return run, encoder


def test_training_can_start_from_a_run_or_an_artifact_of_clfew(own):
    run, encoder = own
    for named in (run, run / "encoder.safetensors"):
        found, _ = find_init_weights(str(named), "auto", CPU)
        assert (found.encoder, found.expected.size, found.expected.fixed) == ("resnet8-w8", 16, True)
        again = Encoder("resnet8-w8", 16, [0.5] * 3, [0.2] * 3)
        load_init_weights(found, again)
        assert all(torch.equal(again.state_dict()[k], v) for k, v in encoder.state_dict().items())
    with pytest.raises(UserError, match="is an encoder resnet8-w8, not resnet18"):
        find_init_weights(str(run), "resnet18", CPU)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no encoder"):
        find_init_weights(str(tmp_path), "auto", CPU)
    with pytest.raises(UserError, match="There is no run or file"):
        find_init_weights("imagnet", "auto", CPU)
    assert init_weights_module.IMAGENET == "imagenet"
