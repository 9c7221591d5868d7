"""The Kernel Hub package: exported, loaded by `kernels`, and run in Triton's interpreter."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from sdkernels.integrations.huggingface.hub import BACKENDS, LEFT_OUT, export_kernels, main
from sdkernels.kernels.launch import Logits
from sdkernels.kernels.statistics import partial_statistics


def test_loaded_kernels_compute_what_ours_do(tmp_path: Path) -> None:
    kernels = pytest.importorskip("kernels", reason="needs Hugging Face's kernels package")
    export_kernels(tmp_path)
    loaded = kernels.get_local_kernel(tmp_path, backend="cpu")
    assert Path(loaded.__file__).is_relative_to(tmp_path)
    assert loaded.MINIMUM_TRITON == (3, 6)
    launch = importlib.import_module(f"{loaded.__name__}.launch")
    statistics = importlib.import_module(f"{loaded.__name__}.statistics")
    assert statistics.partial_statistics is not partial_statistics
    student, teacher = torch.randn(3, 50), torch.randn(3, 50)
    ids = torch.tensor([[1], [2], [49]])
    theirs = statistics.partial_statistics(
        launch.Logits.of(student, softcap=2.0), launch.Logits.of(teacher), ids
    )
    ours = partial_statistics(Logits.of(student, softcap=2.0), Logits.of(teacher), ids)
    for mine, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
        assert mine.equal(other)


def test_the_layout(tmp_path: Path) -> None:
    made = export_kernels(tmp_path / "package")
    assert [path.name for path in made] == [f"torch-{backend}" for backend in BACKENDS]
    for path, backend in zip(made, BACKENDS, strict=True):
        metadata = json.loads((path / "metadata.json").read_text())
        assert metadata["backend"] == {"type": backend}
        assert metadata["id"].endswith(backend)
        assert (path / "__init__.py").exists()
        assert not any((path / name).exists() for name in LEFT_OUT)
    assert "sdkernels" in (tmp_path / "package" / "README.md").read_text()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path)])
    assert str(tmp_path / "build" / "torch-cuda") in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="build exists"):
        main([str(tmp_path)])
