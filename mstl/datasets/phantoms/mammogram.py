"""Simulated mammogram regions: what a ray meets adds up, in power-law tissue."""

from __future__ import annotations

import math

import numpy as np

from .drawing import Film, Scene, Shot, _between, _blur, _grid, _outline, _polar, _ridges, _sampled, _soft, _texture

FILMS = (Film(0.002, 0.007, 1.15, 0.60), Film(0.0045, 0.016, 0.85, 0.64))


def draw(scene: Scene) -> list[Shot]:
    """A region of a compressed breast: what a ray meets adds up, in power-law tissue with fibres, and a mass where there
    is one.
    """
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    breast = _mammary_region(rng, edge)
    bend = [0.03 * _texture(rng, edge, slope=6, low=1.5, high=6) for _ in range(2)]
    tilt = rng.normal(0, 0.7), rng.normal(0, 0.7)
    skin = (
        (rng.uniform(0, 2 * math.pi), rng.uniform(0.38, 0.62), rng.uniform(1.0, 2.0)) if rng.random() < 0.25 else None
    )
    lesion = _mass(rng, hard) if scene.label else None
    film = FILMS[scene.center]
    x, y = _grid(edge)
    shots = []
    for own in scene.exposures():
        sx, sy, squeeze = own.normal(0, 0.03), own.normal(0, 0.03), 1 + own.normal(0, 0.3)
        px, py = x - sx + squeeze * bend[0], y - sy + squeeze * bend[1]
        mask, conspicuity, subtype, mass = None, 0.0, "normal", 0.0
        if lesion is not None:
            mass, pull, mask, conspicuity, subtype = _mass_insert(lesion, own, sx, sy, edge)
            px, py = px + pull[0], py + pull[1]
        density = _sampled(breast, px, py) + tilt[0] * (x - 0.5) + tilt[1] * (y - 0.5) + mass
        grey = film.grey + 0.058 * film.contrast * density + own.normal(0, 0.03)
        if skin:
            grey = _to_the_skin(grey, skin, x - sx, y - sy)
        grey = _blur(grey, film.blur * edge)
        noise = film.noise * _between(0.6, 1.6, hard) * math.sqrt(scene.factor)
        grey += noise * np.sqrt(np.clip(1.2 - grey, 0.1, None)) * own.standard_normal((edge, edge), dtype=np.float32)
        shots.append(Shot(np.clip(grey, 0, 1), mask, subtype, conspicuity))
    return shots


def _mammary_region(rng: np.random.Generator, edge: int) -> np.ndarray:
    """Density (edge, edge, periodic): parenchyma, denser and streakier where it is glandular, and strands of connective
    tissue.
    """
    direction = round(rng.uniform(0, math.pi), 1)
    tissue = _mammary_tissue(rng, edge, rng.uniform(2.9, 3.3))
    streaks = _texture(rng, edge, slope=2.7, low=3, stretch=round(rng.uniform(2.5, 5), 1), angle=direction)
    strands = sum(
        _ridges(
            _texture(rng, edge, slope=5, low=low, high=40, stretch=round(rng.uniform(2, 4), 1), angle=direction),
            rng.uniform(0.03, 0.06),
        )
        for low in (2.5, 6)
    )
    gland = _soft((tissue - 0.6 + 1.6 * (0.5 - rng.uniform(0, 1))) * 2)
    thin = _soft(2 * _texture(rng, edge, slope=4, low=1.5))  # strands come and go
    return math.exp(rng.normal(-0.15, 0.25)) * (
        tissue + (0.2 + 0.4 * gland) * streaks + 1.3 * strands * thin + 0.5 * gland
    )


def _mammary_tissue(rng: np.random.Generator, edge: int, beta: float) -> np.ndarray:
    """Breast tissue (edge, edge), variance 1: power spectrum 1 / f^beta, beta about 3 (Burgess 1999)."""
    return _texture(rng, edge, slope=beta, low=0.8)


