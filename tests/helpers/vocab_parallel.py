"""One process of a vocabulary-parallel group: every check against the whole vocabulary in this
process alone. `python vocab_parallel.py RANK WORLD STORE` writes `{check: "ok" or what failed}` as
its last line.

Shape letters: T tokens, D hidden, V vocabulary, K ids a token.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import sdkernels as sd
from sdkernels.engine.stats import DIFFERENTIABLE

T, D, D_TEACHER, V = 9, 6, 5, 41
# Uneven slices, none of them a multiple of anything.
BOUNDS = {2: (0, 13, V), 4: (0, 3, 17, 18, V)}
FULL = {"logp", "entropy", "lse", "kl_teacher_student", "kl_student_teacher"}
PLAIN: dict[str, Any] = {"teacher": "own", "ids": 3, "jsd_beta": 0.3, "entry_clip": 0.02}
CASES: dict[str, dict[str, Any]] = {
    "everything": {**PLAIN, "topk": 5, "bias": True, "masked": True, "temperature": 0.7},
    "chunks": {**PLAIN, "chunk_bytes": 16_000},
    "softcap": {**PLAIN, "softcap": 3.0, "scale": 1.3, "teacher_temperature": 2.0},
    "top-k of the teacher": {"teacher": "own", "ids": 1, "topk": 20, "topk_of": "teacher"},
    "shared head": {**PLAIN, "teacher": "shared", "bias": True},
    "teacher logits": {**PLAIN, "teacher": "logits", "masked": True},
    "served teacher": {"teacher": "served", "ids": 1, "jsd_beta": 0.4},
    "student alone": {"ids": 1, "bias": True},
    "padding": {**PLAIN, "valid_vocab": V - 4, "topk": 3},
    "banned slice": {**PLAIN, "bias": True, "ban": (0, 15), "topk": 30},
    "no token": {**PLAIN, "nothing": True},
}


class World:
    """The whole problem, and this rank's slice of it."""

    def __init__(self, rank: int, world: int, dtype: torch.dtype, case: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.case, self.dtype = case, dtype
        self.bounds = BOUNDS[world]
        self.rows = slice(self.bounds[rank], self.bounds[rank + 1])
        self.hidden = normal(T, D)
        self.weight, self.bias = normal(V, D), normal(V)
        self.teacher_hidden, self.teacher_weight = normal(T, D_TEACHER), normal(V, D_TEACHER)
        self.logits = normal(T, V) * 2
        if "ban" in case:
            self.bias[slice(*case["ban"])] = -torch.inf
        self.upstream = {name: normal(T, 64) for name in DIFFERENTIABLE}
        self.ids = torch.randint(V - 4, (T, case.get("ids", 1)), generator=generator)
        self.ids = torch.where(self.ids < case.get("ban", (0, 0))[1], self.ids % 4 + 20, self.ids)

    def head(self, split: bool, weight: Tensor, bias: Tensor | None) -> sd.LMHead:
        settings = {
            name: self.case[name]
            for name in ("scale", "softcap", "valid_vocab")
            if name in self.case
        }
        if split:
            settings |= {"group": dist.group.WORLD, "vocab_offset": self.rows.start}
        return sd.LMHead(weight, bias, **settings)

    def leaves(self, split: bool) -> dict[str, Tensor]:
        """Hidden states, weight and bias that want a gradient."""
        rows = self.rows if split else slice(None)
        leaves = {"hidden": self.hidden.clone(), "weight": self.weight[rows].clone()}
        if self.case.get("bias"):
            leaves["bias"] = self.bias[rows].clone()
        return {name: leaf.requires_grad_() for name, leaf in leaves.items()}

    def teacher(self, split: bool, leaves: dict[str, Tensor]) -> Any:
        rows = self.rows if split else slice(None)
        kind = self.case.get("teacher")
        if kind == "own":
            head = self.head(split, self.teacher_weight[rows].clone(), None)
            return sd.HiddenTeacher(self.teacher_hidden, head)
        if kind == "shared":
            bias = leaves["bias"].detach()
            return sd.HiddenTeacher(
                self.hidden.flip(0), self.head(split, leaves["weight"].detach(), bias)
            )
        if kind == "logits":
            return sd.LogitsTeacher(self.logits[:, rows])
        if kind == "served":
            best = self.logits.log_softmax(-1).topk(6)
            return sd.TopKTeacher(best.indices, best.values)
        return None

    def settings(self) -> dict[str, Any]:
        names = ("jsd_beta", "entry_clip", "topk", "topk_of", "temperature", "teacher_temperature")
        found = {name: self.case[name] for name in (*names, "chunk_bytes") if name in self.case}
        ids = self.ids.squeeze(-1) if self.case.get("ids", 1) == 1 else self.ids
        found["targets"] = ids
        if self.case.get("masked"):
            found["mask"] = torch.arange(T) % 3 != 1
        if self.case.get("nothing"):
            found["mask"] = torch.zeros(T, dtype=torch.bool)
        return found

    def weigh(self, name: str, value: Tensor, rows: Tensor) -> Tensor:
        """A random number per token and statistic; infinite statistics get no weight."""
        columns = value if value.dim() > 1 else value[:, None]
        weights = self.upstream[name][rows, : columns.shape[1]]
        return torch.where(columns.isfinite(), columns * weights, 0.0).sum(-1)

    def run(self, split: bool, how: str, backend: str = "torch") -> dict[str, Tensor]:
        """Loss, statistics and gradients of the slice's rows."""
        leaves = self.leaves(split)
        if how == "frozen":
            leaves["weight"].requires_grad_(False)
        head = self.head(split, leaves["weight"], leaves.get("bias"))
        settings = {**self.settings(), "teacher": self.teacher(split, leaves), "backend": backend}

        def loss_fn(s: Any, tok: Any) -> Tensor:
            parts = [self.weigh(n, s[n], tok.row) for n in DIFFERENTIABLE if n in s]
            return torch.stack(parts).sum(0)

        if how == "loss":
            loss, stats = sd.token_loss(
                leaves["hidden"], head, loss_fn, tokens={"row": torch.arange(T)}, **settings
            )
        elif how == "frozen":
            name = "logp" if settings["teacher"] is None else "kl_student_teacher"
            loss = self._shortcut(leaves["hidden"], head, settings, name)
            stats = sd.TokenStats({})
        else:
            stats = sd.token_stats(leaves["hidden"], head, **settings)
            every = torch.arange(T)
            loss = torch.stack(
                [self.weigh(n, stats[n], every).sum() for n in DIFFERENTIABLE if n in stats]
            ).sum()
        loss.backward()
        found = {"loss": loss.detach(), **{n: v.detach() for n, v in stats.items()}}
        rows = slice(None) if split else self.rows
        for name, leaf in leaves.items():
            if leaf.requires_grad:
                assert leaf.grad is not None
                found[f"d {name}"] = leaf.grad if name == "hidden" else leaf.grad[rows]
        return found

    def _shortcut(self, hidden: Tensor, head: Any, settings: dict[str, Any], name: str) -> Tensor:
        given = {key: settings[key] for key in ("mask", "temperature") if key in settings}
        if name == "logp":
            logp = sd.linear_logprob(hidden, head, self.ids[:, 0], **given)
            return (logp * self.upstream["logp"][:, 0]).sum()
        value = sd.linear_divergence(hidden, head, settings["teacher"], name, **given)
        return torch.where(value.isfinite(), value * self.upstream["jsd"][:, 0], 0.0).sum()


def check_case(rank: int, world: int, case: dict[str, Any], how: str) -> None:
    """Equal to the whole vocabulary in one process, to 1e-12."""
    problem = World(rank, world, torch.float64, case)
    if how == "frozen" and case.get("teacher") == "served":
        return
    found, expected = problem.run(True, how), problem.run(False, how)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        right = expected[name]
        if name == "topk_ids":
            kept = value[value.any(-1)]  # all 0 where the mask left a token out
            assert all(len(set(row.tolist())) == len(row) for row in kept), "an id comes twice"
        if "topk" in name:
            # Banned ids come in any order.
            finite = expected["topk_logp"].isfinite()
            value, right = value[finite], right[finite]
        _close(name, value, right, 1e-12)
    replicated = [value for name, value in found.items() if name not in ("d weight", "d bias")]
    flat = torch.cat([value.double().reshape(-1) for value in replicated]).nan_to_num(7.0)
    everywhere = [torch.empty_like(flat) for _ in range(world)]
    dist.all_gather(everywhere, flat)
    assert all(torch.equal(other, flat) for other in everywhere), "ranks disagree"


def check_triton(rank: int, world: int, how: str, dtype: torch.dtype) -> None:
    """The Triton rows, in float32 or float16, against one process in float64."""
    # Several chunks in float16, whose sums of gradients may change their unit.
    case = {**PLAIN, "topk": 4, "masked": True, "bias": True, "chunk_bytes": 16_000}
    found = World(rank, world, dtype, case).run(True, how, "triton")
    # The same inputs: those of float64 are not rounded to them.
    rounded = World(rank, world, dtype, case)
    exact_inputs = World(rank, world, torch.float64, case)
    for name, value in vars(rounded).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(exact_inputs, name, value.double())
    exact_inputs.upstream = {n: v.double() for n, v in rounded.upstream.items()}
    exact = exact_inputs.run(False, how)
    for name, value in found.items():
        half = dtype == torch.float16 and name.startswith("d ")
        _close(name, value.to(exact[name].dtype), exact[name], 4e-3 if half else 2e-5)


def check_compiled(rank: int, world: int) -> None:
    """The rows through torch.compile, in float64: the same sums are joined."""
    case = {**PLAIN, "topk": 4, "masked": True, "bias": True}
    problem = World(rank, world, torch.float64, case)
    found, expected = problem.run(True, "loss", "compiled"), problem.run(False, "loss")
    for name, value in found.items():
        _close(name, value, expected[name], 1e-12)


def check_fused(rank: int, world: int) -> None:
    """Statistics without logits in memory, on a split head."""
    problem = World(rank, world, torch.float32, {"ids": 3, "bias": True})
    results = []
    for split, more in (
        (True, {"backend": "triton", "slab_free": True}),
        (False, {"backend": "torch"}),
    ):
        leaves = problem.leaves(split)
        head = problem.head(split, leaves["weight"], leaves["bias"])
        with torch.no_grad():
            stats = sd.token_stats(leaves["hidden"], head, targets=problem.ids, **more)
        results.append(dict(stats.items()))
    for name, value in results[0].items():
        _close(name, value, results[1][name], 2e-5)


def _close(name: str, value: Tensor, right: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(
        value,
        right,
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
        msg=lambda message: f"{name}: {message}",
    )


def check_recipe(rank: int, world: int, name: str) -> None:
    """A recipe as it comes, on a split head."""
    problem = World(rank, world, torch.float64, {"teacher": "own", "ids": 1})
    recipe = sd.recipes.get(name)
    generator = torch.Generator().manual_seed(2)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(T, generator=generator, dtype=torch.float64)

    tokens = {
        "weight": uniform(0.5, 1.5),
        "adv": uniform(-1, 1),
        "old_logp": uniform(-4, -3),
        "success": (uniform(0, 1) > 0.5).double(),
        "second_teacher_logp": uniform(-4, -2),
        "gap_scale": uniform(0.5, 1.5),
    }
    gate = sd.gates.DirectionAdaptive(rho=0.2, min_tokens=1) if "gate" in recipe.needs else None
    results = []
    for split in (True, False):
        leaves = problem.leaves(split)
        head = problem.head(split, leaves["weight"], None)
        loss, _ = sd.token_loss(
            leaves["hidden"],
            head,
            recipe.loss_fn,
            targets=problem.ids.squeeze(-1),
            teacher=problem.teacher(split, leaves),
            tokens=tokens,
            gate=gate,
            **recipe.engine,
        )
        loss.backward()
        weight_grad, hidden_grad = leaves["weight"].grad, leaves["hidden"].grad
        assert weight_grad is not None
        assert hidden_grad is not None
        results.append(
            [loss.detach(), hidden_grad, weight_grad if split else weight_grad[problem.rows]]
        )
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def check_collectives(rank: int, world: int) -> None:
    """One gather a chunk and one sum for the hidden gradient; besides the gather of the check that
    all ranks train the same, which CPU calls make.
    """
    counted: list[str] = []
    problem = World(rank, world, torch.float64, {**PLAIN, "chunk_bytes": 16_000})
    leaves = problem.leaves(True)
    head, teacher = problem.head(True, leaves["weight"], None), problem.teacher(True, leaves)
    gather, add = dist.all_gather_into_tensor, dist.all_reduce
    dist.all_gather_into_tensor = lambda *a, **k: (counted.append("gather"), gather(*a, **k))[1]
    dist.all_reduce = lambda *a, **k: (counted.append("sum"), add(*a, **k))[1]
    chunks: list[int] = []

    def loss_fn(s: Any, tok: Any) -> Tensor:
        return s.kl_teacher_student

    build = sys.modules["sdkernels.engine.token_loss"].build_problem  # type: ignore[attr-defined]

    def watched(*given: Any, **more: Any) -> Any:
        found = build(*given, **more)
        chunks.append(len(found.plan.ranges))
        return found

    sys.modules["sdkernels.engine.token_loss"].build_problem = watched  # type: ignore[attr-defined]
    try:
        sd.token_loss(leaves["hidden"], head, loss_fn, teacher=teacher, chunk_bytes=16_000)
    finally:
        dist.all_gather_into_tensor, dist.all_reduce = gather, add
        sys.modules["sdkernels.engine.token_loss"].build_problem = build  # type: ignore[attr-defined]
    assert chunks[0] > 1
    assert counted == ["gather"] + ["gather", "sum"] * chunks[0], (chunks, counted)


def check_errors(rank: int, world: int) -> None:
    """Every rank gets the same error, so that none waits for the others."""
    bounds = BOUNDS[world]
    rows = bounds[rank + 1] - bounds[rank]
    weight, group = torch.randn(rows, D), dist.group.WORLD

    def refused(message: str, run: Callable[[], object]) -> None:
        try:
            run()
        except (ValueError, TypeError) as error:
            found = str(error)
        else:
            found = "nothing"
        assert re.search(message, found), f"{found}, expected {message!r}"

    refused("with group=: expected the vocabulary id", lambda: sd.LMHead(weight, group=group))
    refused(
        "overlap", lambda: sd.LMHead(weight, group=group, vocab_offset=max(bounds[rank] - 1, 0))
    )
    refused(
        "leave a gap", lambda: sd.LMHead(weight, group=group, vocab_offset=bounds[rank] + 2 * rank)
    )
    wide = torch.randn(rows, D + rank)
    refused("hidden sizes by rank", lambda: sd.LMHead(wide, group=group, vocab_offset=bounds[rank]))
    refused(
        "would hold padding only",
        lambda: sd.LMHead(weight, group=group, vocab_offset=bounds[rank], valid_vocab=2),
    )
    refused(
        "from 1 to V = 41",
        lambda: sd.LMHead(weight, group=group, vocab_offset=bounds[rank], valid_vocab=99),
    )
    flags = str([other == 1 for other in range(world)])
    refused(
        re.escape(f"weight.requires_grad by rank is {flags}"),
        lambda: sd.LMHead(
            weight.clone().requires_grad_(rank == 1), group=group, vocab_offset=bounds[rank]
        ),
    )
    bias = torch.zeros(rows, requires_grad=True) if rank == 1 else None
    refused(
        re.escape(f"bias.requires_grad by rank is {flags}"),
        lambda: sd.LMHead(weight, bias, group=group, vocab_offset=bounds[rank]),
    )
    head = sd.LMHead(weight, group=group, vocab_offset=bounds[rank])
    thawed = sd.LMHead(weight.clone(), group=group, vocab_offset=bounds[rank])
    thawed.weight.requires_grad_(rank == 1)
    refused(r"^head.weight.requires_grad: not", lambda: sd.token_stats(torch.ones(3, D), thawed))
    assert "slices" in repr(head)
    hidden, same = torch.randn(3, D), torch.ones(3, D)
    torch.manual_seed(rank)
    other = torch.randn(3, D)
    refused("^hidden: not the same on all ranks", lambda: sd.token_stats(other, head, debug=True))
    refused(
        "^targets: not the same",
        lambda: sd.token_stats(same, head, debug=True, targets=torch.arange(3) * rank),
    )
    mine = same.clone().requires_grad_(rank == 0)
    for debug in (True, False):
        refused(r"^hidden.requires_grad: not", lambda d=debug: sd.token_stats(mine, head, debug=d))
    refused(
        r"^hidden.requires_grad: not",
        lambda: sd.token_loss(mine, head, lambda s, tok: s.entropy),
    )
    refused(
        r"^chunk_bytes: not the same", lambda: sd.token_stats(same, head, chunk_bytes=9999 + rank)
    )
    sd.token_stats(same, head, debug=True, targets=torch.arange(3))
    refused(
        "its vocabulary must be split like the student's",
        lambda: sd.token_stats(hidden, head, teacher=sd.HiddenTeacher(hidden, torch.randn(V, D))),
    )
    refused(
        "vocabulary mismatch",
        lambda: sd.token_stats(hidden, head, teacher=sd.LogitsTeacher(torch.randn(3, V))),
    )
    refused(
        f"outside the vocabulary 0..{V - 1}",
        lambda: sd.token_stats(hidden, head, targets=torch.full((3,), V)),
    )


def main(rank: int, world: int, store: str) -> dict[str, str]:
    """Run every check, in one order on all ranks."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    checks: dict[str, Callable[[], None]] = {}
    for (name, case), how in itertools.product(CASES.items(), ("loss", "stats", "frozen")):
        checks[f"{name}, {how}"] = lambda c=case, h=how: check_case(rank, world, c, h)
    if world == 2:
        for name in sd.recipes.names():
            checks[f"recipe {name}"] = lambda n=name: check_recipe(rank, world, n)
        for how, dtype in itertools.product(("loss", "stats"), (torch.float32, torch.float16)):
            checks[f"triton, {how}, {dtype}"] = lambda h=how, d=dtype: check_triton(
                rank, world, h, d
            )
        checks["compiled"] = lambda: check_compiled(rank, world)
        checks["without a slab"] = lambda: check_fused(rank, world)
    checks["collectives"] = lambda: check_collectives(rank, world)
    checks["errors"] = lambda: check_errors(rank, world)
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = "ok"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    dist.destroy_process_group()
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
