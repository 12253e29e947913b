"""A service over a library: OpenAI's HTTP interface, and a page to use it in a browser."""
