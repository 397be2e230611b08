"""Settings of rows that choose tokens, drawn at random."""

from __future__ import annotations

from hypothesis import strategies as st

from casa_core.engine.requests import SamplingParams

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 4, 99]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(-9, 9),
    repetition_penalty=st.sampled_from([0.0, 1.0]),
    no_repeat_ngram_size=st.sampled_from([0, 0, 1, 2]),
    no_repeat_window=st.integers(2, 5),
    stop_bias=st.sampled_from([0.0, 1.0]),
)
