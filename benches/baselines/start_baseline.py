"""Times the start of text generation with transformers: fresh processes, from the command to the first token.

    sparq-bench make-model llama3-8b llama3-8b
    python3 start_baseline.py --model llama3-8b --prompt llama3-8b/p4096.txt > start.json

Every process imports transformers, loads the model and the tokenizer, reads the prompt and generates two tokens. The
files of the model are in the page cache. Prints one JSON document with the fastest process; progress goes to standard
error. `sparq-bench start --device cuda --compare start.json` shows the time beside its own: run both on the same
machine, one after the other.
"""

import argparse
import datetime
import json
import pathlib
import shlex
import subprocess
import sys
import time

BEGAN = time.time()


def arguments():
    parser = argparse.ArgumentParser(
        description="Time to the first token of a fresh process with transformers.")
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--prompt", required=True, help="file with the prompt")
    parser.add_argument("--dtype", choices=["f32", "f16", "bf16"], default="bf16")
    parser.add_argument("--device", default="cuda", help="PyTorch's name [default: cuda]")
    parser.add_argument("--runs", type=int, default=3,
                        help="processes, one after the other [default: 3]")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def child(args):
    """Generates two tokens and prints the times since the beginning of this process."""
    import torch
    import transformers

    def now():
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return 1e3 * (time.time() - BEGAN)

    imported = now()
    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, torch_dtype=dtypes[args.dtype], device_map=args.device)
    loaded = now()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    text = pathlib.Path(args.prompt).read_text(encoding="utf-8")
    tokens = tokenizer(text, return_tensors="pt").input_ids.to(args.device)
    tokenized = now()
    with torch.no_grad():
        out = model(tokens, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.item()
        first = now()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        out.logits[:, -1].argmax(-1).item()
        second = now()
    print(json.dumps({
        "began": BEGAN,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
        "prompt_tokens": tokens.shape[1],
        "import_ms": imported,
        "load_ms": loaded - imported,
        "tokenizer_ms": tokenized - loaded,
        "prefill_ms": first - tokenized,
        "first_token_ms": first,
        "second_token_ms": second - first,
    }))


def process(args):
    """Runs a child and returns its times since the command."""
    command = [sys.executable, __file__, "--child", "--model", args.model, "--prompt", args.prompt,
               "--dtype", args.dtype, "--device", args.device]
    started = time.time()
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    times = json.loads(output.splitlines()[-1])
    times["process_ms"] = 1e3 * (times.pop("began") - started)
    times["first_token_ms"] += times["process_ms"]
    times["total_ms"] = 1e3 * (time.time() - started)
    return times


def read_files(folder):
    """Reads the files of the model to the page cache."""
    for path in pathlib.Path(folder).iterdir():
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def main():
    args = arguments()
    if args.child:
        child(args)
        return
    read_files(args.model)
    runs = []
    for _ in range(args.runs):
        runs.append(process(args))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    fastest = min(runs, key=lambda run: run["first_token_ms"])
    described = {key: fastest.pop(key) for key in ("device", "torch", "transformers")}
    name = pathlib.Path(args.model).resolve().name
    row = {"model": name, "dtype": args.dtype, "runs": args.runs, **fastest}
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    command = shlex.join(["python3", *sys.argv])
    print(json.dumps({"date": date, "command": command, **described, "rows": [row]}, indent=1))


if __name__ == "__main__":
    main()
