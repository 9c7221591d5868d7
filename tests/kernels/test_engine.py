"""The engine on the Triton rows: whole losses against the torch rows in float64."""

import ast
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.logit_problems import DEVICE

import sdkernels as sd
from sdkernels import rows
from sdkernels.testing import assert_close_to_reference, input_families

TOKENS, HIDDEN, VOCAB = 9, 32, 700


def _loss(dtype: torch.dtype, backend: str, kind: str, **more: Any) -> dict[str, torch.Tensor]:
    """Loss, statistics and gradients of one problem, rounded to float32, computed in `dtype`."""
    inputs = input_families()["small_random"](TOKENS, HIDDEN, VOCAB, dtype=torch.float32)
    inputs = inputs.to(DEVICE).to(dtype)
    hidden = inputs.hidden_TD.clone().requires_grad_()
    weight = inputs.weight_VD.clone().requires_grad_()
    bias = torch.linspace(-1, 1, VOCAB, device=DEVICE, dtype=dtype).requires_grad_()
    head = sd.LMHead(weight, bias, softcap=20.0)
    ids = torch.arange(TOKENS * 3, device=DEVICE).reshape(TOKENS, 3) % VOCAB
    teacher: Any = sd.HiddenTeacher(inputs.teacher_hidden_TD, inputs.teacher_weight_VD)
    if kind == "shared head":
        frozen = sd.LMHead(weight.detach(), bias.detach(), softcap=20.0)
        teacher = sd.HiddenTeacher(inputs.teacher_hidden_TD, frozen)
    elif kind == "logits":
        teacher = sd.LogitsTeacher(inputs.teacher_logits())
    elif kind == "top-k":
        logp = inputs.teacher_logits().log_softmax(-1).topk(5)
        teacher = sd.TopKTeacher(logp.indices, logp.values)

    def loss_fn(s: sd.TokenStats, tok: Any) -> torch.Tensor:
        value = tok.sign * s.kl_teacher_student + 0.3 * s.jsd - 0.1 * s.entropy
        return value + (s.logp * s.logp).mean(-1) + 0.2 * s.kl_student_teacher

    sign = torch.linspace(-1, 1, TOKENS, device=DEVICE, dtype=dtype)
    loss, stats = sd.token_loss(
        hidden,
        head,
        loss_fn,
        targets=ids,
        teacher=teacher,
        tokens={"sign": sign},
        jsd_beta=0.4,
        mask=torch.arange(TOKENS, device=DEVICE) != 4,
        backend=backend,
        **more,
    )
    loss.backward()
    found = {"loss": loss.detach(), **dict(stats.items())}
    for name, leaf in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        assert leaf.grad is not None
        found[f"gradient of {name}"] = leaf.grad
    return found


@pytest.mark.parametrize("kind", ["own head", "shared head", "logits", "top-k"])
def test_a_loss_agrees_with_the_oracle(kind: str) -> None:
    found = _loss(torch.float32, "triton", kind)
    exact = _loss(torch.float64, "torch", kind)
    plain = _loss(torch.float32, "torch", kind)
    assert found.keys() == exact.keys()
    for name, value in found.items():
        if not value.is_floating_point():
            assert torch.equal(value, exact[name])
            continue
        what = "gradient" if name.startswith("gradient") else "value"
        assert_close_to_reference(value, exact[name], plain[name], kind=what, name=name)


def test_statistics_do_not_depend_on_the_chunks() -> None:
    """On equal logits, that is: a product of another number of rows may sum in another order."""
    inputs = input_families()["small_random"](TOKENS, HIDDEN, VOCAB, dtype=torch.float32)
    logits = inputs.teacher_logits().to(DEVICE)
    identity = torch.eye(VOCAB, device=DEVICE)
    results = [
        sd.token_stats(
            logits,
            identity,
            teacher=sd.LogitsTeacher(logits.flip(0)),
            jsd_beta=0.5,
            chunk_bytes=chunk_bytes,
            backend="triton",
        )
        for chunk_bytes in (400_000, 10_000_000)
    ]
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_bfloat16_gradients_are_written_narrow() -> None:
    found = _loss(torch.bfloat16, "triton", "own head")
    plain = _loss(torch.bfloat16, "torch", "own head")
    for name in ("gradient of hidden", "gradient of weight", "gradient of bias"):
        assert found[name].dtype == torch.bfloat16
        error = (found[name] - plain[name]).float().norm() / plain[name].float().norm()
        assert error < 0.02


