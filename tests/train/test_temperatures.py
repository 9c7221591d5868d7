"""Which temperature the loss takes: the settings', the recipe's, or that of sampling."""

import pytest

from sdkernels import recipes
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.step_loss import StepLoss


@pytest.mark.parametrize(
    ("recipe", "settings", "student", "teacher"),
    [
        ("sdpo", {}, 0.7, None),
        ("sdpo", {"loss_temperature": 1.0}, 1.0, None),
        ("opsd", {}, 1.1, None),
        ("opsd", {"loss_temperature": 1.0}, 1.0, None),
        ("opsd", {"teacher_temperature": 0.9}, 1.1, 0.9),
    ],
)
def test_settings_win_over_the_recipe_and_the_recipe_over_sampling(
    tmp_path, recipe, settings, student, teacher
):
    config = SelfDistillConfig(output_dir=str(tmp_path), use_cpu=True, temperature=0.7, **settings)
    engine = StepLoss(config, recipes.get(recipe), gate=None, teacher=None).engine_settings
    assert engine["temperature"] == student
    assert engine["teacher_temperature"] == teacher
