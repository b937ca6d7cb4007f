"""Quantised matrices in half precision on a CPU: dequantised block by block, multiplied in float32.

MLX's quantised kernel for bfloat16 and float16 reaches 0.1 to 0.4 GFLOP/s on a CPU, a float32
product by BLAS a hundred times that: a clean run of an 8B model takes a minute instead of ten.
The products are rounded less, not more. Only large models are changed, and only where there is no
GPU; elsewhere the model's own kernels stay. Expert matrices in half precision, which MLX cannot
multiply on a CPU at all, are widened in models of any size.
"""

from mlx_lm.models.switch_layers import SwitchLinear

from mlxroles.backend import mx, nn, on_gpu

LARGE = 1 << 30
"""Bytes of weights from which on the kernel's slowness is worth a change."""
BLOCK = 1 << 24
"""Weights that are dequantised at a time: 64 MiB in float32."""


class DenseOnCPU(nn.QuantizedLinear):
    """A quantised linear layer whose products are made in float32."""

    def __call__(self, x: mx.array) -> mx.array:
        """X W^T + b, in the type of x."""
        weight, scales, biases = self["weight"], self["scales"], self["biases"]
        rows = max(1, BLOCK // x.shape[-1])
        wide = x.astype(mx.float32)
        parts: list[mx.array] = []
        for i in range(0, weight.shape[0], rows):
            # each block waits for the one before, so that one dense block exists at a time
            packed = mx.depends([weight[i : i + rows]], [parts[-1] if parts else wide])[0]
            block = mx.dequantize(
                packed,
                scales[i : i + rows].astype(mx.float32),
                biases[i : i + rows].astype(mx.float32),
                group_size=self.group_size,
                bits=self.bits,
            )
            parts.append(wide @ block.T)
        out = mx.concatenate(parts, axis=-1)
        if "bias" in self:
            out = out + self["bias"].astype(mx.float32)
        return out.astype(x.dtype)


class ExpertsOnCPU(SwitchLinear):
    """The matrices of a layer's experts, multiplied in float32."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """X W^T + b of the chosen experts, in the type of x."""
        weight = self["weight"].astype(mx.float32).swapaxes(-1, -2)
        wide = x.astype(mx.float32)
        out = mx.gather_mm(wide, weight, rhs_indices=indices, sorted_indices=sorted_indices)
        if "bias" in self:
            out = out + mx.expand_dims(self["bias"][indices], -2)
        return out.astype(x.dtype)


def widen_experts(module: nn.Module) -> int:
    """Changes the expert matrices that a CPU could not multiply; returns how many."""
    if on_gpu():
        return 0
    changed = 0
    for part in module.modules():
        if type(part) is SwitchLinear and part["weight"].dtype != mx.float32:
            object.__setattr__(part, "__class__", ExpertsOnCPU)
            changed += 1
    return changed


def speed_up(module: nn.Module, n_bytes: int) -> int:
    """Changes the slow quantised layers of a large model on a CPU; returns how many.

    Args:
        module: A loaded model.
        n_bytes: Size of its weights.
    """
    if on_gpu() or n_bytes < LARGE:
        return 0
    changed = 0
    for part in module.modules():
        is_slow = type(part) is nn.QuantizedLinear and part.mode == "affine"
        if is_slow and part["scales"].dtype != mx.float32:
            object.__setattr__(part, "__class__", DenseOnCPU)
            changed += 1
    return changed
