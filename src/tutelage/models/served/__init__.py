"""Models behind a vLLM server: a teacher that scores and samples, a student that samples."""
