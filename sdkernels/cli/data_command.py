"""`sdkernels data`: data sets made by a model (traces) or chosen by one (IFD, r-IFD)."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from sdkernels.cli.text import at_least, parse_settings, record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    traces = actions.add_parser(
        "traces",
        help="a model's own verified answers, as a data set to fine-tune on",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    traces.add_argument(
        "--model", default="smollm2", help="hub id, local folder, or smollm2 (embedded)"
    )
    traces.add_argument(
        "--dataset", required=True, help=".jsonl or .parquet file, datasets id, reasoning-gym tasks"
    )
    traces.add_argument("--split", default="train", help="split of a datasets id")
    traces.add_argument("--size", type=at_least(1), default=64, help="number of problems")
    traces.add_argument(
        "--context",
        default="none",
        help="what the model sees besides the question: none (rejection sampling), "
        "reference_solution (guided traces), ...",
    )
    traces.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="its settings; repeatable",
    )
    traces.add_argument("--k", type=at_least(1), default=4, help="answers sampled for each problem")
    traces.add_argument(
        "--keep",
        default="correct",
        help="correct, or all: wrong and truncated answers too, the latter marked as such; answers "
        "without text are never kept",
    )
    traces.add_argument(
        "--per-problem", type=at_least(1), default=None, help="at most so many traces each"
    )
    traces.add_argument(
        "--max-new-tokens", type=at_least(1), default=256, help="longest answer, in tokens"
    )
    traces.add_argument("--temperature", type=float, default=1.0, help="sampling; 0 is greedy")
    traces.add_argument(
        "--batch-size", type=at_least(1), default=32, help="answers generated at once"
    )
    traces.add_argument("--seed", type=at_least(0), default=0, help="of problems and sampling")
    select = actions.add_parser(
        "select",
        help="the examples that the student prefers, of one data set or of two versions of it",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    select.add_argument(
        "files", nargs="+", type=Path, help="one data set, or two versions with the same ids"
    )
    select.add_argument("--model", default="smollm2", help="the student")
    select.add_argument("--by", default="ifd", help="ifd, or r_ifd")
    select.add_argument("--keep", type=float, default=None, help="share to keep of one data set")
    select.add_argument(
        "--highest", type=float, default=None, help="leave out scores above this, e.g. 1 for ifd"
    )
    select.add_argument(
        "--only-second", action="store_true", help="drop ids whose second version did not win"
    )
    for action in (traces, select):
        action.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or auto")
        action.add_argument("--out", type=Path, required=True, help=".jsonl file to write")


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """Make or choose the data, write it, say what became of how much."""
    if options.out.suffix != ".jsonl":
        raise ValueError(f"--out {options.out}: expected a .jsonl file")
    if options.action == "traces":
        _traces(options)
    else:
        _select(options)


def _traces(options: argparse.Namespace) -> None:
    from sdkernels import contexts
    from sdkernels.train.data import GYM_SOURCES, load_examples
    from sdkernels.train.loading import load_model
    from sdkernels.train.rollout import Sampling
    from sdkernels.train.traces import check_traces, sample_traces, write_examples

    texts = contexts.text_settings(options.context)
    context = contexts.get(options.context, **parse_settings(options.set, texts=texts))
    check_traces(context, options.keep)
    sampling = Sampling(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
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
    traces, left_out = sample_traces(
        model,
        tokenizer,
        examples,
        context,
        k=options.k,
        keep=options.keep,
        per_problem=options.per_problem,
        sampling=sampling,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    if not traces:
        raise ValueError(
            f"none of {len(examples) * options.k} answers was kept (--keep {options.keep}): "
            f"{reasons}; take easier problems, a higher --k, more --max-new-tokens, or --keep all"
        )
    write_examples(options.out, traces)
    lengths = [trace.metadata["num_tokens"] for trace in traces]
    shown = {
        "traces": f"{len(traces)} of {len(examples) * options.k} answers",
        "problems": f"{len({t.metadata['problem'] for t in traces})} of {len(examples)}",
        "tokens": f"{sum(lengths) / len(lengths):.1f} a trace",
    }
    if reasons:
        shown["left out"] = reasons
    if truncated := sum(trace.solution_truncated for trace in traces):
        shown["truncated"] = f"{truncated}, written with solution_truncated"
    print(record({**shown, "file": options.out}))


def _select(options: argparse.Namespace) -> None:
    from sdkernels.train.data import load_examples
    from sdkernels.train.loading import load_model
    from sdkernels.train.prompts import PromptEncoder
    from sdkernels.train.selection import (
        SCORES,
        best_share,
        check_keep,
        check_versions,
        choose_versions,
        score,
        why_unscorable,
    )
    from sdkernels.train.traces import write_examples

    if options.by not in SCORES:
        raise ValueError(f"--by {options.by}: expected one of {', '.join(SCORES)}")
    if len(options.files) > 2:
        raise ValueError(f"expected one data set or two versions, got {len(options.files)} files")
    between = len(options.files) == 2
    for flag, given, wanted in (
        ("--keep", options.keep is not None, not between),
        ("--highest", options.highest is not None, not between),
        ("--only-second", options.only_second, between),
    ):
        if given and not wanted:
            number = "two versions" if flag == "--only-second" else "one data set"
            raise ValueError(f"{flag} is for {number}, got {len(options.files)} file(s)")
    keep = 1.0 if options.keep is None else options.keep
    check_keep(keep)
    versions = [load_examples(file, require=("solution",)) for file in options.files]
    if between:
        check_versions(*versions)
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    encoder = PromptEncoder(tokenizer)
    reasons: dict[str, str] = {}  # of an id, whichever version it is that cannot be scored
    for version in versions:
        for example in version:
            if reason := why_unscorable(model, encoder, example, options.by):
                reasons.setdefault(example.id, reason)
    left_out = "; ".join(f"{n} with {reason}" for reason, n in Counter(reasons.values()).items())
    versions = [[e for e in version if e.id not in reasons] for version in versions]
    if not all(versions):
        raise ValueError(f"--by {options.by}: no example is left to score: {left_out}")
    scores = [score(model, tokenizer, version, options.by) for version in versions]
    if between:
        (first, second), (first_scores, second_scores) = versions, scores
        chosen = choose_versions(
            first, second, first_scores, second_scores, options.by, only_second=options.only_second
        )
    else:
        chosen = best_share(
            versions[0], scores[0], options.by, keep=keep, highest_allowed=options.highest
        )
    if not chosen:
        raise ValueError(
            f"no example is left (scores {min(scores[-1]):.3g} to {max(scores[-1]):.3g}); raise "
            "--highest, or leave out --only-second"
        )
    write_examples(options.out, chosen)
    shown = {
        f"mean {options.by} of {file}": f"{sum(values) / len(values):.3f}"
        for file, values in zip(options.files, scores, strict=True)
    }
    if left_out:
        shown["left out"] = left_out
    if between:
        theirs = {id(example) for example in versions[1]}
        won = sum(id(example) in theirs for example in chosen)
        shown["second version"] = f"chosen for {won} of {len(versions[1])}"
    print(record({**shown, "kept": f"{len(chosen)} of {len(versions[0])}", "file": options.out}))
