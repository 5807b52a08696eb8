"""`python -m trajmill.cli`."""

from trajmill.cli import main

main()
