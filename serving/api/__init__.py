"""HTTP in, HTTP out. A dialect is a parser and an encoder; nothing below this folder knows of it."""
