"""Profiler traces into answers: read, map kernels to steps, layers and modules, report, compare.

Speaks files only: no torch, no engine.
"""
