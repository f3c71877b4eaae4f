"""Both papers' formulas written down directly, every intermediate materialized.

:mod:`~garevla.reference.gare` and :mod:`~garevla.reference.discovla` say what the rest of the
package computes: tests hold every backend to them, benchmarks measure against them. They are meant
to be read, not to be fast. Nothing else in the package imports them.
"""
