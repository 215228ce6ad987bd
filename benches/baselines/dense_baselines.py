"""Times dense decode attention of PyTorch on one GPU, with each kernel, and the copy bandwidth.

    # The shapes of `--preset field`.
    python3 dense_baselines.py > dense.json
    # The nine shapes of `--preset goals`, quickly.
    python3 dense_baselines.py --preset goals --ms 30 --without math > dense.json
    python3 dense_baselines.py --shape 1,32,8,128,4096 > dense.json

Prints one JSON document; progress goes to standard error. Times are medians of CUDA-event timings
on rotating buffers, fp16. `sparq-bench op --device cuda --preset field --compare dense.json` shows
them beside its own: run both on the same machine, one after the other.
"""

import argparse
import itertools
import json
import math
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench, do_bench_cudagraph

DEVICE = "cuda"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# Shapes (B, H, H_kv, d, S) by preset.
PRESETS = {
    "field": [(1, 32, 32, 128, s) for s in (4096, 16384, 65536, 131072)]
    + [(64, 32, 32, 128, 4096), (16, 32, 32, 128, 16384)]
    + [(1, 32, 8, 128, s) for s in (4096, 16384, 65536, 131072)]
    + [(32, 32, 8, 128, 16384), (64, 32, 8, 128, 4096), (8, 32, 8, 128, 131072)],
    "goals": [(64, 32, 32, 128, 4096), (16, 32, 32, 128, 16384), (8, 32, 8, 128, 131072)]
    + [(32, 32, 8, 128, 16384), (64, 32, 8, 128, 4096), (1, 32, 32, 128, 16384)]
    + [(1, 32, 8, 128, s) for s in (131072, 16384, 4096)],
}


def arguments():
    parser = argparse.ArgumentParser(description="Dense decode attention of PyTorch on one GPU.")
    parser.add_argument("--preset", choices=PRESETS, default="field",
                        help="preset of shapes [default: field]")
    parser.add_argument("--shape", type=sizes, action="append", metavar="B,H,H_KV,D,S",
                        help="shape, instead of those of the preset; may be repeated")
    parser.add_argument("--ms", type=int, default=60,
                        help="milliseconds to measure each time [default: 60]")
    parser.add_argument("--without", type=lambda names: names.split(","), default=[],
                        metavar="NAMES",
                        help=f"leave out any of {','.join([*BACKENDS, 'sparq', 'topk'])}")
    parser.add_argument("--captured", action="store_true",
                        help="time calls of a CUDA graph, without their launches")
    return parser.parse_args()


def sizes(text):
    shape = tuple(int(size) for size in text.split(","))
    if len(shape) != 5 or min(shape) < 1 or shape[1] % shape[2]:
        expected = "B,H,H_kv,d,S with H a multiple of H_kv"
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return shape


def bench(call, ms, captured=False):
    """Returns the median time of a call in milliseconds."""
    if captured:
        return do_bench_cudagraph(call, rep=ms, return_mode="median")
    return do_bench(call, warmup=min(25, ms), rep=ms, return_mode="median")


def bandwidth(ms):
    """Returns the GB/s of a copy (bytes read and written together) and of a sum (bytes read)."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = bench(lambda: target.copy_(source), ms)
    words = source.view(torch.int32)
    read = bench(lambda: words.sum(), ms)
    return {
        "copy_GBps": 2 * source.numel() / copy / 1e6,
        "read_GBps_sum": source.numel() / read / 1e6,
    }


def sparq_torch(q, K, V, v_mean, r, k):
    """Computes SparQ attention in plain PyTorch."""
    B, H, _, d = q.shape
    Hk, S = K.shape[1], K.shape[2]
    g = H // Hk
    qg = q.view(B, Hk, g, d)
    i1 = qg.abs().sum(2, keepdim=True).topk(r, -1).indices
    q_hat = qg.gather(-1, i1.expand(-1, -1, g, -1))
    K_hat = K.gather(-1, i1.expand(-1, -1, S, -1))
    scale = (q_hat.abs().sum(-1, keepdim=True) / qg.abs().sum(-1, keepdim=True) * d).sqrt()
    s_hat = torch.softmax((q_hat / scale) @ K_hat.transpose(-1, -2), -1)
    i2 = s_hat.sum(2, keepdim=True).topk(k, -1).indices
    index = i2.transpose(-1, -2).expand(-1, -1, -1, d)
    K_kept, V_kept = K.gather(2, index), V.gather(2, index)
    alpha = s_hat.gather(-1, i2.expand(-1, -1, g, -1)).sum(-1, keepdim=True)
    y = torch.softmax(qg @ K_kept.transpose(-1, -2) / math.sqrt(d), -1) @ V_kept
    return (alpha * y + (1 - alpha) * v_mean).view(B, H, 1, d)


def measure(B, H, Hk, d, S, ms, without, captured):
    """Returns a row: dense attention with every kernel, SparQ in PyTorch, and top-k alone."""
    kv_bytes = B * Hk * S * d * 4
    n = max(1, int(200e6 // kv_bytes)) + 1  # Buffers rotate past the L2 cache.
    Ks = [torch.randn(B, Hk, S, d, dtype=torch.float16, device=DEVICE) for _ in range(n)]
    Vs = [torch.randn_like(Ks[0]) for _ in range(n)]
    q = torch.randn(B, H, 1, d, dtype=torch.float16, device=DEVICE)
    row = dict(B=B, H=H, Hkv=Hk, d=d, S=S, kv_bytes=kv_bytes)
    rotation = itertools.cycle(zip(Ks, Vs))
    sdpa = F.scaled_dot_product_attention

    def time_us(name, call):
        try:
            call()
            row[name + "_us"] = bench(call, ms, captured) * 1e3
        except Exception as error:  # No kernel for the shape, or out of memory.
            row[name + "_err"] = str(error)[:80]

    for name, backend in BACKENDS.items():
        if name in without or (name == "math" and kv_bytes > 4e9):
            continue
        with sdpa_kernel(backend):
            time_us(name, lambda: sdpa(q, *next(rotation), enable_gqa=H != Hk))
    if H != Hk:
        # The group folded into the query length, as a careful PyTorch user would do.
        folded = q.view(B, Hk, H // Hk, d)
        for name in (name for name in ("flash", "cudnn") if name not in without):
            with sdpa_kernel([BACKENDS[name]]):
                time_us(name + "_folded", lambda: sdpa(folded, *next(rotation)))
    dense = [value for key, value in row.items() if key.endswith("_us")]

    if "sparq" not in without:
        v_mean = Vs[0].float().mean(2, keepdim=True).half()
        time_us("sparq_torch_r32_k128", lambda: sparq_torch(q, *next(rotation), v_mean, 32, 128))
    if "topk" not in without:
        scores = torch.randn(B * Hk, S, device=DEVICE)
        time_us("torch_topk128", lambda: scores.topk(128, -1))
    if dense:
        row["best_dense_us"] = min(dense)
        row["best_dense_GBps"] = kv_bytes / min(dense) / 1e3
    return row


def main():
    args = arguments()
    torch.manual_seed(0)
    out = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        **bandwidth(args.ms),
        "captured": args.captured,
        "rows": [],
    }
    for shape in args.shape or PRESETS[args.preset]:
        row = measure(*shape, args.ms, args.without, args.captured)
        out["rows"].append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
