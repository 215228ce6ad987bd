"""Trains the embedded default model: a 4.4M-parameter byte-level Llama (GQA 4:2, head_dim 64, 8k context) on public-domain
English (King James Bible, Shakespeare, Milton, the Jargon File, the Devil's Dictionary) mixed with two retrieval tasks, so that
long-context attention does visible work: verbatim repetition and key-value needles.
Run: python3 train.py TRAIN.txt HELDOUT.txt OUTDIR [minutes [INIT.safetensors]]
writes config.json, model.safetensors (fp16), training.json. With INIT it goes on from those weights, with more repetition in the mix."""
import json, math, os, random, sys, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from safetensors.torch import load_file, save_file
train_f, held_f, out, minutes = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]) if len(sys.argv) > 4 else 7.5
init = sys.argv[5] if len(sys.argv) > 5 else None
L, D, H, HK, HD, FF, V, THETA = 6, 256, 4, 2, 64, 704, 256, 100000.0
torch.manual_seed(0); rng = np.random.default_rng(0); dev = "cuda"
torch.set_float32_matmul_precision("high")
text = np.frombuffer(open(train_f, "rb").read(), dtype=np.uint8); held = np.frombuffer(open(held_f, "rb").read(), dtype=np.uint8)

class Attn(nn.Module):
    def __init__(s):
        super().__init__(); s.q_proj = nn.Linear(D, H*HD, bias=False); s.k_proj = nn.Linear(D, HK*HD, bias=False)
        s.v_proj = nn.Linear(D, HK*HD, bias=False); s.o_proj = nn.Linear(H*HD, D, bias=False)
    def forward(s, x, cos, sin):
        B, S, _ = x.shape; sh = lambda t, h: t.view(B, S, h, HD).transpose(1, 2)
        q, k, v = sh(s.q_proj(x), H), sh(s.k_proj(x), HK), sh(s.v_proj(x), HK)
        rot = lambda t: t*cos + torch.cat([-t[..., HD//2:], t[..., :HD//2]], -1)*sin
        q, k = rot(q).to(v.dtype), rot(k).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(H//HK, 1), v.repeat_interleave(H//HK, 1), is_causal=True)
        return s.o_proj(y.transpose(1, 2).reshape(B, S, -1))
class MLP(nn.Module):
    def __init__(s):
        super().__init__(); s.gate_proj = nn.Linear(D, FF, bias=False); s.up_proj = nn.Linear(D, FF, bias=False); s.down_proj = nn.Linear(FF, D, bias=False)
    def forward(s, x): return s.down_proj(F.silu(s.gate_proj(x))*s.up_proj(x))
class Block(nn.Module):
    def __init__(s):
        super().__init__(); s.self_attn, s.mlp = Attn(), MLP(); s.input_layernorm = nn.RMSNorm(D, eps=1e-5); s.post_attention_layernorm = nn.RMSNorm(D, eps=1e-5)
    def forward(s, x, c, n):
        x = x + s.self_attn(s.input_layernorm(x), c, n); return x + s.mlp(s.post_attention_layernorm(x))
class Llama(nn.Module):
    def __init__(s):
        super().__init__(); s.embed_tokens = nn.Embedding(V, D); s.layers = nn.ModuleList(Block() for _ in range(L)); s.norm = nn.RMSNorm(D, eps=1e-5)
        for p in s.parameters():
            if p.dim() > 1: nn.init.normal_(p, std=0.02)
        for b in s.layers:
            for w in (b.self_attn.o_proj.weight, b.mlp.down_proj.weight): nn.init.normal_(w, std=0.02/math.sqrt(2*L))
    def forward(s, ids, cos, sin):
        x = s.embed_tokens(ids)
        for b in s.layers: x = b(x, cos, sin)
        return F.linear(s.norm(x), s.embed_tokens.weight)

def rope(S):
    f = 1/THETA**(torch.arange(0, HD, 2, device=dev).float()/HD); a = torch.outer(torch.arange(S, device=dev).float(), f); a = torch.cat([a, a], -1)
    return a.cos(), a.sin()
WORDS = [w for w in set(bytes(text[:3_000_000]).decode("ascii", "ignore").split()) if w.isalpha() and w.istitle() and 4 <= len(w) <= 10]; WORDS.sort()
def span(src, n): i = int(rng.integers(0, len(src)-n-1)); return bytes(src[i:i+n])
def needle(src, n):
    m = int(rng.integers(1, 6)); names = rng.choice(WORDS, m, replace=False); codes = ["%06d" % rng.integers(0, 10**6) for _ in names]
    facts = [f" The secret code of {a} is {c}. ".encode() for a, c in zip(names, codes)]
    order = rng.permutation(m); tail = b"".join(f"\nQuestion: What is the secret code of {names[j]}?\nAnswer: {codes[j]}.".encode() for j in order)
    body = n - len(tail) - sum(map(len, facts)); t = span(src, body); cuts = sorted(int(x) for x in rng.integers(0, body, m)); o = b""; last = 0
    for c, f in zip(cuts, facts): o += t[last:c] + f; last = c
    return (o + t[last:] + tail)[:n]
def repeat(src, n):
    o = b""
    c = int(n*rng.uniform(*((0.25, 0.8) if init else (0.4, 0.9)))); ctx = span(src, c); o = ctx
    while len(o) < n:
        l = int(rng.integers(64, 600)); i = int(rng.integers(0, max(1, c-l))); o += b"\n" + ctx[i:i+l]
    return o[:n]
def sample(src, n):
    u = rng.random()
    a, b = (0.2, 0.8) if init else (0.35, 0.7)
    s = span(src, n) if u < a else repeat(src, n) if u < b else needle(src, n)
    return np.frombuffer(s[:n].ljust(n, b"\n"), dtype=np.uint8)
import threading, queue
def batches(B, S, q, stop):
    while not stop.is_set():
        try: q.put(torch.from_numpy(np.stack([sample(text, S+1) for _ in range(B)]).astype(np.int64)), timeout=1)
        except queue.Full: pass
m = Llama().to(dev)
if init: m.load_state_dict({k.removeprefix("model."): v.float() for k, v in load_file(init).items()})
print("params", sum(p.numel() for p in m.parameters()))
dec = [p for p in m.parameters() if p.dim() > 1]; nod = [p for p in m.parameters() if p.dim() == 1]
opt = torch.optim.AdamW([{"params": dec, "weight_decay": 0.1}, {"params": nod, "weight_decay": 0.0}], lr=2e-3, betas=(0.9, 0.95), fused=True)
T0 = time.time(); total = minutes*60
phases = [(0.35, 64, 2048), (1.0, 16, 8192)] if init else [(0.55, 128, 1024), (0.8, 32, 4096), (1.0, 16, 8192)]
PEAK = 1e-3 if init else 2e-3
step = 0; cm = torch.compile(m)
for frac, B, S in phases:
    cos, sin = rope(S); q = queue.Queue(24); stop = threading.Event()
    th = [threading.Thread(target=batches, args=(B, S, q, stop), daemon=True) for _ in range(4)]; [t.start() for t in th]
    while (time.time()-T0) < frac*total:
        p = (time.time()-T0)/total; lr = PEAK*min(1, (step+1)/200)*(0.05+0.95*0.5*(1+math.cos(math.pi*min(1, p))))
        for g in opt.param_groups: g["lr"] = lr
        x = q.get().to(dev, non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16): logits = cm(x[:, :-1], cos, sin)
        loss = F.cross_entropy(logits.float().reshape(-1, V), x[:, 1:].reshape(-1))
        loss.backward(); nn.utils.clip_grad_norm_(m.parameters(), 1.0); opt.step(); opt.zero_grad(set_to_none=True); step += 1
        if step % 200 == 0: print(f"{time.time()-T0:.0f}s step {step} S {S} loss {loss.item():.3f} lr {lr:.1e} queue {q.qsize()}", flush=True)
    stop.set()
m.eval()
@torch.no_grad()
def logits_of(s, S=None):
    ids = torch.tensor(list(s), device=dev)[None]; c, n = rope(ids.shape[1])
    with torch.autocast("cuda", torch.bfloat16): return m(ids, c, n)[0].float()
@torch.no_grad()
def evaluate(S, n=24):
    r = {}
    x = [span(held, S) for _ in range(n)]; r["bpc"] = float(np.mean([F.cross_entropy(logits_of(s)[-401:-1], torch.tensor(list(s[-400:]), device=dev)).item()/math.log(2) for s in x]))
    hits = []
    for _ in range(n):
        s = needle(held, S); a = s.rfind(b"Answer: ")+8; c = s[a:a+6]; p = logits_of(s).argmax(-1).cpu().numpy()[a-1:a+5]; hits.append(bytes(p.astype(np.uint8)) == c)
    r["needle_exact"] = float(np.mean(hits)); ml = []
    for _ in range(n):
        ctx = span(held, S-450); i = int(rng.integers(0, len(ctx)-400)); s = ctx + b"\n" + ctx[i:i+384]; p = logits_of(s).argmax(-1).cpu().numpy()
        o = len(s)-256; ok = p[o-1:o+255] == np.frombuffer(s[o:o+256], np.uint8); ml.append(int(256 if ok.all() else ok.argmin()))
    r["repeat_match_of_256"] = float(np.mean(ml)); return r
res = {S: evaluate(S) for S in (1024, 2048, 4096, 8192, 16384)}
for S, r in res.items(): print(S, r)
os.makedirs(out, exist_ok=True)
sd = {"model."+k: v.detach().to(torch.float16).cpu().contiguous() for k, v in m.state_dict().items()}
save_file(sd, f"{out}/model.safetensors", metadata={"format": "pt"})
json.dump(dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=D, intermediate_size=FF, num_hidden_layers=L, num_attention_heads=H, num_key_value_heads=HK,
  head_dim=HD, vocab_size=V, rms_norm_eps=1e-5, rope_theta=THETA, max_position_embeddings=8192, hidden_act="silu", tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
  initializer_range=0.02, torch_dtype="float16", bos_token_id=None, eos_token_id=None, pad_token_id=None, use_cache=True), open(f"{out}/config.json", "w"), indent=2)
json.dump(dict(steps=step, seconds=time.time()-T0, heldout=res), open(f"{out}/training.json", "w"), indent=2)
