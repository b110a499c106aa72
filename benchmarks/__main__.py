"""All benchmarks, one after the other: `OMP_NUM_THREADS=1 python -m benchmarks`. Each prints its table and says what it compares."""

import importlib

for name in ("pipeline", "training", "statistics", "transferability"):
    print(f"\n=== {name} ===", flush=True)
    importlib.import_module(f"benchmarks.{name}").main()
