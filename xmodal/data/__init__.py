"""Where things come from: region stores, captions, vocabularies and the batches made of them."""
