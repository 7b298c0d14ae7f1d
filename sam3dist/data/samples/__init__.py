"""Generated scenes with exact masks and phrases, and the small SAM3 teacher trained on them: the embedded default."""
