"""Adapters to other libraries: a module for each, which imports that library.

None is imported with the package: ``from tritonsyn.interop import norse``, for example, needs
norse.
"""
