"""Large quantised models on a CPU: products in float32 against dense weights and the kernel."""

import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchLinear

from mlxroles.backend import mx, nn
from mlxroles.models import dense_on_cpu
from mlxroles.models.dense_on_cpu import DenseOnCPU, speed_up, widen_experts


def quantised(bits: int, dtype: mx.Dtype, *, bias: bool) -> nn.QuantizedLinear:
    mx.random.seed(bits)
    layer = nn.Linear(128, 96, bias=bias)
    layer = nn.QuantizedLinear.from_linear(layer, group_size=32, bits=bits)
    layer.set_dtype(dtype)
    return layer


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_dequantised_weights(monkeypatch, bits, dtype, bias):
    monkeypatch.setattr(dense_on_cpu, "BLOCK", 128 * 40)  # blocks of 40, 40 and 16 rows
    layer = quantised(bits, dtype, bias=bias)
    weight = mx.dequantize(
        layer["weight"],
        layer["scales"].astype(mx.float32),
        layer["biases"].astype(mx.float32),
        group_size=32,
        bits=bits,
    )
    x = mx.random.normal((2, 5, 128)).astype(dtype)
    want = np.array(x.astype(mx.float32)) @ np.array(weight).T
    if bias:
        want = want + np.array(layer["bias"].astype(mx.float32))
    kernel = layer(x)
    object.__setattr__(layer, "__class__", DenseOnCPU)
    got = layer(x)
    assert got.dtype == dtype
    rounding = {mx.bfloat16: 2**-8, mx.float16: 2**-11}[dtype]
    assert np.abs(np.array(got.astype(mx.float32)) - want).max() <= rounding * np.abs(want).max()
    apart = mx.abs(got.astype(mx.float32) - kernel.astype(mx.float32)).max().item()
    assert apart <= 0.05 * np.abs(want).max()


def test_only_large_models_with_slow_layers_are_changed(monkeypatch):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow = quantised(4, mx.bfloat16, bias=False)
            self.fast = quantised(4, mx.float32, bias=False)

    model = Two()
    assert speed_up(model, 1000) == 0
    monkeypatch.setattr(dense_on_cpu, "on_gpu", lambda: True)
    assert speed_up(model, dense_on_cpu.LARGE) == 0
    monkeypatch.setattr(dense_on_cpu, "on_gpu", lambda: False)
    assert speed_up(model, dense_on_cpu.LARGE) == 1
    assert type(model.slow) is DenseOnCPU
    assert type(model.fast) is nn.QuantizedLinear


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bf16", "f16"])
def test_experts_in_half_precision_give_their_float32_products(monkeypatch, dtype):
    monkeypatch.setattr(dense_on_cpu, "on_gpu", lambda: False)
    mx.random.seed(3)
    experts = SwitchLinear(32, 16, 4, bias=True)
    experts.bias = mx.random.normal((4, 16))
    experts.set_dtype(dtype)
    x = mx.random.normal((1, 5, 1, 1, 32)).astype(dtype)
    chosen = mx.array([[[0, 3], [1, 1], [2, 0], [3, 2], [0, 1]]])
    plain = SwitchLinear(32, 16, 4, bias=True)
    plain.update({"weight": experts["weight"], "bias": experts["bias"]})
    plain.set_dtype(mx.float32)
    want = plain(x.astype(mx.float32), chosen)
    assert widen_experts(experts) == 1
    assert widen_experts(experts) == 0
    got = experts(x, chosen)
    assert got.dtype == dtype
    assert mx.array_equal(got, want.astype(dtype))


def test_experts_in_float32_and_on_a_gpu_stay(monkeypatch):
    experts = SwitchLinear(32, 16, 4)
    assert widen_experts(experts) == 0
    experts.set_dtype(mx.bfloat16)
    monkeypatch.setattr(dense_on_cpu, "on_gpu", lambda: True)
    assert widen_experts(experts) == 0
