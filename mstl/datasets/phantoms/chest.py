"""Simulated chest radiographs: attenuation along parallel rays, and opacities that take the air's place."""

from __future__ import annotations

import math

import numpy as np

from .drawing import Film, Scene, Shot, _between, _blur, _curve, _grid, _largest, _marker, _ridges, _sampled, _soft, _texture


def draw(scene: Scene) -> list[Shot]:
    """A frontal chest radiograph: attenuation of body, lungs, heart, spine, ribs and clavicles along parallel rays."""
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    body = _chest_anatomy(rng)
    vessels = _texture(rng, edge, slope=3.6, low=5, high=60, stretch=5.0)
    tissue = _texture(rng, edge, slope=2.4, low=1.5)
    disease = _pneumonia(rng, hard, edge) if scene.label else None
    film = CHEST_FILMS[scene.center]
    shots = []
    for own in scene.exposures():
        x, y = _grid(edge)
        dx, dy = own.normal(0, 0.02), own.normal(0, 0.02)
        zoom, turn = 1 + own.normal(0, 0.02), own.normal(0, 0.015)
        gx = 2 * zoom * (x - 0.5) - dx + turn * (y - 0.5)
        gy = zoom * (y - 0.5) + 0.5 - dy - turn * (x - 0.5)
        parts = _chest_parts(body, gx, gy, own.normal(0, 0.015), vessels)
        mask, conspicuity, subtype, opacity = None, 0.0, "normal", 0.0
        if disease is not None:
            opacity, mask, conspicuity, subtype = _pneumonia_insert(disease, body, parts, gx, gy, own)
        air = parts["lung"] * (1 - opacity)
        density = (
            0.62 + parts["fixed"] + 0.035 * tissue - air * (body["air"] - 0.11 * body["vascular"] * parts["vessels"])
        )
        grey = film.grey + film.contrast * (density - 0.55)
        grey = (
            np.where(grey > 0.8, 0.8 + 0.2 * np.tanh((grey - 0.8) * 4), grey) * parts["body"] + 0.02
        )  # the film's shoulder
        grey = _blur(grey, film.blur * edge)
        noise = film.noise * _between(0.6, 1.7, hard) * math.sqrt(scene.factor)
        grey += noise * np.sqrt(0.2 + np.clip(1 - grey, 0, 1)) * own.standard_normal((edge, edge), dtype=np.float32)
        if scene.center == 0:
            _marker(grey, body["marker"])
        shots.append(Shot(np.clip(grey, 0, 1), mask, subtype, conspicuity))
    return shots


CHEST_FILMS = (Film(0.0018, 0.012, 1.15, 0.45), Film(0.0045, 0.024, 0.9, 0.48))


def _chest_anatomy(rng: np.random.Generator) -> dict:
    return dict(
        apex=rng.uniform(0.09, 0.16), base=rng.uniform(0.74, 0.84), wide=rng.uniform(0.68, 0.82),
        middle=rng.normal(0, 0.03), lean=rng.normal(0, 0.03),
        heart=rng.uniform(0.22, 0.4), knob=rng.uniform(0.0, 0.06),
        dome=rng.uniform(0.06, 0.11), lift=rng.uniform(0.0, 0.035), rib=rng.uniform(0.072, 0.092),
        phase=rng.uniform(0, 1), slant=rng.uniform(0.0, 0.1),
        bone=rng.uniform(0.15, 0.24), front=rng.uniform(0.04, 0.1),
        clavicle=(rng.uniform(0.02, 0.06), rng.uniform(-0.1, 0.0)), spine=rng.uniform(0.075, 0.11),
        disc=rng.uniform(0.05, 0.062), shoulder=rng.uniform(-0.06, 0.04), bubble=rng.uniform(-0.1, 0.25),
        air=rng.uniform(0.3, 0.42), vascular=rng.uniform(0.7, 1.3),
        marker=(rng.random() < 0.5, rng.uniform(0.02, 0.08), rng.uniform(0.04, 0.2)), wall=_curve(rng, 0.006, 4),
        arms=rng.uniform(0.86, 1.1),
        blade=(rng.uniform(0.66, 0.8), rng.uniform(-0.25, 0.1)), belly=rng.uniform(0.1, 0.2),
    )  # fmt: skip


