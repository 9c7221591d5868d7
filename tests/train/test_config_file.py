"""YAML files and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdkernels.train.config_file import base_chain, parse_config, read_yaml, write_yaml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        "learning_rate: 1e-6\n"  # text to YAML 1.1, a number to everybody else
        "recipe: dasd\n"
        "recipe_args: {beta: 1e-1}\n"
        "lora_target_modules: [q_proj, v_proj]\n"
        "use_cpu: true\n"
        "num_generations: 3\n"
    )
    return path


def test_flags_win_over_the_file(file):
    config = parse_config(["--config", str(file), "--num_generations", "5", "--max-steps", "2"])
    assert config.learning_rate == 1e-6
    assert config.recipe_args == {"beta": 0.1}
    assert config.lora_target_modules == ["q_proj", "v_proj"]
    assert (config.num_generations, config.max_steps, config.use_cpu) == (5, 2, True)


def test_mappings_and_switches_as_flags():
    config = parse_config(
        [
            "--context_args=show_thinking=false,rate=1e-3",
            "--recipe_args",
            '{"beta": 0.5}',
            "--no_disable_dropout",
            "--use_cpu",
        ]
    )
    assert config.context_args == {"show_thinking": False, "rate": 0.001}
    assert config.recipe_args == {"beta": 0.5}
    assert not config.disable_dropout


def test_a_written_file_gives_the_same_run(tmp_path, file):
    config = parse_config(["--config", str(file), "--output_dir", str(tmp_path / "out")])
    copy = tmp_path / "copy.yaml"
    write_yaml(config, copy)
    again = parse_config(["--config", str(copy)])
    assert again.changed() == config.changed()
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("place", ["flag", "file"])
def test_a_context_that_is_named_at_its_default_is_kept(tmp_path, place):
    named = tmp_path / "named.yaml"
    named.write_text("recipe: rosd\nuse_cpu: true\ncontext: reference_solution\n")
    silent = tmp_path / "silent.yaml"
    silent.write_text("recipe: rosd\nuse_cpu: true\n")
    arguments = ["--config", str(named if place == "file" else silent)]
    flags = ["--context", "reference_solution"] if place == "flag" else []
    config = parse_config(arguments + flags)
    assert config.context == "reference_solution"
    copy = tmp_path / "copy.yaml"
    write_yaml(config, copy)
    assert parse_config(["--config", str(copy)]).context == "reference_solution"
    assert parse_config(["--config", str(silent)]).context == "self_reflection"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "unknown setting --learning_rat; did you mean learning_rate"),
        (["--xyzzy", "1"], "unknown setting --xyzzy; `sdkernels train --help` lists them all"),
        (["stray"], "unexpected argument 'stray'"),
        (["--num_generations", "many"], "invalid int value: 'many'"),
        (["--recipe"], "--recipe: expected one argument"),
        (["--max_step", "2"], "unknown setting --max_step; did you mean max_steps"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
    ],
)
def test_wrong_flags_get_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipee: grpo", "unknown setting 'recipee'; did you mean recipe"),
        ("- a\n- b", "expected `name: value` lines, got a list"),
        ("a: [", "not valid YAML"),
        ("recipe: opsd\nrecipe: dasd", "key 'recipe' stands in line 1 and again in line 2"),
        ("num_generations: {a: 1}", "num_generations: expected int, got a mapping"),
        ("num_generations: many", "invalid int value"),
        ("num_generations: 2.5", "num_generations: expected int, got 2.5"),
        ("recipe: [a]", "recipe: expected str, got"),
        ("disable_dropout: 3", "disable_dropout: expected bool, got 3"),
    ],
)
def test_wrong_files_get_one_line(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(["--config", str(path)])
    assert "\n" not in str(caught.value)


def test_an_empty_file_changes_nothing(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_file_replaces_what_its_bases_say(tmp_path):
    write(
        tmp_path,
        a="recipe: grpo\nnum_generations: 4\nrecipe_args: {clip_low: 0.1, clip_high: 0.3}\n"
        "published: {source: x}",
        b="base: a.yaml\nrecipe: opsd\nrecipe_args: {beta: 0.5}\nsteps: 7",
        c="base: b.yaml\nnum_generations: 2",
    )
    assert read_yaml(tmp_path / "c.yaml") == {
        "recipe": "opsd",
        "recipe_args": {"beta": 0.5},
        "num_generations": 2,
        "max_steps": 7,
    }
    assert [path.stem for path, _ in base_chain(tmp_path / "c.yaml")] == ["c", "b", "a"]
    config = parse_config(["--config", str(tmp_path / "c.yaml"), "--num_generations", "3"])
    assert (config.num_generations, config.recipe) == (3, "opsd")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: b.yaml"}, "a.yaml: base='b.yaml': there is no such file in"),
        ({"a": "base: [b.yaml]"}, r"base=\['b.yaml'\]: there is no such file"),
        ({"a": "base: a.yaml"}, "its bases go in a circle: a.yaml -> a.yaml"),
        ({"a": "base: b.yaml", "b": "base: a.yaml"}, "a circle: a.yaml -> b.yaml -> a.yaml"),
        ({"a": "base: b.yaml", "b": "recipee: x"}, "b.yaml: unknown setting 'recipee'"),
        ({"a": "publisheds: x"}, "unknown setting 'publisheds'; did you mean published"),
    ],
)
def test_wrong_bases_get_one_line(tmp_path, files, message):
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
