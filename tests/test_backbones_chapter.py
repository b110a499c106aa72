"""The classic backbones: torchvision's two in timm's manners, the four ways to transfer, their scores and their cost."""

import numpy as np
import pytest
import torch

from mstl.errors import MstlError
from mstl.models import backbones, classic

CLASSES = ("normal", "benign", "malignant")


# ------------------------------------------------------------------------------------------------ torchvision's two networks


@pytest.fixture(scope="module", params=sorted(classic.NETWORKS))
def network(request):
    return backbones.create(request.param, CLASSES, image_size=64, channels=1, seed=3)


def test_a_network_of_torchvisions_feeds_its_features_to_its_head_and_computes_what_torchvision_does(network):
    import torchvision

    own = network.eval()
    name = own.spec.backbone.removeprefix(classic.PREFIX)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    theirs = getattr(torchvision.models, name)(num_classes=3, **options).eval()
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = backbones.features(own, x)
    assert seen.shape == (2, {"alexnet": 4096, "googlenet": 1024}[name]) and torch.allclose(own(x), theirs(x))
    assert torch.equal(own(x), torch.zeros(2, 3)), "a fresh head starts at zero"


def test_every_parameter_of_a_network_of_torchvisions_is_in_one_stage_and_a_frozen_one_trains_its_head_alone(network):
    names = [n for n, _ in network.named_parameters()]
    staged = [n for stage in backbones.stages(network) for n in stage]
    head = backbones.head_names(network)
    assert sorted([*staged, *head]) == sorted(names) and len(head) == 2
    backbones.parameter_groups(network, lr=1e-3, weight_decay=0.0, freeze="backbone")
    assert {n for n, p in network.named_parameters() if p.requires_grad} == head
    backbones.parameter_groups(network, lr=1e-3, weight_decay=0.0, layer_decay=0.7)


def test_a_file_of_torchvisions_loads_whole_without_its_head_and_its_auxiliary_classifiers(network, tmp_path):
    name = network.spec.backbone
    state = {key: value + 0.5 if value.is_floating_point() else value for key, value in network.state_dict().items()}
    head = {key: torch.zeros(1000, *value.shape[1:]) for key, value in state.items() if key in backbones.head_names(network)}
    torch.save(state | head | {"aux1.fc1.weight": torch.zeros(4, 4), "aux2.fc1.weight": torch.zeros(4, 4)}, tmp_path / "w.pth")
    loaded = backbones.create(name, CLASSES, image_size=64, weights=tmp_path / "w.pth")
    assert loaded.load_report.matched == len(state) - 2 and set(loaded.load_report.missing) == set(head)
    first = next(key for key in state if key not in head)
    assert torch.equal(loaded.state_dict()[first], state[first])


def test_the_seed_fixes_every_weight_of_a_network_of_torchvisions():
    a, b, c = (backbones.create("torchvision.googlenet", CLASSES, image_size=32, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[key], b[key]) for key in a) and not torch.equal(a["conv1.conv.weight"], c["conv1.conv.weight"])


@pytest.mark.parametrize(("name", "options", "words"), [
    ("torchvision.alexnet", {"image_size": 32}, "use 63 or more"),
    ("torchvision.googlenet", {"image_size": 32, "channels": 1, "grey": "adapt"}, "grey='replicate'"),
    ("torchvision.alexnt", {}, "did you mean 'torchvision.alexnet'"),
])
def test_a_classic_network_that_cannot_be_built_is_one_sentence(name, options, words):
    with pytest.raises(MstlError, match=words) as error:
        backbones.create(name, CLASSES, **options)
    assert "\n" not in str(error.value)


def test_weights_of_torchvisions_that_cannot_be_fetched_are_one_sentence(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent/mstl")
    with pytest.raises(MstlError, match="torchvision.googlenet.*could not be fetched") as error:
        backbones.create("torchvision.googlenet", CLASSES, image_size=32, weights="imagenet")
    assert "\n" not in str(error.value)
