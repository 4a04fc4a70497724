"""The command line: parse, call the library once, render. Nothing heavy is imported at the top."""
