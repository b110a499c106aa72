"""What a transferability measure costs: ours, a direct transcription of its formula, and the features that it reads.

    OMP_NUM_THREADS=1 python -m benchmarks.transferability

prints two tables in about half a minute: each measure beside its formula as written, on one simulated sample; the two measures that factor a
matrix at 20 000 images × 2 048 features; and, in both, how many images EfficientNet-Lite0 (96 px, batches of 32) would have seen in that time.
Times are CPU seconds of this process, so that other work on the machine does not count.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from mstl.metrics import transferability as ours

IMAGES, FEATURES, SOURCE_CLASSES, CLASSES = 1000, 512, 100, 10
LARGE_IMAGES, LARGE_FEATURES = 20_000, 2_048


# ------------------------------------------------------------------------------ the formulas as the papers write them


def leep(theta, y):
    joint = np.zeros((y.max() + 1, theta.shape[1]))
    for i, row in enumerate(theta):
        for z, probability in enumerate(row):
            joint[y[i], z] += probability / len(y)
    marginal = joint.sum(axis=0)
    total = 0.0
    for i, row in enumerate(theta):
        total += math.log(sum(joint[y[i], z] / marginal[z] * probability for z, probability in enumerate(row)))
    return total / len(y)


def nce(z, y):
    total = 0.0
    for a in set(z.tolist()):
        for b in set(y.tolist()):
            both = sum(1 for i in range(len(y)) if z[i] == a and y[i] == b)
            if both:
                total += both / len(y) * math.log(both / sum(1 for v in z if v == a))
    return total


def h_score(f, y):
    covariance, alpha = ledoit_wolf(f)
    expected = np.zeros_like(f)
    for c in range(y.max() + 1):
        expected[y == c] = f[y == c].mean(axis=0)
    return np.trace(np.linalg.pinv(covariance) @ ((1 - alpha) * np.cov(expected, rowvar=False)))


def logme(f, y, tolerance=1e-6):
    """Fixed-point updates of α and β with a D × D system in each step (You et al., before their speed-up)."""
    n, d = f.shape
    gram, eigenvalues = f.T @ f, np.linalg.eigvalsh(f.T @ f)
    total = 0.0
    for c in range(y.max() + 1):
        target = (y == c).astype(float)
        alpha, beta, previous = 1.0, 1.0, math.inf
        while True:
            matrix = alpha * np.eye(d) + beta * gram
            mean = beta * np.linalg.solve(matrix, f.T @ target)
            gap, size = np.sum((f @ mean - target) ** 2), mean @ mean
            evidence = (n * math.log(beta) + d * math.log(alpha) - n * math.log(2 * math.pi)) / 2
            evidence -= (beta * gap + alpha * size + np.linalg.slogdet(matrix)[1]) / 2
            if abs(evidence - previous) < tolerance * n:
                break
            previous = evidence
            gamma = np.sum(beta * eigenvalues / (alpha + beta * eigenvalues))
            alpha, beta = gamma / size, (n - gamma) / gap
        total += evidence / n
    return total / (y.max() + 1)


def gbc(f, y):
    """With the spherical Gaussians written out as D × D matrices."""
    d = f.shape[1]
    gaussians = [(f[y == c].mean(axis=0), f[y == c].var(axis=0).mean() * np.eye(d)) for c in range(y.max() + 1)]
    total = 0.0
    for a, (mean_a, cov_a) in enumerate(gaussians):
        for b, (mean_b, cov_b) in enumerate(gaussians):
            if a != b:
                joint, gap = (cov_a + cov_b) / 2, mean_a - mean_b
                logs = [np.linalg.slogdet(m)[1] for m in (joint, cov_a, cov_b)]
                total -= math.exp(-(gap @ np.linalg.solve(joint, gap) / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2))
    return total


def nleep(f, y):
    reduced = PCA(0.8, svd_solver="full").fit_transform(f)
    return leep(GaussianMixture(5 * (y.max() + 1), random_state=0).fit(reduced).predict_proba(reduced), y)


def transrate(f, y, eps=1e-4):
    f = f - f.mean(axis=0)

    def rate(part):
        return np.linalg.slogdet(np.eye(f.shape[1]) + part.T @ part / (len(part) * eps))[1] / 2

    return rate(f) - np.mean([rate(f[y == c]) for c in range(y.max() + 1)])


def parc(f, y):
    upper = np.triu_indices(len(y), 1)
    features = (1 - np.corrcoef((f - f.mean(axis=0)) / f.std(axis=0)))[upper]
    labels = (1 - np.corrcoef(np.eye(y.max() + 1)[y]))[upper]
    return 100 * spearmanr(features, labels.round(9))[0]


# ---------------------------------------------------------------------------------------------------------- measuring


def seconds(call: Callable[[], float], repeats: int) -> tuple[float, float]:
    """The call's value and its median CPU time."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        value = call()
        times.append(time.process_time() - start)
    return value, statistics.median(times)


