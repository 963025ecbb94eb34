"""One trainer for every head and every objective."""
