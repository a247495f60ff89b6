"""What tests of several wings share. Tests import from here, never from one another."""
