"""Adapters, one file each: small changes to a body that train in its place."""
