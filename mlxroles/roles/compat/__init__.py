"""The original study's statistics to the digit, kept apart from what this project reports.

Each function says what is peculiar about it: heads 0 to 27 alone, intervals over heads, prompts
paired by their place in a list. Use them to check published figures, not to find new ones.
"""

from mlxroles.roles.compat.candidates import candidates, check_candidates
from mlxroles.roles.compat.comparison import compare_rows, rows_from_comparison
from mlxroles.roles.compat.differences import difference_summary
from mlxroles.roles.compat.families import cross_model
from mlxroles.roles.compat.layers import layer_form
from mlxroles.roles.compat.study import EPSILON, entropy_with_epsilon, study_table

__all__ = [
    "EPSILON",
    "candidates",
    "check_candidates",
    "compare_rows",
    "cross_model",
    "difference_summary",
    "entropy_with_epsilon",
    "layer_form",
    "rows_from_comparison",
    "study_table",
]