def _chest_parts(body: dict, gx: np.ndarray, gy: np.ndarray, breath: float, vessels: np.ndarray) -> dict:
    """Soft masks (0…1) and attenuation of what is always there. x runs from −1 (the patient's right) to 1, y from 0 to 1
    downwards.
    """
    u = gx - body["middle"] - body["lean"] * (gy - 0.5)
    side = np.abs(u)
    left = u > 0
    base = body["base"] + breath + np.where(left, np.float32(body["lift"]), np.float32(0))
    t = np.clip((gy - body["apex"]) / (base - body["apex"]), 0, 1)
    wall = body["wide"] * np.sqrt(1 - (1 - t) ** 2.2) + body["wall"](gy) - 0.03 * (t * t * t) ** 2
    dome = base - body["dome"] * (1 - ((side - 0.4) / 0.44) ** 2)
    above = _soft((dome - gy) * 130)
    # the middle shadow: great vessels and spine above, the heart below, whose left border runs obliquely down
    # to its apex
    down = np.clip((gy - 0.33) / (base - 0.37), 0, 1.1)
    belly_of_heart = np.where(
        left,
        body["heart"] * down**1.4 * (1.5 - 0.5 * (down * down) ** 2),
        0.11 * np.exp(-(((gy - base + 0.15) / 0.14) ** 2)),
    )
    knob = np.where(left, body["knob"] * np.exp(-(((gy - 0.3) / 0.05) ** 2)), np.float32(0.0))
    border = 0.12 + 0.07 * np.exp(-(((gy - 0.04) / 0.12) ** 2)) + knob + belly_of_heart
    shadow = _soft((border - side) * 32)
    heart = shadow * _soft((gy - 0.45) * 14)
    lung = _soft((wall - side) * 70) * above * (1 - shadow)
    shoulders = _soft((gy - body["shoulder"] - 0.2 * np.clip((side - 0.25) / 0.75, 0, 1.2) ** 1.6) * 80)
    torso = np.maximum(shoulders * _soft((body["arms"] + 0.12 * (0.4 - gy) - side) * 80), _soft((0.26 - side) * 50))
    # ribs: periodic functions of how far a ray lies below the first rib, behind (flat, strong) and in front
    # (steep, faint)
    bend = np.sqrt(np.clip(1 - (side / (body["wide"] + 0.1)) ** 2, 0, 1))
    behind = (gy - body["slant"] * side + 0.17 * bend) / body["rib"] + body["phase"]
    before = (gy + 0.36 * (body["wide"] - side) + 0.1 * bend) / (body["rib"] * 1.12) + 0.4 + body["phase"]
    caged = _soft((gy - body["apex"] + 0.05) * 50) * _soft((base + 0.02 - gy) * 22)
    bones = caged * (
        body["bone"] * _rib(behind, 0.2) * _soft((wall + 0.05 - side) * 50) * _soft((side - 0.05) * 50)
        + body["front"] * _rib(before, 0.23) * _soft((wall + 0.02 - side) * 50) * _soft((side - 0.3) * 20)
    )
    collar_y = body["apex"] + body["clavicle"][0] + body["clavicle"][1] * side + 0.12 * (side - 0.4) ** 2
    collar = _tube((gy - collar_y) / 0.018) * _soft((side - 0.1) * 50) * _soft((0.8 - side) * 30)
    blade_x = body["blade"][0] + body["blade"][1] * (gy - 0.3)
    blade = (
        _soft((side - blade_x) * 80)
        * _soft((0.46 - gy - 0.5 * (side - 0.7)) * 40)
        * _soft((gy - body["apex"] - 0.02) * 40)
    )
    head = _soft((1 - np.hypot((side - 1.0) / 0.17, (gy - body["apex"] - 0.03) / 0.09)) * 12)
    spine = _soft((body["spine"] - side) * 80) * (
        0.07 + 0.04 * _soft(np.cos(gy * (2 * math.pi / body["disc"])) * 6 + 3)
    )
    edges = 0.05 * np.exp(-(((side - body["spine"]) / 0.016) ** 2))
    windpipe = _soft((0.045 - np.abs(u + 0.015)) * 80) * _soft((0.34 - gy) * 50)
    belly = (1 - above) * (1 - 0.5 * heart) * _soft((body["wide"] + 0.14 - side) * 25)
    fixed = (
        bones
        + 0.17 * collar
        + 0.06 * blade
        + 0.07 * head
        + spine
        + edges
        + 0.1 * heart
        + 0.11 * shadow
        + body["belly"] * belly
    )
    fixed += (
        0.07 * np.exp(-(((side - wall - 0.03) / 0.04) ** 2)) * above
        - 0.1 * windpipe
        - 0.1 * _soft((side - wall - 0.1) * 20)
    )
    if body["bubble"] > 0:  # air in the stomach
        fixed -= body["bubble"] * np.exp(-((((u - 0.42) / 0.2) ** 2) ** 2) - (((gy - dome - 0.075) / 0.045) ** 2) ** 2)
    hx = 0.5 * u - np.where(left, np.float32(0.085), np.float32(-0.085))
    hy = gy - 0.44
    from_hilum = np.hypot(hx, hy)
    branch = _ridges(
        _sampled(vessels, np.log(from_hilum + 0.03) * 0.3 + 0.37 * left, np.arctan2(hy, hx) / np.float32(2 * math.pi)),
        0.3,
    )
    tree = branch * np.exp(-from_hilum / 0.17) * 1.6 + 1.1 * np.exp(-((from_hilum / 0.055) ** 2))
    return dict(lung=lung, body=torso, fixed=fixed, vessels=tree, branch=branch, u=u)


