"""Does ADDR help? The three heads with and without it."""
