"""From a manifest to batches: manifest, media, decode, rows, collate, sampling."""
