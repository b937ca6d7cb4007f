"""Runs a queue of experiments through the night: each in a process of its own, which may die.

The supervisor knows no models and computes nothing. It starts the command of an experiment,
follows the files of its run, and starts it again when it ends without a word; what has died of
what it writes into the run's history, where the next process finds it. The truth stays in the run
folders, so that a supervisor that is killed loses nothing either.
"""
