"""Handcrafted features of a lesion, and the linear models that read them.

Two sets: "radiomics", the seven 2D classes of pyradiomics (van Griethuysen et al. 2017; an extra that is installed in two steps), and
"texture", a small set by scikit-image that needs nothing more. The second is no substitute that passes for the first: it has its own
name in every table.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mstl.errors import MstlError
from mstl.metrics import _check, roc

SETS = {"texture": "texture features (scikit-image)", "radiomics": "radiomics features (pyradiomics)"}
INSTALL = ('pip install "setuptools<81" wheel versioneer cython SimpleITK pykwalify PyWavelets six, '
           "then pip install --no-build-isolation --no-deps pyradiomics==3.0.1")
BIN = 25.0  # grey levels a bin, the default of pyradiomics; pixels go from 0 to 255
SMALLEST = 4  # pixels; a smaller region has no texture


# --- features -----------------------------------------------------------------------------------------------------------


def measure(images: np.ndarray, kind: str, *, boxes=None, masks: np.ndarray | None = None) -> pd.DataFrame:
    """The features ``kind`` (a key of ``SETS``) of one region an image: one row an image, one column a feature.

    ``images`` uint8 (n, H, W) or (n, H, W, C), of which the mean over channels is taken; the region is a box (n, 4), x0, y0, x1, y1 in
    pixels, cut at the image's edge, or a mask (n, H, W). Raises MstlError for a region of less than 4 × 4 pixels and where pyradiomics is missing.
    """
    if kind not in SETS:
        raise MstlError(f"There are no features '{kind}': use one of {', '.join(SETS)}.")
    if (boxes is None) == (masks is None):
        raise MstlError("Handcrafted features need one region an image: give boxes or masks, and not both.")
    regions = [_rectangle(box, images.shape[1:3]) for box in _check.boxes(boxes)] if masks is None else np.asarray(masks) > 0
    if len(regions) != len(images):
        raise MstlError(f"{len(regions)} regions were given for {len(images)} images: give one an image.")
    of = _texture if kind == "texture" else _radiomics()
    rows = []
    for number, region in enumerate(regions):
        image = np.asarray(images[number], dtype=float)
        y, x = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        if not len(y) or min(np.ptp(y), np.ptp(x)) + 1 < SMALLEST:
            raise MstlError(f"The region of image {number} is less than {SMALLEST} × {SMALLEST} pixels: load the images at a larger size.")
        window = (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))
        rows.append(of((image.mean(axis=-1) if image.ndim == 3 else image)[window], region[window]))
    return pd.DataFrame(rows)


def _rectangle(box: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    x0, y0, x1, y1 = np.round(box).astype(int)
    mask[max(y0, 0):max(y1, 0), max(x0, 0):max(x1, 0)] = True
    return mask


def _texture(image: np.ndarray, region: np.ndarray) -> dict[str, float]:
    """First-order statistics, gradient, grey-level co-occurrence (Haralick 1973; bins of ``BIN``, distances 1 and 2, four directions
    together) and shape; ``image`` float (h, w), ``region`` bool (h, w), both cut to the region's bounding box."""
    from scipy.stats import kurtosis, skew
    from skimage.feature import graycomatrix, graycoprops
    from skimage.filters import sobel
    from skimage.measure import regionprops

    values = image[region]
    bins = 1 + (image // BIN).astype(np.uint8)
    share = np.bincount(bins[region]) / len(values)
    flat = np.ptp(values) == 0
    out = {"mean": values.mean(), "sd": values.std(), "skewness": 0.0 if flat else skew(values), "kurtosis": 0.0 if flat else kurtosis(values),
           "percentile_10": np.percentile(values, 10), "median": np.median(values), "percentile_90": np.percentile(values, 90),
           "entropy": -np.sum(share[share > 0] * np.log2(share[share > 0])), "gradient": sobel(image)[region].mean()}
    levels = int(255 // BIN) + 2  # level 0 is outside the region, and does not count
    pairs = graycomatrix(np.where(region, bins, 0).astype(np.uint8), [1, 2], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], levels, symmetric=True).astype(float)
    pairs[0], pairs[:, 0] = 0, 0
    for number, distance in enumerate((1, 2)):
        both = pairs[:, :, number].sum(axis=2)[:, :, None, None]
        both /= max(both.sum(), 1.0)
        out |= {f"glcm_{name}_{distance}": float(graycoprops(both, name)[0, 0]) for name in ("contrast", "homogeneity", "energy", "correlation")}
    shape = regionprops(region.astype(np.uint8))[0]
    out |= {"area": shape.area, "elongation": shape.axis_minor_length / max(shape.axis_major_length, 1e-9), "solidity": shape.solidity,
            "width_to_height": region.shape[1] / region.shape[0]}
    return {name: float(value) for name, value in out.items()}


def _radiomics():
    """The function (image, region) → features of pyradiomics."""
    try:
        import SimpleITK as sitk
        from radiomics import featureextractor
    except ImportError as error:
        raise MstlError(f"Radiomics features need pyradiomics, which is not installed ({error.name} is missing): {INSTALL}; or choose "
                        "the features 'texture', a smaller set of another kind.") from error
    logging.getLogger("radiomics").setLevel(logging.ERROR)
    extractor = featureextractor.RadiomicsFeatureExtractor(binWidth=BIN, force2D=True)
    extractor.disableAllFeatures()
    for name in ("shape2D", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm"):
        extractor.enableFeatureClassByName(name)

    def of(image: np.ndarray, region: np.ndarray) -> dict[str, float]:
        # A margin, so that the region never touches the frame; float, because pyradiomics overflows on bytes
        padded = [sitk.GetImageFromArray(np.pad(part, 1)) for part in (image.astype(np.float64), region.astype(np.uint8))]
        found = extractor.execute(*padded)
        return {name.removeprefix("original_"): float(value) for name, value in found.items() if not name.startswith("diagnostics")}

    return of


# --- the model on them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """A logistic model of standardised features: risk = 1 / (1 + exp(−(intercept + Σ coefficient · (x − mean) / scale)))."""

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    penalty: float  # C, the inverse penalty
    l1_ratio: float
    inner_auc: float

    def risk(self, features: pd.DataFrame) -> np.ndarray:
        """Probability of the positive class, float64 (n,)."""
        absent = [name for name in self.features if name not in features]
        if absent:
            raise MstlError(f"The features lack '{absent[0]}', which this signature reads: measure the same set of features.")
        x = (features[list(self.features)].to_numpy(float) - self.mean) / self.scale
        return 1 / (1 + np.exp(-np.clip(x @ np.asarray(self.coefficients) + self.intercept, -30, 30)))

    def table(self) -> pd.DataFrame:
        """The features that it kept, the strongest first: ``feature``, ``coefficient`` (log odds a standard deviation)."""
        rows = pd.DataFrame({"feature": self.features, "coefficient": self.coefficients})
        rows = rows[rows["coefficient"] != 0]
        return rows.sort_values("coefficient", key=lambda values: -values.abs(), ignore_index=True)


def elastic_net(
    features: pd.DataFrame, y_true, groups, *, penalties: Sequence[float] = (0.01, 0.1, 1.0), ratios: Sequence[float] = (0.1, 0.5, 0.9),
    folds: int = 3, seed: int = 0,
) -> Signature:
    """An elastic-net logistic regression (Zou & Hastie 2005, scikit-learn's saga) on standardised ``features`` (n, D).

    Inverse penalty and share of L1 are those with the best mean AUC over grouped, stratified inner folds of these rows alone; ties go
    to the stronger penalty. Raises MstlError where a class has fewer than two groups, or a feature is not a finite number.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    y, x = _check.binary(y_true), features.to_numpy(float)
    code, _ = _check.codes(groups, len(y))
    if not np.isfinite(x).all():
        raise MstlError(f"The feature '{features.columns[~np.isfinite(x).all(axis=0)][0]}' is not a finite number for some image: leave it out.")
    fewest = min(len(np.unique(code[y == label])) for label in (False, True))
    if fewest < 2:
        raise MstlError("A class has fewer than two groups in the training part, so no inner validation exists: give more patients.")
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, 1.0)
    x = (x - mean) / scale
    inner = list(StratifiedGroupKFold(min(folds, fewest), shuffle=True, random_state=seed).split(x, y, code))
    inner = [(train, test) for train, test in inner if len(set(y[train])) == len(set(y[test])) == 2]

    def model(penalty: float, ratio: float) -> LogisticRegression:
        return LogisticRegression(C=penalty, l1_ratio=ratio, solver="saga", max_iter=5000, tol=1e-3, random_state=seed)

    best = (-np.inf, penalties[0], ratios[0])
    for penalty in sorted(penalties):
        for ratio in ratios:
            areas = [roc.auc(y[test], model(penalty, ratio).fit(x[train], y[train]).decision_function(x[test])) for train, test in inner]
            if areas and np.mean(areas) > best[0] + 1e-12:
                best = (float(np.mean(areas)), penalty, ratio)
    fitted = model(*best[1:]).fit(x, y)
    return Signature(tuple(features.columns), *(tuple(map(float, values)) for values in (mean, scale, fitted.coef_[0])), float(fitted.intercept_[0]),
                     float(best[1]), float(best[2]), best[0] if np.isfinite(best[0]) else float("nan"))


# --- both together ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """risk = 1 / (1 + exp(−(intercept + deep · logit(network) + hand · logit(signature))))."""

    intercept: float
    deep: float
    hand: float

    def risk(self, deep, hand) -> np.ndarray:
        x = self.intercept + self.deep * _logit(deep) + self.hand * _logit(hand)
        return 1 / (1 + np.exp(-x))


def combine(y_validation, deep, hand) -> Combination:
    """A logistic regression of two scores, fitted on *validation* images: on its training images a network's score is too good, and
    would get all the weight. Its own validation predictions are those of its fit, so that thresholds on them are a little optimistic."""
    from sklearn.linear_model import LogisticRegression

    y = _check.binary(y_validation)
    _check.both_classes(y, "a combined model", "y_validation")
    x = np.stack([_logit(deep), _logit(hand)], axis=1)
    fitted = LogisticRegression(C=1.0).fit(x, y)
    return Combination(float(fitted.intercept_[0]), *map(float, fitted.coef_[0]))


def save(model: Signature | Combination, path: Path) -> None:
    """A fitted model as JSON, never pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": type(model).__name__, **asdict(model)}, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Signature | Combination:
    if not path.is_file():
        raise MstlError(f"There is no fitted model {path}: run the notebook that fits it again.")
    values = json.loads(path.read_text(encoding="utf-8"))
    kind = {"Signature": Signature, "Combination": Combination}[values.pop("kind")]
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _logit(risk) -> np.ndarray:
    p = np.clip(np.asarray(risk, dtype=float), 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))
