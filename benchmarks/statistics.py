"""How fast the statistics are, whether they agree with other packages, and whether their intervals keep their level.

    python benchmarks/statistics.py                 # times and agreement, n = 10³ … 10⁶
    python benchmarks/statistics.py --largest 10000 # a short run
    python benchmarks/statistics.py --coverage      # Monte-Carlo coverage and type-I error (minutes)

Other packages are compared where the environment has them; their pins clash with ours, so give them one of their own:

    python -m venv peers && peers/bin/pip install -e . --no-deps && peers/bin/pip install scipy pandas scikit-learn MLstatkit confidenceinterval dcurves
    peers/bin/python benchmarks/statistics.py

R's pROC is compared where ``Rscript`` is on the path and has it. A task that took more than a minute is not tried at the next size.
``confidenceinterval`` keeps ranks in single precision, so that its DeLong intervals differ from all others by 1e-8.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from mstl.metrics import calibration, decision, paired, ranks, readers, roc, scores

RESAMPLES = 1000
THRESHOLDS = np.arange(1, 100) / 100


def sample(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (30 % positive) and the probabilities of two models that share half their errors."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(int)
    base = 1.2 * y + rng.normal(size=n)
    a, b = (1 / (1 + np.exp(-(base + 0.7 * rng.normal(size=n) - 1))) for _ in range(2))
    return y, a, b


# ---------------------------------------------------------------- tasks: name → (numbers that must agree) by package


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def delong_tasks() -> dict:
    tasks = {"mstl": lambda y, a, b: (lambda t: (abs(t.statistic), t.auc_a))(roc.delong_test(y, a, b))}
    if has("MLstatkit"):
        from MLstatkit import Delong_test

        tasks["MLstatkit"] = lambda y, a, b: (abs(Delong_test(y, a, b)[0]),)
    if shutil.which("Rscript"):
        tasks["pROC"] = proc_delong
    return {"DeLong's paired test": tasks}


def interval_tasks() -> dict:
    tasks = {"mstl": lambda y, a, b: (lambda d: (d.auc, d.low, d.high))(roc.delong(y, a))}
    if has("confidenceinterval"):
        import confidenceinterval

        def peer(y, a, b):
            value, (low, high) = confidenceinterval.roc_auc_score(y, a, confidence_level=0.95, method="delong")
            return value, low, high

        tasks["confidenceinterval"] = peer
    return {"AUC with DeLong's interval": tasks}


def bootstrap_tasks() -> dict:
    def ours(y, a, b):
        r = paired.bootstrap_difference("auc", y, a, b, method="percentile", n_resamples=RESAMPLES)
        return (r.difference,)

    def loop(y, a, b):
        """The usual loop over scikit-learn, timed on a twentieth of the resamples and reported times twenty."""
        from sklearn.metrics import roc_auc_score

        start = time.perf_counter()
        rng = np.random.default_rng(0)
        values = []
        for _ in range(RESAMPLES // 20):
            rows = rng.integers(0, len(y), len(y))
            values.append(roc_auc_score(y[rows], a[rows]) - roc_auc_score(y[rows], b[rows]))
        loop.seconds = 20 * (time.perf_counter() - start)
        return (roc_auc_score(y, a) - roc_auc_score(y, b),)

    tasks = {"mstl": ours, "scikit-learn loop (scaled)": loop}
    if has("MLstatkit"):
        from MLstatkit import Bootstrapping

        tasks["MLstatkit (one model)"] = lambda y, a, b: (
            Bootstrapping(y, a, "roc_auc", n_bootstraps=RESAMPLES)[0] - roc.auc(y, b),
        )
    return {f"paired bootstrap of the AUC, {RESAMPLES} resamples": tasks}


def decision_tasks() -> dict:
    """Net benefit at 99 thresholds; ours without its band is not offered, so the band's time is included."""
    tasks = {
        "mstl (with band)": lambda y, a, b: tuple(
            decision.net_benefit(y, a, THRESHOLDS, n_resamples=100).model[[9, 49]]
        )
    }
    if has("dcurves"):
        from dcurves import dca

        def peer(y, a, b):
            table = dca(data=pd.DataFrame({"y": y, "a": a}), outcome="y", modelnames=["a"], thresholds=THRESHOLDS)
            curve = table[table.model == "a"].set_index(table[table.model == "a"].threshold.round(2)).net_benefit
            return float(curve.loc[0.1]), float(curve.loc[0.5])

        tasks["dcurves (no band)"] = peer
    return {"decision curve, 99 thresholds": tasks}


