"""Where experts are and how they move: host store, link, device slots, and the scheduler that drives all three."""
