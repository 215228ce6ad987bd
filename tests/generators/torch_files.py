"""Makes files of every kind that torch.save writes for a model, and their tensors as safetensors.

usage: torch_files.py OUT

Needs torch and safetensors.
"""

import json
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

OUT = Path(sys.argv[1])
OUT.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)


def save(name, value, **options):
    torch.save(value, OUT / f"{name}.bin", **options)


# A state dict of torch.nn: module versions as an attribute, a tied weight, integer buffers.
model = torch.nn.ModuleDict(
    {
        "embed": torch.nn.Embedding(6, 4),
        "norm": torch.nn.LayerNorm(4),
        "head": torch.nn.Linear(4, 6, bias=False),
    }
)
model.head.weight = model.embed.weight
model.register_buffer("steps", torch.arange(3))
model.register_buffer("mask", torch.tril(torch.ones(2, 2, dtype=torch.bool)))
save("module", model.state_dict())

# Parameters instead of plain tensors.
save("parameters", OrderedDict(model.named_parameters(remove_duplicate=False)))

# Every supported layout of a view in its storage, with different first and last elements.
base = torch.arange(60, dtype=torch.float32).reshape(6, 10) / 8 - 3
cube = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
views = {
    "whole": base,
    "rows": base[2:4],
    "columns": base[:, 3:7],
    "transposed": base.t(),
    "row": base[5],
    "column": base[:, 9],
    "every_other": base[::2],
    "one_by_one": base[1:2, 1:2],
    "scalar": base[3, 3],
    "none": base[:0],
    "repeated": base[:1].expand(3, 10),
    "cube": cube,
    "slices": cube[:, 1:],
    "half": base.half(),
    "half_transposed": base.half().t(),
    "brain": base.bfloat16(),
}
save("views", views)
save("protocol_5", views, pickle_protocol=5)
torch.serialization.set_crc32_options(False)
save("without_checksums", views)
torch.serialization.set_crc32_options(True)
contiguous = {name: view.clone().contiguous() for name, view in views.items()}
save_file(contiguous, OUT / "views.safetensors")

# A state dict inside a training checkpoint.
training = {"epoch": 3, "loss": 0.5, "best": None, "sizes": [1, 2, 3], "big": 1 << 40}
save("training", training | {"state_dict": model.state_dict()})

# Unsupported: permuted dimensions, the format before PyTorch 1.6, a whole module, a type without a
# storage class, a sparse tensor, a compressed archive.
save("permuted", {"a": cube.permute(2, 0, 1)})
save("legacy", model.state_dict(), _use_new_zipfile_serialization=False)
save("whole_module", model)
save("float8", {"a": base.to(torch.float8_e4m3fn)})
save("sparse", {"a": base.to_sparse()})
with (
    zipfile.ZipFile(OUT / "module.bin") as old,
    zipfile.ZipFile(OUT / "compressed.bin", "w", zipfile.ZIP_DEFLATED) as new,
):
    for entry in old.infolist():
        new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry), zipfile.ZIP_DEFLATED)

# A Llama with one layer and tied embeddings.
config = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 12,
    "max_position_embeddings": 64,
}
shapes = {
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (8, 8),
    "mlp.up_proj": (8, 8),
    "mlp.down_proj": (8, 8),
    "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
}
weights = {
    f"model.layers.0.{name}.weight": torch.randn(shape) for name, shape in shapes.items()
}
weights |= {"model.embed_tokens.weight": torch.randn(12, 8), "model.norm.weight": torch.ones(8)}
weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
(OUT / "llama").mkdir(exist_ok=True)
(OUT / "llama/config.json").write_text(json.dumps(config, indent=2) + "\n")
save("llama/pytorch_model", weights)
