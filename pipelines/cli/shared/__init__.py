"""What several commands share: their options, and the run that they work on."""
