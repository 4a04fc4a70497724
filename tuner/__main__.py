"""`python -m tuner`: the command line where the script is not on the path."""

from tuner.cli.main import main

main()
