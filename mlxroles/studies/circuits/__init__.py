"""Runs of ``mlxroles circuits``: what the weights of heads say without a prompt."""
