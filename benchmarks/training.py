"""Training throughput: `mstl.training.fit` beside a bare PyTorch loop, and beside the usual ImageFolder + DataLoader.

    OMP_NUM_THREADS=1 python -m benchmarks.training

prints two tables in about a minute and a half. EfficientNet-Lite0 at 96 px, batches of 32, AdamW, one thread. All
loops run in this process, in turns; images/s are the mean over the turns, from the end of the first epoch to the end
of training, saving the state and the result included. Images per CPU second do not suffer when other work shares
the machine; images per second of the clock do.

Goals: fit ≥ 0.95 of the bare loop on the same tensors; faster than the usual loop from the second epoch on.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mstl import augmentation
from mstl.models.backbones import create, parameter_groups
from mstl.training import Recipe, fit

SIZE, BATCH, IMAGES, EPOCHS, TURNS, FILE_SIZE = 96, 32, 128, 3, 2, 448
CLASSES = ("coffee", "rocket")


@dataclass(frozen=True)
class Images:
    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...] = CLASSES
    hash: str = "benchmark"


Marks = list[tuple[float, float]]  # wall clock and CPU seconds at each epoch end


def mark(marks: Marks) -> None:
    marks.append((time.perf_counter(), time.process_time()))


def model() -> torch.nn.Module:
    return create("tf_efficientnet_lite0", CLASSES, image_size=SIZE)


def by_fit(data: Images, name: str) -> Marks:
    marks: Marks = []
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, augmentation=name)
    with tempfile.TemporaryDirectory() as folder:
        fit(model(), data, np.arange(len(data.labels)), None, recipe, folder=folder, quiet=True, on_epoch=lambda _: mark(marks))
        mark(marks)
    return [*marks[:-2], marks[-1]]


def by_bare_loop(data: Images, name: str) -> Marks:
    """What a careful person writes by hand: tensors in memory, channels last, nothing checked, nothing saved."""
    marks: Marks = []
    net = model().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameter_groups(net, lr=1e-3, weight_decay=0.01))
    images, labels = torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2), torch.from_numpy(data.labels)
    augment = augmentation.preset(name, SIZE).train
    net.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(labels))
        for start in range(0, len(labels), BATCH):
            rows = order[start:start + BATCH]
            x = images[rows]
            if name != "none":
                x = torch.stack([augment(image) for image in x])
            x = ((x.float() - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mark(marks)
    return marks


def by_dataloader(folder: Path, workers: int) -> Marks:
    """The loop of most tutorials: files are decoded and resized again in every epoch; layout and settings are defaults."""
    from torchvision import datasets, transforms

    marks: Marks = []
    steps = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(folder, steps), BATCH, shuffle=True, num_workers=workers,
                                         persistent_workers=workers > 0)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    net.train()
    for _ in range(EPOCHS):
        for x, y in loader:
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mark(marks)
    return marks


def write_files(folder: Path) -> None:
    """JPEG files of the size of a clinical image, cut from two photographs, so that decoding costs what it costs."""
    from skimage import data

    rng = np.random.default_rng(0)
    for label, photograph in zip(CLASSES, (data.coffee(), data.rocket()), strict=True):
        picture = Image.fromarray(photograph).resize((900, 600))
        (folder / label).mkdir(parents=True)
        for i in range(IMAGES // 2):
            left, top = int(rng.integers(0, 900 - FILE_SIZE)), int(rng.integers(0, 600 - FILE_SIZE))
            picture.crop((left, top, left + FILE_SIZE, top + FILE_SIZE)).save(folder / label / f"{i:04d}.jpg", quality=90)


def prepare(folder: Path, target: Path) -> Images:
    """The decode that happens once: files to one memory-mapped array."""
    files = sorted(folder.glob("*/*.jpg"))
    images = np.stack([np.asarray(Image.open(f).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for f in files])
    np.save(target, images)
    labels = np.array([CLASSES.index(f.parent.name) for f in files])
    return Images(np.load(target, mmap_mode="r"), labels, np.array([f.stem for f in files]))


def rates(loops: dict[str, Callable[[], Marks]]) -> dict[str, tuple[float, float]]:
    """Images/s by the clock and by CPU seconds of this process, from the second epoch on: the mean over the turns."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for turn in range(TURNS):
        names = list(loops) if turn % 2 == 0 else list(loops)[::-1]
        for name in names:
            marks = loops[name]()
            seen[name].append(tuple((len(marks) - 1) * IMAGES / (marks[-1][i] - marks[0][i]) for i in (0, 1)))
    return {name: tuple(statistics.mean(r[i] for r in turns) for i in (0, 1)) for name, turns in seen.items()}


def table(title: str, rows: dict[str, tuple[float, float]], against: dict[str, str]) -> None:
    print(f"\n{title}\n{'':44} {'images/s':>9} {'per CPU s':>10} {'ratio':>7} {'CPU ratio':>10}")
    for name, (wall, cpu) in rows.items():
        base = rows.get(against.get(name, ""))
        ratio = f"{wall / base[0]:7.2f} {cpu / base[1]:10.2f}" if base else ""
        print(f"{name:44} {wall:9.1f} {cpu:10.1f} {ratio}")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base:
        files = Path(base) / "files"
        write_files(files)
        start = time.perf_counter()
        data = prepare(files, Path(base) / "images.npy")
        seconds = time.perf_counter() - start
        print(f"{IMAGES} JPEG files of {FILE_SIZE} px decoded once in {seconds:.1f} s ({IMAGES / seconds:.0f} images/s)")
        in_memory = {f"{loop}, augmentation {name}": (lambda f=f, name=name: f(data, name))
                     for name in ("none", "ultrasound") for loop, f in (("bare loop", by_bare_loop), ("fit", by_fit))}
        table("On the same tensors (goal: ratio ≥ 0.95)", rates(in_memory),
              {f"fit, augmentation {name}": f"bare loop, augmentation {name}" for name in ("none", "ultrasound")})
        usual = {"ImageFolder + DataLoader, this process": lambda: by_dataloader(files, 0),
                 "ImageFolder + DataLoader, a second process": lambda: by_dataloader(files, 1),
                 "fit": lambda: by_fit(data, "none")}
        rows = rates(usual)
        table("On the same files, from the second epoch on (goal: ratio > 1; CPU of a second process is not counted)", rows,
              {"fit": "ImageFolder + DataLoader, this process"})
        wall = rows["fit"][0] / rows["ImageFolder + DataLoader, a second process"][0]
        print(f"fit against the loader in a second process, which takes a second core: {wall:.2f}")


if __name__ == "__main__":
    main()
