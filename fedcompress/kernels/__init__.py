"""Compiled loops over the entries of an update, for which no library serves.

numba takes half a second to load, so modules of kernels are imported where they are first
called. Compiled code is kept on disk; kernels release the interpreter's lock.
"""
