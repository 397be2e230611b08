"""Where raw records lie and what a reader is: files, locations, spans, subsets, reasons."""
