"""What evaluations keep: answers by what they depend on, and the files of results."""