def _rib(phase: np.ndarray, half: float) -> np.ndarray:
    """A rib's shadow as a function of its number: a tube, brighter along its cortex."""
    off = np.abs(phase - np.floor(phase) - 0.5)
    return _soft((half - off) * 40) * (0.5 + 0.5 * np.clip(off / half, 0, 1) ** 3)


def _tube(off: np.ndarray) -> np.ndarray:
    return _soft((1 - np.abs(off)) * 8) * (0.6 + 0.4 * np.clip(np.abs(off), 0, 1) ** 2)


def _pneumonia(rng: np.random.Generator, hard: float, edge: int) -> dict:
    kind = str(rng.choice(["lobar", "patchy", "perihilar"], p=[0.4, 0.4, 0.2]))
    foci = {"lobar": 1, "patchy": int(rng.integers(2, 5)), "perihilar": 2}[kind]
    sides = rng.choice([-1, 1], foci) if kind != "perihilar" else np.array([-1, 1])
    scale = _between(1.6, 1.0, hard)
    return dict(
        kind=kind,
        strength=rng.uniform(0.7, 1.0) * _between(1.2, 0.55, hard),
        foci=np.column_stack(
            [sides, rng.uniform((0.2, 0.3), (0.85, 0.92), (foci, 2)), _radii(rng, kind, foci) * scale]
        ).tolist(),
        upper=bool(rng.random() < 0.35),
        fissure=rng.normal(0, 0.12),
        mottle=_texture(rng, edge, slope=2.8, low=3, high=40),
        ragged=rng.uniform(0.15, 0.35),
    )


def _radii(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    low, high = {"lobar": (0.24, 0.36), "patchy": (0.1, 0.18), "perihilar": (0.2, 0.3)}[kind]
    r = rng.uniform(low, high, n)
    return np.column_stack([r, r * rng.uniform(0.5, 0.8, n)])


def _pneumonia_insert(disease: dict, body: dict, parts: dict, gx: np.ndarray, gy: np.ndarray, own: np.random.Generator):
    """Share of the air that is replaced by fluid (0…1), its mask, its strength, its kind."""
    u, lung = parts["u"], parts["lung"]
    rough = disease["ragged"] * disease["mottle"]
    spread = math.exp(own.normal(0, 0.06))
    filled = np.zeros_like(lung)
    for side, across, down, rx, ry in disease["foci"]:
        cy = body["apex"] + (body["base"] - body["apex"]) * down
        cx = side * (0.16 + (0.85 * body["wide"] - 0.16) * across)
        if disease["kind"] == "perihilar":
            cx, cy = side * 0.26, 0.45
        away = np.hypot((u - cx) / rx, (gy - cy) / ry) / spread
        blob = _soft((1 - away + rough) / 0.16) * (u * side > 0)
        if disease["kind"] == "lobar":  # a lobe ends at its fissure
            fissure = 0.5 + 0.05 * side + disease["fissure"] * (np.abs(u) - 0.4)
            blob = blob * _soft((fissure - gy if disease["upper"] else gy - fissure) / 0.012)
            if not (blob * lung).max() > 0.3:  # it lay wholly on the other side of the fissure
                blob = _soft((1 - away + rough) / 0.16) * (u * side > 0)
        filled = np.maximum(filled, blob)
    texture = np.clip(1 + 0.22 * disease["mottle"], 0.3, 1.5)
    bronchi = 1 - 0.45 * _ridges(parts["branch"] - 0.9, 0.25) * (disease["kind"] == "lobar")
    opacity = np.clip(filled * disease["strength"] * texture * bronchi, 0, 0.97)
    solid = filled * lung
    mask = _largest(solid > 0.5 * solid.max())
    return opacity, mask, disease["strength"], disease["kind"]
