"""Verified answers as a data set, and the way back through `--dataset`."""

import json
from pathlib import Path

import pytest

from sdkernels import contexts
from sdkernels.cli import main
from sdkernels.train import load_examples
from sdkernels.train.dataset_rollout import DatasetRollout
from sdkernels.train.rollout import Sample, Sampling
from sdkernels.train.traces import sample_traces, write_examples


class Scripted:
    """A rollout backend that answers from a list and remembers what it was asked."""

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers = tokenizer, answers

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        self.prompts = [self.tokenizer.decode(ids) for ids in prompts_ids]
        self.seed = seed
        return [
            [Sample([7] * len(text), text, truncated=text.endswith("...")) for text in group]
            for group in self.answers
        ]


ANSWERS = [
    ["Answer: 3", "Answer: 4", "so 3... Answer: 3..."],
    ["Answer: 9", "Answer: 8", "Answer: 7."],
]


def traces(tokenizer, examples, context="none", **settings):
    backend = Scripted(tokenizer, ANSWERS)
    backend.kept, backend.left_out = sample_traces(
        None, tokenizer, examples, contexts.get(context), k=3, rollout=backend, **settings
    )
    return backend.kept, backend


def test_correct_and_whole_answers_are_kept(tokenizer, make_problems):
    examples = make_problems(2)  # 1+2, 2+5
    found, backend = traces(tokenizer, examples)
    assert [(trace.id, trace.solution) for trace in found] == [
        ("add-0#0", "Answer: 3"),
        ("add-1#2", "Answer: 7."),
    ]
    assert found[0].prompt == examples[0].prompt
    assert found[0].metadata == {
        "problem": "add-0",
        "context": "none",
        "correct": True,
        "num_tokens": 9,
    }
    assert not found[0].solution_truncated
    assert backend.left_out == {"wrong": 3, "truncated": 1}
    assert all(
        example.solution not in prompt
        for example, prompt in zip(examples, backend.prompts, strict=True)
    )


