"""Simulated colonoscopy: a wet, folded tube lit from where it is seen, with vessels and gloss, and a polyp on its wall."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .drawing import Scene, Shot, _between, _blur, _curve, _grid, _outline, _ridges, _sampled, _soft, _texture


class Scope(NamedTuple):
    """Blur (standard deviation in frames), noise (grey levels, 0…1), gain of red, green and blue, exponent of the display, light of the
    lamps, shape of the field of view (the power of a superellipse; above 4 an octagon).
    """

    blur: float
    noise: float
    gain: tuple[float, float, float]
    gamma: float
    light: float
    field: float


SCOPES = (
    Scope(0.0015, 0.012, (1.0, 1.0, 1.0), 0.85, 1.0, 7.0),
    Scope(0.0055, 0.026, (0.95, 0.95, 1.12), 1.0, 0.95, 2.5),
)


def draw(scene: Scene) -> list[Shot]:
    """Mucosa as a surface in relief: light falls off with depth, folds hide what lies behind them, blood absorbs green and blue.

    Colour is kept as optical density (0 white), in which light, blood and what lies on the mucosa add up.
    """
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    gut = _Gut(rng, edge)
    polyp = _polyp(rng, hard, gut, edge) if scene.label else None
    scope = SCOPES[scene.center]
    x, y = _grid(edge)
    field = _field(x, y, scope.field)[..., None]
    gain = np.log(np.array(scope.gain, np.float32))
    shots = []
    for own in scene.exposures():
        turn, zoom = own.normal(0, 0.1), math.exp(own.normal(0, 0.05))
        dx, dy = own.normal(0, 0.03, 2).tolist()
        cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
        px = 0.5 + cos * (x - 0.5) + sin * (y - 0.5) - dx  # where in the patient's own frame a pixel looks
        py = 0.5 - sin * (x - 0.5) + cos * (y - 0.5) - dy
        light, height, density = gut.seen(px, py)
        mask, conspicuity, subtype = None, 0.0, "mucosa"
        if polyp is not None:
            light, height, density, mask = _with_polyp(polyp, px, py, light, height, density)
            conspicuity, subtype = polyp["contrast"], polyp["kind"]
        lamp = own.normal(0, 0.16, 2).tolist()  # the lamps sit beside the lens
        down, across = np.gradient(height, 1 / edge)
        lean_x, lean_y = gut.lean(px, py)
        facing = np.clip((1 - lamp[0] * across - lamp[1] * down) / np.sqrt(1 + across**2 + down**2), 0.1, 1.5)
        light = light * facing * (scope.light * math.exp(own.normal(0, 0.07)))
        body = np.exp(scope.gamma * (np.log(light)[..., None] * _REDDENING - density + gain))
        body = body / (1 + np.maximum(body - 0.72, 0))  # the sensor's shoulder
        glint = np.exp(-((across - lean_x + lamp[0]) ** 2 + (down - lean_y + lamp[1]) ** 2) / gut.wet**2)
        body += np.clip((1.6 * glint - 0.55) * np.minimum(1.5 * light, 1), 0, 1)[..., None]
        if scope.blur * edge > 0.2:
            body = np.stack([_blur(body[..., c], scope.blur * edge) for c in range(3)], -1)
        noise = scope.noise * _between(0.7, 1.6, hard) * math.sqrt(scene.factor)
        body += noise * own.standard_normal(body.shape, dtype=np.float32) * (0.4 + 0.6 * np.minimum(body, 1))
        shots.append(Shot(np.clip(body, 0, 1) * field, mask, subtype, conspicuity))
    return shots


_REDDENING = np.array([0.85, 1.08, 1.18], np.float32)  # light that has been about in the tube has lost its blue


def _field(x: np.ndarray, y: np.ndarray, power: float) -> np.ndarray:
    """The field of view, 1 inside and 0 outside: the corners stay black."""
    u, v = np.abs(x - 0.5) / 0.497, np.abs(y - 0.5) / 0.497
    out = (u**power + v**power) ** (1 / power)
    return _soft((1 - (np.maximum(out, (u + v) / 1.55) if power > 4 else out)) / 0.006)


class _Gut:
    """One stretch of bowel: where it leads, its folds, its lining."""

    def __init__(self, rng: np.random.Generator, edge: int):
        away, where = rng.uniform(0.05, 0.7), rng.uniform(0, 2 * math.pi)
        self.x, self.y = 0.5 + away * math.cos(where), 0.5 + away * math.sin(where)  # the lumen; beyond the frame: a wall is seen
        self.wide = rng.uniform(0.16, 0.3)
        self.spacing, self.phase, self.sharp = rng.uniform(0.9, 1.9), rng.uniform(0, 1), rng.uniform(0.05, 0.12)
        self.strength = rng.uniform(0.3, 0.8)
        self.lobes = rng.uniform(0.02, 0.14), rng.uniform(0, 2 * math.pi)  # three bands of muscle make the lumen a triangle
        self.wobble = _curve(rng, rng.uniform(0.06, 0.2), 4)
        self.relief = 0.008 * _texture(rng, edge, slope=4.6, low=2, high=18) + 0.0005 * _texture(rng, edge, slope=1.6, low=12, high=34)
        self.flush = _texture(rng, edge, slope=3.2, low=1.5, high=30)
        patchy = _soft(2.2 * np.roll(self.flush, edge // 3, 1) + 0.5)
        trunks = _ridges(_texture(rng, edge, slope=4.6, low=3.5, high=40), rng.uniform(0.1, 0.16))
        twigs = _ridges(_texture(rng, edge, slope=3.8, low=9, high=60), 0.17)
        self.vessels = rng.uniform(0.2, 1.0) * patchy * (trunks + 0.5 * twigs)
        pale = rng.uniform(-1, 1)
        self.density = -np.log(np.array([0.95, 0.47 + 0.09 * pale, 0.37 + 0.08 * pale + 0.03 * rng.normal()], np.float32))
        self.wet = rng.uniform(0.028, 0.055)
        stool = _texture(rng, edge, slope=3.6, low=3, high=36)
        self.residue = _soft((stool - rng.uniform(1.9, 4.2)) * 9)  # in both classes, so that yellow is no sign

    def seen(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Light (1 on a near wall), relief (frames) and optical density (edge, edge, 3) at the places looked at."""
        relief, vessels, flush, residue = (_sampled(f, px, py) for f in (self.relief, self.vessels, self.flush, self.residue))
        dx, dy = px - self.x, py - self.y
        angle = np.arctan2(dy, dx)
        radius = np.hypot(dx, dy) * (1 + self.lobes[0] * np.cos(3 * angle + self.lobes[1])) + 0.012 * flush
        depth = self.wide / (np.maximum(radius, 0) + 0.04)
        along = np.log(np.maximum(radius, 0.01) + 0.04) * self.spacing + self.phase + self.wobble(angle / (2 * math.pi))
        step = along - np.floor(along)  # grows towards the viewer, and falls back where a fold hides what is behind it
        strength = self.strength * np.clip(radius / 0.12, 0, 1)
        light = 1 - 0.75 * strength * np.exp(-(1 - step) / (2.6 * self.sharp))
        light *= 1 + 0.22 * strength * np.exp(-(((step - self.sharp) / self.sharp) ** 2))
        light *= 1.15 / (0.82 + depth) ** 1.9
        density = self.density + vessels[..., None] * _BLOOD + (0.09 * flush)[..., None] * _FLUSH
        density += residue[..., None] * (_STOOL - density)
        return np.maximum(light, 0.015), relief + 0.008 * residue, density

    def lean(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How the wall as a whole leans away from the line of sight."""
        dx, dy = px - self.x, py - self.y
        reach = np.hypot(dx, dy) + 0.05
        lean = 0.35 * np.exp(-reach / 0.45) / reach
        return lean * dx, lean * dy


_BLOOD = np.array([0.18, 0.72, 0.6], np.float32)
_FLUSH = np.array([0.10, 0.75, 0.70], np.float32)
_STOOL = -np.log(np.array([0.78, 0.60, 0.20], np.float32))


def _polyp(rng: np.random.Generator, hard: float, gut: _Gut, edge: int) -> dict:
    kind = str(rng.choice(["sessile", "bulky", "flat"], p=[0.5, 0.25, 0.25]))
    size = rng.uniform(0.10, 0.19) * _between(1.15, 0.8, hard) * (1.2 if kind == "flat" else 1.0)
    ratio = math.exp(rng.normal(0, 0.14))
    while True:
        x, y = rng.uniform(0.25, 0.75, 2).tolist()
        if math.hypot(x - gut.x, y - gut.y) > 0.16:  # on the wall, not in the lumen
            break
    hue = -1.0 if rng.random() < 0.3 else 1.0  # paler or redder than its surroundings
    return dict(
        kind=kind, x=x, y=y, rx=size * ratio, ry=size / ratio, tilt=rng.uniform(0, math.pi),
        outline=_outline(rng, rng.uniform(0.03, 0.1), 6, 0.8), tint=hue * rng.uniform(0.6, 1.0),
        height={"sessile": 0.6, "bulky": 0.85, "flat": 0.22}[kind] * rng.uniform(0.8, 1.1) * _between(1.15, 0.5, hard),
        contrast=rng.uniform(0.75, 1.1) * _between(1.25, 0.5, hard),
        pits=_texture(rng, edge, slope=2.6, low=int(rng.integers(8, 15)), high=40), shadow=rng.uniform(0, 2 * math.pi),
        soft=rng.uniform(0.05, 0.1) * (2 if kind == "flat" else 1),
    )  # fmt: skip


def _with_polyp(
    polyp: dict, px: np.ndarray, py: np.ndarray, light: np.ndarray, height: np.ndarray, density: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Light, relief and density with the polyp on the wall, and its mask."""
    dx, dy = px - polyp["x"], py - polyp["y"]
    size, strong, contrast = math.sqrt(polyp["rx"] * polyp["ry"]), polyp["height"], polyp["contrast"]
    cos, sin = math.cos(polyp["tilt"]), math.sin(polyp["tilt"])
    u, v = (dx * cos + dy * sin) / polyp["rx"], (dy * cos - dx * sin) / polyp["ry"]
    turn = np.arctan2(v, u) * (len(polyp["outline"]) / (2 * math.pi))
    ratio = np.hypot(u, v) / polyp["outline"][turn.astype(np.intp) % len(polyp["outline"])]
    inside = _soft((1 - ratio) / polyp["soft"])
    pits = _sampled(polyp["pits"], px, py)
    dome = np.sqrt(np.maximum(1.03 - np.minimum(ratio, 1) ** 2, 0)) - math.sqrt(0.03)
    height = height * (1 - 0.6 * inside) + size * strong * dome + 0.002 * contrast * inside * pits
    # the foot lies in the polyp's own shadow, deepest on the side away from the lamp; a fold does not run on across it
    side = 0.55 + 0.45 * np.cos(np.arctan2(dy, dx) - polyp["shadow"])
    light = light * (1 - 0.65 * min(strong, 0.8) * side * np.exp(-np.abs(ratio - 1.06) / 0.14) * (ratio > 0.95))
    there = float((light * inside).sum() / inside.sum())
    light = light + inside * (0.45 * light + 0.55 * 1.1 * max(there, 0.25) - light)
    around = density.mean((0, 1)) + (polyp["tint"] * contrast) * _TINT
    own = around + (0.14 * contrast * pits)[..., None] * _FLUSH
    share = (inside * min(0.95, 0.55 + 0.4 * contrast))[..., None]
    return light, height, density + share * (own - density), ratio < 1


_TINT = np.array([0.03, 0.40, 0.34], np.float32)
