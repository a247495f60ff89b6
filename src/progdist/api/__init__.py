"""What a person imports beside the mathematics: distill, load, save and sample."""
