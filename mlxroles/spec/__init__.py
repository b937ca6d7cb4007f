"""Experiments as files: one TOML file is one experiment, or a queue of them with grids.

    kind = "patch"              name = "night"             [[experiment]]
    pair = "tiny"               until = "07:00"            file = "patch.toml"
    layers = "0-5"              [defaults]                 [experiment.grid]
                                seed = 0                   site = ["resid_post", "z"]

An experiment is the name of a command and its long options; what a command takes is not known
here. Beside them stand ``name``, ``priority``, ``grid`` (every combination of the listed values is
an experiment of its own) and ``file`` (the keys of another experiment file, which the keys beside
it override). Paths to models and prompts are taken from the folder of the file that names them, if
they exist there.
"""

from mlxroles.spec.experiment import Experiment, Queue, over
from mlxroles.spec.queue import read, read_queue
from mlxroles.spec.times import parse_budget, parse_until

__all__ = ["Experiment", "Queue", "over", "parse_budget", "parse_until", "read", "read_queue"]
