"""The report of a run: results, data, training and lineage as one HTML page, with data cards beside it."""
