"""Makes the reference cases of key sketches in crates/sparq-conformance/fixtures/sketch.

usage: sketch_cases.py OUT SEED

Computes each case in float64 from fp32 inputs, independent of any implementation. The README beside
the fixtures describes the files. Needs numpy and safetensors.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# Query heads, KV heads, head dimension, positions.
SHAPES = [(4, 4, 32, 200), (9, 3, 64, 333), (8, 1, 128, 520), (4, 2, 256, 260)]
# Bits of a code, selection of components, group score, mean value.
SETTINGS = [
    (4, "sum_abs", "probabilities", False),
    (4, "abs_sum", "logits", False),
    (8, "sum_abs", "probabilities", True),
]
SEEDS_PER_CASE = 1000
# The largest distance of a key from its code, in codes. A rounding boundary is at 0.5.
MAX_CODE_DISTANCE = 0.45
# The smallest accepted margins of the r-th component and of the k-th position.
MIN_MARGIN_R, MIN_MARGIN_K = 1e-4, 2e-4


@dataclass
class Case:
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    rank: int
    top_k: int
    local_window: int
    bits: int
    components: str
    group_score: str
    mean_value: bool

    @property
    def name(self):
        score = "p" if self.group_score == "probabilities" else "l"
        shape = f"h{self.heads}_kv{self.kv_heads}_d{self.head_dim}_S{self.positions}"
        return f"b{self.bits}_{score}_{shape}"

    @property
    def top_code(self):
        return 2**self.bits - 1


def cases():
    products = [(shape, setting) for shape in SHAPES for setting in SETTINGS]
    for index, ((heads, kv_heads, head_dim, positions), setting) in enumerate(products):
        short = positions < 400
        yield Case(
            2 if index % 4 == 1 else 1,
            heads,
            kv_heads,
            head_dim,
            positions,
            max(4, head_dim // 4),
            48 if short else 96,
            12 if short else 24,
            *setting,
        )


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def log_sum_exp(x):
    largest = x.max(-1, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(-1, keepdims=True))


def student(rng, shape, degrees):
    """Draws from Student's t distribution, which has heavy tails."""
    numerator = rng.standard_normal(shape)
    return numerator / np.sqrt((rng.standard_normal((*shape, degrees)) ** 2).mean(-1))


def draw(case, rng):
    """Draws q [B, H, 1, d], k and v [B, H_kv, S, d] in fp32, with keys close to codes."""
    b, kv, s, d = case.batch, case.kv_heads, case.positions, case.head_dim
    top = case.top_code
    codes = np.clip(np.round(top / 2 + top / 7 * student(rng, (b, kv, s, d), 4)), 0, top)
    offsets = rng.uniform(-0.4, 0.4, codes.shape)
    # Each channel contains both ends of its range exactly.
    for channel in np.ndindex(b, kv, d):
        low, high = rng.choice(s, 2, replace=False)
        i, j, c = channel
        codes[i, j, low, c], codes[i, j, high, c] = 0, top
        offsets[i, j, low, c] = offsets[i, j, high, c] = 0
    offsets[codes == 0] = np.abs(offsets[codes == 0])
    offsets[codes == top] = -np.abs(offsets[codes == top])
    zero_point = rng.normal(0, 1, (b, kv, 1, d))
    scale = np.exp(rng.normal(0, 0.5, (b, kv, 1, d))) * 4 / top
    k = (zero_point + scale * (codes + offsets)).astype(np.float32)
    v = student(rng, (b, kv, s, d), 4).astype(np.float32)
    q = (student(rng, (b, case.heads, 1, d), 3) * d**-0.5 * 2).astype(np.float32)
    return q, k, v


def quantise(k, top):
    """Returns zero point, scale and codes of each channel, and the largest distance from a code."""
    zero_point = k.min(2, keepdims=True)
    span = (k.max(2, keepdims=True) - zero_point).astype(np.float32)
    scale = (span / np.float32(top)).astype(np.float64)
    exact = (k - zero_point) / scale
    codes = np.clip(np.rint(exact), 0, top)
    return zero_point, scale, codes, np.abs(exact - codes).max()


def top_indices(values, count):
    """Returns the indices of the largest values, ascending, and the sorted values."""
    indices = np.sort(np.argsort(-values, -1)[..., :count], -1)
    return indices, np.sort(values, -1)[..., ::-1]


def indicator(indices, shape):
    """Returns an array with 1 at `indices` of the last axis and 0 elsewhere."""
    result = np.zeros(shape)
    np.put_along_axis(result, indices, 1, -1)
    return result


