"""The paper count against reality: products as torch counts them, chunks of the real planner,
launches and bytes as the kernels get them.
"""

import importlib
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import sdkernels as sd
from sdkernels.engine import arguments
from sdkernels.engine.chunks import ChunkPlan
from sdkernels.engine.plan import LossPlan, plan_loss
from sdkernels.kernels import gradient, merge, mixture, rescale, statistics
from sdkernels.kernels.launch import Logits
from sdkernels.rows import slab_columns, triton_rows

T, D, V = 7, 16, 300
KL = ("kl_teacher_student",)
# An in-place product is an operator of its own for torch's counter.
IN_PLACE = {
    torch.ops.aten.addmm_: lambda total, a, b, *args, out_shape=None, **more: 2 * a[0] * a[1] * b[1]
}


def _run(
    uses: tuple[str, ...] = KL,
    *,
    teacher: str | None = "hidden",
    shared_head: bool = False,
    trainable_head: bool = True,
    trainable_hidden: bool = True,
    dtype: torch.dtype = torch.float32,
    slab_dtype: str = "float32",
    chunk_bytes: int | None = None,
    backend: str = "torch",
) -> None:
    """The `token_loss` that `plan_loss` with these arguments describes."""
    hidden = torch.randn(T, D).to(dtype).requires_grad_(trainable_hidden)
    weight = torch.randn(V, D).to(dtype).requires_grad_(trainable_head)
    who: Any = None
    if teacher == "hidden":
        own = weight.detach() if shared_head else torch.randn(V, D).to(dtype)
        who = sd.HiddenTeacher(torch.randn(T, D).to(dtype), own)
    elif teacher == "logits":
        who = sd.LogitsTeacher(torch.randn(T, V).to(dtype))
    loss, _ = sd.token_loss(
        hidden,
        weight,
        lambda s, tok: sum(s[name].sum(-1) if name == "topk_logp" else s[name] for name in uses),
        targets=torch.arange(T) if "logp" in uses else None,
        teacher=who,
        jsd_beta=0.5 if "jsd" in uses else None,
        topk=5 if "topk_logp" in uses else None,
        slab_dtype=slab_dtype,
        chunk_bytes=chunk_bytes,
        backend=backend,
    )
    if loss.requires_grad:
        loss.backward()


@pytest.mark.parametrize(
    ("settings", "tdv"),
    [
        ({}, 8),
        ({"trainable_head": False}, 6),
        ({"teacher": "logits"}, 6),
        ({"teacher": None, "uses": ("logp", "entropy")}, 6),
        ({"teacher": None, "uses": ("logp",), "trainable_head": False}, 4),
        ({"trainable_head": False, "trainable_hidden": False}, 4),
        ({"shared_head": True}, 8),
    ],
)
def test_products_cost_what_torch_counts(settings: dict[str, Any], tdv: int) -> None:
    plan = plan_loss(T, D, V, **settings)
    assert plan.gemm_flops == tdv * T * D * V
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        _run(**settings)
    assert counter.get_total_flops() == plan.gemm_flops


