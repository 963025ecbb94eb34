"""The demo, and the scenes of emoji that it draws, describes, learns from and is tested on."""
