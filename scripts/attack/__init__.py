"""Attacks on the promises of docs/reliability.md: kills, full disks, damaged and hostile files, two at once."""