def test_a_guided_trace_forgets_what_guided_it(tokenizer, make_problems):
    examples = make_problems(2)
    found, backend = traces(tokenizer, examples, "reference_solution", keep="all", per_problem=2)
    assert [trace.id for trace in found] == ["add-0#0", "add-0#1", "add-1#0", "add-1#1"]
    assert backend.left_out == {"over the limit": 2}
    for example, prompt in zip(examples, backend.prompts, strict=True):
        assert example.solution.split("</think>")[1] in prompt
    assert all(trace.prompt == examples[i // 2].prompt for i, trace in enumerate(found))


@pytest.mark.parametrize("keep", ["correct", "all"])
def test_answers_without_text_are_left_out_and_counted(
    keep, tokenizer, make_problems, tmp_path, monkeypatch
):
    """Training on a data set refuses them."""
    answers = [["", "Answer: 3", " \n"], ["Answer: 7", "", ""]]
    monkeypatch.setitem(globals(), "ANSWERS", answers)
    found, backend = traces(tokenizer, make_problems(2), keep=keep)
    assert [trace.id for trace in found] == ["add-0#1", "add-1#0"]
    assert backend.left_out == {"without text": 4}
    write_examples(tmp_path / "traces.jsonl", found)
    loaded = load_examples(tmp_path / "traces.jsonl")
    assert len(DatasetRollout(tokenizer).responses(loaded, Sampling())) == 2


def test_written_traces_load_as_training_data(tokenizer, make_problems, tmp_path):
    found, _ = traces(tokenizer, make_problems(2))
    file = tmp_path / "new" / "traces.jsonl"
    write_examples(file, found)
    loaded = load_examples(file, require=("solution", "answer"))
    for ours, theirs in zip(found, loaded, strict=True):
        for name in ("id", "prompt", "answer", "solution", "hint", "task"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert json.loads(file.read_text().splitlines()[0])["about"]["problem"] == "add-0"


def test_a_truncated_answer_is_read_back_as_one_and_trained_on_without_an_end(
    tokenizer, make_problems, tmp_path
):
    found, _ = traces(tokenizer, make_problems(2), keep="all")
    file, again = tmp_path / "traces.jsonl", tmp_path / "again.jsonl"
    write_examples(file, found)
    write_examples(again, load_examples(file))  # as `data select` does
    loaded = load_examples(again)
    assert [e.id for e in loaded if e.solution_truncated] == ["add-0#2"]
    responses = DatasetRollout(tokenizer).responses(loaded, Sampling(max_new_tokens=99))
    for example, (sample,) in zip(loaded, responses, strict=True):
        ended = sample.token_ids[-1] == tokenizer.eos_token_id
        assert ended == (not sample.truncated) == (example.id != "add-0#2")
        text = sample.token_ids[:-1] if ended else sample.token_ids
        assert tokenizer.decode(text) == example.solution


@pytest.mark.parametrize(
    ("context", "settings", "message"),
    [
        ("sibling_solution", {}, "made of group: traces need a context"),
        ("none", {"keep": "best"}, "keep='best': expected one of correct, all"),
        ("none", {"per_problem": 0}, "per_problem=0"),
    ],
)
def test_bad_input(context, settings, message, tokenizer, make_problems):
    with pytest.raises(ValueError, match=message):
        traces(tokenizer, make_problems(2), context, **settings)


def test_from_problems_to_a_fine_tuned_model(model_folder, tmp_path, capsys):
    """`sdkernels data traces`, `data select` and `train`, end to end on a tiny model."""
    source = tmp_path / "problems.jsonl"
    lines = [
        {"prompt": f"{i}+1?", "answer": str(i + 1), "solution": f"It is {i + 1}."} for i in range(4)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw, chosen = tmp_path / "raw.jsonl", tmp_path / "chosen.jsonl"
    model = ["--model", str(model_folder)]
    small = ["--k", "2", "--max-new-tokens", "12", "--keep", "all"]
    assert (
        main(["data", "traces", *model, "--dataset", str(source), "--out", str(raw), *small]) == 0
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "8 of 8 answers" in out
    truncated = sum("solution_truncated" in json.loads(t) for t in raw.read_text().splitlines())
    assert truncated > 0
    assert f"truncated {truncated}, written with solution_truncated" in out
    assert main(["data", "select", str(raw), *model, "--keep", "0.5", "--out", str(chosen)]) == 0
    assert "4 of 8" in capsys.readouterr().out
    train = ["--recipe", "nll", "--context", "none", "--rollout_backend", "dataset", "--steps", "1"]
    size = ["--num_generations", "1", "--max_completion_length", "40", "--use_cpu", "true"]
    out = ["--out", str(tmp_path / "run")]
    assert main(["train", *model, "--dataset", str(chosen), *train, *size, *out]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["recipe"] == "nll"
    assert summary["last"]["loss"] > 0


def test_texts_of_one_token_are_left_out_and_counted(model_folder, tokenizer, tmp_path, capsys):
    assert len(tokenizer("x")["input_ids"]) == 1
    source, chosen = tmp_path / "raw.jsonl", tmp_path / "chosen.jsonl"
    lines = [{"prompt": "1+1?", "answer": "2", "solution": text} for text in ("x", "It is 2.")]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    select = ["data", "select", str(source), "--model", str(model_folder), "--out", str(chosen)]
    assert main(select) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "left out 1 with a text of one token, which has no ifd" in out
    assert [json.loads(line)["solution"] for line in chosen.read_text().splitlines()] == [
        "It is 2."
    ]
    source.write_text(json.dumps(lines[0]) + "\n")
    assert main(select) == 2
    assert "no example is left to score: 1 with a text of one" in capsys.readouterr().err


def test_examples_beyond_the_window_are_left_out_and_counted(
    make_model, tokenizer, tmp_path, capsys
):
    folder = tmp_path / "model"
    make_model(max_position_embeddings=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = ["It is 2.", "two " * 150, "x"]
    files = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for file, solutions in zip(files, (texts, ["Two."] * 3), strict=True):
        lines = [{"prompt": "1+1?", "answer": "2", "solution": text} for text in solutions]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = tmp_path / "chosen.jsonl"
    for given in (files[:1], files):
        select = ["data", "select", *map(str, given), "--model", str(folder), "--out", str(chosen)]
        assert main(select) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "1 with prompt and text longer than the model's window of 128 tokens" in out
        assert "1 with a text of one token, which has no ifd" in out
        assert "kept 1 of 1" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep", "0"], "keep=0.0: expected a share above 0, at most 1"),
        (["--keep", "1.5"], "keep=1.5: expected a share above 0, at most 1"),
        (["other.jsonl"], "the same ids in the same order; they differ at '1' and None"),
    ],
)
def test_a_selection_is_refused_before_the_model_is_loaded(
    flags, message, tmp_path, capsys, monkeypatch
):
    def no_model(*_args, **_settings):
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdkernels.train.loading.load_model", no_model)
    line = json.dumps({"prompt": "1+1?", "solution": "It is 2."}) + "\n"
    Path("one.jsonl").write_text(line * 2)
    Path("other.jsonl").write_text(line)
    assert main(["data", "select", "one.jsonl", *flags, "--out", "out.jsonl"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep", "best"], "keep='best': expected one of correct, all"),
        (["--context", "sibling_solution"], "made of group: traces need a context"),
        (["--temperature", "-1"], "temperature=-1.0: expected a number from 0"),
        (["--k", "0"], "argument --k: 0: expected a whole number of at least 1"),
        (["--per-problem", "0"], "argument --per-problem: 0: expected"),
        (["--batch-size", "2.5"], "argument --batch-size: 2.5: expected"),
        (["--size", "0"], "argument --size: 0: expected"),
        (["--max-new-tokens", "none"], "argument --max-new-tokens: none: expected"),
    ],
)
def test_traces_are_refused_before_the_model_is_loaded(
    flags, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "sdkernels.train.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    source = tmp_path / "one.jsonl"
    source.write_text(json.dumps({"prompt": "1+1?", "answer": "2", "solution": "2"}) + "\n")
    out = str(tmp_path / "out.jsonl")
    try:
        status = main(["data", "traces", "--dataset", str(source), *flags, "--out", out])
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["traces", "--dataset", "x.jsonl", "--out", "y.csv"], "expected a .jsonl file"),
        (["select", "a.jsonl", "--by", "idf", "--out", "y.jsonl"], "expected one of ifd, r_ifd"),
        (["select", "a.jsonl", "--only-second", "--out", "y.jsonl"], "is for two versions"),
        (
            ["select", "a.jsonl", "b.jsonl", "--keep", "0.1", "--out", "y.jsonl"],
            "is for one data set",
        ),
        (["select", "a.jsonl", "b.jsonl", "c.jsonl", "--out", "y.jsonl"], "got 3 files"),
    ],
)
def test_wrong_flags(arguments, message, capsys):
    assert main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_nothing_kept_says_what_to_change(model_folder, tmp_path, capsys):
    source = tmp_path / "problems.jsonl"
    source.write_text(json.dumps({"prompt": "1+1?", "answer": "123456789"}) + "\n")
    out = tmp_path / "out.jsonl"
    arguments = ["--model", str(model_folder), "--dataset", str(source), "--out", str(out)]
    assert main(["data", "traces", *arguments, "--k", "1", "--max-new-tokens", "4"]) == 2
    said = capsys.readouterr().err
    assert "none of 1 answers was kept (--keep correct): 1 truncated; take" in said
    assert not out.exists()


def test_sampling_reaches_the_backend(tokenizer, make_problems):
    seen = {}

    class Backend(Scripted):
        def generate(self, prompts_ids, num_generations, sampling, *, seed):
            seen.update(k=num_generations, sampling=sampling)
            return super().generate(prompts_ids, num_generations, sampling, seed=seed)

    sampling = Sampling(max_new_tokens=5, temperature=0.6)
    examples = make_problems(2)
    sample_traces(
        None, tokenizer, examples, contexts.get("none"), k=3, sampling=sampling,
        rollout=Backend(tokenizer, ANSWERS),
    )  # fmt: skip
    assert seen == {"k": 3, "sampling": sampling}
