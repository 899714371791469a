"""Worker of the MaxSim benchmark: `peers.py PEER FOLDER DIM` scores FOLDER once for each line on stdin.

Prints its name (or "absent"), then the seconds of each round, having written the scores (f32) to FOLDER/scores.
"""

import sys
import time
from pathlib import Path

peer, folder, dim = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
try:
    import numpy as np

    if peer == "maxsim-cpu":
        import importlib.metadata

        import maxsim_cpu
except ImportError:
    print("absent", flush=True)
    sys.exit()

query = np.fromfile(folder / "query", np.float32).reshape(-1, dim)
docs = np.fromfile(folder / "docs", np.float32).reshape(-1, dim)
offsets = np.fromfile(folder / "offsets", np.uint64).astype(np.int64)
uniform = len(set(np.diff(offsets))) == 1


def numpy_blocks(docs_at_once):
    """Products of a few documents at a time, so that they stay in cache, then the maximum of each."""
    scores = []
    for start in range(0, len(offsets) - 1, docs_at_once):
        part = offsets[start : start + docs_at_once + 1]
        products = docs[part[0] : part[-1]] @ query.T
        scores.append(np.maximum.reduceat(products, part[:-1] - part[0], axis=0).sum(axis=1))
    return np.concatenate(scores)


def numpy_each():
    """One product and one maximum a document, the query's tokens in rows."""
    return np.array(
        [(query @ docs[start:end].T).max(axis=1).sum() for start, end in zip(offsets[:-1], offsets[1:])],
        np.float32,
    )


def fastest(candidates):
    def seconds(run):
        run()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return min(times)

    return min(candidates, key=seconds)


if peer == "numpy":
    run = fastest([numpy_each] + [lambda n=n: numpy_blocks(n) for n in (4, 32, len(offsets))])
    name = f"numpy {np.__version__} OpenBLAS"
elif uniform:
    stacked = docs.reshape(len(offsets) - 1, -1, dim)
    run = lambda: maxsim_cpu.maxsim_scores(query, stacked)
    name = "maxsim-cpu " + importlib.metadata.version("maxsim-cpu")
else:
    parts = [docs[start:end] for start, end in zip(offsets[:-1], offsets[1:])]
    run = lambda: maxsim_cpu.maxsim_scores_variable(query, parts)
    name = "maxsim-cpu " + importlib.metadata.version("maxsim-cpu")

run()
print(name, flush=True)
for line in sys.stdin:
    if line.strip() != "run":
        break
    start = time.perf_counter()
    scores = run()
    seconds = time.perf_counter() - start
    np.asarray(scores, np.float32).tofile(folder / "scores")
    print(seconds, flush=True)
