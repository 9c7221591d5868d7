"""The command line: listings, errors of one line, exit statuses."""

import json
import os
import subprocess
import sys

import pytest

from sdkernels import contexts, recipes
from sdkernels.cli import COMMANDS, main
from sdkernels.cli.text import columns, parse_settings, record

TRACES = ["data", "traces", "--dataset", "x.jsonl", "--out", "o.jsonl", "--context", "wrong_answer"]


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("module", ["sdkernels", "sdkernels.cli"])
def test_the_package_runs_as_a_module(module):
    command = [sys.executable, "-m", module, "recipes", "--show", "gpro"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("sdkernels recipes: unknown recipe: 'gpro'")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert COMMANDS[command][:20].lower() in " ".join(capsys.readouterr().out.lower().split())


def test_help_of_train_has_our_settings_with_defaults_and_few_of_transformers(capsys):
    status, out, _ = run(capsys, "train", "--help")
    assert status == 0
    assert "--num_generations 8" in out
    assert "--teacher_update_rate 0.05" in out
    assert "--output_dir" in out
    assert "galore" not in out


def test_contexts_lists_all_and_renders_one(capsys):
    _, out, _ = run(capsys, "contexts")
    assert all(f"\n  {name} " in out for name in contexts.names())
    words = " ".join(out.split())
    assert "Needs: answer or solution. Leaks the answer. Settings: unaligned." in words
    assert "No signal: no hint." in words
    _, out, _ = run(capsys, "contexts", "--show", "hint")
    assert "leaks answer" in out
    assert contexts.render_sample("hint") in out


def test_settings_of_a_context_reach_the_builder(capsys):
    shown = [
        run(capsys, "contexts", "--show", "sibling_solution", "--set", f"thinking={mode}")[1]
        for mode in ("keep", "strip")
    ]
    assert "<think>" in shown[0]
    assert "<think>" not in shown[1]


@pytest.mark.parametrize("answer", ["999", "1e3", "007", "2020-01-01", "true"])
def test_a_setting_of_text_is_what_was_typed(capsys, answer):
    fixed = ["--set", "choose=fixed", "--set", f"fixed={answer}"]
    status, out, err = run(capsys, "contexts", "--show", "wrong_answer", *fixed)
    assert status == 0, err
    assert f"[known answer]\n{answer}\n" in out


def test_reproduce_lists_studies_and_shows_one_beside_the_published(capsys):
    _, out, _ = run(capsys, "reproduce")
    assert "degrade  (2603.24472)" in out
    assert "  dasd/uniform-push " in out
    assert "_study" not in out
    _, out, _ = run(capsys, "reproduce", "feedback-alignment/refsol", "--show", "--set", "seed=3")
    words = " ".join(out.split())
    assert "Avg@12 (%) 30.56" in words
    assert "source: 2606.11173, best checkpoint (read in the paper)" in words
    assert "what differs from the paper - The paper's 312 problems" in words
    assert "seed 3" in words
    _, out, _ = run(capsys, "reproduce", "degrade/olmo3-7b-grpo", "--show", "--scale", "full")
    assert "no number that we know of" in out
    assert "allenai/Olmo-3-7B-Instruct" in out


def test_reproduce_runs_and_prints_ours_with_a_caution(capsys, monkeypatch, tmp_path):
    measured = {"accuracy": 0.25, "completion_length": 9.0, "n": 8, "k": 12}
    measured |= {"pass_at": {"1": 0.25, "8": 0.6, "12": 0.75}, "maj_at_k": 0.5}
    measured |= {"markers_published": {"per_response": 3.8}, "markers_per_1k": 6.0}
    summary = {"before": measured, "after": measured, "last": {"gap": -0.5, "signal_share": None}}
    seen = []

    def pretend(experiment, *, scale, out, changes):
        seen.append((experiment.name, scale, out, changes))
        return summary

    monkeypatch.setattr("sdkernels.train.reproduce.reproduce", pretend)
    monkeypatch.setattr("sdkernels.report.build", lambda folder: f"{folder}/report.html")
    arguments = ["reproduce", "feedback-alignment", "--out", str(tmp_path), "--set", "max_steps=1"]
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    assert [name for name, *_ in seen] == [
        f"feedback-alignment/{name}" for name in ("grpo", "refsol", "stepalignfb")
    ]
    assert seen[0][1:] == ("smoke", tmp_path, {"max_steps": 1})
    words = " ".join(out.split())
    assert "ours (8 problems x 12 samples) before after" in words
    # Under the names of the published table below it.
    for name, shown in (("Avg", "25 25"), ("Pass", "75 75"), ("Maj", "50 50")):
        assert f"{name}@12 (%) {shown}" in words
    assert "Pass@8" not in words
    assert "E(y) (markers per response, as published) 3.8 3.8" in words
    assert words.count("CAUTION: smoke scale") == 3
    assert "the embedded model stands in for the critic Qwen/QwQ-32B" in words
    assert out.strip().endswith(f"report: {tmp_path}/feedback-alignment/report.html")


def test_recipes_lists_all_and_shows_one(capsys):
    _, out, _ = run(capsys, "recipes")
    assert all(name in out for name in recipes.names())
    _, out, _ = run(capsys, "recipes", "--show", "opsd")
    assert "entry_clip = 0.05" in out
    assert "2601.18734" in out
    _, out, _ = run(capsys, "recipes", "--show", "cepo")
    assert "contrastive (show=answer, negatives=1)" in out
    assert "per-token inputs that it can do without" in out


def test_env_names_versions_and_the_backend(capsys):
    _, out, _ = run(capsys, "env")
    assert "torch rows, budget for logits 256 MiB" in out
    assert "triton backend" in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["contexts", "--show", "hnit"], ["hnit", "hint"]),
        (["contexts", "--set", "a=1"], ["--set needs --show"]),
        (["contexts", "--show", "hint", "--set", "a"], ["'a'", "KEY=VALUE"]),
        (["recipes", "--show", "gpro"], ["gpro", "grpo"]),
        (["reproduce", "dasd/dsad"], ["dasd/dsad", "dasd/dasd"]),
        (["reproduce", "dasd/dasd", "--scale", "ful"], ["'ful'", "full"]),
        (["reproduce", "dasd/dasd", "--set", "max_step=1"], ["max_step", "max_steps"]),
        (["reproduce", "dasd/dasd", "--show", "--set", "max_step=1"], ["max_step", "max_steps"]),
        (["reproduce", "dasd/dasd", "--set", "max_steps=x"], ["max_steps: expected int, got 'x'"]),
        (["reproduce", "dasd/dasd", "--set", "gate_args={"], ["--set 'gate_args={'", "YAML"]),
        (["contexts", "--show", "hint", "--set", "a=1", "--set", "a=2"], ["'a'", "twice"]),
        ([*TRACES, "--set", "chose=fixed", "--set", "seed=1"], ["chose", "choose"]),
        ([*TRACES, "--set", "seed=1", "--set", "chose=fixed"], ["chose", "choose"]),
        ([*TRACES, "--set", "seed=1", "chose=fixed"], ["chose", "choose"]),
        ([*TRACES, "--set", "choose=fixed", "fixed=007"], ["x.jsonl"]),
        (["train", "--recip", "opsd"], ["--recip", "recipe"]),
        (["train", "--output_dir", "x", "--recipe_args", "beta"], ["recipe_args"]),
        (["train", "--output_dir", "x", "--recipe", "opsdd"], ["opsdd", "opsd"]),
        (
            ["train", "--output_dir", "x", "--recipe_args", "a=1", "--recipe-args=b=2"],
            ["--recipe_args", "twice", "key=value,key=value"],
        ),
        (["train", "--config", "no.yaml"], ["no.yaml"]),
        (["eval", "--dataset", "no.jsonl"], ["no.jsonl"]),
    ],
)
def test_wrong_input_is_one_line_that_names_it_and_status_2(
    capsys, tmp_path, monkeypatch, arguments, parts
):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *arguments)
    last = err.strip().splitlines()[-1]
    assert status == 2, err
    assert last.startswith(f"sdkernels {arguments[0]}: ")
    assert all(part in last for part in parts), last
    assert "Traceback" not in err


