#!/usr/bin/env python3
"""MaxSim of others on this machine's CUDA device: torch eager, flash-maxsim and late-interaction-kernels, in one run.

usage: peers.py [--quick] [--device cuda|cpu] [--shape NAME]...
needs: torch; the other two are timed where they can be imported

Every answer is checked against f32 first, and timed only if it is right. Prints one JSON object. Each time is given

  warm         the same buffers again and again
  cold         buffers in turn, together many times the L2 cache
  warm_device  as warm and cold, the launches recorded once and replayed by the device (a CUDA graph): without the
  cold_device  host's part, which decides the time of small inputs

by device events, over repeats of many launches, median and spread. A peer that fails leaves its error in place of times.
`--device cpu` is for trying the script: torch alone, on small inputs, by the host's clock.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import platform
import random
import statistics
import sys
import time
import traceback

DIM = 128
SEED = 1
# At full size: name, queries, documents, query tokens, document tokens.
SHAPES = [
    ("one_query_1k", 1, 1_000, 32, 300),
    ("one_query_10k", 1, 10_000, 32, 300),
    ("in_batch", 128, 128, 32, 300),
    ("colpali", 1, 1_000, 1_024, 1_024),
    ("ragged", 1, 1_000, 32, None),
]
QUICK_SHAPES = [
    ("one_query_1k", 1, 16, 32, 300),
    ("one_query_10k", 1, 32, 32, 300),
    ("in_batch", 8, 8, 32, 100),
    ("colpali", 1, 4, 256, 256),
    ("ragged", 1, 32, 32, None),
]
RAGGED_MOST = 512
RAGGED_FILL = 0.14
# As `maxhull bench` repeats.
REPEAT_SECONDS, NUM_REPEATS = 0.1, 15
QUICK_REPEAT_SECONDS, QUICK_NUM_REPEATS = 0.01, 5
# A rotation is this many times the L2 cache.
COLD_FACTOR = 4
# Differences from f32, for a query token: products and sums rounded to f16 on values up to 1, or to f32 on the way.
ALLOWED_F16, ALLOWED_F32 = 2**-11, 2**-14


def parse():
    names = [shape[0] for shape in SHAPES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small inputs and few repeats, not to be quoted")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", action="append", choices=names, help="can be given several times [default: all]")
    return parser.parse_args()


def version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def error_text():
    return traceback.format_exc(limit=-1).strip()[-1_000:]


def ragged_lengths(num_docs):
    """Exponential, cut off at RAGGED_MOST, of about RAGGED_FILL * RAGGED_MOST in the mean; one document is full."""
    draw = random.Random(SEED)
    mean = RAGGED_FILL * RAGGED_MOST
    lengths = [min(RAGGED_MOST, max(1, round(draw.expovariate(1 / mean)))) for _ in range(num_docs)]
    lengths[0] = RAGGED_MOST
    return lengths


def dtype_of(torch, device):
    return torch.float32 if device == "cpu" else torch.float16


class Input:
    """Queries and documents of one shape: padded, packed, and what the scores are."""

    def __init__(self, torch, device, num_queries, num_docs, query_len, doc_len):
        generator = torch.Generator(device=device).manual_seed(SEED)

        def unit_rows(*shape):
            rows = torch.randn(*shape, DIM, generator=generator, device=device)
            # Products of f16 are no matter of course on a CPU.
            return torch.nn.functional.normalize(rows, dim=-1).to(dtype_of(torch, device))

        self.is_ragged = doc_len is None
        self.lengths = ragged_lengths(num_docs) if self.is_ragged else [doc_len] * num_docs
        self.num_queries, self.num_docs, self.query_len = num_queries, num_docs, query_len
        self.queries = unit_rows(num_queries, query_len)
        self.docs = unit_rows(num_docs, max(self.lengths))
        self.doc_lengths = torch.tensor(self.lengths, dtype=torch.int32, device=device)
        self.mask = torch.arange(max(self.lengths), device=device)[None, :] < self.doc_lengths[:, None]
        self.docs[~self.mask] = 0
        self.packed = self.docs[self.mask] if self.is_ragged else None

        def offsets(lengths):
            ends = list(itertools.accumulate(lengths, initial=0))
            return torch.tensor(ends, dtype=torch.int32, device=device)

        self.doc_offsets, self.query_offsets = offsets(self.lengths), offsets([query_len] * num_queries)

    def copy(self):
        """The same tokens elsewhere in memory."""
        other = object.__new__(Input)
        other.__dict__.update(self.__dict__)
        other.queries, other.docs, other.mask = self.queries.clone(), self.docs.clone(), self.mask.clone()
        other.packed = None if self.packed is None else self.packed.clone()
        return other

    def expected(self, torch):
        """In f32, a document at a time: `[num_queries, num_docs]`."""
        queries = self.queries.float().flatten(0, 1)
        scores = [
            (queries @ doc[:length].float().T).amax(1).view(self.num_queries, self.query_len).sum(1)
            for doc, length in zip(self.docs, self.lengths)
        ]
        return torch.stack(scores, dim=1)

    def work(self):
        tokens = sum(self.lengths)
        query_tokens = self.num_queries * self.query_len
        return {
            "tokens": tokens,
            # Without padding, each byte once, scores in f32.
            "bytes": 2 * DIM * (tokens + query_tokens) + 4 * self.num_queries * self.num_docs,
            "flop": 2 * DIM * tokens * query_tokens,
        }


def torch_by_query(torch, x):
    """All query tokens in rows; padding is masked."""
    sims = x.queries.flatten(0, 1) @ x.docs.flatten(0, 1).T
    sims = sims.view(x.num_queries, x.query_len, x.num_docs, -1)
    if x.is_ragged:
        sims = sims.masked_fill(~x.mask, -torch.inf)
    return sims.amax(3).sum(1, dtype=torch.float32)


def torch_by_doc(torch, x):
    """All document tokens in rows; padding is masked."""
    sims = (x.docs.flatten(0, 1) @ x.queries.flatten(0, 1).T).view(x.num_docs, -1, x.num_queries * x.query_len)
    if x.is_ragged:
        sims = sims.masked_fill(~x.mask[:, :, None], -torch.inf)
    return sims.amax(1).view(x.num_docs, x.num_queries, x.query_len).sum(2, dtype=torch.float32).T


def torch_einsum(torch, x):
    """As it is usually written; padding is masked."""
    sims = torch.einsum("qid,njd->qnij", x.queries, x.docs)
    if x.is_ragged:
        sims = sims.masked_fill(~x.mask[None, :, None, :], -torch.inf)
    return sims.amax(3).sum(2, dtype=torch.float32)


def peers(torch, x, is_cpu):
    """What to time on this shape: package, name, allowed difference of a query token, import, call."""
    eager = [
        ("torch", "by query", ALLOWED_F16, None, lambda _, x: torch_by_query(torch, x)),
        ("torch", "by document", ALLOWED_F16, None, lambda _, x: torch_by_doc(torch, x)),
        ("torch", "einsum", ALLOWED_F16, None, lambda _, x: torch_einsum(torch, x)),
    ]
    if is_cpu:
        return eager

    def flash(name, call):
        return ("flash-maxsim", name, ALLOWED_F32, "flash_maxsim", call)

    def lik(name, call):
        return ("late-interaction-kernels", name, ALLOWED_F32, "late_interaction_kernels", call)

    longest = max(x.lengths)
    if x.is_ragged:
        return eager + [
            flash("packed", lambda m, x: m.flash_maxsim_packed(x.queries[0], x.packed, x.doc_offsets, longest)),
            flash("padded", lambda m, x: m.flash_maxsim(x.queries[0], x.docs, doc_lengths=x.doc_lengths)),
            flash("persistent", lambda m, x: m.flash_maxsim_persistent(x.queries[0], x.docs, x.doc_lengths)),
            lik("packed", lambda m, x: m.maxsim_varlen(
                x.queries.flatten(0, 1), x.packed, x.query_offsets, x.doc_offsets, x.query_len, longest)),
            lik("padded", lambda m, x: m.maxsim(x.queries, x.docs, d_mask=x.mask)),
        ]
    if x.num_queries > 1:
        flashes = [flash("batched", lambda m, x: m.flash_maxsim_batched(x.queries, x.docs, shared_docs=True))]
    else:
        flashes = [
            flash("even", lambda m, x: m.flash_maxsim(x.queries[0], x.docs)),
            flash("persistent", lambda m, x: m.flash_maxsim_persistent(x.queries[0], x.docs)),
        ]
        if x.query_len >= 512:
            flashes.append(flash("split", lambda m, x: m.flash_maxsim(x.queries[0], x.docs, splitk=True)))
    return eager + flashes + [lik("even", lambda m, x: m.maxsim(x.queries, x.docs))]


class Clock:
    """Seconds of one call, by device events, or by the host's clock on a CPU."""

    def __init__(self, torch, device, is_quick):
        self.torch, self.is_cpu = torch, device == "cpu"
        self.repeat_seconds = QUICK_REPEAT_SECONDS if is_quick else REPEAT_SECONDS
        self.num_repeats = QUICK_NUM_REPEATS if is_quick else NUM_REPEATS

    def seconds(self, call, num_calls):
        if self.is_cpu:
            start = time.perf_counter()
            for _ in range(num_calls):
                call()
            return time.perf_counter() - start
        torch = self.torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(num_calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def time(self, call, launches_of_call=1):
        """`call` is `launches_of_call` launches of what is timed."""
        # The first one compiles, tunes and allocates.
        self.seconds(call, 1)
        one = max(self.seconds(call, 2) / 2, 1e-7)
        num_calls = min(1_000, max(1, int(self.repeat_seconds / one)))
        times = [self.seconds(call, num_calls) / num_calls / launches_of_call for _ in range(self.num_repeats)]
        median = statistics.median(times)
        return {
            "median_ms": 1e3 * median,
            "min_ms": 1e3 * min(times),
            "max_ms": 1e3 * max(times),
            "median_deviation_ms": 1e3 * statistics.median(abs(x - median) for x in times),
            "num_repeats": len(times),
            "num_launches": num_calls * launches_of_call,
        }

    def time_recorded(self, call, num_launches):
        """Records `num_launches` calls and times their replay."""
        torch = self.torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(num_launches):
                call()
        return self.time(graph.replay, num_launches)


def caught(run):
    """What `run` gives, or the text of what went wrong."""
    try:
        return run()
    except Exception:  # noqa: BLE001, a peer may raise anything
        return {"error": error_text()}


def measure(torch, clock, l2_bytes, x, expected, peer):
    package, name, allowed, module_name, score = peer
    row = {"peer": package, "name": name, "version": version_of(package)}
    try:
        module = importlib.import_module(module_name) if module_name else None
    except Exception:  # noqa: BLE001, absent, or broken by the machine's drivers
        return {**row, "error": error_text()}
    try:
        found = score(module, x).float().reshape(expected.shape)
        difference = (found - expected).abs().max().item()
        allowed = allowed * x.query_len
        row |= {"largest_difference": difference if math.isfinite(difference) else None, "allowed_difference": allowed}
        if not difference <= allowed:
            return {**row, "error": "a score is off; nothing was timed"}
        row["warm"] = clock.time(lambda: score(module, x))
        if clock.is_cpu:
            return row
        # What a launch leaves in the cache: the tokens that it reads, padded or not.
        bytes_read = 2 * (x.docs.numel() if name != "packed" else x.packed.numel())
        num_copies = 1 + -(-COLD_FACTOR * l2_bytes // bytes_read)
        copies = [x] + [x.copy() for _ in range(num_copies)]
        turns = itertools.cycle(copies)
        row["cold"] = clock.time(lambda: score(module, next(turns)))
        row["cold_buffers"] = len(copies)
        row["warm_device"] = caught(lambda: clock.time_recorded(lambda: score(module, x), 10))
        turns = itertools.cycle(copies)
        row["cold_device"] = caught(lambda: clock.time_recorded(lambda: score(module, next(turns)), len(copies)))
    except Exception:  # noqa: BLE001, as above
        row["error"] = error_text()
    return row


def add_rates(row, work, ceilings):
    """Bandwidth and arithmetic of each time, and their shares of the ceilings."""
    for key in ("warm", "cold", "warm_device", "cold_device"):
        seconds = row.get(key, {}).get("median_ms", 0) / 1e3
        if seconds:
            gb, tflop = work["bytes"] / seconds / 1e9, work["flop"] / seconds / 1e12
            row[key] |= {"gb_per_second": gb, "tflop_per_second": tflop}
            if copy := ceilings["copy"].get("gb_per_second"):
                row[key]["share_of_copy"] = gb / copy
            if matmul := ceilings["matmul"].get("tflop_per_second"):
                row[key]["share_of_matmul"] = tflop / matmul


def measure_ceilings(torch, clock, device, is_small):
    """What a large copy moves (read and written), and what a large product of matrices computes."""

    def copy():
        num_bytes = (1 << 24) if is_small else (1 << 30)
        source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        timing = clock.time(lambda: target.copy_(source))
        return {**timing, "bytes": num_bytes, "gb_per_second": 2 * num_bytes / timing["median_ms"] / 1e6}

    def matmul():
        side = 512 if is_small else 8_192
        a, b = (torch.randn(side, side, device=device).to(dtype_of(torch, device)) for _ in range(2))
        out = torch.empty_like(a)
        timing = clock.time(lambda: torch.matmul(a, b, out=out))
        return {**timing, "side": side, "tflop_per_second": 2 * side**3 / timing["median_ms"] / 1e9}

    return {"copy": caught(copy), "matmul": caught(matmul)}


def describe(torch, device):
    if device == "cpu":
        return {"name": "cpu"}, 0
    properties = torch.cuda.get_device_properties(0)
    # Older versions of torch do not say; no cache of today is larger than this.
    l2_bytes = getattr(properties, "L2_cache_size", 0) or 128 << 20
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": l2_bytes,
        "num_multiprocessors": properties.multi_processor_count,
    }, l2_bytes


def main():
    args = parse()
    try:
        import torch
    except ImportError as error:
        sys.exit(f"torch is needed: {error}")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device")
    is_small = args.quick or args.device == "cpu"
    # f32 is f32 in the reference; f16 products are torch's default.
    torch.backends.cuda.matmul.allow_tf32 = False
    device, l2_bytes = describe(torch, args.device)
    report = {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda_of_torch": torch.version.cuda,
            "triton": version_of("triton"),
            "flash-maxsim": version_of("flash-maxsim"),
            "late-interaction-kernels": version_of("late-interaction-kernels"),
        },
        "device": device,
        "is_quick": is_small,
        "dim": DIM,
        "dtype": str(dtype_of(torch, args.device)),
    }
    clock = Clock(torch, args.device, is_small)
    with torch.inference_mode():
        ceilings = report["ceilings"] = measure_ceilings(torch, clock, args.device, is_small)
        report["shapes"] = []
        for name, *sizes in QUICK_SHAPES if is_small else SHAPES:
            if args.shape and name not in args.shape:
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            shape = {"name": name, **dict(zip(("num_queries", "num_docs", "query_tokens", "doc_tokens"), sizes))}
            report["shapes"].append(shape)
            try:
                x = Input(torch, args.device, *sizes)
                expected = x.expected(torch)
            except Exception:  # noqa: BLE001, too large for the card, say
                shape["error"] = error_text()
                continue
            shape |= {"fill": sum(x.lengths) / len(x.lengths) / max(x.lengths), **x.work()}
            shape["rows"] = []
            for peer in peers(torch, x, args.device == "cpu"):
                row = measure(torch, clock, l2_bytes, x, expected, peer)
                add_rates(row, shape, ceilings)
                shape["rows"].append(row)
                said = row.get("error", "").splitlines()[-1:] or [f"{row['warm']['median_ms']:.4f} ms warm"]
                print(f"  {row['peer']}, {row['name']}: {said[0]}", file=sys.stderr, flush=True)
                if args.device == "cuda":
                    torch.cuda.empty_cache()
    print(json.dumps(report, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
