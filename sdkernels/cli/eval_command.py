"""`sdkernels eval`: accuracy, length, markers and entropy of a model on problems with answers, and
of a teacher that is told more.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdkernels.cli.text import at_least, parse_settings, record

if TYPE_CHECKING:
    from sdkernels.contexts import Context

_CONTEXT = re.compile(r"(?P<name>[\w-]+)\s*(?:\((?P<settings>.*)\))?", re.DOTALL)


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
    parser.add_argument(
        "--dataset-columns",
        default=None,
        help="which column is which field, where names do not say it, e.g. "
        "prompt=problem,answer=result",
    )
    parser.add_argument("--split", default="test", help="split of a datasets id")
    parser.add_argument("--size", type=at_least(1), default=32, help="number of problems")
    parser.add_argument(
        "--k", type=at_least(1), default=1, help="answers per problem (Avg@k, Pass@k, Maj@k)"
    )
    parser.add_argument(
        "--max-new-tokens", type=at_least(1), default=256, help="longest answer, in tokens"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling; 0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling mass")
    parser.add_argument(
        "--top-k", type=at_least(0), default=0, help="sample from so many; 0: from all"
    )
    parser.add_argument(
        "--chat-template-kwargs",
        default=None,
        help="extra arguments of the chat template, e.g. enable_thinking=false",
    )
    parser.add_argument(
        "--instruction",
        default=None,
        help="paragraph added to prompts of files and data sets that are plain text",
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=32, help="answers generated at once"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of problems, sampling and bootstrap"
    )
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or auto")
    parser.add_argument(
        "--context",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="let the model answer as the teacher under each of these contexts, beside the "
        "question alone: NAME or NAME(setting=value,...), repeatable; see `sdkernels contexts`. "
        "Contexts made of the model's own answers ask the question alone twice",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="JSON file for the full result; with --context also a run or study folder, whose "
        "report then shows it",
    )
    parser.add_argument(
        "--compare", type=Path, default=None, help="result of an earlier eval on the same problems"
    )


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """Evaluate, print the headline, write the full result."""
    from sdkernels.train.data import GYM_SOURCES, load_examples
    from sdkernels.train.evaluation import read_result
    from sdkernels.train.loading import load_model
    from sdkernels.train.rollout import Sampling
    from sdkernels.train.settings import as_mapping

    # Wrong input stops here, before a model is loaded.
    contexts = [parse_context(text) for text in options.context]
    if contexts and options.compare is not None:
        raise ValueError(
            "--compare is for the model alone; under --context every score is already compared "
            "with the question alone"
        )
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
    )
    earlier = None if options.compare is None else read_result(options.compare)
    is_gym = options.dataset.startswith(GYM_SOURCES)
    options.chat_template_kwargs = as_mapping(
        "--chat-template-kwargs", options.chat_template_kwargs
    )
    examples = load_examples(
        options.dataset,
        columns=as_mapping("--dataset-columns", options.dataset_columns),
        split=options.split,
        limit=None if is_gym else options.size,
        size=options.size if is_gym else None,
        seed=options.seed,
        instruction=options.instruction,
        require=("answer",),
    )
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    about = {"model": options.model, "dataset": options.dataset, "seed": options.seed}
    if contexts:
        _run_contexts(options, contexts, model, tokenizer, examples, sampling, about)
    else:
        _run_alone(options, earlier, model, tokenizer, examples, sampling, about)


def parse_context(text: str) -> Context:
    """A context from `NAME` or `NAME(setting=value,...)`, values read as YAML.

    Raises:
        ValueError: not of that form, an unknown name or setting.
    """
    from sdkernels import contexts

    found = _CONTEXT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"--context {text!r}: expected NAME or NAME(setting=value,...)")
    pairs = [pair.strip() for pair in (found["settings"] or "").split(",") if pair.strip()]
    settings = parse_settings(
        pairs,
        flag=f"--context {text!r}, setting",
        texts=contexts.text_settings(found["name"]),
    )
    return contexts.get(found["name"], **settings)


def _run_alone(
    options: argparse.Namespace,
    earlier: dict[str, Any] | None,
    model: Any,
    tokenizer: Any,
    examples: Any,
    sampling: Any,
    about: dict[str, Any],
) -> None:
    from sdkernels.train.evaluation import compare, evaluate, save_result

    result = about | evaluate(
        model,
        tokenizer,
        examples,
        k=options.k,
        sampling=sampling,
        seed=options.seed,
        batch_size=options.batch_size,
        template_kwargs=options.chat_template_kwargs,
    )
    print(record({key: _shown(value) for key, value in _named(result).items()}))
    if earlier is not None:
        print("\nchange since the earlier result (paired)")
        print(record({key: _shown(value) for key, value in compare(earlier, result).items()}))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_result(options.out, result)
        print(f"\nfull result: {options.out}")


def _run_contexts(
    options: argparse.Namespace,
    contexts: Sequence[Context],
    model: Any,
    tokenizer: Any,
    examples: Any,
    sampling: Any,
    about: dict[str, Any],
) -> None:
    from sdkernels.contexts import LocalCritic
    from sdkernels.report import teacher_table
    from sdkernels.train.loading import context_window
    from sdkernels.train.teacher_accuracy import save, teacher_accuracy

    critic = None
    if any(context.generates for context in contexts):
        critic = LocalCritic(model, tokenizer, max_new_tokens=options.max_new_tokens)
    result = about | teacher_accuracy(
        model,
        tokenizer,
        examples,
        contexts,
        k=options.k,
        sampling=sampling,
        seed=options.seed,
        critic=critic,
        window=context_window(model),
        batch_size=options.batch_size,
        template_kwargs=options.chat_template_kwargs,
        announce=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(teacher_table(result))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        print(f"\nfull result: {save(options.out, result)}")


def _named(result: dict[str, Any]) -> dict[str, Any]:
    """The headline of a result, scores under the names that papers use."""
    from sdkernels.train.evaluation import at_k, headline

    named: dict[str, Any] = {}
    for key, value in headline(result).items():
        if key == "accuracy":
            named |= at_k(result)
        elif key == "accuracy_ci":
            named[f"Avg@{result['k']}, 95 % interval"] = value
        elif key not in ("pass_at", "maj_at_k"):
            named[key] = value
    return named


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(str(_shown(item)) for item in value) + "]"
    return value
