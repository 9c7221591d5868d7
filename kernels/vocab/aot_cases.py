"""What `aot` compiles: every kernel in every configuration of `configs`, and for which targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from .configs import (
    ELEMENTWISE_CONFIGS,
    MOST_IDS,
    STATISTICS_CONFIGS,
    RowConfig,
    linear_config,
)
from .rescale import TILE, TILES

# Shared memory that one block may use, in bytes.
SHARED_LIMITS = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
    "gfx950": 160 * 1024,
}
TARGETS = tuple(SHARED_LIMITS)


@dataclass(frozen=True)
class Case:
    """One kernel as one launch specialises it."""

    name: str
    module: str
    kernel: str
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 1
    targets: tuple[str, ...] = TARGETS
    odd_vocab: bool = False  # no multiple of 16

    @property
    def columns(self) -> int:
        """Columns of the vocabulary that a block works on; 0 for kernels with a loop."""
        straight = self.kernel in ("statistics_kernel", "mixture_kernel", "gradient_kernel")
        # A list of ids is copied in a loop: a few more instructions, whatever their number.
        return int(self.constants["TILE"]) if straight else 0


def cases() -> list[Case]:
    """Every kernel in every configuration that a launch can take, with everything switched on, and
    the common ones as they are.
    """
    found = []
    for row in STATISTICS_CONFIGS:
        found.append(_statistics(row, "fp32", "everything"))
    widest = STATISTICS_CONFIGS[-1]
    for slab in ("fp32", "bf16"):
        found += [_statistics(widest, slab, "pair"), _statistics(widest, slab, "student")]
    pair = _statistics(widest, "fp32", "pair")
    found += [_odd(pair, padded=True), _softcapped(pair)]
    found.append(_merge())
    for row in ELEMENTWISE_CONFIGS:
        found += [_mixture(row), _gradient(row, "fp32", "fp32", "everything")]
    widest = ELEMENTWISE_CONFIGS[-1]
    found += [
        _mixture(widest, "jsd"),
        _gradient(widest, "fp32", "bf16", "jsd"),
        _gradient(widest, "fp32", "bf16", "kl_teacher_student"),
        _gradient(widest, "fp32", "bf16", "kl_student_teacher"),
        _gradient(widest, "fp32", "bf16", "entropy"),
        _gradient(widest, "bf16", "bf16", "plain"),
        _odd(_gradient(widest, "fp32", "bf16", "kl_teacher_student"), padded=True),
        _softcapped(_gradient(widest, "fp32", "bf16", "kl_teacher_student")),
        _merge_mixture(),
        _chosen(),
        _put(),
        _rescale(),
    ]
    for target in TARGETS:
        for dtype, name in _LINEAR_DTYPES:
            found += [_linear(target, dtype, name, plain) for plain in (False, True)]
        # From two ids on each is a comparison more in registers that are nearly full.
        found += [_linear(target, torch.bfloat16, "bf16", False, ids) for ids in (2, MOST_IDS)]
    return found


_LINEAR_DTYPES = ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32"))
_NUMBERS = ("student_pre", "student_post", "teacher_pre", "teacher_post")


def _signature(pointers: dict[str, str], integers: tuple[str, ...], floats: tuple[str, ...]) -> Any:
    return {
        **{name: f"*{kind}" for name, kind in pointers.items()},
        **dict.fromkeys(integers, "i32"),
        **dict.fromkeys(floats, "fp32"),
    }


def _statistics(config: RowConfig, dtype: str, what: str) -> Case:
    pointers = {"student_ptr": dtype, "partials_ptr": "fp32"}
    floats: tuple[str, ...] = ()
    if what != "student":
        pointers["teacher_ptr"] = dtype
    if what == "everything":
        pointers |= {"student_bias_ptr": "fp32", "teacher_bias_ptr": "fp32", "ids_ptr": "i64"}
        pointers |= {"chosen_ptr": "fp32", "teacher_chosen_ptr": "fp32"}
        floats = _NUMBERS
    return Case(
        f"statistics/{config.tile}/{dtype}/{what}",
        "statistics",
        "statistics_kernel",
        _signature(pointers, ("student_stride", "teacher_stride", "vocab", "parts"), floats),
        {
            "FIELDS": 3 if what == "student" else 8,
            "TILE": config.tile,
            "NUM_IDS": 100,
            "IDS_TILE": 64,
        },
        config.num_warps,
    )


def _odd(case: Case, *, padded: bool) -> Case:
    """The case with a vocabulary that no vector divides, in slabs that go on to the next one."""
    names = ("STUDENT_PADDED", "TEACHER_PADDED", "OUT_PADDED")
    return replace(
        case,
        name=f"{case.name}, odd" + (", padded" if padded else ""),
        constants={**case.constants, **dict.fromkeys(names, padded)},
        odd_vocab=True,
    )


def _softcapped(case: Case) -> Case:
    """The case with what a softcap of both models needs, and without bias."""
    signature = {**case.signature, **dict.fromkeys(_NUMBERS, "fp32")}
    return replace(case, name=f"{case.name}, softcap", signature=signature)


def _merge() -> Case:
    pointers = dict.fromkeys(
        [
            "partials_ptr",
            "chosen_ptr",
            "teacher_chosen_ptr",
            "tau_ptr",
            "sigma_ptr",
            "rows_ptr",
            "entropy_ptr",
            "lse_ptr",
            "logp_ptr",
            "teacher_entropy_ptr",
            "teacher_lse_ptr",
            "teacher_logp_ptr",
            "kl_teacher_student_ptr",
            "kl_student_teacher_ptr",
            "direction_ptr",
        ],
        "fp32",
    )
    return Case(
        "merge/64/everything",
        "merge",
        "merge_kernel",
        _signature({**pointers, "ids_ptr": "i64"}, ("parts", "vocab"), ()),
        {
            "FIELDS": 8,
            "NUMBERS": 10,
            "PARTS_TILE": 64,
            "NUM_IDS": 100,
            "IDS_TILE": 64,
            "RULE": "tanh",
        },
        1,
    )


_SHARES = ("share_t", "share_s", "near")


def _mixture(config: RowConfig, what: str = "everything") -> Case:
    pointers = dict.fromkeys(["student_ptr", "teacher_ptr", "rows_ptr", "sums_ptr"], "fp32")
    floats: tuple[str, ...] = _SHARES
    if what == "everything":
        pointers |= dict.fromkeys(["student_bias_ptr", "teacher_bias_ptr"], "fp32")
        floats = (*_NUMBERS, *_SHARES, "clip")
    return Case(
        f"mixture/{config.tile}/fp32/{what}",
        "mixture",
        "mixture_kernel",
        _signature(pointers, ("student_stride", "teacher_stride", "vocab", "parts"), floats),
        {"NUMBERS": 10, "TILE": config.tile},
        config.num_warps,
    )


def _merge_mixture() -> Case:
    pointers = dict.fromkeys(["sums_ptr", "rows_ptr", "jsd_ptr", "clipped_ptr"], "fp32")
    return Case(
        "merge_mixture/64/everything",
        "mixture",
        "merge_mixture_kernel",
        _signature(pointers, ("parts",), ("share_t", "share_s")),
        {"NUMBERS": 10, "PARTS_TILE": 64},
        1,
    )


_COEFFICIENTS = [
    "plain_ptr",
    "entropy_ptr",
    "kl_teacher_student_ptr",
    "kl_student_teacher_ptr",
    "jsd_ptr",
    "clipped_ptr",
]


def _gradient(config: RowConfig, dtype: str, out: str, what: str) -> Case:
    pointers = {"student_ptr": dtype, "rows_ptr": "fp32", "out_ptr": out}
    floats: tuple[str, ...] = ()
    if what == "everything":
        pointers |= {"student_bias_ptr": "fp32", "teacher_bias_ptr": "fp32", "teacher_ptr": dtype}
        pointers |= dict.fromkeys(_COEFFICIENTS, "fp32")
        floats = (*_NUMBERS, *_SHARES, "clip")
    elif what in ("plain", "entropy"):
        pointers |= dict.fromkeys({"plain_ptr", f"{what}_ptr"}, "fp32")
    else:
        pointers |= {"teacher_ptr": dtype, f"{what}_ptr": "fp32"}
        floats = _SHARES if what == "jsd" else ()
    return Case(
        f"gradient/{config.tile}/{dtype}/{out}/{what}",
        "gradient",
        "gradient_kernel",
        _signature(
            pointers,
            ("student_stride", "teacher_stride", "out_stride", "vocab", "parts"),
            floats,
        ),
        {"NUMBERS": 10, "TILE": config.tile},
        config.num_warps,
    )


def _chosen() -> Case:
    names = ["student_ptr", "student_bias_ptr", "teacher_ptr", "teacher_bias_ptr", "rows_ptr"]
    pointers = dict.fromkeys([*names, *_COEFFICIENTS, "ids_coef_ptr", "out_ptr"], "fp32")
    return Case(
        "chosen/32/fp32/everything",
        "gradient",
        "chosen_kernel",
        _signature(
            {**pointers, "ids_ptr": "i64"},
            ("student_stride", "teacher_stride", "vocab"),
            (*_NUMBERS, *_SHARES, "clip"),
        ),
        {"NUMBERS": 10, "NUM_IDS": 100, "IDS_TILE": 32},
        1,
    )


def _put() -> Case:
    return Case(
        "put/32/bf16",
        "gradient",
        "put_kernel",
        _signature(
            {"ids_ptr": "i64", "values_ptr": "fp32", "out_ptr": "bf16"},
            ("out_stride", "vocab"),
            (),
        ),
        {"NUM_IDS": 100, "IDS_TILE": 32},
        1,
    )


def _rescale() -> Case:
    pointers = dict.fromkeys(["x_ptr", "ratio_ptr"], "fp32")
    return Case(
        "rescale",
        "rescale",
        "rescale_kernel",
        _signature(pointers, ("count",), ()),
        {"TILE": TILE, "TILES": TILES},
        4,
    )


def _linear(target: str, dtype: torch.dtype, name: str, plain: bool, ids: int = 1) -> Case:
    config = linear_config(target, dtype, plain=plain, ids=ids)
    pointers = {"hidden_ptr": name, "weight_ptr": name, "partials_ptr": "fp32"}
    if not plain:
        pointers |= {"bias_ptr": name, "ids_ptr": "i64", "chosen_ptr": "fp32"}
    tiles = f"{config.tokens_tile}x{config.vocab_tile}x{config.hidden_tile}"
    what = "plain" if plain else "everything" if ids == 1 else f"{ids} ids"
    return Case(
        f"linear/{tiles}/{name}/{what}",
        "linear_statistics",
        "linear_statistics_kernel",
        _signature(
            pointers,
            ("hidden_stride", "weight_stride", "tokens", "vocab", "parts"),
            ("post",) if plain else ("pre", "post"),
        ),
        {
            "HIDDEN": 4096,
            "FIELDS": 3,
            "NUM_IDS": 0 if plain else ids,
            "TILES": config.tiles,
            "TOKENS_TILE": config.tokens_tile,
            "VOCAB_TILE": config.vocab_tile,
            "HIDDEN_TILE": config.hidden_tile,
            "GROUP": config.group,
            "PRECISION": "ieee",
        },
        config.num_warps,
        config.num_stages,
        (target,),
    )
