"""Simulated knee radiographs: bones as shells of cortex around spongy bone, and tumours that take bone away or lay it down."""

from __future__ import annotations

import math

import numpy as np

from .drawing import Film, Scene, Shot, _between, _blur, _curve, _grid, _largest, _marker, _outline, _polar_at, _ridges, _sampled, _soft, _texture


def draw(scene: Scene) -> list[Shot]:
    """A frontal knee: attenuation of soft tissue, femur, tibia, fibula and patella along parallel rays, with at most one tumour."""
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    knee = _anatomy(rng)
    textures = dict(
        spongy=_texture(rng, edge, slope=2.0, low=8, high=70, stretch=3.5, angle=math.pi / 2),
        muscle=_texture(rng, edge, slope=2.8, low=2, high=40, stretch=3.0, angle=math.pi / 2),
        moth=_texture(rng, edge, slope=1.0, low=12, high=34),
        cloud=_texture(rng, edge, slope=2.6, low=6, high=40),
    )
    tumour = _tumour(rng, knee, scene.label, hard) if scene.label else None
    film = FILMS[scene.center]
    shots = []
    for own in scene.exposures():
        x, y = _grid(edge)
        zoom, turn, flip = 0.82 + own.normal(0, 0.025), own.normal(0, 0.03), -1 if knee["right"] else 1
        dx, dy = own.normal(0, 0.015), own.normal(0, 0.015)
        gx = flip * (zoom * (x - 0.5) + turn * (y - 0.5)) - dx
        gy = 0.5 + zoom * (y - 0.5) - turn * (x - 0.5) - dy
        fields = {name: _sampled(field, gx + 0.5, gy) for name, field in textures.items()}  # they move with the patient
        parts = _bones(knee, fields, gx, gy)
        mask, conspicuity, subtype = None, 0.0, "normal"
        cortex, spongy, soft = parts["cortex"], parts["spongy"], parts["soft"]
        if tumour is not None:
            cortex, spongy, soft, mask = _insert(tumour, fields, parts, gx, gy)
            conspicuity, subtype = tumour["strength"], tumour["kind"]
        density = 0.62 * cortex + 0.42 * spongy + soft + parts["patella"]
        grey = film.grey + film.contrast * (density - 0.42)
        grey = np.where(grey > 0.78, 0.78 + 0.22 * np.tanh((grey - 0.78) * 3.5), grey)  # the film's shoulder
        grey = np.where(grey < 0.12, 0.12 * np.exp((grey - 0.12) / 0.12), grey)  # and its toe: air is black
        grey = _blur(grey.astype(np.float32), film.blur * edge)
        noise = film.noise * _between(0.6, 1.6, hard) * math.sqrt(scene.factor)
        grey += noise * np.sqrt(0.2 + np.clip(1 - grey, 0, 1)) * own.standard_normal((edge, edge), dtype=np.float32)
        if own.random() < 0.5:  # lead at the edges of the field
            left, right = own.uniform(0.0, 0.07), own.uniform(0.0, 0.07)
            grey *= _soft((x - left) * 300) * _soft((1 - right - x) * 300)
        if scene.center == 0 and knee["right"]:
            _marker(grey, knee["marker"])
        shots.append(Shot(np.clip(grey, 0, 1), mask, subtype, conspicuity))
    return shots


#: A: digital detector; B: film of an older machine, unsharp and flat; C: storage phosphor, sharp and grainy.
FILMS = (Film(0.0016, 0.012, 1.1, 0.46), Film(0.0048, 0.02, 0.8, 0.52), Film(0.0024, 0.034, 1.25, 0.42))


