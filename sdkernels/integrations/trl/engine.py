"""`use_engine`: which trainer gets which replacement, what is refused, and how to undo it."""

from __future__ import annotations

from typing import Any

from sdkernels.engine import LMHead
from sdkernels.integrations.deferred import innermost
from sdkernels.integrations.trl.jsd import GKDEngine, GOLDEngine
from sdkernels.integrations.trl.self_distillation import SDFTEngine, SDPOEngine
from sdkernels.integrations.trl.tiled import DistillationEngine, GRPOEngine
from sdkernels.integrations.trl.watch import WatchedLoss
from sdkernels.integrations.undo import Undo

SUPPORTED_TRL = "1.16"

ENGINES: dict[str, type] = {
    "SDPOTrainer": SDPOEngine,
    "SDFTTrainer": SDFTEngine,
    "GKDTrainer": GKDEngine,
    "GOLDTrainer": GOLDEngine,
    "DistillationTrainer": DistillationEngine,
    "GRPOTrainer": GRPOEngine,
}


def use_engine(trainer: Any) -> Undo:
    """Compute the loss of a TRL trainer with the engine; same loss, no `[tokens, vocab]` tensor.

    Args:
        trainer: an `SDPOTrainer`, `SDFTTrainer`, `GKDTrainer`, `GOLDTrainer`,
            `DistillationTrainer` or `GRPOTrainer` of TRL 1.16, or of a subclass of these.

    Returns:
        An `Undo`: calling it makes the trainer what it was. It may be called between steps.

    Raises:
        ImportError: another version of TRL is installed.
        TypeError: another class, a trainer that already uses the engine, or a head with an adapter
            or of a quantised layer.
        ValueError: an option of the trainer that the engine can't honour; the message names it and
            what to do.

    The first loss raises a TypeError if a subclass overrides a method with code that does not come
    to the engine.
    """
    _check_version()
    cls = type(trainer)
    if hasattr(cls, "_before_engine"):
        raise TypeError(f"use_engine was called on this {cls.__name__} before; undo that first")
    base, engine = _engine_of(cls)
    _check_overrides(cls, base, engine)
    _check_options(trainer, engine)
    for model in engine.models_of(trainer):
        LMHead.from_model(innermost(model))

    # The name stays: TRL derives file and metric names from the class.
    body = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_before_engine": cls}
    patched = type(cls.__name__, (WatchedLoss, engine, cls), body)
    trainer.__class__ = patched

    def restore() -> None:
        if type(trainer) is not patched:
            raise RuntimeError(
                f"the class of this {cls.__name__} was changed after use_engine; undo that first"
            )
        trainer.__class__ = cls

    return Undo(f"use_engine({cls.__name__})", restore)


def _check_version() -> None:
    try:
        import trl
    except ImportError as error:
        raise ImportError(
            f"use_engine needs TRL {SUPPORTED_TRL}: pip install 'trl=={SUPPORTED_TRL}.*'"
        ) from error
    if not trl.__version__.startswith(f"{SUPPORTED_TRL}."):
        raise ImportError(
            f"use_engine replaces methods inside TRL {SUPPORTED_TRL}, and TRL {trl.__version__} is "
            f"installed, where they may mean something else: pip install 'trl=={SUPPORTED_TRL}.*'"
        )


def _engine_of(cls: type) -> tuple[type, Any]:
    for base in cls.__mro__:
        if base.__module__.startswith("trl.") and base.__name__ in ENGINES:
            return base, ENGINES[base.__name__]
    raise TypeError(f"trainer: expected one of TRL's {', '.join(ENGINES)}, got {cls.__name__}")


def _check_overrides(cls: type, base: type, engine: Any) -> None:
    """What a subclass redefines would be passed over in silence where the engine does not call on
    it.
    """
    for name in engine.REPLACED:
        owner = next(step for step in cls.__mro__ if name in vars(step))
        if not issubclass(base, owner):
            raise TypeError(
                f"{owner.__name__}.{name} overrides what the engine replaces in {base.__name__}; "
                "remove the override or train without use_engine"
            )


def _check_options(trainer: Any, engine: Any) -> None:
    refused = list(engine.refusals(trainer))
    if getattr(trainer.args, "torch_compile", False):
        refused.append("torch_compile=True: compiled models are not supported; set it to False")
    kind = trainer.accelerator.distributed_type.name
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        refused.append(f"{kind}: the weight of lm_head may be a shard; train with DDP")
    elif engine.DEFERS and kind == "FSDP":
        refused.append(
            "FSDP: the loss reads lm_head outside the wrapped forward, where it is sharded; train "
            "with DDP, or with DistillationTrainer or GRPOTrainer, whose losses run inside it"
        )
    elif (
        engine.DEFERS
        and trainer.accelerator.num_processes > 1
        and trainer.args.ddp_find_unused_parameters is not False
    ):
        refused.append(
            "ddp_find_unused_parameters: DDP would take lm_head for unused, since the loss applies "
            "it outside the wrapped forward; set it to False"
        )
    if refused:
        raise ValueError(f"{type(trainer).__name__} with the engine: " + "; ".join(refused))
