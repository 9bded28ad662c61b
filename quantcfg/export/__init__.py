"""Writing a finished run as a file that other tools take, and proving that it computes the same."""
