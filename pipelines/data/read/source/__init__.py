"""Where raw records lie and what a reader is: files, spans, subsets, reasons."""
