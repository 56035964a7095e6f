"""From text to packed tokens: chat templates, encoding, packing, redaction."""
