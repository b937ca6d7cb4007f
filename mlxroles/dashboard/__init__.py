"""What a run looks like in a terminal: the live view, plain lines, tables and a picture of it.

Everything here reads events or a finished document; nothing computes or stores.
"""

from mlxroles.dashboard.adapt import paragraphs
from mlxroles.dashboard.picture import svg
from mlxroles.dashboard.progress import Progress
from mlxroles.dashboard.queue_table import queue_table
from mlxroles.dashboard.role_tables import candidates_table, comparison_table, correlation_table
from mlxroles.dashboard.roles import roles_table
from mlxroles.dashboard.tables import final_table, probe_table
from mlxroles.dashboard.watch import Mode, watch

__all__ = [
    "Mode",
    "Progress",
    "candidates_table",
    "comparison_table",
    "correlation_table",
    "final_table",
    "paragraphs",
    "probe_table",
    "queue_table",
    "roles_table",
    "svg",
    "watch",
]