def forward_per_image() -> float:
    """Seconds an image through EfficientNet-Lite0 at 96 px; untrained weights cost the same."""
    import timm
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval().to(memory_format=torch.channels_last)
    batch = torch.randn(32, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        model(batch)
        return seconds(lambda: float(model(batch).sum()), repeats=4)[1] / len(batch)


def sample(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rectified, correlated features with some class structure, as a pooled convolutional layer gives."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    f = rng.standard_normal((n, 64)) @ rng.standard_normal((64, d)) / 8
    f += rng.standard_normal((n, d))
    f += 0.4 * rng.standard_normal((CLASSES, d))[y]
    return np.maximum(f, 0, out=f), y


def main() -> None:
    image = forward_per_image()
    print(f"EfficientNet-Lite0, 96 px: {1000 * image:.1f} ms an image ({1 / image:.0f} images a second)\n")

    f, y = sample(IMAGES, FEATURES)
    logits = 0.5 * f @ np.random.default_rng(1).standard_normal((FEATURES, SOURCE_CLASSES)) / math.sqrt(FEATURES)
    theta = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    z = theta.argmax(axis=1)
    print(f"{IMAGES} images, {FEATURES} features, {CLASSES} classes, {SOURCE_CLASSES} source classes")
    print(f"{'measure':<10} {'value':>12} {'difference':>11} {'ours, ms':>9} {'formula, ms':>12} {'times faster':>13} {'= images seen':>14}")
    pairs = [
        ("leep", lambda: ours.leep(theta, y), lambda: leep(theta, y)),
        ("nce", lambda: ours.nce(z, y), lambda: nce(z, y)),
        ("h_score", lambda: ours.h_score(f, y), lambda: h_score(f, y)),
        ("logme", lambda: ours.logme(f, y), lambda: logme(f, y)),
        ("gbc", lambda: ours.gbc(f, y), lambda: gbc(f, y)),
        ("nleep", lambda: ours.nleep(f, y), lambda: nleep(f, y)),
        ("transrate", lambda: ours.transrate(f, y), lambda: transrate(f, y)),
        ("parc", lambda: ours.parc(f, y), lambda: parc(f, y)),
    ]
    for name, mine, formula in pairs:
        repeats = 1 if name == "nleep" else 3
        mine()  # imports
        value, fast = seconds(mine, repeats)
        direct, slow = seconds(formula, 1)
        print(
            f"{name:<10} {value:>12.6f} {value - direct:>11.1e} {1000 * fast:>9.1f} {1000 * slow:>12.1f} {slow / fast:>13.1f} {fast / image:>14.1f}",
            flush=True,
        )

    del theta, logits
    f, y = sample(LARGE_IMAGES, LARGE_FEATURES)
    print(f"\n{LARGE_IMAGES} images, {LARGE_FEATURES} features, {CLASSES} classes ({f.nbytes / 2**20:.0f} MiB; extracting them: {LARGE_IMAGES * image:.0f} s)")
    print(f"{'measure':<10} {'value':>12} {'seconds':>9} {'= images seen':>14} {'peak memory, MiB':>17}")
    for name, measure in (("h_score", ours.h_score), ("logme", ours.logme)):
        value, taken = seconds(lambda: measure(f, y), 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name:<10} {value:>12.6f} {taken:>9.2f} {taken / image:>14.0f} {peak:>17.0f}", flush=True)


if __name__ == "__main__":
    main()
