"""Runs of ``mlxroles lens``: reading prompts through the lens, and fitting a tuned one."""
