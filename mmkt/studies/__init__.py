"""Studies: outer loops that train many times and make one table."""
