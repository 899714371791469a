#!/usr/bin/env python3
"""Writes the tables between the `numbers` markers of README.md from benches/results/; `--check` only compares.

usage: benches/readme.py [--check]
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"


def newest(pattern):
    found = sorted(RESULTS.glob(pattern))
    return json.loads(found[-1].read_text()) if found else None


def rate(tokens):
    return f"{tokens / 1e6:.2f} M" if tokens >= 999_500 else f"{tokens / 1e3:.0f} k"


def pruning():
    run = newest("*-prune.json")
    names = {
        "gram": "Gram matrices",
        "decide 0.2 + proof": "decide every token at ε = 0.2, with proof",
        "prune 0.1": "prune at ε = 0.1, proven",
        "prune 0.2": "prune at ε = 0.2, proven",
        "order": "nested order of every token, with its curve",
        "lossless": "lossless, in exact arithmetic",
        "verify 0.2": "verify",
    }
    rows = {(row["work"], row["threads"]): row for row in run["rows"]}
    many = max(threads for _, threads in rows)
    corpus, machine = run["corpus"], run["machine"]
    lines = [
        f"Tokens a second, {corpus['docs']} Cranfield abstracts of {corpus['tokens_per_doc']:.0f} tokens × {corpus['dim']} "
        f"{corpus['dtype']} ({machine['cpu']}, {machine['engine']}, {machine['date']}), beside the paper's one linear "
        f"program a token (SciPy HiGHS, {run['paper_lp']['tokens_per_second_one_core']:.0f} tokens/s on one core in the "
        "same run):",
        "",
        f"| | 1 thread | {many} threads | × the paper's, per core |",
        "|---|---|---|---|",
    ]
    for work, name in names.items():
        one, all_ = rows[work, 1], rows[work, many]
        times = one["times_paper_lp_per_core"]
        roof = one["fraction_of_peak"]
        note = f"{times:.0f}" if times else f"{100 * roof:.0f} % of peak" if roof else ""
        lines.append(f"| {name} | {rate(one['tokens_per_second'])} | {rate(all_['tokens_per_second'])} | {note} |")
    return lines


def million():
    run = newest("*-million.json")
    return [
        f"A million documents of {run['num_tokens'] / run['num_docs']:.0f} tokens ({run['token_bytes_before'] / 1e9:.1f} GB) "
        f"at ε = {run['epsilon']}: {run['wall_seconds']:.0f} s from file to proven file on {run['num_threads']} threads, "
        f"{run['anonymous_peak_mb']:.0f} MB of memory besides the mapped input, {100 * (1 - run['kept_share']):.0f} % "
        f"removed; verified again in {run['verify_seconds']:.0f} s.",
    ]


def quality():
    run = newest("*-quality.json")
    lines = [
        f"What it does to retrieval ({run['corpus']}, {run['scoring']} scoring; losses per unit of query norm, "
        "over all queries and documents):",
        "",
        "| ε | kept | nDCG@10 | largest loss of a query token | of a query |",
        "|---|---|---|---|---|",
    ]
    for row in run["rows"]:
        if row["epsilon"] is None:
            lines.append(f"| – | all | {row['ndcg_at_10']:.3f} | | |")
        else:
            lines.append(
                f"| {row['epsilon']} | {100 * row['kept']:.0f} % | {row['ndcg_at_10']:.3f} "
                f"| {row['worst_token_loss']:.3f} | {row['worst_query_loss']:.3f} |"
            )
    return lines


def maxsim():
    run = newest("*-maxsim-fat.json")
    if run is None:
        return []
    rows = {(row["path"], row["dtype"], row["shape"], row["threads"]): row for row in run["results"]}
    lines = [
        f"MaxSim, 32 query tokens × 128 against 1,000 documents ({run['machine'].replace('AuthenticAMD ', '')}, {run['date']}; "
        "milliseconds, medians of one run, answers checked first; all built with link-time optimisation, which only diskann needs):",
        "",
        "| one thread | 300 tokens a document | 20 to 300 | of the core's peak |",
        "|---|---|---|---|",
    ]
    paths = {"maxhull Avx512": "**maxhull**, AVX-512", "maxhull Avx2": "**maxhull**, AVX2"}
    for path in dict.fromkeys(path for path, *_ in rows):
        for dtype in ["f32", "f16", "bf16", "i8"]:
            uniform, ragged = rows.get((path, dtype, "u300", 1)), rows.get((path, dtype, "ragged", 1))
            if uniform and ragged:
                lines.append(
                    f"| {paths.get(path, path)}, {dtype} | {uniform['median_ms']:.1f} | {ragged['median_ms']:.1f} | "
                    f"{100 * uniform['fraction_of_roof']:.0f} % |"
                )
    speedup = ", ".join(
        f"{dtype} {rows[p, dtype, 'long', 1]['median_ms'] / rows[p, dtype, 'long', 2]['median_ms']:.2f} ×"
        for p in ["maxhull Avx512"]
        for dtype in ["f32", "f16", "bf16", "i8"]
    )
    lines += ["", f"Two threads on 4,000 documents of 300 tokens: {speedup}."]
    return lines


def main():
    sections = [pruning(), million(), quality(), maxsim()]
    text = "\n\n".join("\n".join(lines) for lines in sections if lines)
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = re.sub(r"(<!-- numbers -->\n).*?(<!-- /numbers -->)", lambda m: f"{m[1]}\n{text}\n\n{m[2]}", old, flags=re.S)
    if "--check" in sys.argv[1:]:
        if new != old:
            sys.exit("README.md differs from benches/results: run benches/readme.py")
    else:
        readme.write_text(new)


if __name__ == "__main__":
    main()
