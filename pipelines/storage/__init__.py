"""Where artifacts lie: folders on a disk or on S3, and how files appear in them whole."""
