"""One trial: the stream that all share, the learner that runs on it, and what it is judged by."""
