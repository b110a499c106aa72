import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mstl.errors import MstlError
from mstl.metrics import scores

SKLEARN = {
    "accuracy": sk.accuracy_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    "f1": sk.f1_score,
    "mcc": sk.matthews_corrcoef,
    "kappa": sk.cohen_kappa_score,
    "kappa_linear": lambda a, b: sk.cohen_kappa_score(a, b, weights="linear"),
    "kappa_quadratic": lambda a, b: sk.cohen_kappa_score(a, b, weights="quadratic"),
    "specificity": lambda a, b: sk.recall_score(a, b, pos_label=0),
    "npv": lambda a, b: sk.precision_score(a, b, pos_label=0),
}


def binary(n=80, seed=0, right=0.75):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    return y, np.where(rng.random(n) < right, y, 1 - y)


@pytest.mark.parametrize("name", SKLEARN)
def test_every_label_metric_of_two_classes_equals_scikit_learn(name):
    y, predicted = binary()
    assert scores.score(name, y, predicted, n_resamples=200).estimate == pytest.approx(
        SKLEARN[name](y, predicted), abs=1e-12
    )


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_with_four_grades_precision_recall_and_f1_are_macro_means(name):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 120)
    predicted = np.where(rng.random(120) < 0.6, y, rng.integers(0, 4, 120))
    expected = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}[name](
        y, predicted, average="macro"
    )
    assert scores.score(name, y, predicted, n_resamples=200).estimate == pytest.approx(expected, abs=1e-12)


def test_weighted_kappa_and_mcc_of_four_grades_equal_scikit_learn():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 4, 150)
    predicted = np.clip(y + rng.integers(-1, 2, 150), 0, 3)
    assert scores.kappa(y, predicted, weights="quadratic", n_resamples=200).estimate == pytest.approx(
        sk.cohen_kappa_score(y, predicted, weights="quadratic")
    )
    assert scores.mcc(y, predicted, n_resamples=200).estimate == pytest.approx(sk.matthews_corrcoef(y, predicted))


def test_named_classes_take_their_order_from_the_caller():
    y = np.array(["benign", "malignant", "malignant", "benign"])
    predicted = np.array(["benign", "malignant", "benign", "benign"])
    assert scores.recall(y, predicted, classes=["benign", "malignant"]).estimate == 0.5
    assert scores.recall(y, predicted, classes=["malignant", "benign"]).estimate == 1.0
    assert scores.confusion_matrix(y, predicted).loc["malignant", "benign"] == 1


def test_a_proportion_of_independent_images_has_the_wilson_interval():
    from statsmodels.stats.proportion import proportion_confint

    y, predicted = binary()
    result = scores.accuracy(y, predicted)
    assert result.method == "wilson"
    assert (result.low, result.high) == pytest.approx(
        proportion_confint((y == predicted).sum(), len(y), method="wilson")
    )


def test_precision_without_a_called_positive_says_that_it_does_not_exist():
    result = scores.precision([0, 1, 1, 0], [0, 0, 0, 0])
    assert result.estimate is None and result.low is None and "does not exist" in str(result)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_table_of_labels_ever_gives_nan(pairs):
    truth, predicted = map(np.array, zip(*pairs, strict=True))
    table = scores.table(truth, predicted, classes=[0, 1, 2], metrics=scores.METRICS, n_resamples=100)
    for result in table.values():
        for value in (result.estimate, result.low, result.high):
            assert value is None or np.isfinite(value)
        assert result.estimate is not None or result.note


def test_groups_of_copies_widen_the_interval():
    y, predicted = binary(60)
    alone = scores.accuracy(y, predicted)
    copies = scores.accuracy(np.repeat(y, 5), np.repeat(predicted, 5), groups=np.repeat(np.arange(60), 5))
    assert copies.estimate == pytest.approx(alone.estimate)
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.25)


def test_average_precision_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(3)
    y = rng.random(200) < 0.3
    s = np.round(rng.normal(size=200) + y, 1)
    result = scores.average_precision(y, s, n_resamples=500)
    assert result.estimate == pytest.approx(sk.average_precision_score(y, s), abs=1e-12)
    assert result.low < result.estimate < result.high


def test_the_bootstrap_interval_of_f1_covers_near_its_level():
    rng = np.random.default_rng(4)
    truth = 2 * 0.4 * 0.8 / (2 * 0.4 * 0.8 + 0.6 * 0.2 + 0.4 * 0.2)  # F1 of the population
    inside = 0
    for k in range(150):
        y = np.repeat([1, 0], [48, 72])
        predicted = np.where(rng.random(120) < 0.8, y, 1 - y)
        result = scores.f1(y, predicted, n_resamples=400, seed=k)
        inside += result.low <= truth <= result.high
    assert 0.89 <= inside / 150 <= 0.99


def test_a_label_outside_the_classes_is_named_with_its_row():
    with pytest.raises(MstlError, match="row 1"):
        scores.accuracy([0, 1], [0, 7], classes=[0, 1])


def test_a_perfect_model_on_few_patients_has_the_wilson_interval_over_patients():
    y = np.repeat([0, 1], 20)
    result = scores.recall(y, y, groups=np.repeat(np.arange(10), 4))
    assert (
        result.estimate == 1
        and result.high == 1
        and result.low == pytest.approx(scores.recall(np.ones(5), np.ones(5)).low)
    )
    assert scores.f1(y, y).low is None and "no interval" in scores.f1(y, y).note
