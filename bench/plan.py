"""`--plan`: what a run will cost on a GPU, on paper, from the engine's own schedule."""

from __future__ import annotations

from sdkernels.engine.plan import plan_loss

from .problem import Setting

GIB = 1 << 30
# What each case makes the engine differentiate.
USES = {
    "logprob-entropy-forward": ("logp", "entropy"),
    "logprob-entropy": ("logp", "entropy"),
    "nll": ("logp",),
    "kl-teacher-student": ("kl_teacher_student",),
    "kl-student-teacher": ("kl_student_teacher",),
    "jsd": ("jsd",),
    "grpo": ("logp",),
    "sdpo-topk": ("topk_logp",),
    "dasd": ("logp", "kl_teacher_student", "jsd"),
}


def text(setting: Setting) -> str:
    """FLOPs, bytes, chunks and slab bytes, with the default budget of one H200."""
    case, shape = setting.case, setting.shape
    plan = plan_loss(
        setting.tokens,
        shape.hidden,
        shape.vocab,
        uses=USES[case.name],
        teacher="hidden" if case.teacher else None,
        shared_head=case.teacher and setting.own_teacher,
        trainable_head=case.backward and not setting.frozen,
        trainable_hidden=case.backward,
        dtype=setting.dtype,
    )
    passes = ", ".join(f"{name} {count}" for name, count in plan.bytes_per_logit.items())
    lines = {
        "run": f"{case.title}, {shape.name}: T = {setting.tokens}, D = {shape.hidden}, "
        f"V = {shape.vocab}, {str(setting.dtype).removeprefix('torch.')}, "
        f"{'frozen' if setting.frozen else 'trainable'} head",
        "matrix products": f"{plan.gemm_flops / 1e12:.2f} TFLOP",
        "passes over logits": f"{plan.moved_bytes / 1e9:.1f} GB, {passes} bytes a logit",
        "chunks": f"{plan.chunks.count} of {plan.chunks.chunk_tokens} tokens, "
        f"{plan.launches} launches",
        "slabs": f"{plan.slab_bytes / GIB:.2f} GiB of a budget of {plan.chunk_bytes / GIB:.2f} GiB",
        "source": "counted from the schedule that the engine follows on an H200; nothing was run",
    }
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in lines.items())
