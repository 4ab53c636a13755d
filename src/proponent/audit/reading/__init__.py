"""The parts of reading a table, from bytes to typed columns; `proponent.audit.read` puts them together."""
