"""``python -m mlxroles.cli``: the same as the ``mlxroles`` program."""

from mlxroles.cli import main

main()
