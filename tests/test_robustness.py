"""Robustness: intraclass correlations, boxes drawn again, what that does to a model, and where a network looks."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from mstl import explain, predictions
from mstl.errors import MstlError
from mstl.metrics import calibration, robustness, roc
from mstl.works import bone_tumours
from mstl.works import robustness as robust
from test_bone_tumours import TINY, papermill

#: Shrout & Fleiss (1979), table 2: six targets, four judges.
RATINGS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


# --- intraclass correlation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "estimate", "low", "high"), [
    ("1,1", 0.1657, -0.133, 0.723), ("2,1", 0.2898, 0.019, 0.761), ("3,1", 0.7148, 0.342, 0.946)])
def test_the_example_of_shrout_and_fleiss_comes_out(kind, estimate, low, high):
    found = robustness.icc(RATINGS, kind)
    assert found.estimate == pytest.approx(estimate, abs=5e-5)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))
    assert (found.n, found.k) == (6, 4)


def test_each_kind_is_its_share_of_the_variance_of_simulated_ratings():
    rng = np.random.default_rng(0)
    cases, raters = rng.normal(0, 2, (4000, 1)), rng.normal(0, 1, (1, 40))
    x = cases + raters + rng.normal(0, 1, (4000, 40))
    spread = float(raters.var(ddof=1))
    assert robustness.icc(x, "3,1").estimate == pytest.approx(4 / 5, abs=0.02)
    assert robustness.icc(x, "2,1").estimate == pytest.approx(4 / (5 + spread), abs=0.02)


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    rng, truth, hits = np.random.default_rng(1), 4 / 6, 0
    for _ in range(300):
        x = rng.normal(0, 2, (25, 1)) + rng.normal(0, 1, (1, 6)) + rng.normal(0, 1, (25, 6))
        found = robustness.icc(x)
        hits += found.low <= truth <= found.high
    assert 0.90 < hits / 300 < 0.99


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 50), st.floats(-20, 20))
def test_an_icc_knows_no_unit_and_a_shift_of_one_rater_changes_only_agreement(seed, unit, shift):
    x = np.random.default_rng(seed).normal(size=(8, 3))
    moved = x * unit + shift
    for kind in robustness.KINDS:
        a, b = robustness.icc(x, kind), robustness.icc(moved, kind)
        assert b.estimate == pytest.approx(a.estimate, abs=1e-6) and a.low <= a.estimate <= a.high
    x[:, 0] += 100
    assert abs(robustness.icc(x, "2,1").estimate) < abs(robustness.icc(x, "3,1").estimate) + 1e-9


def test_ratings_that_never_differ_are_said_to_and_get_no_interval():
    same = robustness.icc(np.tile(np.arange(5.0)[:, None], 3))
    assert same.estimate == 1 and same.low is None and "never differ" in same.note
    flat = robustness.icc(np.ones((5, 3)), "1,1")
    assert flat.estimate is None and "all ratings are the same" in flat.note


@pytest.mark.parametrize(("ratings", "kind", "words"), [
    ([[1, 2]], "2,1", "at least two of each"), ([1, 2, 3], "2,1", "at least two of each"),
    ([[1, 2], [np.nan, 1]], "2,1", "row 1"), (RATINGS, "2,2", "must be one of")])
def test_ratings_without_an_icc_are_one_sentence(ratings, kind, words):
    with pytest.raises(MstlError, match=words):
        robustness.icc(ratings, kind)


# --- boxes drawn again -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_drawn_box_moves_and_grows_by_no_more_than_it_may_and_every_case_by_the_same_share(seed, shift, scale):
    boxes = np.array([[10.0, 20, 30, 80], [0, 0, 4, 2]])
    moved = robustness.perturb(boxes, robustness.draws(6, seed=seed), shift=shift, scale=scale)
    side = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = ((moved[..., :2] + moved[..., 2:]) - (boxes[:, :2] + boxes[:, 2:])[:, None]) / 2 / side
    grown = (moved[..., 2:] - moved[..., :2]) / side
    assert np.abs(centre).max() <= shift + 1e-9 and np.abs(grown - 1).max() <= scale + 1e-9
    assert np.allclose(centre[0], centre[1]) and np.allclose(grown[0], grown[1]) and np.allclose(grown[..., 0], grown[..., 1])


def test_no_strength_leaves_every_box_and_a_seed_gives_the_same_draws():
    boxes = np.array([[1.0, 2, 3, 5]])
    table = robustness.draws(4, seed=3)
    assert np.allclose(robustness.perturb(boxes, table, shift=0, scale=0), boxes[:, None])
    assert np.array_equal(table, robustness.draws(4, seed=3)) and not np.array_equal(table, robustness.draws(4))
    assert np.abs(robustness.draws(2000).mean()) < 0.05 and robustness.draws(2000).std() == pytest.approx(3**-0.5, abs=0.02)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: robustness.draws(1), "at least 2"), (lambda: robustness.perturb([[5, 0, 5, 9]], robustness.draws(2), shift=0.1, scale=0.1), "row 0"),
    (lambda: robustness.perturb([[0, 0, 5, 9]], robustness.draws(2), shift=1.0, scale=0.1), "shift is 1"),
    (lambda: robustness.perturb([0, 0, 5, 9], robustness.draws(2), shift=0.1, scale=0.1), "has shape")])
def test_boxes_that_cannot_be_moved_are_one_sentence(call, words):
    with pytest.raises(MstlError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


# --- what the draws do to a model --------------------------------------------------------------------------------------


def test_a_squashed_probability_is_as_unstable_as_the_one_it_was_squashed_from():
    """Dividing every logit by four makes probabilities move less and nothing steadier: after recalibration both are alike."""
    rng = np.random.default_rng(0)
    y = rng.random(400) < 0.5
    logit = 1.5 * (2 * y - 1) + rng.normal(0, 1.5, 400)
    drawn = logit[:, None] + rng.normal(0, 0.7, (400, 10))
    plain, squashed = (1 / (1 + np.exp(-np.array([1.0, 0.25])[:, None, None] * drawn)))
    sd = [robustness.case_sd(robustness.recalibrated_logit(y, 1 / (1 + np.exp(-s * logit)), p)) for s, p in ((1, plain), (0.25, squashed))]
    assert squashed.std(axis=1).mean() < 0.5 * plain.std(axis=1).mean()
    assert sd[1].mean() == pytest.approx(sd[0].mean(), rel=0.05)


def test_a_saturated_risk_still_moves():
    rng = np.random.default_rng(1)
    y = rng.random(200) < 0.5
    risk = 1 / (1 + np.exp(-(8 * (2 * y - 1) + rng.normal(0, 8, 200))))
    moved = robustness.recalibrated_logit(y, risk, 1 / (1 + np.exp(-np.array([[-15.0, -16, -17]]))))
    assert robustness.case_sd(moved)[0] > 0 and moved[0, 0] - moved[0, 1] == pytest.approx(moved[0, 1] - moved[0, 2], rel=1e-6)


def test_recalibrated_logits_are_the_logits_of_recalibrated_risks():
    rng = np.random.default_rng(2)
    y, risk = rng.random(60) < 0.4, rng.uniform(0.01, 0.99, 60)
    table = rng.uniform(0.05, 0.95, (5, 3))
    expected = calibration.recalibration(y, risk).apply(table.ravel()).reshape(table.shape)
    assert np.allclose(1 / (1 + np.exp(-robustness.recalibrated_logit(y, risk, table))), expected)


def test_a_flip_is_another_call_than_with_the_own_box_and_the_threshold_itself_is_positive():
    shares = robustness.flips([0.5, 0.2], [[0.5, 0.49, 0.9], [0.6, 0.7, 0.1]], 0.5)
    assert shares == pytest.approx([1 / 3, 2 / 3])


def test_cases_of_a_patient_count_once_in_the_test_and_together_in_the_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 2)
    b = rng.uniform(1, 2, 60)
    a = b - 0.3 + np.repeat(rng.normal(0, 0.4, 30), 2)
    found = robustness.compare_cases(a, b, groups=groups)
    means = (a - b).reshape(30, 2).mean(axis=1)
    assert found.test.p_value == pytest.approx(wilcoxon(means).pvalue) and found.test.n == 30
    assert found.difference.estimate == pytest.approx((a - b).mean()) and found.difference.n_groups == 30
    assert found.difference.high - found.difference.low > 1.3 * np.diff(
        [getattr(robustness.compare_cases(a, b).difference, end) for end in ("low", "high")])[0]
    assert found.smaller == pytest.approx((means < 0).mean())


def test_a_mean_over_cases_is_never_given_a_negative_bound():
    found = robustness.mean_over_cases("flip rate", [0, 0, 0, 0.5], groups=[1, 1, 2, 3])
    assert found.low == 0 and found.estimate == 0.125 and (found.n, found.n_groups) == (4, 3)


@pytest.mark.parametrize(("values", "words"), [([[0.1], [0.2]], "at least two"), ([[0.1, np.nan], [0.2, 0.1]], "case 0")])
def test_values_under_draws_that_cannot_be_read_are_one_sentence(values, words):
    with pytest.raises(MstlError, match=words):
        robustness.case_sd(values)


# --- where a network looks ---------------------------------------------------------------------------------------------


def test_heat_in_the_box_is_its_share_and_a_flat_map_gives_the_boxs_area():
    boxes = np.array([[0.0, 0, 4, 8], [2, 2, 6, 6]])
    flat = np.ones((2, 8, 8))
    assert explain.inside(flat, boxes) == pytest.approx(explain.area((8, 8), boxes)) and explain.area((8, 8), boxes) == pytest.approx([0.5, 0.25])
    spot = np.zeros((2, 8, 8))
    spot[:, 3, 3] = 1
    assert explain.inside(spot, boxes).tolist() == explain.pointing(spot, boxes).tolist() == [1, 1]
    spot[1, 7, 7] = 1
    assert explain.pointing(spot, boxes).tolist() == [1, 0.5] and explain.inside(spot, boxes)[1] == 0.5
    empty = np.zeros((2, 8, 8))
    assert np.isnan(explain.inside(empty, boxes)).all() and np.isnan(explain.pointing(empty, boxes)).all()


def test_a_map_correlates_with_itself_against_its_inverse_and_not_with_a_flat_one():
    heat = np.random.default_rng(0).random((3, 6, 6))
    other = np.stack([heat[0] ** 3, -heat[1], np.ones((6, 6))])
    found = explain.rank_correlation(heat, other)
    assert found[:2] == pytest.approx([1, -1]) and np.isnan(found[2])


@pytest.fixture(scope="module")
def bright():
    """Images whose class is whether a spot in one corner is bright, and a network that says so by construction."""
    torch = pytest.importorskip("torch")
    from mstl.datasets import phantoms
    from mstl.models import backbones

    base = phantoms.make("knee", n=12, size=32, workers=1)
    images = np.full(base.images.shape, 60, np.uint8)
    images[::2, 4:12, 4:12] = 250
    data = dataclasses.replace(base, images=images, labels=(np.arange(12) % 2 == 0).astype(int), classes=("dark", "bright"), masks=None,
                               boxes=pd.DataFrame({"image": np.arange(12), "class": "spot", "x0": 4.0, "y0": 4.0, "x1": 12.0, "y1": 12.0}))

    class Spot(torch.nn.Module):
        """The logit of "bright" is the brightest smoothed pixel: Grad-CAM of its one stage has to point there."""

        def __init__(self):
            super().__init__()
            self.stage = torch.nn.Conv2d(3, 1, 4, stride=4, bias=False)
            self.fc = torch.nn.Linear(1, 2)
            with torch.no_grad():
                self.stage.weight.fill_(1 / 48)
                self.fc.weight.copy_(torch.tensor([[-4.0], [4.0]]))
                self.fc.bias.zero_()
            self.feature_info = [{"module": "stage", "reduction": 4}]
            self.pretrained_cfg = {"classifier": "fc"}
            self.spec = backbones.Spec("spot", data.classes, 32, 1, "replicate", (0.4,) * 3, (0.2,) * 3)

        def forward(self, x):
            return self.fc(torch.relu(self.stage(x)).amax(dim=(2, 3)))

    return data, Spot().eval()


def test_grad_cam_of_a_network_that_reads_one_spot_lies_on_the_spot(bright):
    data, model = bright
    lit = np.flatnonzero(data.labels == 1)
    heat = explain.grad_cam(model, data, lit)
    assert heat.shape == (6, 32, 32) and heat.min() >= 0 and heat.max() == pytest.approx(1, abs=1e-3)
    boxes = bone_tumours.corners(data)[lit]
    assert (explain.pointing(heat, boxes) == 1).all() and explain.inside(heat, boxes).min() > 0.6
    assert np.allclose(heat, explain.grad_cam(model, data, lit, classes=np.ones(6), batch_size=4))
    with pytest.raises(MstlError, match="2 classes were given for 6"):
        explain.grad_cam(model, data, lit, classes=[1, 1])


def test_deleting_the_spot_first_costs_more_than_deleting_at_random_and_the_end_is_the_same(bright):
    data, model = bright
    lit = data.subset(np.flatnonzero(data.labels == 1))
    heat = explain.grad_cam(model, lit)
    ordered, random = (explain.deletion(model, lit, np.ones(6), h, grid=8, steps=8) for h in (heat, None))
    assert ordered.shape == (6, 9) and np.allclose(ordered[:, 0], random[:, 0]) and np.allclose(ordered[:, -1], random[:, -1])
    assert (explain.curve_area(ordered) < explain.curve_area(random)).all()
    assert explain.curve_area(np.tile([1.0, 0.5, 0], (2, 1))).tolist() == [0.5, 0.5]
    with pytest.raises(MstlError, match="grid=64"):
        explain.deletion(model, lit, np.ones(6), heat, grid=64)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_shuffling_goes_from_the_head_down_and_leaves_the_network_itself_alone(backbone):
    torch = pytest.importorskip("torch")
    from mstl.models import backbones

    model = backbones.create(backbone, ["a", "b"], image_size=32, channels=1)
    with torch.no_grad():
        for name in backbones.head_names(model):
            model.get_parameter(name).normal_()
    before = {name: value.clone() for name, value in model.named_parameters()}
    changed = {}
    for depth in (0.0, 0.5, 1.0):
        other = dict(explain.shuffled(model, depth=depth).named_parameters())
        changed[depth] = {name for name, value in other.items() if not torch.equal(value, before[name])}
        assert all(torch.equal(value.flatten().sort().values, before[name].flatten().sort().values) for name, value in other.items())
    assert changed[0.0] <= backbones.head_names(model) and changed[0.0] < changed[0.5] < changed[1.0]
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    with pytest.raises(MstlError, match="depth=2"):
        explain.shuffled(model, depth=2)


def test_a_transformers_tokens_are_put_back_on_their_grid_and_a_cnn_is_read_where_its_map_is_fine_enough():
    torch = pytest.importorskip("torch")
    from mstl.models import backbones

    vit = backbones.create("test_vit", ["a", "b"], image_size=64, channels=1)
    layer, reshape = explain.target_layer(vit, 64)
    side, prefix = 64 // 16, vit.num_prefix_tokens
    tokens = torch.cat([torch.full((1, prefix, 1), -1.0), torch.arange(float(side * side)).reshape(1, -1, 1)], dim=1)
    assert reshape(tokens)[0, 0].flatten().tolist() == list(range(side * side)) and layer is vit.blocks[-1].norm1
    cnn = backbones.create("test_resnet", ["a", "b"], image_size=64, channels=1)
    assert explain.target_layer(cnn, 64, cells=4)[0] is cnn.layer3 and explain.target_layer(cnn, 64, cells=2)[0] is cnn.layer4


# --- the chapter's tables ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables():
    """Made-up risks of two models on 60 patients with two images each in two folds: "shaky" moves five times as much as "calm"."""
    rng, rows, moved = np.random.default_rng(0), [], []
    images = [f"i{k}" for k in range(120)]
    truth = np.repeat(rng.random(60) < 0.5, 2)
    level = 1.2 * (2 * truth - 1) + rng.normal(0, 1, 120)
    for model, noise in (("calm", 0.1), ("shaky", 0.5)):
        for fold in (0, 1):
            for k in range(120):
                risk = 1 / (1 + np.exp(-level[k] - 0.5 * fold))
                split = "test" if (k // 2) % 2 == fold else "val"
                rows.append({"model": model, "fold": fold, "split": split, "image_id": images[k], "group": f"g{k // 2}", "center": "A",
                             "y_true": "ill" if truth[k] else "well", "p_well": 1 - risk, "p_ill": risk})
                for strength, draw in [(0.0, 0)] + [(s, d) for s in (0.1, 0.4) for d in range(4)] if split == "test" else []:
                    logit = level[k] + 0.5 * fold + noise * 5 * strength * rng.normal()
                    moved.append({"model": model, "seed": 0, "fold": fold, "strength": strength, "draw": draw, "image_id": images[k], "p": 1 / (1 + np.exp(-logit))})
    return predictions.check(pd.DataFrame(rows)), pd.DataFrame(moved)


def test_the_table_of_draws_gives_back_how_much_each_model_was_moved(tables):
    table, moved = tables
    whole = robust.joined(moved, table)
    cases = robust.per_case(whole)
    assert len(cases) == 2 * 2 * 120
    spread = robust.means(cases, "sd_logit").set_index(["model", "strength"])["estimate"]
    assert spread["shaky", 0.4] == pytest.approx(5 * spread["calm", 0.4], rel=0.2) and spread["calm", 0.4] == pytest.approx(4 * spread["calm", 0.1], rel=0.2)
    icc = robust.agreement(whole).set_index(["model", "strength"])
    assert icc.loc[("calm", 0.4), "low"] > icc.loc[("shaky", 0.4), "high"] and (icc["n"] == 120).all() and (icc["k"] == 4).all()
    flips = robust.means(cases, "flips").set_index(["model", "strength"])["estimate"]
    assert flips["shaky", 0.4] > flips["calm", 0.4] >= 0
    pair = robust.contrasts(cases, ["calm", "shaky"])
    assert (pair["high"] < 0).all() and (pair["p_holm"].astype(float) < 0.001).all() and (pair["n_groups"] == 60).all()


def test_the_auc_under_draws_is_the_mean_of_the_aucs_within_a_fold_and_a_draw(tables):
    table, moved = tables
    whole = robust.joined(moved, table)
    found = robust.aucs(whole, n_resamples=100).set_index(["model", "strength"])
    own = whole[(whole["model"] == "shaky") & (whole["strength"] == 0.4)]
    direct = [roc.auc(part["y"], part["p"]) for _, part in own.groupby(["fold", "draw"])]
    assert found.loc[("shaky", 0.4), "estimate"] == pytest.approx(np.mean(direct)) and found.loc[("shaky", 0.4), "n_images"] == 120
    before = [roc.auc(part["y"], part["p"]) for _, part in whole[(whole["model"] == "shaky") & (whole["strength"] == 0)].groupby("fold")]
    assert found.loc[("shaky", 0.4), "change"] == pytest.approx(np.mean(direct) - np.mean(before))
    assert found.loc[("calm", 0.0), "sd_draws"] == 0 and found.loc[("shaky", 0.4), "sd_draws"] > found.loc[("calm", 0.4), "sd_draws"]


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda t, m: (t, m.drop(columns="draw")), "no column 'draw'"), (lambda t, m: (t[t["split"] == "test"], m), "no validation images of both classes"),
    (lambda t, m: (t, m.assign(image_id=m["image_id"] + "x")), "is no test image of the predictions"),
    (lambda t, m: (t, m.assign(fold=1 - m["fold"])), "was no test image of it"), (lambda t, m: (t, m.assign(p=m["p"] * 0.9)), "had another risk there")])
def test_tables_that_do_not_belong_together_are_one_sentence(tables, spoil, words):
    table, moved = spoil(*tables)
    with pytest.raises(MstlError, match=words):
        robust.joined(moved, table)


def test_images_that_changed_since_the_networks_were_trained_are_refused(bright):
    data = bright[0] if isinstance(bright, tuple) else bright
    robust.same_images(data, {"name": data.name, "hash": data.hash}, "runs/x/71_bone_tumours/all")
    with pytest.raises(MstlError, match="has changed since runs/x/71_bone_tumours/all was run"):
        robust.same_images(data, {"name": data.name, "hash": "0" * 64}, "runs/x/71_bone_tumours/all")


def test_a_pair_that_was_not_disturbed_is_one_sentence(tables):
    cases = pd.DataFrame({"model": ["a"], "strength": [0.1], "image_id": ["i"], "group": ["g"], "sd_logit": [1.0]})
    with pytest.raises(MstlError, match="no model 'b'"):
        robust.contrasts(cases, ["a", "b"])


def test_some_cases_are_taken_evenly_and_all_where_no_number_is_given():
    labels, rows = np.array([0] * 80 + [1] * 20), np.arange(100)
    taken = robust.some(labels, rows, 30)
    assert np.bincount(labels[taken]).tolist() == [15, 15] and (np.diff(taken) > 0).all()
    assert np.bincount(labels[robust.some(labels, rows, 60)]).tolist() == [40, 20] and len(robust.some(labels, rows, 0)) == 100


# --- the notebook ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_disturbs_the_kept_networks_and_computes_the_same_again_from_its_tables(tmp_path):
    parent = papermill("71_bone_tumours", tmp_path, **TINY)
    assert parent.returncode == 0, parent.stderr[-2000:]
    given = dict(strengths=[0.1, 0.4], draws=2, n_cases=24, n_maps=6, n_resamples=100)
    done = papermill("72_robustness", tmp_path, predictions=["71_bone_tumours/all"], **given)
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs" / "manual" / "72_robustness" / "all"
    moved = pd.read_csv(run / "perturbed.csv")
    assert set(moved["model"]) == {"one", "two", "texture", "one + texture"} and (moved.groupby(["model", "strength", "draw"]).size() == 24).all()
    kept = predictions.read(run).query("split == 'test'").set_index(["model", "image_id"])
    own = moved[moved["strength"] == 0]
    assert np.allclose(own["p"], kept.loc[pd.MultiIndex.from_frame(own[["model", "image_id"]]), "p_malignant"], atol=1e-5), "its own box gives the risk of 71"
    again = papermill("72_robustness", tmp_path, results=str(run), out="again", **given)
    assert again.returncode == 0, again.stderr[-2000:]
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "again"))
    assert first == second
