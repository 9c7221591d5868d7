import pytest
import torch

from sdkernels.testing import mutants


def test_variants_of_a_matrix_by_name() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 6.0]])
    variants = dict(mutants(tensor))
    assert set(variants) == {
        "zeros",
        "sign_flip",
        "gain_1.01",
        "row_zeroed",
        "column_block_zeroed",
        "first_upstream_broadcast",
        "nan_in_one_place",
        "transposed",
    }
    assert torch.equal(variants["sign_flip"], -tensor)
    assert torch.equal(variants["row_zeroed"], tensor * torch.tensor([[1.0], [0.0], [1.0]]))
    assert torch.equal(variants["transposed"], tensor.T)
    assert variants["nan_in_one_place"].isnan().sum() == 1
    assert (variants["column_block_zeroed"] == 0).all(dim=0).sum() == 1


def test_first_upstream_broadcast_is_the_bug_it_is_named_after() -> None:
    """An op that forms its gradient in forward and scales it by grad_output[0] later."""
    gradient_of_each_token = torch.randn(5, 3)
    upstream = torch.tensor([0.5, -1.0, 0.0, 2.0, 1.0])
    variants = dict(mutants(upstream[:, None] * gradient_of_each_token, upstream=upstream))
    wrong = 0.5 * gradient_of_each_token
    wrong[2] = 0  # what was zero can't be told from zero
    assert torch.allclose(variants["first_upstream_broadcast"], wrong)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 1), (1, 9), (9, 1), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_variant_differs_and_keeps_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).abs().add(0.5).to(dtype)
    before = tensor.clone()
    variants = mutants(tensor)
    assert {"zeros", "sign_flip", "gain_1.01", "nan_in_one_place"} <= {name for name, _ in variants}
    for name, variant in variants:
        assert variant.dtype == dtype, name
        assert variant.shape == tensor.shape or name == "transposed"
        assert variant.shape != tensor.shape or not torch.equal(variant, tensor), name
    assert torch.equal(tensor, before)


def test_what_would_not_differ_is_left_out() -> None:
    assert [name for name, _ in mutants(torch.zeros(3))] == ["nan_in_one_place"]
    symmetric = torch.tensor([[1.0, 2.0], [2.0, 5.0]])
    assert "transposed" not in dict(mutants(symmetric))


def test_refuses_what_it_cannot_spoil() -> None:
    with pytest.raises(ValueError, match="no entry to get wrong"):
        mutants(torch.empty(0, 4))
    with pytest.raises(
        ValueError, match=r"upstream is \(2,\), expected one entry for each of the 3"
    ):
        mutants(torch.ones(3, 4), upstream=torch.ones(2))
