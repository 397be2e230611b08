"""Building blocks of every HTML page: escaped tags, the document frame, charts, scales, style and script."""
