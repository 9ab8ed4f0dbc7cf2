"""Fusions, one file each: many ``Encoded`` in the shared space in, one out."""
