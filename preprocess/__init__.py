"""Command-line programs that turn raw data into region stores and caption files."""
