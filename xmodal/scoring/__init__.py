"""Every image against every caption, in blocks."""
