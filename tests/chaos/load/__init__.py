"""Dockyard under load: a thousand clients of one object or of many, slow clients, retries, request rates for tags."""