def proc_delong(y, a, b):
    """R's pROC in a process of its own: the time is that of the test alone, as R measures it."""
    code = """t <- read.csv(commandArgs(TRUE)[1]); suppressMessages(library(pROC));
    s <- proc.time()[3]; x <- roc(t$y, t$a, quiet=TRUE, direction="<"); z <- roc(t$y, t$b, quiet=TRUE, direction="<");
    r <- roc.test(x, z, method="delong", paired=TRUE); cat(format(c(abs(r$statistic), auc(x), proc.time()[3] - s), digits=17))"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        pd.DataFrame({"y": y, "a": a, "b": b}).to_csv(path, index=False)
        out = subprocess.run(
            ["Rscript", "-e", code, str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
    proc_delong.seconds = float(out[2])
    return float(out[0]), float(out[1])


def times(sizes: list[int]) -> pd.DataFrame:
    rows, too_slow = [], set()
    tasks = delong_tasks() | interval_tasks() | bootstrap_tasks() | decision_tasks()
    for n in sizes:
        y, a, b = sample(n)
        for task, packages in tasks.items():
            ours = seconds_ours = None
            for package, run in packages.items():
                if (task, package) in too_slow:
                    continue
                with (
                    contextlib.redirect_stdout(io.StringIO()),
                    contextlib.redirect_stderr(io.StringIO()),
                    warnings.catch_warnings(),
                ):
                    warnings.simplefilter("ignore")
                    start = time.perf_counter()
                    try:
                        numbers = np.asarray(run(y, a, b), dtype=float)
                    except Exception as problem:  # a peer that fails is a result, and is shown as one
                        rows.append(
                            {
                                "task": task,
                                "n": n,
                                "package": package,
                                "seconds": None,
                                "times ours": None,
                                "largest difference": None,
                                "problem": f"{type(problem).__name__}: {str(problem)[:60]}",
                            }
                        )
                        too_slow.add((task, package))
                        continue
                    seconds = getattr(run, "seconds", None) or time.perf_counter() - start
                if seconds > 60:
                    too_slow.add((task, package))
                if package.startswith("mstl"):
                    ours, seconds_ours = numbers, seconds
                gap = float(np.max(np.abs(numbers - ours[: len(numbers)])))
                rows.append(
                    {
                        "task": task,
                        "n": n,
                        "package": package,
                        "seconds": round(seconds, 4),
                        "times ours": round(seconds / seconds_ours, 1),
                        "largest difference": gap,
                        "problem": "",
                    }
                )
                print(
                    f"{task:46s} n = {n:>9,d}  {package:26s} {seconds:9.3f} s  × {seconds / seconds_ours:<8.1f} difference {gap:.1e}",
                    flush=True,
                )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- Monte-Carlo


def coverage(n_sim: int) -> pd.DataFrame:
    """Share of simulated samples whose 95 % interval holds the truth, or whose test rejects a true null at 0.05."""
    from scipy.stats import norm

    rng = np.random.default_rng(1)
    true_auc = norm.cdf(1 / np.sqrt(2))

    def binormal(m=40, n=60):
        y = np.repeat([1, 0], [m, n])
        return y, rng.normal(size=m + n) + y

    def pair():
        y, s = binormal()
        return y, s + rng.normal(size=100), s + rng.normal(size=100)

    def chains(n_chains, spread):
        effect = spread * rng.normal(size=(2, n_chains))
        parts = []
        for fold in range(2):
            y = np.repeat(np.arange(30) % 5 < 2, 2)
            image = y + 0.7 * np.repeat(rng.normal(size=30), 2) + 0.5 * rng.normal(size=60)
            parts += [
                pd.DataFrame(
                    {
                        "y": y,
                        "seed": s,
                        "fold": fold,
                        "group": np.repeat(np.arange(30), 2) + 100 * fold,
                        "a": image + effect[0, s] * y + 0.6 * rng.normal(size=60),
                        "b": image + effect[1, s] * y + 0.6 * rng.normal(size=60),
                    }
                )
                for s in range(n_chains)
            ]
        return pd.concat(parts)

    def calibrated(n=300):
        x = 1.3 * rng.normal(size=n) - 0.3
        p = 1 / (1 + np.exp(-x))
        return rng.random(n) < p, p

    def holds(low, high, truth):
        return low <= truth <= high

    def of_delong(kind):
        d = roc.delong(*binormal())
        return holds(d.low, d.high, true_auc) if kind == "plain" else holds(d.low_logit, d.high_logit, true_auc)

    def of_difference(method):
        d = paired.bootstrap_difference("auc", *pair(), n_resamples=500, method=method, seed=int(rng.integers(1e9)))
        return holds(d.low, d.high, 0)

    def of_chains(n_chains, spread):
        t = chains(n_chains, spread)
        d = paired.chain_difference(
            t.y, t.a, t.b, seed=t.seed, fold=t.fold, group=t.group, n_resamples=500, random_seed=int(rng.integers(1e9))
        )
        return holds(d.low, d.high, 0)

    def of_f1():
        y = np.repeat([1, 0], [48, 72])
        d = scores.f1(y, np.where(rng.random(120) < 0.8, y, 1 - y), n_resamples=500, seed=int(rng.integers(1e9)))
        return holds(d.low, d.high, 0.64 / (0.64 + 0.12 + 0.08))

    def of_slope():
        line = calibration.calibration_line(*calibrated())
        return holds(line.slope_low, line.slope_high, 1)

    def reading():
        y = np.repeat([1, 0], [30, 40])
        skill = 0.25 * rng.normal(size=(4, 1)) + 0.12 * rng.normal(size=(2, 4, 1))
        return y, 1.2 * y + 0.6 * rng.normal(size=70) + y * skill + 0.8 * rng.normal(size=(2, 4, 70))

    intervals = {
        "DeLong, plain": lambda: of_delong("plain"),
        "DeLong, logit": lambda: of_delong("logit"),
        "paired bootstrap, percentile": lambda: of_difference("percentile"),
        "paired bootstrap, BCa": lambda: of_difference("bca"),
        "F1, BCa": of_f1,
        "calibration slope": of_slope,
        **{f"{s} chains, spread {d}": (lambda s=s, d=d: of_chains(s, d)) for s in (2, 3, 5) for d in (0.0, 0.3, 1.0)},
    }
    tests = {
        "DeLong, paired": lambda: roc.delong_test(*pair()).p_value < 0.05,
        "Spiegelhalter": lambda: calibration.spiegelhalter(*calibrated()).p_value < 0.05,
        "Friedman, F, 12 data sets": lambda: ranks.friedman(rng.normal(size=(12, 4))).f_p_value < 0.05,
        "Obuchowski–Rockette": lambda: readers.obuchowski_rockette(*reading()).p_value < 0.05,
        "McNemar, exact": lambda: paired.mcnemar(rng.random(100) < 0.7, rng.random(100) < 0.7).p_exact < 0.05,
    }
    rows = []
    for kind, entries, nominal in (("coverage", intervals, 0.95), ("type-I error", tests, 0.05)):
        for name, once in entries.items():
            share = float(np.mean([once() for _ in range(n_sim)]))
            error = float(np.sqrt(share * (1 - share) / n_sim))
            rows.append(
                {
                    "kind": kind,
                    "name": name,
                    "nominal": nominal,
                    "observed": share,
                    "standard error": error,
                    "simulations": n_sim,
                }
            )
            print(f"{kind:13s} {name:34s} {share:.3f} ± {error:.3f} (standard error; nominal {nominal})", flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=1_000_000, help="largest number of images (default 10⁶)")
    parser.add_argument(
        "--coverage", action="store_true", help="Monte-Carlo coverage and type-I error instead of times"
    )
    parser.add_argument("--simulations", type=int, default=1000, help="simulated samples for each line of --coverage")
    parser.add_argument("--out", type=Path, help="also write the table to this CSV file")
    arguments = parser.parse_args()
    sizes = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= arguments.largest]
    table = coverage(arguments.simulations) if arguments.coverage else times(sizes)
    if arguments.out:
        table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