def compute(case, q, k, v):
    """Computes the decode step in float64. Returns its tensors and margins, or None if a code, the
    r-th component or the k-th position is too close to the next."""
    b, kv, s, d = k.shape
    r, top_k = case.rank, case.top_k
    k, v = k.astype(np.float64), v.astype(np.float64)
    q = q.astype(np.float64).reshape(b, kv, case.heads // kv, d)
    zero_point, scale, codes, distance = quantise(k, case.top_code)
    if distance > MAX_CODE_DISTANCE:
        return None

    # Stage 1: approximate logits from r components. The zero points add the same at every position.
    sum_abs = case.components == "sum_abs"
    magnitude = np.abs(q).sum(2) if sum_abs else np.abs(q.sum(2))
    components, ordered = top_indices(magnitude, r)
    margin_r = (ordered[..., r - 1] - ordered[..., r]).min()
    keep = indicator(components, (b, kv, d))[:, :, None]
    kept, total = [x.sum(-1, keepdims=True) for x in (np.abs(q) * keep, np.abs(q))]
    temperature = np.sqrt(d * kept / total)
    logits = np.einsum("bkgd,bksd->bkgs", q * keep * scale / temperature, codes)

    # Stage 2: the k positions with the largest group score, the local window included.
    probabilities = np.exp(logits - log_sum_exp(logits))
    by_probability = case.group_score == "probabilities"
    score = probabilities.sum(2) if by_probability else logits.sum(2)
    score[..., s - case.local_window :] = np.inf
    indices, ordered = top_indices(score, top_k)
    margin_k = ordered[..., top_k - 1] - ordered[..., top_k]
    if by_probability:
        margin_k = margin_k / np.maximum(np.abs(ordered[..., top_k]), 1e-30)
    margin_k = margin_k.min()
    if margin_r < MIN_MARGIN_R or margin_k < MIN_MARGIN_K:
        return None
    selected = indicator(indices, (b, kv, s))

    # Stage 3: exact attention over these positions, and the mean of V.
    exact = np.einsum("bkgd,bksd->bkgs", q, k) / np.sqrt(d)
    weights = softmax(np.where(selected[:, :, None] > 0, exact, -np.inf))
    output = np.einsum("bkgs,bksd->bkgd", weights, v)
    alpha = (probabilities * selected[:, :, None]).sum(-1)
    mean_value = v.mean(2)
    if case.mean_value:
        output = alpha[..., None] * output + (1 - alpha[..., None]) * mean_value[:, :, None]

    tensors = dict(
        output=f32(output.reshape(b, case.heads, 1, d)),
        codes=np.ascontiguousarray(codes.transpose(0, 1, 3, 2).astype(np.uint8)),
        lo=f32(zero_point[:, :, 0]),
        step=f32(scale[:, :, 0]),
        score=f32(logits),
        selected=selected.astype(np.uint8),
        indices=indices.astype(np.int64),
        alpha=f32(alpha.reshape(b, case.heads)),
        top_r=components.astype(np.int64),
        mean_value=f32(mean_value),
    )
    return tensors, float(margin_r), float(margin_k)


def f32(array):
    return np.ascontiguousarray(array, dtype=np.float32)


def main():
    out, first_seed = Path(sys.argv[1]), int(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for index, case in enumerate(cases()):
        first = first_seed + 1000 * index
        for seed in range(first, first + SEEDS_PER_CASE):
            q, k, v = draw(case, np.random.default_rng(seed))
            result = compute(case, q, k, v)
            if result is not None:
                break
        else:
            raise SystemExit(f"{case.name}: no seed from {first} on has sufficient margins")
        tensors, margin_r, margin_k = result
        metadata = dict(
            name=case.name,
            batch=case.batch,
            n_heads=case.heads,
            n_kv_heads=case.kv_heads,
            head_dim=case.head_dim,
            seq=case.positions,
            rank=case.rank,
            top_k=case.top_k,
            local_window=case.local_window,
            sketch_bits=case.bits,
            components=case.components,
            group_score=case.group_score,
            mean_value=case.mean_value,
            seed=seed,
            margin_top_r=margin_r,
            margin_top_k=margin_k,
        )
        text = {key: x if isinstance(x, str) else json.dumps(x) for key, x in metadata.items()}
        file = out / f"{index:02d}_{case.name}.safetensors"
        save_file(dict(q=q, k=k, v=v, **tensors), file, metadata=text)
        print(f"{file.name}: margins {margin_r:.1e} (r) and {margin_k:.1e} (k)")


if __name__ == "__main__":
    main()