def _anatomy(rng: np.random.Generator) -> dict:
    """Lengths as shares of about 24 cm; an exposure shows some 20 cm. x runs to the patient's outer side, y downwards."""
    size = rng.normal(1, 0.06)
    return dict(
        right=bool(rng.random() < 0.5), middle=rng.normal(0, 0.02), joint=rng.normal(0.5, 0.025), gap=rng.uniform(0.012, 0.03),
        shaft=0.068 * size * rng.uniform(0.9, 1.1), condyle=0.185 * size, plateau=0.178 * size, shin=0.064 * size * rng.uniform(0.9, 1.1),
        femur_lean=rng.normal(0.1, 0.03), tibia_lean=rng.normal(0.02, 0.03), notch=rng.uniform(0.04, 0.065), spine=rng.uniform(0.018, 0.032),
        cortex=rng.uniform(0.014, 0.022), dense=rng.uniform(0.8, 1.15), spongy=rng.uniform(0.75, 1.1), physis=rng.uniform(0, 0.09) * (rng.random() < 0.6),
        fibula=(rng.uniform(0.15, 0.18), rng.uniform(0.085, 0.12), rng.uniform(0.024, 0.032)),
        patella=(rng.normal(0, 0.012), rng.uniform(0.07, 0.14), rng.uniform(0.075, 0.095)),
        thigh=rng.uniform(0.36, 0.47), calf=rng.uniform(0.3, 0.4), waist=rng.uniform(0.27, 0.33), flesh=rng.uniform(0.26, 0.36), fat=rng.uniform(0.02, 0.06),
        ripple=_curve(rng, 0.004, 4), wave=_curve(rng, 0.004, 4), rough=_curve(rng, 0.0015, 9),
        island=(rng.uniform(-0.6, 0.6), rng.uniform(0.06, 0.3) * int(rng.choice([-1, 1])), rng.uniform(0.006, 0.011)) if rng.random() < 0.3 else None,
        fabella=(rng.uniform(0.1, 0.13), rng.uniform(0.06, 0.1), rng.uniform(0.01, 0.016)) if rng.random() < 0.25 else None,
        osteophyte=rng.uniform(0.0, 0.02) * (rng.random() < 0.4), marker=(rng.random() < 0.6, rng.uniform(0.03, 0.1), rng.uniform(0.05, 0.9)),
    )  # fmt: skip


def _width(knee: dict, bone: str, away: np.ndarray) -> np.ndarray:
    """Half the width of a bone `away` from the joint line (frames, ≥ 0)."""
    shaft, end, reach = (knee["shaft"], knee["condyle"], 0.17) if bone == "femur" else (knee["shin"], knee["plateau"], 0.14)
    return shaft + (end - shaft) * _soft((reach - away) / 0.034) + knee["osteophyte"] * np.exp(-((away / 0.02) ** 2))


def _axis(knee: dict, bone: str, away):
    """Where the middle of a bone lies: the femur leans outwards going up, the tibia hardly goes aside."""
    return knee["middle"] + (knee["femur_lean"] if bone == "femur" else knee["tibia_lean"]) * np.maximum(away - 0.05, 0)


