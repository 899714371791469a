#!/usr/bin/env python3
"""Where the time goes, by stage: a table from a `perf` recording of a bench.

usage: stages.py PERF_DATA BINARY
needs: perf, addr2line, readelf; a BINARY built with line tables

Every sample belongs to the first stage below that one of its frames names, from the innermost inlined one outwards.
"""
import collections
import re
import subprocess
import sys

# (stage, pattern of "function file" of a frame)
STAGES = [
    ("digest (BLAKE3)", r"blake3"),
    ("check input for NaN", r"first_non_finite"),
    ("convert to f32", r"to_f32|half.*convert|f16_to_f32|arch/x86\.rs"),
    ("norms", r"largest_norm|squared_norm"),
    ("Gram: pack panels", r"pack_panel"),
    ("Gram: mirror", r"mirror.*cpu/gram\.rs"),
    ("Gram: tiles", r"cpu/gram\.rs"),
    ("gradient", r"gradient.*cpu/products\.rs"),
    ("swap rows and columns", r"swap.*cpu/products\.rs"),
    ("largest gradient or bound", r"(largest|steepest|worst).*cpu/(dominance|selection)\.rs"),
    ("face: update", r"cpu/face\.rs"),
    ("face: gather", r"(add|residual|collect).*cpu/dominance\.rs|resume.*cpu/selection\.rs"),
    ("f64 solver", r"cpu/exact\.rs|cpu/rational\.rs|cpu/witness\.rs"),
    ("f64 linear algebra (nalgebra)", r"nalgebra|matrixmultiply"),
    ("selection, rest", r"cpu/selection\.rs|cpu/dominance\.rs"),
    ("weights to integers, collect", r"cpu/worker\.rs"),
    ("proof: write records", r"certificate/format\.rs"),
    ("proof: residual", r"certificate/residual\.rs"),
    ("proof: rest", r"certificate/"),
]
ELSEWHERE = "memory, sorting, threads, kernel"


def run(*command, text=None):
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def samples(data):
    """Counter of addresses, and the mapping of the binary's code."""
    addresses = collections.Counter(run("perf", "script", "-i", data, "-F", "ip").split())
    return {int(address, 16): count for address, count in addresses.items()}


def file_address_of(data, binary):
    """Function from a run-time address to one in the binary's file layout."""
    name = re.escape(binary.rsplit("/", 1)[-1])
    events = run("perf", "script", "-i", data, "--show-mmap-events")
    found = re.search(r"\[0x([0-9a-f]+)\(0x[0-9a-f]+\) @ (?:0x)?([0-9a-f]+) [^]]*\]: r-xp \S*" + name, events)
    start, offset = (int(group, 16) for group in found.groups())
    loads = [line.split() for line in run("readelf", "-lW", binary).splitlines() if line.strip().startswith("LOAD")]
    delta = next(int(load[2], 16) - int(load[1], 16) for load in loads if "E" in "".join(load[6:-1]))
    return lambda address: address - start + offset + delta


def frames_of(binary, addresses):
    """For each address its frames, innermost first, as "function file"."""
    lines = run("addr2line", "-e", binary, "-i", "-f", "-C", "-a", text="\n".join(map(hex, addresses))).splitlines()
    frames, at = {}, 0
    while at < len(lines):
        if lines[at].startswith("0x"):
            current = frames.setdefault(int(lines[at], 16), [])
            at += 1
        else:
            current.append(f"{lines[at]} {lines[at + 1]}")
            at += 2
    return frames


def stage_of(frames):
    for frame in frames:
        for stage, pattern in STAGES:
            if re.search(pattern, frame):
                return stage
    return ELSEWHERE


def main():
    data, binary = sys.argv[1:]
    to_file = file_address_of(data, binary)
    counts = collections.Counter()
    addresses = {to_file(address): count for address, count in samples(data).items()}
    inside = {address: count for address, count in addresses.items() if 0 <= address < 1 << 40}
    counts[ELSEWHERE] = sum(addresses.values()) - sum(inside.values())
    frames = frames_of(binary, inside)
    for address, count in inside.items():
        counts[stage_of(frames.get(address, []))] += count
    total = sum(counts.values())
    for stage, count in counts.most_common():
        print(f"| {stage} | {100 * count / total:.1f} % |")


if __name__ == "__main__":
    main()
