"""Simulated whole-body bone scintigraphy: gamma rays of a tracer in bone, counted from the front and from behind.

The camera's field is 60 × 240 cm, at full size 256 × 1024 bins (see :func:`full_size`). What a view counts is what the body sends out,
weakened by exp(−μ d) over the depth d below that side of the body and blurred with the distance to the camera; the counts are Poisson.
Both views are taken at once by a camera with two heads, so nothing moves between them.
Sizes, uptakes and sites are chosen by us: plausible, not measured on patients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .drawing import Scene, Shot, _between, _soft

VIEWS = ("anterior", "posterior")
WIDE, HIGH = 60.0, 240.0  # of the camera's field, cm
FULL_SIZE = (1024, 256)  # bins of the camera, rows × columns
MU = 0.12  # attenuation of 140 keV in the body, 1/cm; below the 0.15 of a narrow beam, because some scatter is counted


class Camera(NamedTuple):
    """Counts of a view, blur at the collimator (cm, standard deviation), soft tissue's uptake relative to bone's."""

    counts: float
    blur: float
    soft: float


#: B scans faster and sooner after the injection: fewer counts, more of them from soft tissue, and a coarser collimator.
CAMERAS = (Camera(1.6e6, 0.35, 0.13), Camera(4.0e5, 0.55, 0.24))

#: Depth below the front and below the back of the body, cm.
FRONT, BACK, TRUNK, LIMB, PELVIS = (2.5, 17.0), (15.0, 4.5), (10.0, 10.0), (5.5, 5.5), (6.0, 13.0)
LAYERS = (FRONT, BACK, TRUNK, LIMB)


class Spot(NamedTuple):
    """A focus of uptake: place (cm; x to the patient's left of the midline, y below the crown), half widths at half its height (cm),
    uptake (bone's is 1) and depth."""

    x: float
    y: float
    rx: float
    ry: float
    uptake: float
    depth: tuple[float, float]


#: Where metastases are drawn: x, y (ranges in cm, x on either side), depth.
SITES = {
    "back": [((0, 0.8), (33, 58), BACK), ((0, 1.0), (59, 77), BACK), ((4, 11), (38, 57), BACK), ((1, 5.5), (79, 88), BACK), ((10, 14), (36, 45), BACK)],
    "front": [((0, 0.6), (35, 49), FRONT), ((5, 12), (38, 56), FRONT), ((2, 6), (93, 96), PELVIS), ((10, 13), (80, 85), PELVIS)],
    "both": [((8.5, 10), (91, 99), LIMB), ((3, 6.5), (4, 14), LIMB), ((17, 19), (34, 44), LIMB), ((11, 13), (46, 58), TRUNK)],
}


def draw(scene: Scene) -> list[Shot]:
    """The anterior and the posterior view of one examination, squashed into a square of ``scene.size``."""
    patient = _patient(scene)
    expected = _expected(patient, scene.edge, scene.edge, scene.factor)
    shots = []
    for view, own in enumerate(scene.exposures()):
        counts = own.poisson(expected[view])
        mask = _enlarged(_mask(patient, view, scene.size, scene.size), scene.factor) if scene.label else None
        shots.append(Shot(_enlarged(_shown(counts), scene.factor), mask, patient["subtype"], _conspicuity(patient, view)))
    return shots


def full_size(scene: Scene) -> np.ndarray:
    """Counts of both views as the camera has them: int64 (2, 1024, 256)."""
    expected = _expected(_patient(scene), *FULL_SIZE)
    return np.stack([own.poisson(mean) for own, mean in zip(scene.exposures(), expected, strict=True)])


# --- the patient ------------------------------------------------------------------------------------------------------


def _patient(scene: Scene) -> dict:
    rng, hard = scene.patient, scene.difficulty
    camera = CAMERAS[scene.center]
    body = dict(
        tall=rng.normal(1.0, 0.045), wide=rng.normal(1.0, 0.05), girth=float(np.clip(rng.normal(1.0, 0.14), 0.7, 1.4)),
        top=rng.uniform(20, 32), off=rng.normal(0, 1.0), arms=rng.uniform(-0.6, 1.0), bend=rng.normal(0, 0.9),
        ribs=(rng.uniform(2.4, 2.8), rng.uniform(0, 1)), spine=rng.uniform(1.1, 1.5), skull=rng.uniform(0.7, 1.2), si=rng.uniform(1.5, 2.2),
        soft=camera.soft * math.exp(rng.normal(0, 0.15)), blur=camera.blur,
        counts=camera.counts * math.exp(rng.normal(0, 0.15)) * _between(1.4, 0.7, hard),
    )  # fmt: skip
    organs, joints = _organs(rng), _joints(rng, hard)
    lesions = _metastases(rng, hard) if scene.label else []
    return body | {"benign": organs + joints, "lesions": lesions, "subtype": _side(lesions) if lesions else "degenerative" if joints else "normal"}


def _organs(rng: np.random.Generator) -> list[Spot]:
    """Bladder (nearer the front), kidneys (nearer the back) and the vein where the tracer was given."""
    spots = [Spot(rng.normal(0, 0.6), 92 + rng.normal(0, 0.8), rng.uniform(2.2, 4.2), rng.uniform(1.8, 3.6), rng.uniform(4, 16), PELVIS)]
    strength = rng.uniform(0.8, 2.6)
    spots += [Spot(side * rng.uniform(5.5, 7), rng.uniform(61, 65) + (side < 0), 2.2, 4.2, strength * rng.uniform(0.8, 1.2), BACK) for side in (-1, 1)]
    if rng.random() < 0.45:
        x, y = ((22.3, 64.0), (24.3, 86.0), (25.0, 95.0))[int(rng.integers(3))]
        spots.append(Spot(rng.choice([-1, 1]) * x, y + rng.normal(0, 1), rng.uniform(0.8, 1.6), rng.uniform(0.8, 2.4), rng.uniform(4, 20), LIMB))
    return spots


def _joints(rng: np.random.Generator, hard: float) -> list[Spot]:
    """Degenerative uptake about joints, in both classes: what mimics a metastasis."""
    places = [(17.5, 33.5, 2.2, LIMB), (8.0, 136, 2.8, LIMB), (9.5, 91, 2.2, LIMB), (7.0, 170, 2.0, LIMB), (2.6, 33.0, 1.2, FRONT), (2.0, 74, 1.4, BACK), (2.0, 69, 1.4, BACK)]
    spots = []
    for x, y, radius, depth in places:
        if rng.random() < _between(0.08, 0.2, hard):
            sides = (-1, 1) if rng.random() < 0.55 else (int(rng.choice([-1, 1])),)
            spots += [Spot(side * (x + rng.normal(0, 0.4)), y + rng.normal(0, 0.8), radius * rng.uniform(0.7, 1.1), radius * rng.uniform(0.7, 1.1),
                           rng.uniform(1.1, _between(1.8, 3.2, hard)), depth) for side in sides]
    return spots


def _metastases(rng: np.random.Generator, hard: float) -> list[Spot]:
    """One to eight foci in bone; in a third of the patients all near the back, in a third all near the front."""
    zone = str(rng.choice(["back", "front", "any"]))
    number = int(min(8, 1 + rng.poisson(_between(3.0, 1.2, hard))))
    spots = []
    for _ in range(number):
        sites = SITES[zone if zone != "any" else str(rng.choice(list(SITES)))]
        (x0, x1), (y0, y1), depth = sites[int(rng.integers(len(sites)))]
        radius = rng.uniform(0.75, 1.3) * _between(2.6, 1.7, hard)
        spots.append(Spot(rng.choice([-1, 1]) * rng.uniform(x0, x1), rng.uniform(y0, y1), radius, radius * rng.uniform(0.8, 1.4),
                          rng.uniform(0.7, 1.3) * _between(9.0, 3.5, hard), depth))
    return spots


def _side(lesions: list[Spot]) -> str:
    """Which view sees most of the foci's rays: "front", "back" or "both"."""
    front, back = (sum(s.uptake * s.rx * s.ry * math.exp(-MU * s.depth[view]) for s in lesions) for view in (0, 1))
    return "front" if front > 1.5 * back else "back" if back > 1.5 * front else "both"


def _conspicuity(patient: dict, view: int) -> float:
    """The strongest focus in this view, in rays of normal bone without tissue before it."""
    return max((s.uptake * math.exp(-MU * patient["girth"] * s.depth[view]) for s in patient["lesions"]), default=0.0)


# --- what the camera counts -------------------------------------------------------------------------------------------


def _expected(patient: dict, rows: int, columns: int, factor: int = 1) -> np.ndarray:
    """Mean counts a bin of both views, float64 (2, rows // factor, columns // factor), on one scale."""
    rays = np.stack([_rays(patient, view, rows, columns) for view in (0, 1)])
    rays = rays.reshape(2, rows // factor, factor, columns // factor, factor).sum((2, 4), dtype=np.float64)
    return rays * (2 * patient["counts"] / rays.sum())


def _shown(counts: np.ndarray) -> np.ndarray:
    """Counts as grey levels 0…1, as on a screen: white is twice what the brightest three hundredths of the field reach."""
    white = 2 * max(float(np.percentile(counts, 97)), 1.0)
    return np.clip(counts / white, 0, 1).astype(np.float32) ** 0.7


def _enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel ``factor`` times along both sides: counts are drawn in the image's own pixels, others expect the scene's."""
    return np.repeat(np.repeat(image, factor, 0), factor, 1)


def _place(patient: dict, view: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """cm to the patient's left of the midline (1, columns) and below the crown (rows, 1), of a body of average size. In the
    anterior view the patient's left is at the right of the image, in the posterior view at the left."""
    x = ((np.arange(columns, dtype=np.float32) + 0.5) / columns - 0.5) * WIDE
    y = (np.arange(rows, dtype=np.float32) + 0.5) / rows * HIGH
    across = x if view == 0 else -x
    return ((across - patient["off"]) / patient["wide"])[None, :], ((y - patient["top"]) / patient["tall"])[:, None]


def _rays(patient: dict, view: int, rows: int, columns: int) -> np.ndarray:
    """Rays that reach the camera (rows, columns), in any unit."""
    x, y = _place(patient, view, rows, columns)
    layers = _skeleton(patient, x, y)
    layers[LAYERS.index(TRUNK)] += patient["soft"] * _trunk(x, y)
    layers[LAYERS.index(LIMB)] += patient["soft"] * 0.6 * _limbs(x, y, patient["arms"])
    total = np.zeros((rows, columns), np.float32)
    for layer, depth in zip(layers, LAYERS, strict=True):
        sigma = _sigma(patient, depth[view])
        blurred = ndimage.gaussian_filter(layer, (sigma * rows / HIGH, sigma * columns / WIDE), mode="constant", truncate=3.0)
        total += blurred * math.exp(-MU * patient["girth"] * depth[view])
    for spot in (*patient["benign"], *patient["lesions"]):
        total += _focus(patient, spot, view, x, y)
    return total


def _sigma(patient: dict, depth: float) -> float:
    """Blur (cm) of what lies ``depth`` cm below the surface: a collimator's holes see wider farther away."""
    return patient["blur"] + 0.025 * patient["girth"] * depth


def _focus(patient: dict, spot: Spot, view: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A Gaussian focus as this view sees it: weakened, and widened by the blur without losing rays."""
    (sx, sy), (wx, wy) = _widths(patient, spot, view)
    height = spot.uptake * math.exp(-MU * patient["girth"] * spot.depth[view]) * (sx * sy) / (wx * wy)
    return np.float32(height) * np.exp(-0.5 * ((x - spot.x) / np.float32(wx)) ** 2) * np.exp(-0.5 * ((y - spot.y) / np.float32(wy)) ** 2)


def _widths(patient: dict, spot: Spot, view: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Standard deviations (cm) of a focus along x and y, in the body and as seen."""
    blur = _sigma(patient, spot.depth[view])
    own = (spot.rx / 1.177, spot.ry / 1.177)
    return own, (math.hypot(own[0], blur), math.hypot(own[1], blur))


def _mask(patient: dict, view: int, rows: int, columns: int) -> np.ndarray:
    """Where some metastasis is above half of its own height in this view, seen or not, at least one pixel of each: bool (rows, columns)."""
    x, y = _place(patient, view, rows, columns)
    least = 0.71 * WIDE / columns / patient["wide"], 0.71 * HIGH / rows / patient["tall"]  # half a pixel's diagonal
    mask = np.zeros((rows, columns), bool)
    for spot in patient["lesions"]:
        _, (wx, wy) = _widths(patient, spot, view)
        mask |= ((x - spot.x) / max(1.177 * wx, least[0])) ** 2 + ((y - spot.y) / max(1.177 * wy, least[1])) ** 2 <= 1
    return mask


# --- anatomy, in cm of a body of 172 cm -------------------------------------------------------------------------------


def _trunk(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Soft outline 0…1 of neck and trunk."""
    half = np.interp(y, [22, 25, 30, 35, 46, 60, 68, 82, 92, 98], [5.5, 5.8, 13, 19, 16.5, 14.5, 14.5, 17, 17.5, 15]).astype(np.float32)
    return _soft((half - np.abs(x)) * 2.5) * _soft((y - 23) * 1.5) * _soft((98 - y) * 1.5)


def _limbs(x: np.ndarray, y: np.ndarray, arms: float) -> np.ndarray:
    """Soft outline 0…1 of head, arms and legs."""
    side = np.abs(x)
    head = _soft((1 - np.hypot(x / 8.3, (y - 12) / 12.5)) * 12)
    legs = np.maximum(_capsule(side, y, (9.0, 96), (7.5, 135), 8.3, 6.0), _capsule(side, y, (7.5, 135), (7.0, 174), 5.6, 3.6))
    arm = np.maximum(_capsule(side, y, (18.5, 36), (22 + arms, 64), 4.6, 3.6), _capsule(side, y, (22 + arms, 64), (25 + arms, 98), 3.4, 3.2))
    return np.maximum(np.maximum(head, legs), arm)


def _skeleton(patient: dict, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Uptake of normal bone (rows, columns) in each of ``LAYERS``."""
    side = np.abs(x)
    shape = np.broadcast_shapes(x.shape, y.shape)
    front, back, trunk, limb = (np.zeros(shape, np.float32) for _ in LAYERS)
    spacing, phase = patient["ribs"]
    # spine, bent a little to one side; its bodies alternate with discs
    bent = x - patient["bend"] * np.sin(np.clip((y - 31) / 47, 0, 1) * np.float32(2 * math.pi))
    half = np.interp(y, [22, 31, 59, 78, 84, 89], [1.9, 1.7, 2.1, 2.5, 4.2, 1.5]).astype(np.float32)
    bodies = 1 + 0.25 * np.cos(y * np.float32(2 * math.pi / 2.7)) * _soft((77 - y) * 2)
    back += patient["spine"] * bodies * _soft((half - np.abs(bent)) * 4) * _soft((y - 22) * 2) * _soft((89 - y) * 2)
    # ribs: behind they run outwards and down a little, in front inwards and down steeply; at the flanks the ray meets them along
    wall = np.interp(y, [33, 38, 50, 58, 61], [7, 11.5, 13.5, 13, 10]).astype(np.float32)
    cage = _soft((wall - side) * 2.5) * _soft((y - 33) * 1.2) * _soft((60 - y) * 1.2)
    back += 0.65 * cage * _bar((y - 0.35 * side) / spacing + phase) * _soft((side - 2) * 2)
    front += 0.45 * cage * _bar((y + 0.7 * side) / spacing + phase + 0.4) * _soft((side - 3.5) * 2) * _soft((56 - y) * 1.0)
    trunk += 0.55 * np.exp(-(((side - wall + 0.8) / 0.9) ** 2)) * _soft((y - 36) * 1.2) * _soft((60 - y) * 1.2)
    back += 0.5 * _capsule(side, y, (12.5, 34), (10.5, 46), 3.4, 1.2) + 0.5 * _capsule(side, y, (8, 34), (16.5, 33), 0.8, 1.0)
    front += 0.9 * _capsule(x, y, (0, 33.5), (0, 50), 1.9, 1.2) + 0.7 * _capsule(side, y, (1.8, 32.5), (16, 30.5), 0.9, 0.9)
    # pelvis
    trunk += 0.75 * _soft((1 - np.hypot((side - 9.5) / 5.5, (y - 83) / 6.5)) * 5) + 0.6 * _capsule(side, y, (1, 94.5), (8, 92.5), 1.3, 1.6)
    trunk += 0.7 * _capsule(side, y, (5, 96), (5.5, 98), 1.8, 1.5)
    back += patient["si"] * _capsule(side, y, (4.3, 79.5), (5.0, 86), 0.9, 0.7)
    # head, arms, legs
    skull = np.hypot(x / 7.4, (y - 10.5) / 10.5)
    limb += patient["skull"] * (0.45 * _soft((1 - skull) * 14) + 0.45 * np.exp(-(((skull - 0.93) / 0.1) ** 2)))
    front += 0.7 * _soft((1 - np.hypot(x / 5.0, (y - 18.5) / 4.6)) * 8)
    out = 22 + patient["arms"]
    for one, other, ra, rb, uptake in (
        ((17.5, 33.5), (17.5, 34.5), 2.4, 2.4, 0.9), ((18, 35), (out, 63), 1.5, 1.3, 0.5), ((out, 63.5), (out, 65.5), 1.9, 1.7, 0.7),
        ((out, 66), (out + 2.2, 87), 1.5, 1.2, 0.45), ((out + 2.3, 88), (out + 3, 98), 1.8, 2.2, 0.4), ((9.6, 91), (9.4, 93), 2.6, 2.4, 0.9),
        ((10.2, 94), (8.2, 132), 1.9, 1.6, 0.5), ((8.1, 134), (8.0, 138), 3.3, 3.2, 0.7), ((7.9, 139), (7.2, 166), 1.8, 1.3, 0.5),
        ((7.0, 168), (7.2, 171), 1.9, 2.0, 0.65), ((7.3, 172), (9.0, 179), 1.9, 2.3, 0.45),
    ):  # fmt: skip
        limb += uptake * _capsule(side, y, one, other, ra, rb)
    return [front, back, trunk, limb]


def _capsule(x: np.ndarray, y: np.ndarray, a: tuple[float, float], b: tuple[float, float], ra: float, rb: float) -> np.ndarray:
    """Soft 0…1 inside a bar from ``a`` to ``b`` whose radius goes from ``ra`` to ``rb`` cm (x, y in cm)."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / np.float32(dx * dx + dy * dy), 0, 1)
    away = np.hypot(x - a[0] - along * np.float32(dx), y - a[1] - along * np.float32(dy))
    return _soft((ra + along * np.float32(rb - ra) - away) * 5)


def _bar(phase: np.ndarray) -> np.ndarray:
    """A rib as a function of its number, half as wide as the ribs are apart."""
    return 0.5 + 0.5 * np.cos(np.float32(2 * math.pi) * phase)
