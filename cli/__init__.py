"""`kumi`, a thin command line: nouns and options come from the API's descriptors."""
