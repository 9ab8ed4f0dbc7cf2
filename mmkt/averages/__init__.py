"""Averages of weights, one file each: how far the average moves at each step."""
