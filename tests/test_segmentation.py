"""Masks: the measures against known answers, their intervals, and the U-Net that learns, resumes and refuses."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstl.errors import MstlError
from mstl.metrics import chains, segmentation


def square(x, y, side, size=20):
    mask = np.zeros((1, size, size), np.uint8)
    mask[0, y:y + side, x:x + side] = 1
    return mask


# ---------------------------------------------------------------------------------------------------------- the measures


def test_two_squares_that_share_half_have_the_overlap_that_is_counted_by_hand():
    a, b = square(2, 2, 4), square(4, 2, 4)  # 16 pixels each, 8 shared
    assert segmentation.dice(a, b)[0] == pytest.approx(16 / 32)
    assert segmentation.iou(a, b)[0] == pytest.approx(8 / 24)
    assert segmentation.hausdorff(a, b, percentile=100)[0] == pytest.approx(2)


def test_the_hausdorff_distance_of_a_shifted_point_is_the_shift_and_of_nothing_the_diagonal():
    assert segmentation.hausdorff(square(3, 3, 1), square(6, 7, 1))[0] == pytest.approx(5)
    assert segmentation.hausdorff(square(3, 3, 2), np.zeros((1, 20, 20)))[0] == pytest.approx(np.hypot(20, 20))


def test_the_95_percent_distance_forgives_what_the_largest_one_does_not():
    a = square(2, 2, 14, size=40)
    b = a.copy()
    b[0, 39, 39] = 1  # one pixel far away
    assert segmentation.hausdorff(a, b)[0] == 0
    assert segmentation.hausdorff(a, b, percentile=100)[0] == pytest.approx(np.hypot(24, 24))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_overlap_is_symmetric_bounded_and_one_only_for_the_same_mask(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((3, 8, 8)) < share for share in (0.4, 0.5))
    a[:, 0, 0] = b[:, 0, 0] = True
    d, j = segmentation.dice(a, b), segmentation.iou(a, b)
    assert np.allclose(d, segmentation.dice(b, a)) and np.allclose(j, d / (2 - d))
    assert (0 <= d).all() and (d <= 1).all() and np.array_equal(d == 1, (a == b).all(axis=(1, 2)))
    assert np.allclose(segmentation.hausdorff(a, b), segmentation.hausdorff(b, a))
    assert np.allclose(segmentation.hausdorff(a, a), 0)


@pytest.mark.parametrize(("truth", "predicted", "words"), [
    (np.zeros((1, 4, 4)), np.ones((1, 4, 4)), "the truth of row 0 is empty"),
    (np.ones((1, 4, 4)), np.full((1, 4, 4), 0.3), "put a threshold"),
    (np.ones((1, 4, 4)), np.ones((1, 5, 5)), "the same size"),
    (np.ones((4, 4)), np.ones((4, 4)), "images, height, width"),
])
def test_masks_that_cannot_be_compared_are_one_sentence(truth, predicted, words):
    with pytest.raises(MstlError, match=words) as error:
        segmentation.dice(truth, predicted)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- means and their intervals


def test_a_mean_of_groups_that_agree_inside_has_the_interval_of_the_groups_and_not_of_the_images():
    rng = np.random.default_rng(0)
    per_group = rng.normal(0.6, 0.1, 40)
    value = np.repeat(per_group, 5)
    few = chains.Means(40, seed=np.zeros(40), fold=np.zeros(40), group=np.arange(40))
    many = chains.Means(200, seed=np.zeros(200), fold=np.zeros(200), group=np.repeat(np.arange(40), 5))
    widths = []
    for block, values in ((few, per_group), (many, value)):
        found = block.summary(block.resample({"m": block.mean(values)}, 2000)["m"])
        assert found.estimate == pytest.approx(per_group.mean())
        widths.append(found.high - found.low)
    assert widths[0] == pytest.approx(widths[1], rel=0.15)
    assert widths[0] == pytest.approx(2 * 1.96 * per_group.std() / np.sqrt(40), rel=0.15)


def test_the_difference_of_two_means_is_paired_by_group():
    rng = np.random.default_rng(1)
    a = rng.normal(0.5, 0.2, 60)
    b = a - 0.05 + rng.normal(0, 0.01, 60)
    block = chains.Means(60, seed=np.zeros(60), fold=np.zeros(60), group=np.arange(60))
    found = block.resample({"a": block.mean(a), "b": block.mean(b)}, 1000)
    difference = block.summary(found["a"] - found["b"])
    assert difference.estimate == pytest.approx(0.05, abs=0.01) and difference.high - difference.low < 0.02 and difference.p_value < 0.01


def test_a_comparison_of_classes_still_refuses_a_cell_of_one_class():
    with pytest.raises(MstlError, match="one class only"):
        chains.Block(np.zeros(6, bool), seed=np.zeros(6), fold=np.zeros(6), group=np.arange(6))


# ------------------------------------------------------------------------------------------------------------- the network

torch = pytest.importorskip("torch")
unet = pytest.importorskip("mstl.models.segmentation")

BACKBONE = "test_efficientnet"


@pytest.fixture(scope="module")
def discs():
    """Bright discs on noise, each its own group: a task that a few steps learn."""
    from mstl.datasets import phantoms

    base = phantoms.make("ultrasound", n=24, size=32, workers=1)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    masks = np.stack([((x - a) ** 2 + (y - b) ** 2 < r**2) for a, b, r in zip(rng.uniform(10, 22, 24), rng.uniform(10, 22, 24), rng.uniform(5, 8, 24))])
    images = np.clip(60 + 120 * masks + rng.normal(0, 20, masks.shape), 0, 255).astype(np.uint8)[..., None]
    return dataclasses.replace(base, images=images, masks=masks.astype(np.uint8), boxes=None, groups=base.ids)


def recipe(**options):
    from mstl.training import Recipe

    return Recipe(**{"lr": 1e-2, "steps": 24, "batch_size": 8, "monitor": "loss", "augmentation": "ultrasound"} | options)


def net(seed=0, **options):
    return unet.create(BACKBONE, image_size=32, channels=1, seed=seed, **options)


TRAIN, VAL, TEST = np.arange(14), np.arange(14, 19), np.arange(19, 24)


def test_a_unet_learns_discs_and_a_killed_fit_gives_the_same_weights_as_one_that_was_not(discs, tmp_path, monkeypatch):
    from mstl import training

    monkeypatch.setattr(training, "_SAVE_EVERY_SECONDS", 0.0)
    whole = unet.fit(net(), discs, TRAIN, VAL, recipe(), folder=tmp_path / "whole")
    assert segmentation.dice(discs.masks[TEST], unet.predict(whole.model, discs, TEST) >= 0.5).mean() > 0.7
    assert whole.best["val_loss"] == whole.history["val_loss"].min()

    def stop(row):
        if row["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unet.fit(net(), discs, TRAIN, VAL, recipe(), folder=tmp_path / "killed", on_epoch=stop)
    again = unet.fit(net(), discs, TRAIN, VAL, recipe(), folder=tmp_path / "killed")
    assert again.resumed and not again.loaded and again.history.equals(whole.history)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True))
    loaded = unet.fit(net(), discs, TRAIN, VAL, recipe(), folder=tmp_path / "whole")
    assert loaded.loaded and np.array_equal(unet.predict(loaded.model, discs, TEST), unet.predict(whole.model, discs, TEST))
    assert not unet.fit(net(), discs, TRAIN, VAL, recipe(steps=1), folder=tmp_path / "whole").loaded, "another recipe is another fit"


def test_the_encoder_starts_with_the_verified_weights_and_a_frozen_one_keeps_them(discs):
    from mstl.models import backbones

    whole = backbones.create("tf_efficientnet_lite0", 2, image_size=32, weights="imagenet").state_dict()
    model = unet.create("tf_efficientnet_lite0", image_size=32, channels=1, weights="imagenet")
    encoder = model.encoder.model.state_dict()
    assert model.load_report.matched == 294 and all(torch.equal(tensor, whole[name]) for name, tensor in encoder.items())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = unet.fit(model, discs, TRAIN, VAL, recipe(steps=2, freeze="backbone")).model.state_dict()
    for name, tensor in after.items():
        changed = not torch.equal(tensor, before[name])
        assert not changed if name.startswith("encoder.") else changed or "num_batches" in name or "running" in name, name


def test_names_that_timm_flattens_are_found():
    from mstl.models import backbones

    whole = backbones.create("convnext_atto", 2, image_size=32, seed=5).state_dict()
    model = unet.create("convnext_atto", image_size=32, seed=5)
    assert torch.equal(model.encoder.model.state_dict()["stem_0.weight"], whole["stem.0.weight"])


def test_augmentation_moves_image_and_mask_together(discs):
    torch.manual_seed(0)
    clean = dataclasses.replace(discs, images=(discs.masks * 255)[..., None])
    x, y = unet._batch(net(), clean, TRAIN, torch.device("cpu"), "ultrasound")
    pixels = x[:, 0]
    bright = pixels > (pixels.amin((1, 2), keepdim=True) + pixels.amax((1, 2), keepdim=True)) / 2
    assert segmentation.dice(y[:, 0].numpy(), bright.numpy()).min() > 0.9
    assert not np.array_equal(y[:, 0].numpy(), clean.masks[TRAIN])


def test_a_loss_that_is_not_finite_stops_and_says_what_to_do(discs):
    from mstl.training import NonFiniteLoss

    model = net()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match="try a lower lr"):
        unet.fit(model, discs, TRAIN, VAL, recipe(steps=1))


@pytest.mark.parametrize(("call", "words"), [
    (lambda d: unet.create(BACKBONE, image_size=48), "use a multiple of 32"),
    (lambda d: unet.create("test_vit", image_size=32), "cannot be the encoder of a U-Net"),
    (lambda d: unet.create("torchvision.alexnet", image_size=96), "cannot be the encoder of a U-Net"),
    (lambda d: unet.fit(net(), dataclasses.replace(d, masks=None), TRAIN, VAL, recipe()), "has no masks"),
    (lambda d: unet.fit(net(), dataclasses.replace(d, masks=d.masks * (np.arange(24) > 0)[:, None, None]), TRAIN, VAL, recipe()), "has an empty mask"),
    (lambda d: unet.fit(net(), d, TRAIN, TRAIN, recipe()), "none in both"),
    (lambda d: unet.fit(net(), d, TRAIN, VAL, recipe(monitor="auc")), "needs monitor='loss'"),
])
def test_what_a_unet_cannot_do_is_one_sentence(discs, call, words):
    with pytest.raises(MstlError, match=words) as error:
        call(discs)
    assert "\n" not in str(error.value)
