"""The doctor: is this machine fit for long runs, and what to type where it is not.

What is found out (``look``) is plain data (``facts``), and what follows from it is decided from
the data alone (``advice``), so that machines that are not here can be told apart in tests.
"""
