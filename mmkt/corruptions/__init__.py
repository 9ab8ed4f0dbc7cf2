"""Ways in which inputs get worse: one file, one class each."""
