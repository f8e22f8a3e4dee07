"""The parsers of references, manifests, ranges, challenges, links and lists: tables and generated input."""
