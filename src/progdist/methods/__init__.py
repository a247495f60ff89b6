"""What a student learns: targets, losses, the chain, stage 0; imports torch alone."""
