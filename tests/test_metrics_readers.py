import numpy as np
import pytest

from mstl.errors import MstlError
from mstl.metrics import readers, roc

VAN_DYKE = readers.Components(
    ms_t=0.004796171,
    ms_r=np.nan,
    ms_tr=0.0005510306,
    variance=np.nan,
    cov1=np.nan,
    cov2=0.0003440748,
    cov3=0.0002390284,
    n_modalities=2,
    n_readers=5,
)


def study(rng, modalities=2, n_readers=4, m=30, n=40, effect=0.0, reader_sd=0.25):
    """Crossed readings: case, reader, reader × modality and reading variation."""
    y = np.repeat([1, 0], [m, n])
    case = y * 1.2 + 0.6 * rng.normal(size=m + n)
    skill = reader_sd * rng.normal(size=(n_readers, 1)) + 0.5 * reader_sd * rng.normal(size=(modalities, n_readers, 1))
    s = case + y * skill + 0.8 * rng.normal(size=(modalities, n_readers, m + n))
    s[0] += effect * y
    return y, s


def test_van_dykes_data_give_the_published_test():
    r = readers.from_components(VAN_DYKE)
    assert r.statistic == pytest.approx(4.456, abs=5e-4)
    assert r.df2 == pytest.approx(15.26, abs=5e-3)
    assert r.p_value == pytest.approx(0.0517, abs=5e-5)


def test_mean_squares_and_covariances_are_their_definitions():
    y, s = study(np.random.default_rng(0))
    r = readers.obuchowski_rockette(y, s)
    area = np.array([[roc.auc(y, x) for x in row] for row in s])
    assert r.performances.to_numpy() == pytest.approx(area)
    assert r.components.ms_t == pytest.approx(4 * area.mean(1).var(ddof=1))
    _, covariance = roc.delong_covariance(y, s.reshape(8, -1))
    assert r.components.variance == pytest.approx(np.diag(covariance).mean())
    assert r.components.cov1 == pytest.approx(np.mean([covariance[k, k + 4] for k in range(4)]))
    assert r.components.cov2 == pytest.approx(
        (covariance[:4, :4].sum() + covariance[4:, 4:].sum() - np.trace(covariance)) / 24
    )


def test_with_two_modalities_f_is_the_square_of_the_pairs_t():
    r = readers.obuchowski_rockette(*study(np.random.default_rng(1)), modality_names=["alone", "with AI"])
    pair = r.pairs.iloc[0]
    assert pair.p_value == pytest.approx(r.p_value)
    assert (pair.low <= 0 <= pair.high) == (r.p_value > 0.05)
    assert (pair.a, pair.b) == ("alone", "with AI")
    assert (r.modalities.low < r.modalities.estimate).all() and (r.modalities.estimate < r.modalities.high).all()


@pytest.mark.parametrize("kind", ["random", "fixed"])
def test_the_test_keeps_its_level(kind):
    rng = np.random.default_rng(2)
    spread = 0.25 if kind == "random" else 0.0
    p = np.array([readers.obuchowski_rockette(*study(rng, reader_sd=spread), readers=kind).p_value for _ in range(400)])
    assert 0.015 <= np.mean(p < 0.05) <= 0.085


def test_a_real_difference_is_found():
    assert readers.obuchowski_rockette(*study(np.random.default_rng(3), n_readers=6, effect=1.2)).p_value < 0.01


def test_modalities_read_alike_do_not_differ():
    y, s = study(np.random.default_rng(4))
    r = readers.obuchowski_rockette(y, np.stack([s[0], s[0]]))
    assert r.p_value == 1 and r.statistic == 0 and r.pairs.difference[0] == 0


def test_one_reader_is_refused_with_the_test_to_use_instead():
    y, s = study(np.random.default_rng(5), n_readers=1)
    with pytest.raises(MstlError, match="DeLong"):
        readers.obuchowski_rockette(y, s)


def test_groups_of_copied_cases_leave_the_test_nearly_as_it_was():
    y, s = study(np.random.default_rng(6))
    alone = readers.obuchowski_rockette(y, s)
    copies = readers.obuchowski_rockette(np.repeat(y, 3), np.repeat(s, 3, axis=2), groups=np.repeat(np.arange(70), 3))
    assert copies.statistic == pytest.approx(alone.statistic, rel=0.03)
