#!/usr/bin/env python3
"""Train the momentum layer, its ablations and its other kinds of momentum, one small model each.

Equal data, recipe and seed; prints a Markdown table of held-out losses. docs/momentum.md has one.

    build/mdn data corpus/shakespeare.txt --out out/shakespeare
    tools/momentum_study.py --data out/shakespeare --out out/momentum
"""

import argparse
import json
import pathlib
import subprocess
import sys

VARIANTS = {
    "published": {},
    "no momentum": {"use_momentum": False},
    "no output correction": {"use_output_correction": False},
    "no clamp": {"min_log_mu": None},
    "no alpha cap": {"use_alpha_cap": False},
    "no caps": {"use_alpha_cap": False, "use_beta_cap": False},
    "prediction from k": {"use_p_times_alpha": False},
    "Nesterov": {"momentum_kind": "nesterov"},
    "quasi-hyperbolic": {"momentum_kind": "quasi_hyperbolic"},
}


def model(args, keys):
    return {
        "model_type": "momentum_deltanet",
        "vocab_size": 256,
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_heads": args.width // 32,
        "head_dim": 32,
        "expand_v": 1,
        "intermediate_size": 3 * args.width,
        "tie_word_embeddings": True,
    } | keys


def recipe(args, keys, folder, seed):
    return {
        "model": model(args, keys),
        "data": str(args.data),
        "out": str(folder),
        "rows": args.rows,
        "length": args.length,
        "order": "windows",
        "max_steps": args.steps,
        "learning_rate": args.learning_rate,
        "beta2": 0.98,
        "warmup_fraction": 0.05,
        "final_lr_fraction": 0.05,
        "seed": seed,
        "eval_every": max(1, args.steps // 6),
        "eval_tokens": 16384,
        "final_eval_tokens": 65536,
        "checkpoint_every": 0,
        "threads": args.threads,
    }


def held_out(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    return [(p["step"], p["loss"]) for p in points if p["kind"] == "eval"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mdn", default="build/mdn", help="the program")
    parser.add_argument(
        "--data", type=pathlib.Path, required=True, help="what `mdn data` wrote"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="folder of the runs"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument(
        "--width", type=int, default=64, help="a multiple of 32, the head size"
    )
    parser.add_argument("--learning_rate", type=float, default=0.005)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print("| variant | seed | " + "held-out loss by step | end |\n|---|---|---|---|")
    for name in args.only:
        for seed in args.seeds:
            folder = args.out / f"{name.replace(' ', '_')}-{seed}"
            path = args.out / f"{folder.name}.json"
            path.write_text(
                json.dumps(recipe(args, VARIANTS[name], folder, seed), indent=2)
            )
            if not any(folder.glob(f"step-{args.steps:08d}")):
                run = subprocess.run(
                    [args.mdn, "train", str(path)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if run.returncode:
                    sys.exit(f"{name}: {run.stderr}")
            losses = held_out(folder)
            course = ", ".join(f"{step}: {loss:.3f}" for step, loss in losses[:-1])
            print(f"| {name} | {seed} | {course} | {losses[-1][1]:.4f} |", flush=True)


if __name__ == "__main__":
    main()
