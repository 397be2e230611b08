"""What the commands print: tables and results for people, JSON for scripts."""
