"""`python -m modelmount`: the same as the `modelmount` command."""

from modelmount.cli import main

if __name__ == "__main__":
    main()
