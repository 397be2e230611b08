"""A judge compares two commentaries of one event: how it is asked, and what its verdicts come to."""
