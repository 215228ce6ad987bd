"""Times dense decode attention of PyTorch on the CPU, for the shapes of `--preset cpu`.

    python3 cpu_baselines.py > cpu.json
    python3 cpu_baselines.py --heads 8/8 --seq-len 4096 16384 --dtype f32 > cpu.json

Prints one JSON document in the form of dense_baselines.py, for `--compare`; progress goes to
standard error. Times are medians of single calls in microseconds. Buffers rotate, so that no call
finds its keys and values in the last-level cache.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def last_level_cache():
    """Returns the bytes of the last-level cache, or 32 MiB if the system does not report it."""
    folder = "/sys/devices/system/cpu/cpu0/cache"
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name, "size")
        if os.path.isfile(path):
            with open(path) as file:
                text = file.read().strip()
            sizes.append(int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text))
    return max(sizes, default=32 << 20)


def available_memory():
    """Returns the bytes of memory available without swapping."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30


def median_us(call, seconds):
    """Returns the median time of a call in microseconds and the number of samples."""
    call()
    samples = []
    start = time.perf_counter()
    while len(samples) < 7 or (len(samples) < 100 and time.perf_counter() - start < seconds):
        before = time.perf_counter()
        call()
        samples.append(time.perf_counter() - before)
    return statistics.median(samples) * 1e6, len(samples)


def copy_bandwidth(size, seconds):
    """Returns the GB/s of a copy by all threads, bytes read and written together."""
    source = torch.zeros(size // 4)
    target = torch.zeros_like(source)
    us, _ = median_us(lambda: target.copy_(source), seconds)
    return 2 * size / us / 1e3


def measure(B, H, Hkv, d, S, dtype, cache, memory, seconds):
    """Returns a row: dense attention with groups, also folded into the query length."""
    kv_bytes = 2 * B * Hkv * S * d * DTYPES[dtype].itemsize
    row = dict(B=B, H=H, Hkv=Hkv, d=d, S=S, dtype=dtype, kv_bytes=kv_bytes)
    n = min(max(2, 4 * cache // kv_bytes + 1), int(memory // kv_bytes))
    if n < 1:
        row["sdpa_err"] = f"needs {kv_bytes} bytes"
        return row
    row["buffer_sets"] = n
    K = torch.randn(B, Hkv, S, d).to(DTYPES[dtype])
    V = torch.randn(B, Hkv, S, d).to(DTYPES[dtype])
    sets = [(K, V)] + [(K.clone(), V.clone()) for _ in range(n - 1)]
    q = torch.randn(B, H, 1, d).to(DTYPES[dtype])
    folded = q.view(B, Hkv, H // Hkv, d)
    rotation = itertools.cycle(sets)

    sdpa = F.scaled_dot_product_attention
    calls = {"sdpa": lambda: sdpa(q, *next(rotation), enable_gqa=H != Hkv)}
    if H != Hkv:
        calls["sdpa_folded"] = lambda: sdpa(folded, *next(rotation))
    for name, call in calls.items():
        try:
            row[name + "_us"], row[name + "_samples"] = median_us(call, seconds)
        except RuntimeError as error:
            row[name + "_err"] = str(error)[:80]
    times = [value for key, value in row.items() if key.endswith("_us")]
    if times:
        row["best_dense_us"] = min(times)
        row["best_dense_GBps"] = kv_bytes / min(times) / 1e3
    return row


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--heads", nargs="+", default=["8/8", "32/8", "32/32"], metavar="H/HKV")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--seq-len", nargs="+", type=int, default=[4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["f32", "f16"])
    parser.add_argument("--seconds", type=float, default=1.0, help="time to measure each row")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    cache, memory = last_level_cache(), available_memory() / 2
    copied = int(min(max(256 << 20, 2 * cache), memory / 4))
    out = {
        "device": f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "copy_GBps": copy_bandwidth(copied, arguments.seconds),
        "rows": [],
    }
    for S in arguments.seq_len:
        for heads in arguments.heads:
            H, Hkv = map(int, heads.split("/"))
            for dtype in arguments.dtype:
                shape = (1, H, Hkv, arguments.head_dim, S)
                row = measure(*shape, dtype, cache, memory, arguments.seconds)
                out["rows"].append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
