"""Makes the tiny checkpoints in tests/fixtures/hf and the results that transformers computes with them.

usage: hf_fixtures.py OUT SEED

Writes one folder per case: config.json, the weights (one safetensors file, or shards with an index)
and expected.safetensors. Needs torch, transformers and safetensors.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

BASE = dict(
    vocab_size=199,
    hidden_size=48,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
MULTI_HEAD = dict(BASE, num_key_value_heads=BASE["num_attention_heads"])
HEAD_DIM = BASE["hidden_size"] // BASE["num_attention_heads"]
BATCH, LENGTH, NEW_TOKENS = 2, 61, 24
# Padding tokens at the beginning of each sequence.
LEFT_PAD = [0, 17]


def rope(theta=10000.0, rope_type="default", **entries):
    return dict(rope_parameters=dict(rope_type=rope_type, rope_theta=theta, **entries))


def llama(base, **entries):
    return transformers.LlamaConfig, transformers.LlamaForCausalLM, dict(base, **entries)


def mistral(**entries):
    entries = dict(BASE, tie_word_embeddings=False, head_dim=HEAD_DIM, **rope(), **entries)
    return transformers.MistralConfig, transformers.MistralForCausalLM, entries


def gemma(base, **entries):
    act = "gelu_pytorch_tanh"
    entries = dict(base, head_dim=16, hidden_act=act, hidden_activation=act, **rope(), **entries)
    return transformers.GemmaConfig, transformers.GemmaForCausalLM, entries


def gpt_neox(parallel, rotary_factor):
    entries = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
    entries.update(hidden_act="gelu", use_parallel_residual=parallel, tie_word_embeddings=False)
    entries.update(rope(partial_rotary_factor=rotary_factor))
    return transformers.GPTNeoXConfig, transformers.GPTNeoXForCausalLM, entries


def qwen2():
    entries = dict(BASE, tie_word_embeddings=False, **rope())
    return transformers.Qwen2Config, transformers.Qwen2ForCausalLM, entries


def qwen3():
    entries = dict(BASE, head_dim=16, tie_word_embeddings=False, **rope())
    return transformers.Qwen3Config, transformers.Qwen3ForCausalLM, entries


LLAMA3_ROPE = rope(
    500000.0,
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
# Name: configuration class, model class, entries. The position of a case determines its seed.
CASES = {
    "llama2": llama(MULTI_HEAD, tie_word_embeddings=False, **rope()),
    "llama3": llama(BASE, tie_word_embeddings=False, **LLAMA3_ROPE),
    "llama_tied_head_dim": llama(BASE, tie_word_embeddings=True, head_dim=16, **rope()),
    "mistral": mistral(sliding_window=None),
    "mistral_sliding": mistral(sliding_window=24),
    "gemma": gemma(MULTI_HEAD),
    "gemma_mqa": gemma(dict(BASE, num_key_value_heads=1)),
    "gpt_neox": gpt_neox(parallel=True, rotary_factor=0.25),
    "gpt_neox_serial": gpt_neox(parallel=False, rotary_factor=1.0),
    "qwen2": qwen2(),
    "qwen3": qwen3(),
}


def random_model(config_class, model_class, entries):
    """Makes a model whose weights are spread so widely that every term affects the logits."""
    tokens = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = config_class(**entries, attn_implementation="eager", **tokens)
    model = model_class(config).float().eval()
    for _, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
        else:
            parameter.mul_(4.0)
    return model


def expected(model):
    """Computes logits, logits with left padding, and a greedy continuation."""
    ids = torch.randint(3, BASE["vocab_size"], (BATCH, LENGTH))
    logits = model(ids).logits
    mask = torch.ones_like(ids)
    for sequence, padding in enumerate(LEFT_PAD):
        mask[sequence, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = model(ids, attention_mask=mask, position_ids=positions).logits
    greedy = model.generate(
        ids[:1], max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return dict(
        input_ids=ids,
        logits=logits.contiguous(),
        left_pad=torch.tensor(LEFT_PAD),
        padded_last_logits=padded[:, -1].contiguous(),
        greedy=greedy[0].contiguous(),
    )


@torch.no_grad()
def main():
    out, seed = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    for index, (name, case) in enumerate(CASES.items()):
        torch.manual_seed(seed + index)
        model = random_model(*case)
        tensors = expected(model)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        # One case in shards, to test the index.
        shard = "60KB" if name == "llama2" else "5GB"
        model.save_pretrained(folder, max_shard_size=shard, safe_serialization=True)
        save_file(tensors, folder / "expected.safetensors")
        print(f"{name}: standard deviation of logits {tensors['logits'].std().item():.2f}")


if __name__ == "__main__":
    main()
