"""The compiled operators (``csrc/``): loaded at first use, outputs allocated here.

Every module has the functions of the reference of the same name, with the same signatures.
"""
