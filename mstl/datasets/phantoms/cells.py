"""Simulated brightfield microscopy: cells as phase objects out of focus."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import fft

from .drawing import _ANGLES, Scene, Shot, _between, _grid, _outline, _texture, _waves


class Line(NamedTuple):
    """What makes a cell line: diameter (of the frame), length over width, share of rounded-up cells, outline's roughness,
    arms, granularity, share of the frame covered, clustering (0 scattered, 1 islands), thickness (radians of
    phase), nucleus, vacuoles.
    """

    diameter: float
    length: float
    rounded: float
    rough: float
    arms: float
    grain: float
    cover: float
    islands: float
    phase: float
    nucleus: float
    vacuoles: float


#: Archetypes that a microscopist would tell apart; further lines lie between and around them.
LINES = (
    Line(0.10, 1.05, 0.95, 0.03, 0.0, 0.5, 0.25, 0.1, 2.2, 0.1, 0.1),  # suspension: small, round, bright-rimmed
    Line(0.24, 3.6, 0.08, 0.08, 0.15, 0.35, 0.5, 0.2, 1.0, 0.5, 0.1),  # fibroblast: spindles
    Line(0.30, 1.3, 0.05, 0.16, 0.5, 0.6, 0.45, 0.1, 0.8, 0.9, 0.3),  # spread: large, flat, granular
    Line(0.15, 1.15, 0.05, 0.08, 0.05, 0.5, 0.85, 0.7, 0.9, 0.6, 0.1),  # epithelial: cobblestones in islands
    Line(0.18, 1.6, 0.25, 0.12, 0.9, 0.4, 0.25, 0.1, 1.5, 0.3, 0.1),  # stellate, with arms
    Line(0.13, 1.3, 0.45, 0.12, 0.1, 1.1, 0.55, 0.9, 1.7, 0.3, 0.9),  # grape-like clumps, vacuolated
)


#: Where the archetypes come from: made up, as they are, so that lines can be merged by tissue like real ones.
TISSUES = tuple(f"simulated {name}" for name in ("blood", "stroma", "epithelium", "epithelium", "stroma", "epithelium"))


def tissue(label: int) -> str:
    """The simulated tissue of a line: that of its archetype, or of the nearer of the two that it lies between."""
    if label < len(LINES):
        return TISSUES[label]
    _, a, b, share = _parents(label)
    return TISSUES[a if share >= 0.5 else b]


def _parents(label: int) -> tuple[np.random.Generator, int, int, float]:
    rng = np.random.default_rng([77, label])
    a, b = rng.choice(len(LINES), 2, replace=False)
    return rng, int(a), int(b), rng.uniform(0.25, 0.75)


def _line(label: int, difficulty: float) -> Line:
    """The line's mean parameters: an archetype, or a point between two; drawn towards the mean of all lines as it gets
    harder.
    """
    table = np.array(LINES)
    if label < len(LINES):
        own = table[label]
    else:
        rng, a, b, share = _parents(label)
        own = (table[a] * share + table[b] * (1 - share)) * np.exp(rng.normal(0, 0.2, table.shape[1]))
    pull = _between(0.0, 0.72, difficulty)
    return Line(*((1 - pull) * own + pull * table.mean(0)))


class Microscope(NamedTuple):
    defocus: float
    noise: float
    contrast: float
    grey: float


MICROSCOPES = (Microscope(0.85, 0.010, 1.0, 0.39), Microscope(1.3, 0.022, 0.75, 0.43))


def draw(scene: Scene) -> list[Shot]:
    """Brightfield: cells are phase objects; a little out of focus, phase becomes contrast with a halo (weak-object
    transfer function).
    """
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    line = Line(
        *(
            np.array(_line(scene.label, hard)) * np.exp(rng.normal(0, _between(0.06, 0.16, hard), len(Line._fields)))
        ).tolist()
    )
    cells = _population(rng, line)
    granules = _texture(rng, edge, slope=1.0, low=24, high=56)
    folds = _texture(rng, edge, slope=3.0, low=8, high=40)
    inner = 1 + 0.22 * line.grain * granules + 0.16 * math.sqrt(line.grain) * folds
    debris = [(*rng.uniform(0, 1, 2).tolist(), rng.uniform(0.004, 0.01)) for _ in range(rng.poisson(5))]
    lamp = rng.normal(0, 0.05, 3).tolist()
    focus = math.exp(rng.normal(0, 0.12))
    scope = MICROSCOPES[scene.center]
    x, y = _grid(edge)
    light = 1 + lamp[0] * (x - 0.5) + lamp[1] * (y - 0.5) + lamp[2] * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    shots = []
    for own in scene.exposures():
        phase = _thickness([cell.later(own) for cell in cells], edge) * inner
        for px, py, radius in debris:
            phase += 0.8 * np.exp(((x - px) ** 2 + (y - py) ** 2) / -(radius**2))
        contrast = _defocused(phase, scope.defocus * focus * math.exp(own.normal(0, 0.06)))
        image = scope.grey * light * (1 + scope.contrast * _between(1.7, 1.1, hard) * contrast)
        noise = scope.noise * _between(0.6, 1.8, hard) * math.sqrt(scene.factor)
        image += noise * own.standard_normal((edge, edge), dtype=np.float32)
        shots.append(Shot(np.clip(image, 0, 1), None, "field", 0.0))
    return shots


_TURNS = 64


class Cell(NamedTuple):
    """Place, half length and half width (frames), angle, phase (radians), rounded up or spread, its outline's radius at 64
    angles, the nucleus (place in units of the cell, contrast), vacuoles (places).
    """

    x: float
    y: float
    a: float
    b: float
    angle: float
    phase: float
    rounded: bool
    radius: np.ndarray
    nucleus: tuple[float, float, float]
    vacuoles: list[tuple[float, float]]

    def later(self, own: np.random.Generator) -> Cell:
        """The same cell some hours later: it crept, turned and changed a little."""
        dx, dy, turn, da, db = (own.standard_normal(5) * (0.008, 0.008, 0.1, 0.04, 0.04)).tolist()
        return self._replace(
            x=self.x + dx, y=self.y + dy, angle=self.angle + turn, a=self.a * math.exp(da), b=self.b * math.exp(db)
        )


def _population(rng: np.random.Generator, line: Line) -> list[Cell]:
    count = max(2, int(rng.poisson(min(line.cover, 0.95) * 1.35 / (math.pi / 4 * line.diameter**2))))
    seeds = rng.uniform(-0.1, 1.1, (count * 3, 2))
    if rng.random() < line.islands:  # islands grow around a few places
        middle = rng.uniform(0, 1, (int(rng.integers(1, 4)), 2))
        near = np.min(np.hypot(*(seeds[:, None] - middle[None]).transpose(2, 0, 1)), 1)
        seeds = seeds[np.argsort(near + rng.normal(0, 0.08, len(near)), kind="stable")]
    apart = 0.72 * line.diameter / max(line.length, 1) ** 0.25
    free = np.hypot(*(seeds[:, None] - seeds[None]).transpose(2, 0, 1)) > apart
    kept: list[int] = []
    for i in range(len(seeds)):
        if len(kept) < count and free[i, kept].all():
            kept.append(i)
    main = rng.uniform(0, math.pi)  # spread cells lie along each other
    return [_cell(rng, line, x, y, main) for x, y in seeds[kept].tolist()]


def _cell(rng: np.random.Generator, line: Line, x: float, y: float, main: float) -> Cell:
    rounded = rng.random() < line.rounded
    half = line.diameter * math.exp(rng.normal(0, 0.14)) / 2
    if rounded:
        half, stretch, phase = 0.85 * min(half, 0.062), 1.0, max(1.4 * line.phase, 2.2)
    else:
        stretch, phase = max(1.0, line.length * math.exp(rng.normal(0, 0.25))), line.phase
    angle = rng.normal(main, 0.35) if rng.random() < 0.6 else rng.uniform(0, math.pi)
    radius = _outline(rng, 0.02 if rounded else 1.3 * line.rough, 7, 0.7)[:: _ANGLES // _TURNS]
    theta = np.arange(_TURNS) * (2 * math.pi / _TURNS)
    for _ in range(0 if rounded else rng.poisson(line.arms * 3.5)):
        turn = (theta - rng.uniform(0, 2 * math.pi) + math.pi) % (2 * math.pi) - math.pi
        radius = radius + rng.uniform(0.5, 1.4) * np.exp(-((turn / 0.22) ** 2))
    return Cell(
        x, y, half * math.sqrt(stretch), half / math.sqrt(stretch), angle, phase * math.exp(rng.normal(0, 0.15)),
        rounded,
        radius.astype(np.float32), (*rng.uniform(-0.15, 0.15, 2).tolist(), 0.0 if rounded else line.nucleus),
        rng.uniform(-0.55, 0.55, (rng.poisson(3 * line.vacuoles), 2)).tolist(),
    )  # fmt: skip


def _thickness(cells: list[Cell], edge: int) -> np.ndarray:
    """Optical thickness (edge, edge) in radians: every cell in a patch of its own, where cells meet the higher one."""
    height = np.zeros((edge, edge), np.float32)
    gx, gy = _grid(edge)
    for x, y, a, b, angle, phase, rounded, radius, (nx, ny, nucleus), vacuoles in cells:
        reach = a * float(radius.max()) * 1.05
        x0, x1 = max(0, int((x - reach) * edge)), min(edge, int((x + reach) * edge) + 2)
        y0, y1 = max(0, int((y - reach) * edge)), min(edge, int((y + reach) * edge) + 2)
        if x0 >= x1 or y0 >= y1:
            continue
        dx, dy = gx[:, x0:x1] - x, gy[y0:y1] - y
        cos, sin = math.cos(angle), math.sin(angle)
        u, v = (dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b
        where = (np.arctan2(v, u) * (_TURNS / (2 * math.pi))).astype(np.int32) % _TURNS
        dome = np.maximum(1 - (u * u + v * v) / (radius * radius)[where], 0)
        inside = dome > 0
        shape = np.sqrt(dome) if rounded else 0.3 * inside + 0.7 * dome**0.6
        if nucleus > 0:
            d2 = (((u - nx) * (a / b)) ** 2 + (v - ny) ** 2) / 0.42**2
            shape += 0.7 * nucleus * inside * (np.exp(-d2 * d2) + 0.5 * np.exp(d2 / -0.09))
        for vx, vy in vacuoles:
            shape -= 0.6 * inside * np.exp((((u - vx) * (a / b)) ** 2 + (v - vy) ** 2) / -(0.18**2))
        part = height[y0:y1, x0:x1]
        np.maximum(part, phase * shape, out=part)
    return height


def _defocused(phase: np.ndarray, defocus: float) -> np.ndarray:
    """Relative contrast of a weak phase object: its spectrum times sin(defocus · f²) under the envelope of partial
    coherence.
    """
    edge = phase.shape[0]
    pad = max(edge // 16, 4)  # mirrored, else the Fourier transform lets one side's cells ring on the other
    wide = fft.rfft2(np.pad(phase, pad, mode="symmetric"))
    fx, fy = _waves(edge + 2 * pad)
    f2 = (fx**2 + fy**2) * (edge / (edge + 2 * pad) / 24.0) ** 2
    transfer = -np.sin(0.9 * defocus * f2) * np.exp(-0.35 * defocus * f2) - 0.03
    transfer[0, 0] = 0
    return fft.irfft2(wide * transfer, s=(edge + 2 * pad, edge + 2 * pad))[pad:-pad, pad:-pad]