def test_tracebacks_on_request(monkeypatch):
    monkeypatch.setenv("SDKERNELS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="hnit"):
        main(["contexts", "--show", "hnit"])


def test_report_of_a_folder_that_is_no_run(capsys, tmp_path):
    status, _, err = run(capsys, "report", str(tmp_path / "nothing"))
    assert status in (1, 2)
    assert "nothing" in err


def test_a_yaml_config_is_read_and_flags_win(capsys, tmp_path, monkeypatch):
    seen = {}

    def pretend(config):
        seen.update(
            steps=config.max_steps, lr=config.learning_rate, model=config.model_name_or_path
        )
        raise RuntimeError("stopped by the test")

    monkeypatch.setattr("sdkernels.train.run.train", pretend)
    file = tmp_path / "run.yaml"
    file.write_text(
        json.dumps({"output_dir": str(tmp_path / "o"), "max_steps": 3, "use_cpu": True})
    )
    status, _, err = run(
        capsys,
        "train",
        "--config",
        str(file),
        "--steps",
        "7",
        "--model",
        "m",
        "--learning_rate=2e-6",
    )
    assert status == 1, err
    assert seen == {"steps": 7, "lr": 2e-6, "model": "m"}


def test_exit_status_of_an_interrupted_run(capsys, monkeypatch, tmp_path):
    from sdkernels.train.errors import Interrupted

    def interrupted(config):
        raise Interrupted("stopped at step 3; resume with ...", signal_number=15)

    monkeypatch.setattr("sdkernels.train.run.train", interrupted)
    status, _, err = run(capsys, "train", "--output_dir", str(tmp_path), "--use_cpu", "true")
    assert status == 128 + 15
    assert "resume with" in err


def test_record_and_columns_show_no_python():
    text = record({"a_b": {"x": None, "y": [1, 2]}, "c": True})
    assert text.split("\n") == ["a b  x=none, y=1, 2", "c    yes"]
    assert columns([("n", "word " * 60)]).count("\n") >= 3
    path = "/runs/a-long-name" * 10
    assert path in columns([("file", f"the file {path}")])
    assert parse_settings(["a=1", "b=null", "c=true", "d=x=y"]) == {
        "a": 1,
        "b": None,
        "c": True,
        "d": "x=y",
    }


def test_a_closed_pipe_ends_quietly():
    """Deterministically: nobody reads from the start."""
    code = "import sys; from sdkernels.cli import main; sys.exit(main(['contexts']))"
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(write_end)
    assert done.returncode == 141
    assert done.stderr == ""


def test_notes_of_other_libraries_stay_out_of_the_terminal():
    script = (
        "import logging, sys\n"
        "from sdkernels.cli import main\n"
        "main(['recipes'])\n"
        "logging.getLogger('matplotlib').info('a font cache was made')\n"
        "logging.getLogger('matplotlib').warning('a font is missing')\n"
        "logging.getLogger('sdkernels').info('torch rows')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "a font is missing\ntorch rows\n"