def _to_the_skin(grey: np.ndarray, skin: tuple, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle, distance, radius = skin
    cx, cy = 0.5 + (distance - radius) * math.cos(angle), 0.5 + (distance - radius) * math.sin(angle)
    depth = radius - np.hypot(x - cx, y - cy)  # towards the inside, in frames
    inside = _soft(depth / 0.008)
    thickness = 1 - 0.8 * np.exp(-np.clip(depth, 0, None) / 0.12)
    line = 0.06 * np.exp(-(((depth - 0.012) / 0.008) ** 2))
    return inside * (grey * thickness + line) + (1 - inside) * 0.03


def _mass(rng: np.random.Generator, hard: float) -> dict:
    kind = str(rng.choice(["round", "lobed", "spiculated"], p=[0.3, 0.25, 0.45]))
    size = rng.uniform(0.1, 0.2) * _between(1.25, 0.85, hard)
    ratio = math.exp(rng.normal(0, 0.16))
    spicules = 0 if kind == "round" else int(rng.integers(2, 6)) if kind == "lobed" else int(rng.integers(12, 26))
    return dict(
        kind=kind, x=rng.uniform(0.3, 0.7), y=rng.uniform(0.3, 0.7), rx=size * ratio, ry=size / ratio,
        tilt=rng.uniform(0, math.pi),
        outline=_outline(rng, {"round": 0.05, "lobed": 0.13, "spiculated": 0.16}[kind], 4 if kind == "round" else 9),
        soft=rng.uniform(0.06, 0.2) if kind != "spiculated" else rng.uniform(0.15, 0.35),
        contrast=rng.uniform(1.8, 3.2) * _between(3.0, 0.8, hard),
        pull=(0.05 if kind == "spiculated" else 0.0) * size / 0.15,
        spicules=np.column_stack([
            rng.uniform(0, 2 * math.pi, spicules), rng.normal(0, 0.2, spicules), rng.uniform(0.8, 2.0, spicules),
            rng.uniform(0.3, 1, spicules),
            rng.uniform(0.005, 0.009, spicules),
        ]).tolist(),
        calcifications=int(rng.poisson(5)) if rng.random() < 0.3 else 0,
    )  # fmt: skip


def _mass_insert(lesion: dict, own: np.random.Generator, sx: float, sy: float, edge: int):
    """What the mass adds to the density, how it draws the tissue in (in frames), its mask."""
    turn, zoom = own.normal(0, 0.1), math.exp(own.normal(0, 0.04))
    cx, cy, rx, ry = lesion["x"] + sx, lesion["y"] + sy, lesion["rx"] * zoom, lesion["ry"] * zoom
    polar = _polar(edge, cx, cy, rx, ry, lesion["tilt"] + turn, lesion["outline"])
    # thickness of a lens-shaped body, its rim melting into the tissue
    body = np.sqrt(np.clip(1 - (polar.ratio / 1.15) ** 2, 0, 1)) * _soft((1 - polar.ratio) / lesion["soft"])
    mass = lesion["contrast"] * body
    x, y = _grid(edge)
    dx, dy, size = x - cx, y - cy, math.sqrt(rx * ry)
    reach = np.hypot(dx, dy)
    if len(lesion["spicules"]):
        rows, cols = np.nonzero(reach < 2.8 * size)
        r, theta = reach[rows, cols], np.arctan2(dy[rows, 0], dx[0, cols])
        lines = np.zeros(len(r), np.float32)
        for angle, curl, length, strength, width in lesion["spicules"]:
            far = (r / size - 0.5) / length
            off = np.abs((theta - angle - turn - curl * (r / size - 1) + math.pi) % (2 * math.pi) - math.pi) * r
            lines += (
                strength
                * np.exp(-((off / (width * (1.1 - 0.6 * np.clip(far, 0, 1)))) ** 2))
                * np.clip(1 - far, 0, 1)
                * np.clip(far * 6, 0, 1)
            )
        mass[rows, cols] += 0.45 * lesion["contrast"] * lines
    for _ in range(lesion["calcifications"]):
        r, a = own.uniform(0, 0.9), own.uniform(0, 2 * math.pi)
        d2 = (dx - rx * r * math.cos(a)) ** 2 + (dy - ry * r * math.sin(a)) ** 2
        mass += own.uniform(1.5, 4) * np.exp(-d2 / 0.006**2)
    drawn = lesion["pull"] * np.exp(-((reach / (2.2 * size)) ** 2)) / (reach + 0.3 * size)
    return mass, (dx * drawn, dy * drawn), polar.ratio < 1, lesion["contrast"], lesion["kind"]
