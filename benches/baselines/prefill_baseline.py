"""Times the prefill of Llama-shaped models in PyTorch.

    python3 prefill_baseline.py > prefill.json
    python3 prefill_baseline.py --model llama2-7b --lengths 4096,16384 --layers 8 > prefill.json

Random weights, one prompt, causal attention of the whole prompt with PyTorch's flash and cuDNN kernels, the MLP in
chunks of rows as memory wants it. Neither embedding nor head. Also measures the rate of a large product. Prints one
JSON document; progress goes to standard error.
`sparq-bench prefill --device cuda --compare prefill.json` shows the times beside its own: run both on the same
machine, one after the other.
"""

import argparse
import datetime
import json
import shlex
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda"
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
# Layers, hidden size, H, H_kv, d, intermediate size
MODELS = {
    "llama3-8b": (32, 4096, 32, 8, 128, 14336),
    "llama2-7b": (32, 4096, 32, 32, 128, 11008),
    "smollm2-135m": (30, 576, 9, 3, 64, 1536),
}
MLP_ROWS = 16384
# Rows and columns of the matrices of the product that measures the matrix peak.
PEAK_SIZE = 8192


def arguments():
    parser = argparse.ArgumentParser(
        description="Prefill of Llama-shaped models in PyTorch on one GPU.")
    parser.add_argument("--model", choices=MODELS, default="llama3-8b")
    parser.add_argument("--lengths", type=sizes, default=[4096, 8192, 32768, 131072],
                        metavar="S,...", help="lengths of the prompts [default: 4096 to 131072]")
    parser.add_argument("--layers", type=int, help="number of layers [default: the published one]")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--backend", choices=BACKENDS, action="append",
                        help="kernels for attention; may be repeated [default: all]")
    parser.add_argument("--samples", type=int, default=3,
                        help="prefills of each length, whose median is printed [default: 3]")
    return parser.parse_args()


def sizes(text):
    found = [int(size) for size in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected lengths of at least 1, found {text!r}")
    return found


class Model:
    def __init__(self, name, layers, dtype):
        published, self.hidden, self.H, self.Hk, self.d, self.inner = MODELS[name]
        self.layers = layers or published

        def matrix(rows, columns):
            return torch.randn(rows, columns, device=DEVICE, dtype=dtype) * 0.02

        def layer():
            return {
                "qkv": matrix((self.H + 2 * self.Hk) * self.d, self.hidden),
                "o": matrix(self.hidden, self.H * self.d),
                "gate_up": matrix(2 * self.inner, self.hidden),
                "down": matrix(self.hidden, self.inner),
                "norms": torch.ones(2, self.hidden, device=DEVICE, dtype=dtype),
            }

        self.weights = [layer() for _ in range(self.layers)]

    def rotate(self, t, cos, sin):
        low, high = t.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    def mlp(self, w, x):
        parts = []
        for rows in x.split(MLP_ROWS, 1):
            gate, up = F.linear(rows, w["gate_up"]).chunk(2, -1)
            parts.append(F.linear(F.silu(gate) * up, w["down"]))
        return torch.cat(parts, 1)

    def forward(self, x, cos, sin):
        S, H, Hk, d = x.shape[1], self.H, self.Hk, self.d
        for w in self.weights:
            h = F.rms_norm(x, (self.hidden,), w["norms"][0], 1e-5)
            q, k, v = F.linear(h, w["qkv"]).split([H * d, Hk * d, Hk * d], -1)
            q, k, v = (t.view(1, S, -1, d).transpose(1, 2) for t in (q, k, v))
            q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != Hk)
            x = x + F.linear(a.transpose(1, 2).reshape(1, S, -1), w["o"])
            x = x + self.mlp(w, F.rms_norm(x, (self.hidden,), w["norms"][1], 1e-5))
        return x


def milliseconds(call):
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def matmul_tflops(dtype):
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=DEVICE, dtype=dtype) for _ in range(2))
    for _ in range(5):
        a @ b
    times = [milliseconds(lambda: [a @ b for _ in range(10)]) / 10 for _ in range(10)]
    return 2 * PEAK_SIZE**3 / statistics.median(times) / 1e9


def measure(model, S, dtype, backends, samples):
    row = {"S": S}
    for backend in backends:
        try:
            with sdpa_kernel(BACKENDS[backend]):
                x = torch.randn(1, S, model.hidden, device=DEVICE, dtype=dtype)
                cos, sin = (torch.randn(S, model.d // 2, device=DEVICE, dtype=dtype)
                            for _ in range(2))
                few = min(S, 1024)
                model.forward(x[:, :few], cos[:few], sin[:few])
                times = [milliseconds(lambda: model.forward(x, cos, sin))
                         for _ in range(samples)]
                row[backend + "_ms"] = statistics.median(times)
        except Exception as error:  # No kernel for the shape, or out of memory.
            row[backend + "_err"] = str(error)[:100]
        torch.cuda.empty_cache()
    return row


def main():
    args = arguments()
    torch.set_grad_enabled(False)
    dtype = DTYPES[args.dtype]
    out = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join(["python3", *sys.argv]),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "matmul_TFLOPS": matmul_tflops(dtype),
        "rows": [],
    }
    model = Model(args.model, args.layers, dtype)
    for S in args.lengths:
        row = measure(model, S, dtype, args.backend or list(BACKENDS), args.samples)
        row = {"model": args.model, "layers": model.layers, "dtype": args.dtype, **row}
        out["rows"].append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
