"""Records, and the tables, pages and figures derived from them. Loads no torch."""
