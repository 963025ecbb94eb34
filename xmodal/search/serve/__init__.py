"""`xmodal serve`: an index as a JSON API and a page to look at (needs the extra `serve`)."""
