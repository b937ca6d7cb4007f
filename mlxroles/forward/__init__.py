"""One forward of a network under keeps and edits: the primitive that every study is made of.

The model's own ``__call__`` drives. Only what is asked for is kept; MLX is lazy, so what no kept
array needs is never computed: with ``start`` the blocks before it are not even built, blocks
after the last wanted one neither, and with ``read`` the final norm and head see those positions
only. Unedited attention returns the fused kernel's own output; edits of a pattern are applied as
a difference to it.
"""

from mlxroles.forward.asked import Summary
from mlxroles.forward.blocks import by_blocks
from mlxroles.forward.network import Network, Prefix, Run, Start
from mlxroles.forward.run import forward, prefix_of

__all__ = ["Network", "Prefix", "Run", "Start", "Summary", "by_blocks", "forward", "prefix_of"]
