"""The room of the Triton kernels, installed as ``iadd_fast.kernels``.

Imports nothing of the project.
"""