SETTINGS: list[dict[str, Any]] = [
    {},
    {"uses": ("logp", "entropy"), "teacher": None},
    {"uses": ("jsd",), "dtype": torch.bfloat16},
    {"uses": ("kl_student_teacher", "logp"), "teacher": "logits"},
    {"slab_dtype": "model", "dtype": torch.bfloat16, "teacher": "logits"},
    {"trainable_head": False, "trainable_hidden": False},
    {"uses": ("entropy",), "dtype": torch.float16},
    {"uses": ("topk_logp",)},
    {"uses": ("topk_logp", "jsd"), "slab_dtype": "model", "dtype": torch.bfloat16},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_chunks_launches_and_bytes_are_those_of_a_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, moved, problems = _watch(monkeypatch)
    settings = {"dtype": torch.float32, "chunk_bytes": 24_000, **settings}
    _run(**settings, backend="triton")
    plan = plan_loss(T, D, V, **settings)
    assert problems[0].plan == plan.chunks
    chunks = len(plan.chunks.ranges)
    assert chunks > 1
    expected = {name: chunks * count for name, count in plan.launches_per_chunk.items()}
    del expected["product"]  # on the CPU some are taken a slice at a time
    if "rescale" in expected:
        expected["rescale"] -= 1  # before the first chunk there is nothing to multiply
    assert launched == expected
    assert moved == {
        name: T * V * count for name, count in plan.bytes_per_logit.items() if name != "products"
    }
    slab = problems[0].slabs()
    narrow = problems[0].spec.gradient_dtype
    beside = narrow is not None and narrow != slab.dtype and "gradient" in launched
    extra = plan.chunks.chunk_tokens * slab_columns(V) * 2 if beside else 0
    assert plan.slab_bytes == slab.untyped_storage().nbytes() + extra


def _watch(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter, Counter, list[Any]]:
    """Count what is launched, what the passes are given to read and write, and see the problem."""
    launched: Counter = Counter()
    moved: Counter = Counter()
    problems: list[Any] = []

    class Counting:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: Any) -> Any:
            launched[self.name] += 1
            return self.kernel[grid]

    for module, names in (
        (statistics, ("statistics",)),
        (merge, ("merge",)),
        (mixture, ("mixture", "merge_mixture")),
        (gradient, ("gradient", "chosen", "put")),
        (rescale, ("rescale",)),
    ):
        for name in names:
            kernel = f"{name}_kernel"
            monkeypatch.setattr(module, kernel, Counting(name, getattr(module, kernel)))

    def watched(name: str, function: Any) -> Any:
        def run(*given: Any, **more: Any) -> Any:
            logits = [part.raw_CV for part in given if isinstance(part, Logits)]
            if name == "gradient":
                pair = any(key in gradient.PAIR_STATISTICS for key in given[3])
                moved[name] += given[4].nbytes
                logits = logits if pair else logits[:1]
            moved[name] += sum(part.nbytes for part in logits)
            return function(*given, **more)

        return run

    for name, attribute in (
        ("statistics", "partial_statistics"),
        ("mixture", "mixture_statistics"),
        ("gradient", "logit_gradient"),
    ):
        function = getattr(triton_rows, attribute)
        monkeypatch.setattr(triton_rows, attribute, watched(name, function))

    take = torch.Tensor.topk

    def topk(rows: torch.Tensor, *given: Any, **more: Any) -> Any:
        launched["topk"] += 1
        slab = problems[-1].slabs().itemsize
        copied = 0 if slab == rows.itemsize else slab + rows.itemsize
        moved["topk"] += rows.numel() * (copied + rows.itemsize)
        return take(rows, *given, **more)

    monkeypatch.setattr(torch.Tensor, "topk", topk)

    def build(*given: Any, **more: Any) -> Any:
        problems.append(arguments.build_problem(*given, **more))
        return problems[-1]

    # The package names the function like the module.
    module = importlib.import_module("sdkernels.engine.token_loss")
    monkeypatch.setattr(module, "build_problem", build)
    return launched, moved, problems


def test_a_kl_in_bfloat16_moves_26_bytes_a_logit_at_shape_a() -> None:
    plan = plan_loss(8192, 4096, 151936)
    assert sum(plan.bytes_per_logit.values()) == 26
    assert plan.moved_bytes == 26 * 8192 * 151936
    assert plan.gemm_flops == 8 * 8192 * 4096 * 151936
    assert plan.slab_bytes <= plan.chunk_bytes == int(0.025 * 141e9)
    assert plan.launches == len(plan.chunks.ranges) * 7


def test_a_plan_for_any_number_of_tokens_makes_no_list_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(ChunkPlan, "ranges")  # a tuple for each of half a billion chunks
    plan = plan_loss(10**12, 4096, 151936)
    assert plan.launches == 7 * plan.chunks.count
    assert plan.chunks.count > 10**8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_launches_count_each_product_once(dtype: torch.dtype) -> None:
    plan: LossPlan = plan_loss(100, 64, 20_000, dtype=dtype, chunk_bytes=1_000_000)
    assert plan.launches_per_chunk["product"] == 4
    half = dtype == torch.float16
    assert plan.launches_per_chunk.get("rescale", 0) == half
    assert plan.launches == plan.chunks.count * (7 + half) - half
    frozen = plan_loss(100, 64, 20_000, dtype=dtype, trainable_head=False)
    assert "rescale" not in frozen.launches_per_chunk
    shared = plan_loss(100, 64, 20_000, dtype=dtype, shared_head=True)
    assert shared.launches_per_chunk["product"] == 3


def test_a_topk_is_found_some_rows_at_a_time() -> None:
    plan = plan_loss(8192, 4096, 151936, uses=("topk_logp",))
    assert plan.launches_per_chunk["topk"] == -(-plan.chunks.chunk_tokens // (2**21 // 151936))
    assert sum(plan.bytes_per_logit.values()) == 26


def test_a_teacher_of_another_size_costs_its_own_product() -> None:
    plan = plan_loss(10, 64, 300, teacher_hidden_size=100)
    assert plan.gemm_flops == 2 * 10 * 300 * (3 * 64 + 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uses": ("kl",)}, r"uses=\('kl',\): expected one or more of logp"),
        ({"uses": ()}, "expected one or more"),
        ({"teacher": None}, "kl_teacher_student needs a teacher"),
        ({"teacher": "topk"}, "'hidden', 'logits' and None"),
        ({"dtype": torch.float64}, "accepted are torch.bfloat16"),
        ({"slab_dtype": "half"}, "'float32' and 'model'"),
        ({"shared_head": True, "teacher": "logits"}, "shared_head=True needs"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_loss(10, 64, 300, **settings)
