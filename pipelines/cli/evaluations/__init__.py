"""Commands about what `casa evaluate` wrote: compare two evaluations, score one anew."""
