"""Makes random blocks of every supported quantised GGUF type, and their values from gguf-py.

usage: gguf_blocks.py OUT

Writes blocks.safetensors. Needs numpy and gguf.
"""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

# Each type with the offsets of its fp16 scales in a block. Random bytes there could be NaN.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
}
ROWS = 2
# The scales of MXFP4 are exponents, of which the largest make infinite weights.
EXPONENTS = (100, 150)


def random_blocks(rng, kind, offsets):
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    count = 3 if weights == 32 else 1
    blocks = rng.integers(0, 256, (ROWS, count, size), dtype=np.uint8)
    for offset in offsets:
        scales = rng.uniform(-1, 1, (ROWS, count, 1)).astype(np.float16)
        blocks[..., offset : offset + 2] = scales.view(np.uint8)
    if kind == gguf.GGMLQuantizationType.MXFP4:
        blocks[..., 0] = rng.integers(*EXPONENTS, (ROWS, count), dtype=np.uint8)
    return blocks.reshape(ROWS, count * size)


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, (dtype, array) in tensors.items():
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(array.tobytes())


def main():
    rng = np.random.default_rng(0)
    tensors = {}
    for name, offsets in SCALES.items():
        kind = gguf.GGMLQuantizationType[name]
        blocks = random_blocks(rng, kind, offsets)
        values = gguf.quants.dequantize(blocks, kind).astype(np.float32)
        tensors[f"{name}.blocks"] = ("U8", blocks)
        tensors[f"{name}.values"] = ("F32", values)
    write_safetensors(Path(sys.argv[1]) / "blocks.safetensors", tensors)


if __name__ == "__main__":
    main()
