"""One self-contained HTML file that shows what a run did, how well, and where each part of it came from."""
