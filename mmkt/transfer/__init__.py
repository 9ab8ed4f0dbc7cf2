"""Transfer strategies, one file each: what trains, when, how fast."""
