"""Looking at what a matcher learned: retrieval sheets and attention over boxes."""
