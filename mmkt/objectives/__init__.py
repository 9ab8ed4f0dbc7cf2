"""Objectives, one file each: the terms a learner is trained on."""
