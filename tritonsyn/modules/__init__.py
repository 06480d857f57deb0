"""Modules: parameters, state and units (ms, pC, nA)."""
