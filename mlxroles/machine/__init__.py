"""The machine that a run takes place on: memory, power, sleep, disks. Knows no model.

Every question has one thin function that asks the system, and a plain one that understands the
answer, so that what a Mac says can be tested where there is none. What a system does not say is
None, never a guess and never an error.
"""
