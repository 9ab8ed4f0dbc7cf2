"""Gradient-carrying and mask-aware pieces that parts share."""
