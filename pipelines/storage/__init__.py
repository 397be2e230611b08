"""Storage on a disk or on S3: URIs and folders, atomic writes, transfers and retries."""
