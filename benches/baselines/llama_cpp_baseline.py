"""Times llama.cpp on a GGUF file.

    python3 llama_cpp_baseline.py --build llama.cpp
    python3 llama_cpp_baseline.py --bench llama.cpp/build/bin/llama-bench model.gguf > llama.json

`--build DIR` takes the sources from the PyPI package llama-cpp-python (vendor/llama.cpp) and compiles llama-bench and
llama-quantize for this machine; it needs pip, cmake and a C++ compiler. Otherwise runs llama-bench with and without
flash attention, and prints one JSON document; progress goes to standard error.
`sparq-bench program model.gguf --compare llama.json` shows the rates beside its own: run both on the same machine, one
after the other.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tarfile

OPTIONS = {"plain": "0", "flash": "1"}


def arguments():
    parser = argparse.ArgumentParser(description="Rates of llama.cpp on a GGUF file.")
    parser.add_argument("model", nargs="?", help="GGUF file")
    parser.add_argument("--build", metavar="DIR", type=pathlib.Path,
                        help="compile llama.cpp in this folder, and measure nothing")
    parser.add_argument("--bench", default="llama-bench", metavar="FILE",
                        help="the program llama-bench [default: the one in PATH]")
    parser.add_argument("--prompts", type=sizes, default=[2048], metavar="N,...",
                        help="lengths of the prompts [default: 2048]")
    parser.add_argument("--depths", type=sizes, default=[0, 2048, 7680], metavar="N,...",
                        help="positions in the cache before the decode steps [default: 0,2048,7680]")
    parser.add_argument("--steps", type=int, default=64, help="decode steps at each depth [default: 64]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads [default: all]")
    parser.add_argument("--samples", type=int, default=3, help="runs, whose mean is printed [default: 3]")
    return parser.parse_args()


def sizes(text):
    return [int(part) for part in text.split(",")]


def build(folder):
    folder.mkdir(parents=True, exist_ok=True)
    run = lambda *command: subprocess.run(command, check=True, stdout=sys.stderr)
    run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "llama-cpp-python",
        "--dest", str(folder))
    archive = sorted(folder.glob("llama_cpp_python-*.tar.gz"))[-1]
    with tarfile.open(archive) as package:
        package.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    target = folder / "build"
    off = ["BUILD_SHARED_LIBS", "LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES",
           "LLAMA_BUILD_SERVER"]
    run("cmake", "-S", str(source), "-B", str(target), "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
        "-DLLAMA_BUILD_TOOLS=ON", *[f"-D{name}=OFF" for name in off])
    run("cmake", "--build", str(target), "--parallel", "--target", "llama-bench", "llama-quantize")
    print(target / "bin" / "llama-bench", file=sys.stderr)


def measure(args, flash):
    """The rows of llama-bench for all prompts and depths."""
    rows = []
    common = [args.bench, "-m", args.model, "-t", str(args.threads), "-r", str(args.samples), "-fa", flash, "-ngl", "0",
              "-o", "json"]
    prompts = ["-p", ",".join(map(str, args.prompts)), "-n", "0"]
    steps = ["-p", "0", "-n", str(args.steps), "-d", ",".join(map(str, args.depths))]
    for command in (common + prompts, common + steps):
        print(" ".join(command), file=sys.stderr)
        rows += json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return rows


def key(row):
    if row["n_prompt"] > 0:
        return {"test": "prompt", "tokens": row["n_prompt"]}
    return {"test": "decode", "depth": row["n_depth"]}


def main():
    args = arguments()
    if args.build:
        return build(args.build)
    if not args.model:
        sys.exit("expected a GGUF file, or --build")
    results, version, device = [], None, None
    for name, flash in OPTIONS.items():
        for row in measure(args, flash):
            version, device = f"{row['build_commit']} ({row['build_number']})", row["cpu_info"]
            found = next((known for known in results if known.items() >= key(row).items()), None)
            if found is None:
                found = key(row)
                results.append(found)
            found[f"{name}_tokens_per_s"] = row["avg_ts"]
    print(json.dumps({"device": device or platform.processor(), "llama_cpp": version, "threads": args.threads,
                      "rows": results}))


if __name__ == "__main__":
    main()