def test_shortcuts_run_on_the_triton_rows() -> None:
    inputs = input_families()["small_random"](TOKENS, HIDDEN, VOCAB, dtype=torch.float32).to(DEVICE)
    ids = torch.arange(TOKENS, device=DEVICE)
    found = sd.linear_logprob(inputs.hidden_TD, inputs.weight_VD, ids, backend="triton")
    expected = inputs.logits().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    torch.testing.assert_close(found, expected)


# --- which backend runs -----------------------------------------------------------------------


def test_float64_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"float64.*'torch'"):
        _loss(torch.float64, "triton", "own head")


def test_auto_says_once_which_backend_runs_and_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rows, "_announced", set())
    with caplog.at_level(logging.INFO, "sdkernels"):
        for _ in range(2):
            found = rows.resolve_backend("auto", DEVICE)
    assert found.name == ("torch" if DEVICE.type == "cpu" else "triton")
    assert len(caplog.records) == 1
    assert DEVICE.type in caplog.text


def test_auto_says_so_after_the_same_rows_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rows, "_announced", set())
    name = rows.resolve_backend("auto", DEVICE).name
    rows._announced.clear()
    caplog.clear()  # the logger's level may be that of the command line already
    with caplog.at_level(logging.INFO, "sdkernels"):
        rows.resolve_backend(name, DEVICE)
        rows.resolve_backend("auto", DEVICE)
    assert [record.args[2] == "asked for" for record in caplog.records] == [True, False]


def test_float64_teacher_logits_are_refused_by_name() -> None:
    teacher = sd.LogitsTeacher(torch.randn(2, 20, dtype=torch.float64, device=DEVICE))
    hidden, weight = torch.randn(2, 8, device=DEVICE), torch.randn(20, 8, device=DEVICE)
    with pytest.raises(TypeError, match=r"teacher\.logits has dtype float64: the Triton rows"):
        sd.token_stats(hidden, weight, teacher=teacher, backend="triton")


@pytest.mark.parametrize(
    ("version", "complaint"), [("3.5.1", "too old"), (None, "not installed"), ("3.6.0", None)]
)
def test_a_forced_backend_that_cannot_run_says_why(
    version: str | None, complaint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version is None:
        monkeypatch.setitem(sys.modules, "triton", None)
    else:
        monkeypatch.setattr("triton.__version__", version)
    if complaint is None:
        assert rows.resolve_backend("triton", DEVICE).name == "triton"
        return
    with pytest.raises(ValueError, match=f"backend='triton' cannot run: .*{complaint}"):
        rows.resolve_backend("triton", DEVICE)
    assert rows.resolve_backend("auto", DEVICE).name == "torch"


OTHER_TRITON = """
import importlib.machinery, sys
class First:
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            return importlib.machinery.PathFinder.find_spec(name, [sys.argv[1]])
sys.meta_path.insert(0, First())
import torch, sdkernels as sd
print(sd.token_stats(torch.ones(2, 3), torch.ones(4, 3)).entropy.tolist())
try:
    sd.token_stats(torch.ones(2, 3), torch.ones(4, 3), backend="triton")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "what is imported as triton is not Triton, but <module 'triton'"),
        ("raise ImportError('libcuda.so is odd')", "fails with ImportError: libcuda.so is odd"),
        ("from . import lost", "fails with ImportError: cannot import name 'lost'"),
        ("import lost", "fails with ModuleNotFoundError: No module named 'lost'"),
    ],
)
def test_something_else_named_triton_leaves_the_cpu_alone(
    content: str | None, complaint: str, tmp_path: Path
) -> None:
    """A folder of that name (without content), or a package that does not import."""
    (tmp_path / "triton").mkdir()
    if content is not None:
        (tmp_path / "triton" / "__init__.py").write_text(content)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OTHER_TRITON, str(tmp_path)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values, message = done.stdout.splitlines()
    assert ast.literal_eval(values) == pytest.approx([math.log(4)] * 2, rel=1e-6)
    assert message.startswith("backend='triton' cannot run: ")
    assert complaint in message


def test_cpu_tensors_need_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="CPU"):
        rows.resolve_backend("triton", torch.device("cpu"))
    with pytest.raises(ValueError, match="mps"):
        rows.resolve_backend("triton", torch.device("mps"))
