"""How much of the lab is run: sizes, and the grid of conditions, coverages and families."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdkernels.lab.conditions import GRPO, PULLS, ROUTED, Cell
from sdkernels.lab.distill import DistillPlan
from sdkernels.lab.model import Size
from sdkernels.lab.pretrain import BasePlan

ONE_FAMILY = ("product",)
SEVERAL_FAMILIES = ("sum", "product")
OTHER_FAMILIES = ("digits", "mixed")


@dataclass(frozen=True)
class Scale:
    """Everything that decides the numbers of a run, but the seeds.

    Attributes:
        coverages: numbers of training problems, in several families, for the conditions `swept`.
        routed_coverage: the one at which the conditions `routed` are compared.
        one_family_coverages: those at which `one_family` is run in one family as well.
        eval_problems, eval_samples: per problem set.
    """

    name: str
    base: BasePlan = field(default_factory=BasePlan)
    distill: DistillPlan = field(default_factory=DistillPlan)
    coverages: tuple[int, ...] = (1, 8, 256)
    swept: tuple[str, ...] = (GRPO.name, *(one.name for one in PULLS))
    routed_coverage: int = 256
    routed: tuple[str, ...] = tuple(one.name for one in ROUTED)
    one_family_coverages: tuple[int, ...] = (256,)
    one_family: tuple[str, ...] = (GRPO.name, "pull_solution")
    long_lengths: tuple[int, ...] = (4, 5)
    eval_problems: int = 48
    eval_samples: int = 4
    default_seeds: int = 1

    def cells(self, seeds: int) -> list[Cell]:
        """All cells, seed after seed, so that a run that is cut short has whole repetitions."""
        found = []
        for seed in range(seeds):
            found += [
                Cell(name, coverage, SEVERAL_FAMILIES, seed)
                for coverage in self.coverages
                for name in self.swept
            ]
            found += [
                Cell(name, self.routed_coverage, SEVERAL_FAMILIES, seed) for name in self.routed
            ]
            found += [
                Cell(name, coverage, ONE_FAMILY, seed)
                for coverage in self.one_family_coverages
                for name in self.one_family
            ]
        return found


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            base=BasePlan(Size(32, 2, 2), steps=30, batch_tokens=1024),
            distill=DistillPlan(steps=2, prompts=2, rollouts=4, lengths=(1, 2)),
            coverages=(1, 8),
            routed_coverage=8,
            one_family_coverages=(8,),
            long_lengths=(3,),
            eval_problems=4,
            eval_samples=2,
        ),
        Scale("default"),
        Scale(
            "full",
            base=BasePlan(Size(256, 6, 8), steps=6000, batch_tokens=8192, learning_rate=1e-3),
            distill=DistillPlan(steps=100, prompts=16, rollouts=8, learning_rate=1e-4),
            coverages=(1, 8, 64, 128, 512, 4096),
            routed_coverage=512,
            one_family_coverages=(1, 8, 64, 512),
            eval_problems=256,
            eval_samples=16,
            default_seeds=5,
        ),
    )
}
