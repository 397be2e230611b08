"""The parts of the report: each turns a run into markup, and knows what to say without its artifact."""
