"""`sdkernels eval`: accuracy, length, markers and entropy of a model on problems with answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sdkernels.cli.text import record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "--model", default="smollm2", help="hub id, local folder, or smollm2 (embedded)"
    )
    parser.add_argument(
        "--dataset",
        default="reasoning-gym:chain_sum,gsm_symbolic",
        help=".jsonl or .parquet file, datasets id, or reasoning-gym tasks",
    )
    parser.add_argument("--split", default="test", help="split of a datasets id")
    parser.add_argument("--size", type=int, default=32, help="number of problems")
    parser.add_argument(
        "--k", type=int, default=1, help="answers per problem (Avg@k, Pass@k, Maj@k)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer, in tokens")
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling; 0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling mass")
    parser.add_argument("--batch-size", type=int, default=32, help="answers generated at once")
    parser.add_argument("--seed", type=int, default=0, help="of problems, sampling and bootstrap")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the full result")
    parser.add_argument(
        "--compare", type=Path, default=None, help="result of an earlier eval on the same problems"
    )


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """Evaluate, print the headline, write the full result."""
    from sdkernels.train.data import GYM_SOURCES, load_examples
    from sdkernels.train.evaluation import compare, evaluate, read_result, save_result
    from sdkernels.train.loading import load_model
    from sdkernels.train.rollout import Sampling

    # Wrong input stops here, before a model is loaded.
    earlier = None if options.compare is None else read_result(options.compare)
    is_gym = options.dataset.startswith(GYM_SOURCES)
    examples = load_examples(
        options.dataset,
        split=options.split,
        limit=None if is_gym else options.size,
        size=options.size if is_gym else None,
        seed=options.seed,
        require=("answer",),
    )
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    result = evaluate(
        model,
        tokenizer,
        examples,
        k=options.k,
        sampling=Sampling(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
        ),
        seed=options.seed,
        batch_size=options.batch_size,
    )
    result |= {"model": options.model, "dataset": options.dataset, "seed": options.seed}
    print(record({key: _shown(value) for key, value in result.items() if key != "per_example"}))
    if earlier is not None:
        print("\nchange since the earlier result (paired)")
        print(record({key: _shown(value) for key, value in compare(earlier, result).items()}))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_result(options.out, result)
        print(f"\nfull result: {options.out}")


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(str(_shown(item)) for item in value) + "]"
    return value
