"""Heads, one file each: a task's answer from what was fused."""