def _shell(u: np.ndarray, width: np.ndarray, cortex: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Path of a ray through the wall and through the inside of a tube, over the tube's mean radius at its end."""
    outside = np.sqrt(np.clip(width**2 - u**2, 0, None))
    inside = np.sqrt(np.clip((width - cortex) ** 2 - u**2, 0, None))
    return (outside - inside) / 0.06, inside / 0.15


def _bones(knee: dict, fields: dict, gx: np.ndarray, gy: np.ndarray) -> dict:
    """Attenuation of wall, spongy bone, soft tissue and patella, and each long bone's own coordinates."""
    shape = np.broadcast_shapes(gx.shape, gy.shape)
    cortex, spongy, frames = np.zeros(shape, np.float32), np.zeros(shape, np.float32), {}
    for bone, sign in (("femur", -1), ("tibia", 1)):
        away = sign * (gy - knee["joint"]) - knee["gap"] / 2
        u = gx - _axis(knee, bone, away) - knee["ripple" if bone == "femur" else "wave"](gy)
        width = _width(knee, bone, np.maximum(away, 0)) + knee["rough"](gy)
        across = np.abs(u) / width
        if bone == "femur":  # two rounded condyles with the notch between them
            depth = away - 0.05 * across**4 - knee["notch"] * np.exp(-((across / 0.24) ** 2))
        else:  # a plateau with its two spines, rounded at the rims
            depth = away - 0.03 * across**6 + knee["spine"] * (np.exp(-(((across - 0.14) / 0.09) ** 2)))
        end = np.sqrt(np.clip(1 - (1 - np.clip(depth / 0.045, 0, 1)) ** 2, 0, 1))
        wall = knee["cortex"] * (0.22 + 0.78 * _soft((away - 0.2) / 0.03))
        hull, core = _shell(u, width, wall)
        plate = np.exp(-(((depth - 0.006) / 0.006) ** 2)) * (across < 1)  # the bone under the cartilage
        scar = (knee["physis"] > 0.03) * np.exp(-(((away - 0.1 - 0.01 * np.cos(u * 40)) / 0.004) ** 2)) * (across < 0.95)
        cortex += knee["dense"] * end * (hull + 0.35 * plate + 0.16 * scar)
        spongy += knee["spongy"] * end * core * (1 + 0.14 * fields["spongy"]) * (1 - 0.55 * _soft((away - 0.24) / 0.03))
        frames[bone] = (u, width, away, end > 0.05)
    away = gy - knee["joint"] - knee["gap"] / 2
    out, below, thin = knee["fibula"]
    u = gx - knee["middle"] - out + 0.05 * (away - below)
    head = thin * (1 + 0.55 * np.exp(-(((away - below - 0.02) / 0.035) ** 2)))
    cap = np.sqrt(np.clip(1 - (1 - np.clip((away - below) / 0.03, 0, 1)) ** 2, 0, 1))
    hull, core = _shell(u, head, 0.5 * knee["cortex"])
    cortex += knee["dense"] * cap * hull
    spongy += knee["spongy"] * cap * core
    if knee["island"]:  # a bone island, in whoever has one
        across, at, radius = knee["island"]
        bone = "femur" if at < 0 else "tibia"
        u, width, along, _ = frames[bone]
        cortex += 0.35 * np.exp(-(((u - across * width) ** 2 + (along - abs(at)) ** 2) / radius**2) ** 2)
    side, up, radius = knee["patella"]
    px, py = gx - knee["middle"] - side, gy - knee["joint"] + up
    patella = 0.1 * np.sqrt(np.clip(1 - (px**2 + py**2) / radius**2, 0, 1))
    if knee["fabella"]:
        out, up, radius = knee["fabella"]
        patella = patella + 0.14 * np.sqrt(np.clip(1 - ((gx - out) ** 2 + (gy - knee["joint"] + up) ** 2) / radius**2, 0, 1))
    return dict(cortex=cortex, spongy=spongy, soft=_flesh(knee, fields, gx, gy), patella=patella, frames=frames)


def _flesh(knee: dict, fields: dict, gx: np.ndarray, gy: np.ndarray) -> np.ndarray:
    down = gy - knee["joint"]
    half = knee["waist"] + np.where(down < 0, (knee["thigh"] - knee["waist"]), (knee["calf"] - knee["waist"])) * (1 - np.exp(-((down / 0.28) ** 2)))
    across = np.clip(np.abs(gx - knee["middle"]) / half, 0, 1)
    skin = np.sqrt(1 - across**2)
    muscle = np.sqrt(np.clip(1 - (across * half / (half - knee["fat"])) ** 2, 0, 1))
    return knee["flesh"] * (0.35 * skin + 0.65 * muscle * (1 + 0.06 * fields["muscle"]))


# --- tumours ------------------------------------------------------------------------------------------------------------


def _tumour(rng: np.random.Generator, knee: dict, label: int, hard: float) -> dict:
    """Where and what a tumour is.

    Every tumour has an aggressiveness from 0 to 1, high for the malignant (2) and low for the benign (1) with an overlap that grows with
    the difficulty, and every sign follows it loosely, each in its own way: with it the edge blurs, the sclerotic rim goes, the wall is
    breached, bone is eaten in moth holes, and the periosteum answers beside a mass of soft tissue.
    """
    bone = "femur" if rng.random() < 0.6 else "tibia"
    away = rng.uniform(0.11, 0.27)
    malignant = label == 2
    aggressive = float(np.clip(rng.normal(0.5 + (0.5 if malignant else -0.5) * _between(0.72, 0.08, hard), 0.16), 0, 1))

    def sign(spread: float = 0.2) -> float:
        return float(np.clip(aggressive + rng.normal(0, spread), 0, 1))

    kind = str(rng.choice(["lytic", "sclerotic", "mixed"], p=[0.45, 0.2, 0.35]) if malignant else rng.choice(["cyst", "fibroma", "enchondroma"], p=[0.4, 0.35, 0.25]))
    radius = rng.uniform(0.04, 0.07) + 0.025 * sign()
    radius *= _between(1.25, 0.9, hard)
    side = int(rng.choice([-1, 1]))
    width = float(_width(knee, bone, np.float64(away)))
    offset = side * width * (rng.uniform(0.5, 0.85) if kind not in ("cyst", "enchondroma") else rng.uniform(0.0, 0.45))
    long = rng.uniform(1.0, 1.6)
    rx = min(radius / math.sqrt(long), 0.95 * width) if kind == "cyst" else radius / math.sqrt(long)
    down = -1 if bone == "femur" else 1
    ragged = sign()
    periosteal, beside = sign(), sign()
    return dict(
        kind=kind, bone=bone, side=side, away=away, strength=rng.uniform(0.75, 1.0) * _between(1.0, 0.6, hard),
        x=float(_axis(knee, bone, away)) + offset, y=knee["joint"] + down * (away + knee["gap"] / 2), rx=rx, ry=radius * math.sqrt(long),
        tilt=rng.normal(0, 0.2), outline=_outline(rng, 0.03 + 0.15 * ragged, 9 if ragged > 0.5 else 4),
        edge=0.03 + 0.24 * sign() ** 1.5, rim=max(0.0, 0.45 * (1 - 1.5 * sign())) * _between(1.1, 0.6, hard), septa=0.25 * (kind == "fibroma"),
        breach=sign(), eaten=sign(), periosteal=max(0.0, 2 * periosteal - 0.8) * (rng.random() < 0.85),
        sunburst=bool(rng.random() < 0.15 + 0.4 * aggressive), spacing=rng.uniform(0.012, 0.017), spikes=rng.uniform(45, 70),
        mass=max(0.0, 2 * beside - 0.8), bulge=rng.uniform(1.3, 1.8),
        laid={"sclerotic": 0.75, "mixed": 0.4, "enchondroma": 0.35}.get(kind, 0.0) * rng.uniform(0.8, 1.1),
    )  # fmt: skip


def _insert(tumour: dict, fields: dict, parts: dict, gx: np.ndarray, gy: np.ndarray) -> tuple[np.ndarray, ...]:
    """Wall, spongy bone and soft tissue with the tumour in them, and its mask: what of it lies in bone, and the mass beside it."""
    u, width, _, bone = parts["frames"][tumour["bone"]]
    inside = bone & (np.abs(u) < width)
    ratio = _polar_at(gx, gy, *(tumour[key] for key in ("x", "y", "rx", "ry", "tilt", "outline"))).ratio
    body = _soft((1 - ratio) / (0.4 * tumour["edge"]))
    cortex, spongy, soft = parts["cortex"], parts["spongy"], parts["soft"]
    rim = tumour["rim"] * np.exp(-(((ratio - 1) / 0.1) ** 2)) * inside
    septa = tumour["septa"] * body * _ridges(fields["cloud"], 0.25) * inside
    moth, cloud, holes = fields["moth"], _soft(2 * fields["cloud"]), 0.55 * tumour["eaten"]
    beyond = tumour["eaten"] * _soft((1.4 - ratio) / 0.1) * _soft(5 * (moth - 1))  # holes outside of the edge
    eaten = np.minimum(body * (1 - holes + holes * _soft(3 * moth + 1)) + 0.8 * beyond, 1)
    eaten = eaten * (1 - 0.8 * tumour["laid"])
    outside = tumour["side"] * u - width  # how far beyond the wall, on the tumour's side
    along = np.exp(-(((gy - tumour["y"]) / (1.25 * tumour["ry"])) ** 4))
    if tumour["sunburst"]:
        rays = (0.5 + 0.5 * np.cos(2 * math.pi * tumour["spikes"] * (gy - tumour["y"]) + 2 * fields["cloud"])) ** 2
        raised = _soft(outside / 0.0015) * np.exp(-((outside / 0.04) ** 2)) * rays
    else:  # layers, interrupted
        raised = sum(0.8**k * np.exp(-(((outside - k * tumour["spacing"]) / 0.0035) ** 2)) for k in (1, 2, 3)) * _soft(3 * (fields["cloud"] + 0.8))
    mass = 1 - (outside / (tumour["bulge"] * tumour["rx"])) ** 2 - ((gy - tumour["y"]) / (1.15 * tumour["ry"])) ** 2
    mass = np.sqrt(np.clip(mass, 0, 1)) * _soft(outside / 0.003)
    laid = tumour["laid"] * cloud
    cortex = cortex * (1 - tumour["breach"] * eaten) + 0.3 * tumour["periosteal"] * raised * along + 0.4 * laid * body * inside
    cortex = cortex + rim + septa + 0.2 * laid * tumour["mass"] * mass
    soft = soft + 0.11 * tumour["mass"] * mass
    seen = ((body > 0.5) & inside) | (mass * tumour["mass"] > 0.3)
    return cortex, spongy * (1 - tumour["strength"] * eaten), soft, _largest(seen)
