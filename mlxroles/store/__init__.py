"""What a run writes and how it is read again: nothing that was stored is ever lost.

``folder`` is the run folder (lock, manifest, journal, one file per cell's arrays), ``pack`` builds
the HDF5 file that people read from it, ``capture`` writes a model's internals to one HDF5 file.
An HDF5 file that is appended to can be lost whole by a kill or a power cut, so HDF5 is never the
record of a running experiment: it is written whole and renamed into place.

Importing this package loads neither h5py nor numpy.
"""

from mlxroles.store.folder import Record, RunFolder
from mlxroles.store.schema import Variable

__all__ = ["Record", "RunFolder", "Variable"]
