"""The paper's benchmarks, those beyond it, and one's own: where data are, what is asked, how to score."""
