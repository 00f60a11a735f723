import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clfew.methods.context_prediction import CENTRE, NOISE, ContextPrediction


def test_patches_have_half_a_patch_between_them_and_move(make_method):
    objective: ContextPrediction = make_method("context-prediction", size=64)
    assert objective.pitch == 1.5 * objective.patch
    assert objective.jitter >= round(objective.patch * 7 / 96) >= 1
    assert objective.pitch - objective.patch - 2 * objective.jitter > 0  # They never touch.


def test_eight_directions_by_concatenated_features_against_a_loop(make_method, make_batch, make_images):
    objective: ContextPrediction = make_method("context-prediction").eval()
    batch = make_batch(make_images(4)[0])
    inputs = []
    objective.encoder.backbone.register_forward_hook(lambda m, args, out: inputs.append(args[0]))
    loss, extras = objective.loss(batch)
    total, found = 0.0, 0
    with torch.no_grad():
        for image in inputs[0].view(4, 9, *inputs[0].shape[1:]):
            features = objective.encoder.backbone(image).flatten(1)
            around = [0, 1, 2, 3, 5, 6, 7, 8]
            for direction, patch in enumerate(around):
                pair = torch.cat([features[CENTRE], features[patch]])[None]
                logits = objective.head(pair)
                total += F.cross_entropy(logits.double(), torch.tensor([direction])).item()
                found += int(logits.argmax() == direction)
    assert loss.item() == pytest.approx(total / 32, rel=1e-4)
    assert extras["found"].item() == pytest.approx(found / 32, abs=1e-6)


def test_one_channel_stays_and_noise_is_in_place_of_the_others(make_method):
    """Colour fringes, which grow towards the edge of a photograph, would show where a patch is."""
    objective: ContextPrediction = make_method("context-prediction")
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(300, 3, 12, 12, generator=generator)
    noise = torch.randn(300, 3, 12, 12, generator=generator)
    random_N = torch.rand(300, generator=generator)
    result = objective.one_colour(patches, random_N, noise)
    size = result.square().mean((2, 3)).sqrt()
    kept = size.argmax(1)
    torch.testing.assert_close(size.amax(1), torch.ones(300), rtol=2e-3, atol=0)  # Unit RMS.
    assert size.sort(1).values[:, :2].max() < 3 * NOISE
    assert torch.bincount(kept, minlength=3).min() > 70
    channel = result[torch.arange(300), kept]
    assert channel.mean((1, 2)).abs().max() < 1e-5
    original = patches[torch.arange(300), kept]
    centred = original - original.mean((1, 2), keepdim=True)
    expected = centred / centred.square().mean((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(channel, expected, rtol=2e-3, atol=1e-3)


def test_brightness_and_contrast_of_a_patch_do_not_matter(make_method):
    objective: ContextPrediction = make_method("context-prediction")
    patches = torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    random_N, noise = torch.linspace(0, 0.99, 20), torch.zeros(20, 3, 12, 12)
    plain = objective.one_colour(patches, random_N, noise)
    torch.testing.assert_close(
        objective.one_colour(0.5 * patches + 0.3, random_N, noise), plain, rtol=0, atol=5e-3
    )


def test_some_patches_lose_detail(make_method, make_batch):
    objective: ContextPrediction = make_method("context-prediction", size=64)
    board = (np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8)
    images = np.broadcast_to(board[None, :, :, None], (40, 96, 96, 3)).copy()
    sharp = torch.rand(
        40, 9, 3, objective.patch, objective.patch, generator=torch.Generator().manual_seed(0)
    )
    fractions = []
    for epoch in range(6):
        coarse = objective._coarse(sharp, make_batch(images, epoch=epoch))
        changed = (coarse - sharp).abs().amax((2, 3, 4)) > 1e-3
        fractions.append(changed.float().mean().item())
        if changed.any():  # In some steps the smaller size equals the patch's own.
            assert coarse.flatten(2).std(2)[changed].mean() < sharp.flatten(2).std(2).mean()
    assert 0.25 < np.mean([fraction for fraction in fractions if fraction]) < 0.42


def test_batchnorm_in_the_head_has_no_learned_scale(make_method):
    head = make_method("context-prediction").head
    assert all(not m.affine for m in head.modules() if isinstance(m, nn.BatchNorm1d))
