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
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
# The sizes of later cases, whose weights are stored in f16.
SMALL = dict(BASE, vocab_size=48, intermediate_size=40, num_hidden_layers=2)
MULTI_HEAD = dict(BASE, num_key_value_heads=BASE["num_attention_heads"])
HEAD_DIM = BASE["hidden_size"] // BASE["num_attention_heads"]
BATCH, LENGTH, NEW_TOKENS = 2, 40, 24
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


def small(name, **entries):
    """A case of the classes `{name}Config` and `{name}ForCausalLM`, with sizes of SMALL."""
    text = getattr(transformers, f"{name}TextConfig", None)
    config = text or getattr(transformers, f"{name}Config")
    model = getattr(transformers, f"{name}ForCausalLM")
    return config, model, dict(SMALL, **(dict(rope()) | entries))


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
    # Softcaps that bend most logits, and a window in the first of two layers.
    "gemma2": small(
        "Gemma2",
        head_dim=12,
        query_pre_attn_scalar=20,
        sliding_window=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3": small(
        "Gemma3",
        head_dim=12,
        query_pre_attn_scalar=20,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=10_000.0),
            full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1_000_000.0),
        ),
    ),
    "phi3": small("Phi3", tie_word_embeddings=False, **rope(partial_rotary_factor=0.75)),
    # LENGTH is above the context in training: the long factors count.
    "phi3_longrope": small(
        "Phi3",
        tie_word_embeddings=True,
        original_max_position_embeddings=32,
        **rope(
            rope_type="longrope",
            short_factor=[1.0, 1.1, 1.3, 1.7],
            long_factor=[1.2, 1.9, 3.5, 6.0],
        ),
    ),
    "smollm3": small("SmolLM3", no_rope_layer_interval=2),
    "olmo2": small("Olmo2", tie_word_embeddings=True),
    "granite": small(
        "Granite",
        tie_word_embeddings=True,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.6,
        logits_scaling=2.0,
    ),
    # An MLP in the first layer, experts in the second.
    "qwen3_moe": small(
        "Qwen3Moe",
        head_dim=8,
        tie_word_embeddings=True,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        norm_topk_prob=False,
        mlp_only_layers=[0],
    ),
    "mixtral": small(
        "Mixtral",
        tie_word_embeddings=True,
        num_hidden_layers=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "llama_yarn": small(
        "Llama",
        tie_word_embeddings=True,
        **rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=16, beta_fast=4.0),
    ),
    "llama_dynamic": small(
        "Llama",
        tie_word_embeddings=True,
        max_position_embeddings=32,
        **rope(rope_type="dynamic", factor=4.0),
    ),
}


def is_small(config):
    return config.vocab_size == SMALL["vocab_size"]


def random_model(config_class, model_class, entries):
    """Makes a model whose weights are spread so widely that every term affects the logits."""
    tokens = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = config_class(**entries, attn_implementation="eager", **tokens)
    model = model_class(config).float().eval()
    for _, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
        else:
            parameter.mul_(10.0 if is_small(config) else 4.0)
        if is_small(config):
            parameter.copy_(parameter.half())
    return model


def expected(model):
    """Computes logits, logits with left padding, and a greedy continuation."""
    ids = torch.randint(3, model.config.vocab_size, (BATCH, LENGTH))
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
        if is_small(model.config):
            model = model.half()
        # One case in shards, to test the index.
        shard = "60KB" if name == "llama2" else "5GB"
        model.save_pretrained(folder, max_shard_size=shard, safe_serialization=True)
        save_file(tensors, folder / "expected.safetensors")
        print(f"{name}: standard deviation of logits {tensors['logits'].std().item():.2f}")


if __name__ == "__main__":
    main()
