"""Times dense decode steps of Llama-shaped models in PyTorch, compiled and captured.

    python3 e2e_baseline.py > e2e.json
    python3 e2e_baseline.py --run llama3-8b,1,4096 --run llama3-8b,1,131072 > e2e.json

Random weights, fp16, static cache, batch B, context S. Prints one JSON document; progress goes to standard error.
`sparq-bench e2e --device cuda --compare e2e.json` shows the times beside its own: run both on the
same machine, one after the other.
"""

import argparse
import json
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda"
DTYPE = torch.float16
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
# Layers, hidden size, H, H_kv, d, intermediate size, vocabulary
MODELS = {
    "llama2-7b": (32, 4096, 32, 32, 128, 11008, 32000),
    "llama3-8b": (32, 4096, 32, 8, 128, 14336, 128256),
}
# Model, B, S: the default runs of `sparq-bench e2e`.
RUNS = [
    ("llama3-8b", 1, 4096),
    ("llama3-8b", 1, 32768),
    ("llama3-8b", 1, 131072),
    ("llama2-7b", 1, 16384),
    ("llama2-7b", 1, 65536),
    ("llama2-7b", 16, 4096),
]


def arguments():
    parser = argparse.ArgumentParser(
        description="Dense decode steps of Llama-shaped models in PyTorch on one GPU.")
    parser.add_argument("--run", type=run, action="append", metavar="MODEL,B,S",
                        help=f"model ({', '.join(MODELS)}), B, S; may be repeated [default: six]")
    parser.add_argument("--backend", choices=BACKENDS, action="append",
                        help="kernels for attention; may be repeated [default: all]")
    parser.add_argument("--replays", type=int, default=20,
                        help="steps to average over [default: 20]")
    return parser.parse_args()


def run(text):
    name, *sizes = text.split(",")
    if name not in MODELS or len(sizes) != 2 or min(map(int, sizes)) < 1:
        expected = "MODEL,B,S such as llama3-8b,1,4096"
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return name, *map(int, sizes)


class Layer(nn.Module):
    def __init__(self, hidden, H, Hk, d, intermediate):
        super().__init__()
        self.H, self.Hk, self.d = H, Hk, d
        self.qkv = nn.Linear(hidden, (H + 2 * Hk) * d, bias=False)
        self.o = nn.Linear(H * d, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)
        self.intermediate = intermediate
        self.norm1, self.norm2 = nn.RMSNorm(hidden), nn.RMSNorm(hidden)

    def forward(self, x, K, V, pos, cos, sin):
        B, H, Hk, d = x.shape[0], self.H, self.Hk, self.d
        q, k, v = self.qkv(self.norm1(x)).split([H * d, Hk * d, Hk * d], -1)
        q = q.view(B, 1, H, d).transpose(1, 2)
        k = k.view(B, 1, Hk, d).transpose(1, 2)
        v = v.view(B, 1, Hk, d).transpose(1, 2)

        def rotate(t):
            low, high = t[..., : d // 2], t[..., d // 2 :]
            return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

        q, k = rotate(q), rotate(k)
        K.index_copy_(2, pos, k)
        V.index_copy_(2, pos, v)
        # The group is folded into the query length. Every position of the cache is valid.
        a = F.scaled_dot_product_attention(q.view(B, Hk, H // Hk, d), K, V)
        x = x + self.o(a.reshape(B, 1, -1))
        gate, up = self.gate_up(self.norm2(x)).split(self.intermediate, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, layers, hidden, H, Hk, d, intermediate, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(Layer(hidden, H, Hk, d, intermediate) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden)
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, token, Ks, Vs, pos, cos, sin):
        x = self.embed(token)
        for layer, K, V in zip(self.layers, Ks, Vs):
            x = layer(x, K, V, pos, cos, sin)
        return self.lm_head(self.norm(x))[:, -1].argmax(-1, keepdim=True)


def build(name):
    torch.set_default_dtype(DTYPE)
    with torch.device(DEVICE):
        model = Model(*MODELS[name])
    torch.set_default_dtype(torch.float32)
    return model


def ms_per_step(model, backend, inputs, replays):
    """Returns the time of one step of a captured graph in milliseconds."""
    torch._dynamo.reset()
    step = torch.compile(model, mode="default")
    with sdpa_kernel(backend):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):
                step(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step(*inputs)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / replays


def measure(model, name, B, S, backends, replays):
    layers, _, _, Hk, d, _, _ = MODELS[name]

    def caches():
        return [torch.randn(B, Hk, S, d, dtype=DTYPE, device=DEVICE) for _ in range(layers)]

    token = torch.zeros(B, 1, dtype=torch.long, device=DEVICE)
    pos = torch.tensor([S - 1], device=DEVICE)
    cos, sin = (torch.randn(d // 2, dtype=DTYPE, device=DEVICE) for _ in range(2))
    inputs = (token, caches(), caches(), pos, cos, sin)
    weights = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("embed."))
    kv_bytes = 2 * layers * B * Hk * S * d * 2
    row = dict(model=name, B=B, S=S, weights_bytes=weights * 2, kv_bytes=kv_bytes)
    for backend in backends:
        try:
            row[backend + "_ms_per_step"] = ms_per_step(model, BACKENDS[backend], inputs, replays)
        except Exception as error:  # No kernel for the shape, or out of memory.
            row[backend + "_err"] = str(error)[:100]
    return row


def main():
    args = arguments()
    torch.set_grad_enabled(False)
    rows, model, built = [], None, None
    for name, B, S in args.run or RUNS:
        if built != name:
            model = None  # Frees the old weights before the new ones are allocated.
            torch.cuda.empty_cache()
            torch._dynamo.reset()
            model, built = build(name), name
        rows.append(measure(model, name, B, S, args.backend or list(BACKENDS), args.replays))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    out = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
