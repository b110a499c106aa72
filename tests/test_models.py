"""Backbones, the weights they start from, and checkpoints."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mstl import checkpoints
from mstl.errors import MstlError
from mstl.models.backbones import create, features, parameter_groups, stages, to_input, train_mode
from mstl.models.weights import load_weights
from mstl.training import extract_features, predict

ESPRESSO, DAISY, PALACE = 967, 985, 698  # ImageNet's class numbers
SMALL = ["test_vit", "test_efficientnet", "test_resnet"]


def small(backbone="test_vit", classes=("benign", "malignant"), image_size=32, **options):
    return create(backbone, classes, image_size=image_size, **options)


def pixels(n=3, channels=3, size=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, channels, size, size), dtype=np.uint8))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def lite0():
    return create("tf_efficientnet_lite0", 1000, image_size=224, weights="imagenet")


def photographs():
    import skimage
    import sklearn

    files = [Path(skimage.__file__).parent / "data/coffee.png", Path(sklearn.__file__).parent / "datasets/images/flower.jpg",
             Path(sklearn.__file__).parent / "datasets/images/china.jpg"]
    images = []
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        images.append(np.asarray(image.crop((left, top, left + 224, top + 224))))
    return np.stack(images)


def test_the_imagenet_weights_of_lite0_recognise_real_photographs(lite0):
    data = SimpleNamespace(images=photographs(), labels=np.zeros(3, int))
    top = predict(lite0, data).argsort(axis=1)[:, ::-1]
    assert top[:, 0].tolist() == [ESPRESSO, DAISY, PALACE]
    assert lite0.load_report.matched == 296 and lite0.load_report.missing == []


def test_a_new_head_keeps_the_imagenet_backbone_and_says_so(lite0):
    model = create("tf_efficientnet_lite0", ["normal", "pneumonia"], weights="imagenet")
    report = model.load_report
    assert (report.matched, report.dropped) == (294, ["classifier.bias", "classifier.weight"])
    assert torch.equal(model.conv_stem.weight, lite0.conv_stem.weight)
    assert "classifier.weight dropped" in str(report)


def test_an_adapted_grey_stem_sees_what_a_replicated_channel_shows(lite0):
    grey = pixels(2, channels=1, size=64)
    outputs = []
    for way in ("replicate", "adapt"):
        model = create("tf_efficientnet_lite0", ["a", "b"], channels=1, grey=way, image_size=64, weights="imagenet").eval()
        x = to_input(grey, model.spec)
        assert x.shape[1] == model.conv_stem.weight.shape[1] == (1 if way == "adapt" else 3)
        outputs.append(features(model, x))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backbone", SMALL)
def test_the_seed_fixes_every_weight_and_leaves_the_global_generator_alone(backbone):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = small(backbone, seed=1), small(backbone, seed=1), small(backbone, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert same(a.state_dict(), b.state_dict()) and not same(a.state_dict(), c.state_dict())


@pytest.mark.parametrize("backbone", SMALL)
def test_features_are_pooled_and_feed_the_head(backbone):
    model = small(backbone).eval()
    x = to_input(pixels(), model.spec)
    pooled = features(model, x)
    assert pooled.ndim == 2 and pooled.dtype == torch.float32
    torch.testing.assert_close(model.get_classifier()(pooled), model(x))


def test_pixels_are_normalised_with_the_backbones_own_mean_and_deviation():
    model = small("test_resnet")
    x = to_input(pixels(), model.spec)
    expected = (pixels().float() / 255 - torch.tensor(model.spec.mean).view(3, 1, 1)) / torch.tensor(model.spec.std).view(3, 1, 1)
    torch.testing.assert_close(x, expected)
    assert to_input(pixels(channels=1), model.spec).shape == (3, 3, 32, 32)


def test_colour_images_on_an_adapted_grey_stem_are_refused():
    with pytest.raises(MstlError, match="one channel"):
        to_input(pixels(), small(channels=1, grey="adapt").spec)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "tf_efficientnet_lite0"])
def test_a_fresh_head_finds_every_class_equally_likely_whatever_the_seed(backbone):
    for seed in (0, 1):
        logits = small(backbone, seed=seed).eval()(torch.randn(2, 3, 32, 32))
        assert torch.equal(logits, torch.zeros_like(logits))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_vision_transformer_takes_a_file_of_another_image_size(tmp_path, suffix):
    big = small("test_vit", image_size=64, seed=3)
    torch.nn.init.ones_(big.head.weight)
    file = tmp_path / f"weights.{suffix}"
    save_file(big.state_dict(), file) if suffix == "safetensors" else torch.save(big.state_dict(), file)
    model = small("test_vit", image_size=32, weights=file)
    assert model.load_report.adapted == ["pos_embed"]
    assert model.pos_embed.shape[1] < big.pos_embed.shape[1]
    assert torch.equal(model.blocks[0].attn.qkv.weight, big.blocks[0].attn.qkv.weight)
    assert not torch.equal(model.head.weight, big.head.weight), "a file does not name its classes: its head is dropped"


def test_wrappers_names_before_the_keys_do_not_matter(tmp_path):
    donor = small("test_resnet", seed=4)
    torch.save({"state_dict": {f"module.{k}": v for k, v in donor.state_dict().items()}}, tmp_path / "w.pth")
    model = small("test_resnet", weights=tmp_path / "w.pth")
    assert torch.equal(model.layer4[0].conv1.weight, donor.layer4[0].conv1.weight)


def test_a_torchvision_backbone_without_names_finds_its_layers_in_timms(tmp_path):
    import torchvision

    donor = torchvision.models.resnet18().eval()
    body = torch.nn.Sequential(*list(donor.children())[:-1])
    torch.save({f"backbone.{k}": v for k, v in body.state_dict().items()}, tmp_path / "ResNet18.pt")
    model = create("resnet18", ["a", "b"], image_size=64, weights=tmp_path / "ResNet18.pt").eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(features(model, x), body(x).flatten(1))


# --- RadImageNet's files and vision transformers


def radimagenet_like(name, folder, auxiliary=False):
    """A torchvision network with random weights and statistics, and its file as RadImageNet publishes it."""
    import torchvision

    options = {"init_weights": False, "aux_logits": auxiliary} if name == "inception_v3" else {}
    donor = getattr(torchvision.models, name)(weights=None, **options).eval()
    generator = torch.Generator().manual_seed(0)
    for module in donor.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    body = torch.nn.Sequential(*list(donor.children())[:-1])
    torch.save({f"backbone.{k}": v for k, v in body.state_dict().items()}, folder / "file.pt")
    donor.fc = donor.classifier = torch.nn.Identity()
    return donor, folder / "file.pt"


@pytest.mark.parametrize(("name", "tensors", "auxiliary"), [
    ("resnet50", 318, False), ("densenet121", 725, False), ("inception_v3", 564, False), ("inception_v3", 564, True),
])
def test_a_file_laid_out_as_radimagenets_loads_whole_and_gives_torchvisions_features(name, tensors, auxiliary, tmp_path):
    donor, file = radimagenet_like(name, tmp_path, auxiliary)
    model = create(name, ["a", "b"], image_size=96, weights=file).eval()
    assert model.load_report.matched == tensors and all(n.startswith("AuxLogits.") for n in model.load_report.dropped)
    assert len(model.load_report.missing) == 2, "the fresh head only"
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (features(model, x) - donor(x)).abs().max()
    assert difference < 1e-4


def test_a_radimagenet_file_of_another_network_is_one_sentence(tmp_path):
    _, file = radimagenet_like("densenet121", tmp_path)
    with pytest.raises(MstlError, match="do not fit resnet18: 0 of 120 backbone tensors match") as error:
        create("resnet18", ["a", "b"], weights=file)
    assert "\n" not in str(error.value)


def test_pixels_can_be_normalised_as_radimagenets_weights_may_have_been(tmp_path):
    torch.save(small("test_resnet").state_dict(), tmp_path / "w.pth")
    model = small("test_resnet", weights=tmp_path / "w.pth", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert to_input(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), model.spec)[:, 0, 0, 0].tolist() == [-1.0, 1.0]


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    """ViT-Tiny for 224 pixels whose position embedding rises from left to right, with a class token of sevens."""
    model = create("vit_tiny_patch16_224", ["a", "b"], image_size=224)
    state = model.state_dict()
    ramp = torch.linspace(0, 1, 14).repeat(14).view(1, 196, 1)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 192), 7.0), ramp.expand(-1, -1, 192)], dim=1)
    file = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(state, file)
    return file, state


def test_a_position_embedding_for_224_pixels_is_interpolated_to_96_and_its_class_token_kept(vit_file):
    model = create("vit_tiny_patch16_224", ["a", "b"], image_size=96, weights=vit_file[0])
    token, grid = model.pos_embed[0, 0], model.pos_embed[0, 1:, 0].view(6, 6)
    assert (token == 7).all() and "pos_embed adapted" in str(model.load_report)
    torch.testing.assert_close(grid, grid[:1].expand(6, 6))
    assert (grid[0].diff() > 0).all(), "what rises from left to right still does"
    torch.testing.assert_close(grid[0].mean(), torch.tensor(0.5))


def test_patches_of_sixteen_pixels_are_resampled_to_eight_and_see_nearly_the_same(vit_file):
    model = create("vit_tiny_patch8_224", ["a", "b"], image_size=112, weights=vit_file[0])
    assert model.load_report.adapted == ["patch_embed.proj.weight"], "the grid of 14 × 14 stays as it was"
    colours = torch.randn(1, 3, 14, 14, generator=torch.Generator().manual_seed(0))  # one a patch
    seen = model.patch_embed(torch.kron(colours, torch.ones(8, 8)))
    big = create("vit_tiny_patch16_224", ["a", "b"], image_size=224, weights=vit_file[0])
    before = big.patch_embed(torch.kron(colours, torch.ones(16, 16)))
    assert torch.corrcoef(torch.stack([seen.flatten(), before.flatten()]))[0, 1] > 0.98
    assert create("vit_tiny_patch8_224", 2, image_size=64, weights=vit_file[0]).load_report.adapted == [
        "patch_embed.proj.weight", "pos_embed"]


def test_a_position_embedding_of_oblong_images_is_refused(vit_file, tmp_path):
    state = vit_file[1] | {"pos_embed": torch.zeros(1, 1 + 14 * 10, 192)}
    save_file(state, tmp_path / "oblong.safetensors")
    with pytest.raises(MstlError, match="of 140 patches, which is no square grid") as error:
        create("vit_tiny_patch16_224", ["a", "b"], image_size=96, weights=tmp_path / "oblong.safetensors")
    assert "\n" not in str(error.value)


def test_keys_that_do_not_match_are_an_error_and_load_nothing(tmp_path):
    model = small("test_resnet")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save_file({f"net.{k}": v for k, v in small("test_resnet", seed=9).state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(MstlError, match=r"0 of \d+ backbone tensors match") as error:
        load_weights(model, tmp_path / "w.safetensors")
    assert "\n" not in str(error.value) and same(model.state_dict(), before)


def test_a_larger_model_of_the_same_family_does_not_pass_for_this_one(tmp_path):
    model = small("test_vit")
    state = model.state_dict()
    state["blocks.99.norm1.weight"] = state["blocks.0.norm1.weight"].clone()
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(MstlError, match="'blocks.99.norm1.weight' has no place in the model"):
        load_weights(small("test_vit"), tmp_path / "w.safetensors")


def test_a_missing_layer_is_an_error(tmp_path):
    state = small("test_vit").state_dict()
    del state["blocks.1.mlp.fc1.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(MstlError, match="'blocks.1.mlp.fc1.weight' is not in the file"):
        small("test_vit", weights=tmp_path / "w.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = small("test_vit").state_dict()
    state["norm.weight"] = state["norm.weight"] * float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(MstlError, match="not finite"):
        small("test_vit", weights=tmp_path / "w.safetensors")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save(small("test_vit"), tmp_path / "model.pt")
    with pytest.raises(MstlError, match="would run code"):
        small("test_vit", weights=tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_truncated_weights_file_is_one_sentence(tmp_path, name):
    state = small("test_vit").state_dict()
    file = tmp_path / name
    save_file(state, file) if name.endswith("safetensors") else torch.save(state, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(MstlError, match="cannot be read as weights") as error:
        small("test_vit", weights=file)
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_is_one_sentence_with_the_way_out(monkeypatch, tmp_path):
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MstlError, match="a local file"):
        create("test_vit3.r160_in1k", ["a", "b"], image_size=32, weights="imagenet")


@pytest.mark.parametrize(("options", "words"), [
    (dict(backbone="resnet-18"), "did you mean 'resnet18'"),
    (dict(grey="mix"), "grey='mix'"),
    (dict(classes=["a"]), "at least two classes"),
    (dict(classes=["a", "a"]), "different names"),
    (dict(channels=4), "channels=4"),
    (dict(weights="nowhere.pth"), "no weights file nowhere.pth"),
    (dict(image_size=10), "smaller than a patch"),
    (dict(image_size=40), "multiple of its patch size"),
    (dict(image_size=(96, 128)), "images are square"),
    (dict(backbone="vit_tiny_patch0_224"), "timm has no backbone"),
])
def test_what_cannot_be_built_is_one_sentence(options, words):
    with pytest.raises(MstlError, match=words) as error:
        create(**{"backbone": "test_vit", "classes": ["a", "b"], "image_size": 32, **options})
    assert "\n" not in str(error.value)


# --- Freezing and parameter groups


@pytest.mark.parametrize("backbone", SMALL)
def test_freezing_the_backbone_leaves_only_the_head(backbone):
    model = small(backbone)
    parameter_groups(model, lr=1.0, weight_decay=0.1, freeze="backbone")
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 and all(n.split(".")[0] in ("head", "fc", "classifier") for n in trainable)


def test_the_last_stages_train_and_the_frozen_part_stays_in_evaluation_mode():
    model = small("test_resnet")
    parameter_groups(model, lr=1.0, weight_decay=0.1, freeze="stages:1")
    train_mode(model)
    named = dict(model.named_parameters())
    *frozen, last = stages(model)
    assert all(named[n].requires_grad for n in last) and not any(named[n].requires_grad for s in frozen for n in s)
    assert model.layer4.training and not model.layer1.training and not model.bn1.training and model.fc.training


def test_every_backbone_parameter_is_in_one_stage():
    for backbone in SMALL:
        model = small(backbone)
        names = [n for stage in stages(model) for n in stage]
        head = {n for n, _ in model.named_parameters()} - set(names)
        assert len(names) == len(set(names)) and len(head) == 2
    assert len(stages(small("test_resnet"))) == 5, "the stem and four stages"


def test_more_stages_than_there_are_is_one_sentence():
    with pytest.raises(MstlError, match="at most stages:5"):
        parameter_groups(small("test_resnet"), lr=1.0, weight_decay=0.0, freeze="stages:6")


def test_biases_and_norms_have_no_weight_decay_and_layers_learn_slower_towards_the_input():
    model = small("test_vit")
    names = {p: n for n, p in model.named_parameters()}
    groups = parameter_groups(model, lr=1e-2, weight_decay=0.1, layer_decay=0.5)
    rate = {names[p]: g["lr"] for g in groups for p in g["params"]}
    decay = {names[p]: g["weight_decay"] for g in groups for p in g["params"]}
    assert rate["head.weight"] == 1e-2
    assert rate["blocks.0.attn.qkv.weight"] == pytest.approx(rate["blocks.1.attn.qkv.weight"] / 2)
    assert rate["patch_embed.proj.weight"] == min(rate.values())
    assert decay["head.weight"] == 0.1 and decay["head.bias"] == decay["norm.weight"] == decay["pos_embed"] == 0
    assert len(rate) == len(names)


# --- Checkpoints


@pytest.fixture
def saved(tmp_path):
    model = small("test_resnet", seed=7, channels=1)
    lineage = [{"stage": "source", "data": "ImageNet-1k"}, {"stage": "bridge", "data": "cells", "score": 0.9}]
    checkpoints.save(tmp_path / "c", model, lineage=lineage, score={"auc": np.float64(0.75)}, extra={"fold": np.int64(2)})
    return model, tmp_path / "c"


def test_a_checkpoint_comes_back_whole_with_its_lineage(saved):
    model, folder = saved
    checkpoint = checkpoints.read(folder)
    assert [stage["stage"] for stage in checkpoint.lineage] == ["source", "bridge"]
    assert checkpoint.spec == model.spec and checkpoint.score == {"auc": 0.75} and checkpoint.extra == {"fold": 2}
    again = checkpoints.load(folder)
    assert again.spec == model.spec and same(again.state_dict(), model.state_dict())
    assert same(load_file(folder / "model.safetensors"), model.state_dict())


def test_the_same_model_gives_the_same_bytes(saved, tmp_path):
    model, folder = saved
    model.to(memory_format=torch.channels_last)
    checkpoints.save(tmp_path / "d", model, lineage=checkpoints.read(folder).lineage, score={"auc": 0.75}, extra={"fold": 2})
    assert sorted(f.name for f in folder.iterdir()) == ["checkpoint.json", "model.safetensors"]
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "d" / file.name).read_bytes()


def test_the_head_is_kept_only_for_the_same_classes(saved):
    donor, folder = saved
    same_classes, others = small("test_resnet", channels=1), small("test_resnet", ("normal", "lesion"), channels=1)
    fresh = others.fc.weight.clone()
    assert checkpoints.restore(same_classes, folder).missing == []
    report = checkpoints.restore(others, folder)
    assert torch.equal(same_classes.fc.weight, donor.fc.weight) and torch.equal(others.fc.weight, fresh)
    assert report.dropped == ["fc.bias", "fc.weight"] and torch.equal(others.layer1[0].conv1.weight, donor.layer1[0].conv1.weight)
    assert checkpoints.restore(others, folder, head="keep").missing == []


def test_create_takes_a_checkpoint_folder_and_its_normalisation(tmp_path):
    donor = create("test_resnet", 4, image_size=32, seed=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    checkpoints.save(tmp_path, donor, lineage=[])
    model = small("test_resnet", weights=tmp_path)
    assert model.spec.mean == (0.5, 0.5, 0.5) and torch.equal(model.layer4[0].conv1.weight, donor.layer4[0].conv1.weight)


def test_a_head_of_another_size_cannot_be_kept(saved):
    with pytest.raises(MstlError, match="head='drop'"):
        checkpoints.restore(small("test_resnet", 5), saved[1], head="keep")


def test_a_checkpoint_of_another_backbone_is_one_sentence(saved):
    with pytest.raises(MstlError, match="'test_resnet', but this model is 'test_vit'") as error:
        small("test_vit", weights=saved[1])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_changed_byte_is_noticed(saved, position):
    file = saved[1] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(MstlError, match="damaged or was replaced"):
        checkpoints.read(saved[1])


def test_a_broken_record_and_an_empty_folder_are_one_sentence_each(saved, tmp_path):
    (saved[1] / "checkpoint.json").write_text('{"spec": ')
    with pytest.raises(MstlError, match="cannot be read"):
        checkpoints.read(saved[1])
    with pytest.raises(MstlError, match="There is no checkpoint in"):
        checkpoints.read(tmp_path)


def test_features_and_probabilities_do_not_change_the_model_or_its_mode():
    model = small("test_efficientnet", channels=1).train()
    model.blocks[0].eval()
    data = SimpleNamespace(images=pixels(7, 1).permute(0, 2, 3, 1).numpy(), labels=np.zeros(7, int))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    probabilities, pooled = predict(model, data, batch_size=3), extract_features(model, data, [6, 0], batch_size=1)
    assert probabilities.dtype == np.float64 and np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert pooled.dtype == np.float32 and pooled.shape == (2, model.num_features)
    assert same(model.state_dict(), before) and model.training and not model.blocks[0].training
    np.testing.assert_allclose(predict(model, data, [6, 0]), probabilities[[6, 0]], rtol=1e-5)
