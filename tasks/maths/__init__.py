"""Word problems in the style of GSM8K: templates and generator of our own, and the conversion of GSM8K's own files."""
