from __future__ import annotations

import pytest
import torch
from torch import nn

from moe.generation.bfloat16_linear import WORTHWHILE, Bfloat16Linear, use_bfloat16_linear


def ours(bias: bool, columns: int = 24, rows: int = 40) -> Bfloat16Linear:
    torch.manual_seed(0)
    return Bfloat16Linear(columns, rows, bias=bias).bfloat16()


@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (1, 24), (24,), (0, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_computes_what_torch_does(shape: tuple[int, ...], bias: bool) -> None:
    layer, values = ours(bias), torch.randn(shape).bfloat16()
    with torch.inference_mode():
        computed = layer(values)
        exact = nn.functional.linear(values.float(), layer.weight.float())
        exact = exact if layer.bias is None else exact + layer.bias.float()
    assert computed.dtype == torch.bfloat16
    torch.testing.assert_close(computed.float(), exact, atol=0.02, rtol=0.02)


def test_one_token_meets_a_wide_matrix_in_ours() -> None:
    layer = ours(False, 8, WORTHWHILE // 8)
    values = torch.randn(1, 8).bfloat16()
    with torch.inference_mode():
        exact = nn.functional.linear(values.float(), layer.weight.float())
        torch.testing.assert_close(layer(values).float(), exact, atol=0.02, rtol=0.02)


def test_gradients_and_other_dtypes_are_left_to_torch() -> None:
    layer, values = ours(True), torch.randn(3, 24).bfloat16()
    layer(values).float().sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        torch.testing.assert_close(
            layer.float()(values.float()), nn.functional.linear(values.float(), layer.weight, layer.bias)
        )


@pytest.mark.parametrize(("capability", "expected"), [("AVX2", 2), ("AVX512", 0)])
def test_layers_change_where_it_is_faster(
    capability: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).bfloat16()
    names = list(model.state_dict())
    assert use_bfloat16_linear(model) == expected
    assert list(model.state_dict()) == names
    assert use_bfloat16_linear(model.float()) == 0
