"""Attacks, one file each: searches for inputs on which a model is wrong."""
