#!/usr/bin/env python3
"""What a pruning changes for real queries: nDCG@10 and the largest loss of any query token.

usage: quality.py CORPUS QRELS PRUNED [PRUNED ...] [--scoring clamped|plain] [--json]
needs: numpy

CORPUS holds embeddings.npy, embeddings_lengths.json, queries.npy and queries_lengths.json; QRELS is in TREC format with
1-based numbers in file order; each PRUNED is an output folder of `maxhull prune`.
"""
import argparse
import json
import pathlib

import numpy as np


def load(folder, name):
    rows = np.load(folder / f"{name}.npy", mmap_mode="r")
    lengths = json.load(open(folder / f"{name}_lengths.json"))
    return rows, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def token_maxima(queries, docs, offsets, clamped):
    """`[num_query_tokens, num_docs]`: the maximum over each document's tokens, in f64."""
    out = np.empty((len(queries), len(offsets) - 1), np.float64)
    q = np.asarray(queries, np.float64)
    for doc, (start, end) in enumerate(zip(offsets, offsets[1:])):
        out[:, doc] = (q @ np.asarray(docs[start:end], np.float64).T).max(axis=1)
    return np.maximum(out, 0) if clamped else out


def ndcg(scores, qrels, k=10):
    discount = 1 / np.log2(np.arange(2, k + 2))
    values = []
    for query, gains in qrels.items():
        order = np.argsort(-scores[query - 1], kind="stable")[:k] + 1
        found = sum(gains.get(int(doc), 0) * d for doc, d in zip(order, discount))
        ideal = sum(g * d for g, d in zip(sorted(gains.values(), reverse=True), discount))
        values.append(found / ideal if ideal else 0)
    return float(np.mean(values))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("corpus", type=pathlib.Path)
    args.add_argument("qrels", type=pathlib.Path)
    args.add_argument("pruned", type=pathlib.Path, nargs="+")
    args.add_argument("--scoring", choices=["plain", "clamped"], default="clamped")
    args.add_argument("--json", action="store_true")
    args = args.parse_args()
    clamped = args.scoring == "clamped"

    qrels = {}
    for line in open(args.qrels):
        query, _, doc, gain = line.split()
        qrels.setdefault(int(query), {})[int(doc)] = int(gain)
    queries, query_offsets = load(args.corpus, "queries")
    norms = np.linalg.norm(np.asarray(queries, np.float64), axis=1)
    docs, offsets = load(args.corpus, "embeddings")
    full = token_maxima(queries, docs, offsets, clamped)
    rows = [dict(pruned=None, kept=1.0, ndcg_at_10=ndcg(np.add.reduceat(full, query_offsets[:-1]), qrels))]
    for folder in args.pruned:
        kept, kept_offsets = load(folder, "embeddings")
        bounds = np.load(folder / "bounds.npy").astype(np.float64)
        maxima = token_maxima(queries, kept, kept_offsets, clamped)
        loss = (full - maxima) / norms[:, None]
        sums = np.add.reduceat(full - maxima, query_offsets[:-1]) / np.add.reduceat(norms, query_offsets[:-1])[:, None]
        rows.append(dict(
            pruned=folder.name, kept=kept_offsets[-1] / offsets[-1],
            ndcg_at_10=ndcg(np.add.reduceat(maxima, query_offsets[:-1]), qrels),
            worst_bound=float(bounds.max()), worst_token_loss=float(loss.max()), worst_query_loss=float(sums.max()),
            mean_query_loss=float(sums.mean()),
            losses_above_bound=int((loss > bounds[None, :] + 1e-12).sum()), gains=int((loss < 0).sum())))
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
