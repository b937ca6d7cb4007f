"""What can be done with runs that are stored, without a model: find, look, check, compare, write.

Everything here reads a run folder as it lies on the disk, also while another process writes it
and also where nothing can be written. The numbers come from the journal and the arrays of the
cells; what is derived from them is used where it is newer.
"""
